// Recorded generations on a stand-in for the driver: what is launched, copied and padded, failing calls,
// misuse, and damaged recordings. Kernels compute nothing here; tests/parity/test_cpp_gpu.py has them
// computed.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "bundle.h"
#include "check.h"
#include "consistent.h"
#include "error.h"
#include "fake_cuda.h"
#include "hmar_runtime.hpp"
#include "recording.h"

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

constexpr int kSkipped = 77;
constexpr const char* kParts[] = {"sampling", "decoder", "transformer", "glue"};
std::string bundle_folder, onnxruntime;

// The stand-ins' functions.
struct Fake {
    decltype(&fake_cuda_on_operation) on_operation;
    decltype(&fake_cuda_set_device) set_device;
    decltype(&fake_cuda_fail) fail;
    decltype(&fake_cuda_live) live;
    decltype(&fake_cuda_violations) violations;
    decltype(&fake_plugins_set) set_plugins;
} fake;

std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

template <typename Function>
void find(Function& function, void* library, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) std::abort();
}

void load_fakes() {
    // the library asks for libcuda.so.1, and gets what is loaded under this name
    void* cuda = dlopen(FAKE_CUDA, RTLD_NOW | RTLD_GLOBAL);
    void* plugins = dlopen(FAKE_PLUGINS, RTLD_NOW | RTLD_LOCAL);
    if (cuda == nullptr || plugins == nullptr) std::abort();
    find(fake.on_operation, cuda, "fake_cuda_on_operation");
    find(fake.set_device, cuda, "fake_cuda_set_device");
    find(fake.fail, cuda, "fake_cuda_fail");
    find(fake.live, cuda, "fake_cuda_live");
    find(fake.violations, cuda, "fake_cuda_violations");
    find(fake.set_plugins, plugins, "fake_plugins_set");
    for (const char* part : kParts) {
        fake.set_plugins(
            part, read_file(fs::path(bundle_folder) / "tables" / (std::string(part) + ".json")).c_str());
    }
}

hmar_session_options options(int32_t backend = HMAR_BACKEND_GPU, int32_t max_batch = 0) {
    hmar_session_options options{};
    options.backend = backend;
    options.library = onnxruntime.c_str();
    options.plugins = FAKE_PLUGINS;
    options.threads = 1;
    options.max_batch = max_batch;
    return options;
}

fs::path recordings(const std::string& folder) { return fs::path(folder) / "engines" / "sm90_recordings"; }

Json index_of(const std::string& folder) {
    return Json::parse(read_file(recordings(folder) / "recordings.json"));
}

// The recording of the bundle's own settings for a batch.
Json recording_of(int batch) {
    const Json index = index_of(bundle_folder);
    for (const Json& entry : index.at("generations")) {
        if (entry.at("plan").at("batch") == batch) {
            return Json::parse(read_file(recordings(bundle_folder) / entry.at("file").get<std::string>()));
        }
    }
    std::abort();
}

// --- what a replay does

struct Seen {
    FakeOperation operation;
    std::string kernel;
    std::vector<uint64_t> arguments;
};
std::vector<Seen> seen;

void note(const FakeOperation* operation) {
    seen.push_back(
        {*operation, operation->kernel,
         std::vector<uint64_t>(operation->arguments, operation->arguments + operation->num_arguments)});
}

// Where buffers are, found out from the first address in each.
class Buffers {
  public:
    bool is_at(const Json& pointer, uint64_t address) {
        const int buffer = pointer.at(0);
        const uint64_t base = address - pointer.at(1).get<uint64_t>();
        return buffer == -1 ? address == 0 : bases_.emplace(buffer, base).first->second == base;
    }
    uint64_t address(const Json& place) const { return bases_.at(place.at(0)) + place.at(1).get<uint64_t>(); }

  private:
    std::map<int, uint64_t> bases_;
};

bool is_argument(const Json& recorded, const std::string& kind, uint64_t bits, Buffers& buffers) {
    if (kind == "pointer") return recorded.is_array() && buffers.is_at(recorded, bits);
    int32_t integer = 0;
    float real = 0;
    std::memcpy(&integer, &bits, sizeof integer);
    std::memcpy(&real, &bits, sizeof real);
    return kind == "i32" ? recorded == integer : recorded.get<float>() == real;
}

bool is_launch(const Json& recorded, const Json& recording, const Seen& got, Buffers& buffers) {
    static std::map<std::string, nlohmann::ordered_json> tables;
    const Json& kernel = recording.at("kernels").at(recorded.at(1).get<size_t>());
    const std::string part = kernel.at(0), name = kernel.at(1);
    if (tables.count(part) == 0) {
        const auto path = fs::path(bundle_folder) / "tables" / (part + ".json");
        tables[part] = nlohmann::ordered_json::parse(read_file(path)).at("90");
    }
    const auto& entry = tables[part].at(name);
    const FakeOperation& op = got.operation;
    bool same =
        op.kind == 0 && got.kernel == name && op.threads == entry.at("threads") &&
        op.shared_bytes == entry.at("shared_bytes") && (op.overlaps != 0) == entry.value("overlaps", false) &&
        got.arguments.size() + 5 == recorded.size() && got.arguments.size() == entry.at("parameters").size();
    for (size_t i = 0; i < 3 && same; ++i) same = op.grid[i] == recorded.at(2 + i);
    size_t i = 0;
    for (const auto& [parameter, kind] : entry.at("parameters").items()) {
        same = same && is_argument(recorded.at(5 + i), kind, got.arguments[i], buffers);
        ++i;
    }
    return same;
}

Buffers check_operations(const Json& recording) {
    Buffers buffers;
    const Json& operations = recording.at("operations");
    CHECK(seen.size() == operations.size());
    size_t different = 0;
    for (size_t i = 0; i < operations.size() && i < seen.size(); ++i) {
        const Json& recorded = operations[i];
        const FakeOperation& op = seen[i].operation;
        bool same = op.kind == recorded.at(0);
        if (same && op.kind == 0) same = is_launch(recorded, recording, seen[i], buffers);
        if (same && op.kind == 1) {
            same = buffers.is_at(recorded.at(1), op.target) && buffers.is_at(recorded.at(2), op.source) &&
                   op.nbytes == recorded.at(3);
        }
        if (same && op.kind == 2) {
            same = buffers.is_at(Json::array({recorded.at(1), recorded.at(2)}), op.target) &&
                   op.nbytes == recorded.at(3);
        }
        different += !same;
    }
    CHECK(different == 0);
    return buffers;
}

template <typename T>
std::vector<T> values_at(uint64_t address, size_t count) {
    std::vector<T> values(count);
    std::memcpy(values.data(), reinterpret_cast<const void*>(address), count * sizeof(T));
    return values;
}

void test_operations_and_inputs(const hmar::Bundle& bundle) {
    const hmar::Session session(bundle, options());
    CHECK(session.backend() == "gpu (Fake GPU, sm90)");
    CHECK(session.why_not_gpu().empty());
    hmar::Request request(bundle, {4, HMAR_NO_CLASS});
    request.seed = UINT64_MAX - 6;
    request.image_index = {UINT64_C(1) << 63, 9};
    seen.clear();
    session.generate(request);
    const Json recording = recording_of(3), &inputs = recording.at("inputs");
    const Buffers buffers = check_operations(recording);
    const int32_t none = bundle.info().num_classes;
    CHECK(values_at<int32_t>(buffers.address(inputs.at("labels")), 6) ==
          (std::vector<int32_t>{4, none, none, none, none, none}));
    CHECK(values_at<uint64_t>(buffers.address(inputs.at("images")), 3) ==
          (std::vector<uint64_t>{UINT64_C(1) << 63, 9, 0}));
    CHECK(values_at<uint64_t>(buffers.address(inputs.at("seed")), 1)[0] == UINT64_MAX - 6);
    CHECK(values_at<double>(buffers.address(inputs.at("settings")), 3) ==
          (std::vector<double>{request.cfg, double(request.top_k), request.top_p}));
    // weights are what the index says
    const Json weights = index_of(bundle_folder).at("weights");
    const std::string data = read_file(recordings(bundle_folder) / "data.bin");
    size_t different = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        for (const Json& piece : weights[i].at("pieces")) {
            if (piece.at(2) != "data") continue;
            const auto got = values_at<char>(buffers.address(Json::array({2 + i, piece.at(0)})), piece.at(1));
            different += std::memcmp(got.data(), data.data() + piece.at(3).get<size_t>(), got.size()) != 0;
        }
        for (const Json& zeros : weights[i].at("zeros")) {
            for (const char c :
                 values_at<char>(buffers.address(Json::array({2 + i, zeros.at(0)})), zeros.at(1))) {
                different += c != 0;
            }
        }
    }
    CHECK(weights.size() == 3 && different == 0);

    // another request takes the same graph
    request.labels = {1, 2, 3}, request.image_index = {}, request.cfg = 3;
    seen.clear();
    session.generate(request);
    check_operations(recording);
    CHECK(values_at<int32_t>(buffers.address(inputs.at("labels")), 4) ==
          (std::vector<int32_t>{1, 2, 3, none}));
    CHECK(values_at<uint64_t>(buffers.address(inputs.at("images")), 3) == (std::vector<uint64_t>{0, 1, 2}));
    CHECK(values_at<double>(buffers.address(inputs.at("settings")), 1)[0] == 3);

    // a smaller batch has a graph of its own, in the same memory
    request.labels = {5};
    const int live = fake.live();
    seen.clear();
    session.generate(request);
    check_operations(recording_of(1));
    CHECK(fake.live() == live + 2);  // the graph, and what it reads
}

// --- what comes back

Json marked;  // the recording that outputs are marked for
uint64_t scratch = 0;

// Writes into the outputs which label a row has, once the last operation is there.
void mark_outputs(const FakeOperation* operation) {
    if (std::strncmp(operation->kernel, "to_uint8", 8) != 0) return;
    // arguments: image, pixels
    scratch = operation->arguments[1] - marked.at("pixels").at(1).get<uint64_t>();
    const auto at = [](const Json& place) { return scratch + place.at(1).get<uint64_t>(); };
    const size_t batch = marked.at("plan").at("batch");
    const auto labels = values_at<int32_t>(at(marked.at("inputs").at("labels")), batch);
    const auto fill = [&](const Json& place, auto value_of) {
        using T = decltype(value_of(int32_t{}));
        const size_t count = place.at(2).get<size_t>() / sizeof(T) / batch;
        auto* values = reinterpret_cast<T*>(at(place));
        for (size_t b = 0; b < batch; ++b) std::fill_n(values + b * count, count, value_of(labels[b]));
    };
    fill(marked.at("pixels"), [](int32_t label) { return uint8_t(label); });
    fill(marked.at("image"), [](int32_t label) { return float(label) / 2; });
    for (size_t k = 0; k < marked.at("tokens").size(); ++k) {
        fill(marked.at("tokens")[k], [&](int32_t label) { return int32_t(100 * k) + label; });
    }
}

void test_outputs_are_those_of_the_images(const hmar::Bundle& bundle) {
    const hmar::Session session(bundle, options(HMAR_BACKEND_GPU, 3));
    hmar::Request request(bundle, {1, 2, 3, 4, 5});
    marked = recording_of(3);
    fake.on_operation(mark_outputs);
    const size_t side = size_t(bundle.info().image_side_px), size = 3 * side * side, count = 5;
    std::vector<uint8_t> pixels(count * size);
    std::vector<float> image(count * size);
    std::vector<int32_t> tokens(count * size_t(bundle.info().num_tokens));
    hmar_output output{};
    output.pixels = pixels.data(), output.pixels_size = pixels.size();
    output.image = image.data(), output.image_size = image.size();
    output.tokens = tokens.data(), output.tokens_size = tokens.size();
    session.generate(request, output);
    size_t different = 0;
    for (size_t i = 0; i < count * size; ++i) {
        const auto label = uint8_t(1 + i / size);
        different += pixels[i] != label || image[i] != float(label) / 2;
    }
    const int32_t* token = tokens.data();
    for (int32_t label = 1; label <= 5; ++label) {
        for (int32_t k = 0; k < bundle.info().num_scales; ++k) {
            const int32_t pn = bundle.info().patch_nums[k];
            for (int32_t i = 0; i < pn * pn; ++i) different += *token++ != 100 * k + label;
        }
    }
    CHECK(different == 0);
    // what is not wanted is not written
    hmar_output nothing{};
    session.generate(request, nothing);
    // with a smaller limit, images go one by one
    const hmar::Session single(bundle, options(HMAR_BACKEND_GPU, 1));
    marked = recording_of(1);
    CHECK(single.generate(request).pixels == pixels);
    fake.on_operation(note);
}

// --- more recordings than graphs are kept

void test_graphs_are_bounded(const hmar::Bundle& bundle) {
    constexpr int kGraphs = 8, kObjects = 2;  // a graph, and the memory that only it reads
    const hmar::Session session(bundle, options());
    const Json index = index_of(bundle_folder);
    CHECK(index.at("generations").size() > kGraphs);
    const int opened = fake.live();
    for (int round = 0; round < 2; ++round) {
        for (const Json& entry : index.at("generations")) {
            const Json& plan = entry.at("plan");
            hmar::Request request(bundle, std::vector<int32_t>(plan.at("batch").get<size_t>(), 1));
            request.mask_schedule.clear();
            if (!plan.at("schedule").is_null()) request.mask_schedule = plan.at("schedule");
            if (plan.at("is_mask_guided").get<bool>()) request.skip_guidance_below = 0;
            seen.clear();
            session.generate(request);
            const auto file = recordings(bundle_folder) / entry.at("file").get<std::string>();
            check_operations(Json::parse(read_file(file)));
        }
    }
    // besides the graphs: scratch memory, staging memory, and the modules of all parts
    CHECK(fake.live() == opened + kGraphs * kObjects + 2 + int(std::size(kParts)));
}

// --- requests that no recording serves

void test_refusals(const hmar::Bundle& bundle) {
    const hmar::Session gpu(bundle, options()), automatic(bundle, options(HMAR_BACKEND_AUTO));
    const hmar::Session ort(bundle, options(HMAR_BACKEND_ORT_CPU));
    CHECK(automatic.backend() == gpu.backend());
    const auto refuses = [&](const char* part, auto change) {
        hmar::Request request(bundle, {1, 2});
        change(request);
        CHECK_THROWS(gpu.generate(request), hmar::Error, part);
        CHECK_THROWS(gpu.generate(request), hmar::Error, "HMAR_BACKEND_AUTO");
        seen.clear();
        const hmar::Images images = automatic.generate(request);
        CHECK(seen.empty());
        CHECK(images.tokens == ort.generate(request).tokens);
    };
    refuses("calls nothing back", [](auto& r) { r.on_scale = [](const hmar_scale_event&) { return true; }; });
    refuses("known tokens", [&](auto& r) {
        r.known_tokens.assign(2 * size_t(bundle.info().num_tokens), 0);
        r.keep.assign(r.known_tokens.size(), 0);
    });
    refuses("HMAR_DRAWS_SEED", [](auto& r) { r.draws = HMAR_DRAWS_ARGMAX; });
    refuses("HMAR_CONTEXT_PREFIX", [](auto& r) {
        r.context = HMAR_CONTEXT_PREFIX;
        r.mask_schedule.clear();
    });
    refuses("--record-schedules", [](auto& r) { r.mask_schedule[3] = {15, 1}; });
    refuses("--record-schedules", [](auto& r) { r.cfg = 0; });
    refuses("--record-schedules", [](auto& r) { r.skip_guidance_below = 0; });
    std::vector<uint8_t> pixels(size_t(3) *
                                size_t(bundle.info().image_side_px * bundle.info().image_side_px));
    std::vector<int32_t> tokens(size_t(bundle.info().num_tokens));
    hmar_error* error = nullptr;
    CHECK(hmar_encode(gpu.handle(), pixels.data(), pixels.size(), tokens.data(), tokens.size(), &error) ==
          HMAR_UNSUPPORTED);
    CHECK(std::string(hmar_error_message(error)).find("do not encode") != std::string::npos);
    hmar_error_free(error);
    CHECK(hmar_encode(automatic.handle(), pixels.data(), pixels.size(), tokens.data(), tokens.size(),
                      nullptr) == HMAR_OK);

    // entries that ask for the same work are the same
    hmar::Request request(bundle, {1});
    request.mask_schedule[0] = {5, 5};
    seen.clear();
    gpu.generate(request);
    check_operations(recording_of(1));
    const hmar::Cancel cancel;
    cancel.request();
    request.cancel = &cancel;
    CHECK_THROWS(gpu.generate(request), hmar::Error, "");
    request.cancel = nullptr, request.labels = {99};
    CHECK_THROWS(gpu.generate(request), hmar::Error, "label 99 is out of range");
}

// --- machines and bundles that do not fit

void test_what_does_not_fit(const hmar::Bundle& bundle) {
    const auto unavailable = [&](const char* part) {
        CHECK_THROWS(hmar::Session(bundle, options()), hmar::Error, part);
        const hmar::Session otherwise(bundle, options(HMAR_BACKEND_AUTO));
        CHECK(otherwise.backend().rfind("ort-", 0) == 0);
        CHECK(otherwise.why_not_gpu().find(part) != std::string::npos);
    };
    fake.set_device(1, 8, 0);
    unavailable("recorded for sm90, this GPU is sm80");
    fake.set_device(0, 9, 0);
    unavailable("no CUDA device");
    fake.set_device(1, 9, 0);
    const std::string table = read_file(fs::path(bundle_folder) / "tables" / "glue.json");
    fake.set_plugins("glue", (table + " ").c_str());
    unavailable("recorded with other glue kernels");
    fake.set_plugins("glue", table.c_str());
    hmar_session_options wrong = options();
    wrong.plugins = "/nowhere/libhmar_plugins.so";
    CHECK_THROWS(hmar::Session(bundle, wrong), hmar::Error, "kernels cannot be loaded");
    CHECK(fake.live() == 0);
}

// --- calls that fail

constexpr const char* kFunctions[] = {"cuInit",
                                      "cuDeviceGetCount",
                                      "cuDeviceGet",
                                      "cuDeviceGetName",
                                      "cuDeviceGetAttribute",
                                      "cuDevicePrimaryCtxRetain",
                                      "cuCtxPushCurrent_v2",
                                      "cuMemAlloc_v2",
                                      "cuMemAllocHost_v2",
                                      "cuMemcpyHtoDAsync_v2",
                                      "cuMemcpyDtoHAsync_v2",
                                      "cuMemcpyDtoDAsync_v2",
                                      "cuMemsetD8Async",
                                      "cuStreamCreate",
                                      "cuStreamSynchronize",
                                      "cuStreamBeginCapture_v2",
                                      "cuStreamEndCapture",
                                      "cuGraphInstantiateWithFlags",
                                      "cuGraphLaunch",
                                      "cuModuleLoadData",
                                      "cuModuleGetFunction",
                                      "cuFuncSetAttribute",
                                      "cuLaunchKernelEx"};

// One session and one generation; the status of what failed.
hmar_status generate_once(const hmar::Bundle& bundle, std::string& message) {
    try {
        const hmar::Session session(bundle, options());
        hmar::Request request(bundle, {1, 2});
        try {
            session.generate(request);
        } catch (const hmar::Error&) {
            fake.fail(nullptr, 0, 0);
            session.generate(request);  // what failed once may be asked for again
            throw;
        }
        return HMAR_OK;
    } catch (const hmar::Error& error) {
        message = error.what();
        return error.status();
    }
}

void test_failing_calls(const hmar::Bundle& bundle) {
    fake.on_operation(nullptr);
    for (const char* function : kFunctions) {
        std::string message;
        fake.fail(function, 0, 0);
        CHECK(generate_once(bundle, message) == HMAR_OK);
        int calls = fake.fail(nullptr, 0, 0);
        // without a context, closing frees nothing: its two calls are not made to fail
        if (std::strcmp(function, "cuCtxPushCurrent_v2") == 0) calls -= 2;
        CHECK(calls > 0);
        for (const int nth : std::set<int>{1, (calls + 1) / 2, calls}) {
            for (const int result : {2, 700}) {
                if (result == 2 && nth > 1) continue;
                fake.fail(function, nth, result);
                const hmar_status status = generate_once(bundle, message);
                fake.fail(nullptr, 0, 0);
                const bool is_start = std::string(function) == "cuInit";
                const hmar_status expected = is_start      ? HMAR_BACKEND_UNAVAILABLE
                                             : result == 2 ? HMAR_OUT_OF_MEMORY
                                                           : HMAR_BACKEND_FAILED;
                if (status != expected || message.find("CUDA_ERROR") == std::string::npos) {
                    std::fprintf(stderr, "%s, call %d of %d, %d: %s '%s'\n", function, nth, calls, result,
                                 hmar_status_name(status), message.c_str());
                    ++failed_checks;
                }
                CHECK(fake.live() == 0);
            }
        }
    }
    fake.on_operation(note);
}

// --- damaged files

// A bundle with recordings that can be changed; all else is links.
class Copy {
  public:
    Copy() : folder_(fs::temp_directory_path() / ("hmar_gpu_test_" + std::to_string(getpid()))) {
        fs::remove_all(folder_);
        fs::create_directories(folder_ / "engines");
        for (const auto& entry : fs::directory_iterator(bundle_folder)) {
            if (entry.path().filename() == "engines") continue;
            fs::create_symlink(fs::canonical(entry.path()), folder_ / entry.path().filename());
        }
        fs::copy(recordings(bundle_folder), recordings(folder_));
    }
    ~Copy() { fs::remove_all(folder_); }

    std::string folder() const { return folder_.string(); }
    std::string read(const std::string& name) const { return read_file(recordings(folder_) / name); }
    void write(const std::string& name, const std::string& text) const {
        std::ofstream(recordings(folder_) / name, std::ios::binary | std::ios::trunc) << text;
    }

  private:
    const fs::path folder_;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    CHECK(at != std::string::npos);
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

void test_damaged_files() {
    const Copy copy;
    const hmar::Bundle bundle(copy.folder());
    const auto rejects = [&](const std::string& file, const std::string& text, const char* part) {
        const std::string before = copy.read(file);
        copy.write(file, text);
        CHECK_THROWS(hmar::Session(bundle, options()).generate(hmar::Request(bundle, {1})), hmar::Error,
                     part);
        copy.write(file, before);
    };
    const std::string index = copy.read("recordings.json"), data = copy.read("data.bin");
    rejects("recordings.json", index.substr(0, index.size() / 2), "not JSON");
    rejects("recordings.json", std::string(1 << 20, '['), "nested too deeply");
    rejects("recordings.json", replaced(index, "\"format_version\": 1", "\"format_version\": 2"),
            "this release reads version 1");
    const std::string weights = Json::parse(index).at("weights_sha256");
    rejects("recordings.json", replaced(index, weights, std::string(64, '0')), "from other weights");
    const std::string graph = Json::parse(index).at("graphs").begin().value();
    rejects("recordings.json", replaced(index, graph, std::string(64, '0')), "from other graphs");
    rejects("recordings.json", replaced(index, "\"data.bin\"", "\"../data.bin\""), "not in the folder");
    rejects("data.bin", data.substr(1), "data.bin is cut short or altered");
    rejects("data.bin", replaced(data, data.substr(0, 8), std::string(8, 'x')),
            "data.bin is cut short or altered");
    const std::string file = Json::parse(index).at("generations").at(0).at("file");
    rejects(file, replaced(copy.read(file), "[0,", "[2,"), "cut short or altered since it was recorded");
    fs::remove_all(recordings(copy.folder()));
    CHECK_THROWS(hmar::Session(bundle, options()), hmar::Error, "no recordings of generations");
    CHECK(fake.live() == 0);
}

// Random changes of bytes and of values: refused, or of no harm.
void test_mutated_recordings() {
    using namespace hmar::core;
    const hmar::core::Bundle bundle(bundle_folder, HMAR_CHECK_SIZES);
    const std::string text = read_file(recordings(bundle_folder) / "recordings.json");
    const RecordingIndex index = parse_recording_index(text, "index", bundle.manifest());
    const RecordingEntry& entry = index.generations.front();
    const std::string original = read_file(recordings(bundle_folder) / entry.file.file);
    CHECK(is_consistent(parse_recording(original, "recording", bundle.manifest(), index, entry), index));
    std::mt19937 random(0);
    // all but most of the operations, so that a change hits all kinds of fields
    const std::string tail = "]}",
                      short_one = original.substr(0, original.find('\n', original.find("[0,0,") + 2000));
    const std::string recording = short_one.substr(0, short_one.rfind(']') + 1) + tail;
    parse_recording(recording, "recording", bundle.manifest(), index, entry);
    const char* values[] = {"-1",
                            "0",
                            "1e400",
                            "1.5",
                            "null",
                            "\"x\"",
                            "[]",
                            "{}",
                            "9223372036854775807",
                            "true",
                            "18446744073709551615",
                            "4294967296",
                            "[-1,0]",
                            "[0,-1]",
                            "[1,2,3]"};
    int refused = 0, accepted = 0, inconsistent = 0;
    for (int i = 0; i < 4000; ++i) {
        const bool is_index = i % 4 == 0;
        std::string mutated = is_index ? text : recording;
        if (i % 2 == 0) {
            mutated[random() % mutated.size()] = char(random() % 256);
        } else {  // a number becomes another value
            size_t at = random() % mutated.size();
            while (at < mutated.size() && std::isdigit(mutated[at]) == 0) ++at;
            size_t end = at;
            while (end < mutated.size() && std::isdigit(mutated[end]) != 0) ++end;
            mutated.replace(at, end - at, values[random() % std::size(values)]);
        }
        try {
            if (is_index) {
                parse_recording_index(mutated, "index", bundle.manifest());
            } else {
                inconsistent += !is_consistent(
                    parse_recording(mutated, "recording", bundle.manifest(), index, entry), index);
            }
            ++accepted;
        } catch (const Error&) {
            ++refused;
        }
    }
    CHECK(inconsistent == 0);
    CHECK(refused > 1000 && accepted > 50);
}

// --- several threads

void test_threads(const hmar::Bundle& bundle) {
    marked = recording_of(3);
    fake.on_operation(mark_outputs);
    {
        hmar::Session session(bundle, options(HMAR_BACKEND_GPU, 3));
        const hmar::Session other(bundle, options(HMAR_BACKEND_GPU, 3));
        std::atomic<int> right{0};
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i) {
            threads.emplace_back([&, i] {
                for (int j = 0; j < 3; ++j) {
                    const hmar::Images images =
                        (i == 3 ? other : session).generate(hmar::Request(bundle, {i + 1, i + 2}));
                    right += images.pixels.front() == i + 1 && images.pixels.back() == i + 2;
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK(right == 12);
        // closed while it is at work
        std::thread working([&] {
            try {
                while (true) session.generate(hmar::Request(bundle, {1, 2}));
            } catch (const hmar::Error& error) {
                right += error.status() == HMAR_INVALID_HANDLE;
            }
        });
        hmar_session handle = session.handle();
        CHECK(hmar_session_close(&handle, nullptr) == HMAR_OK);
        working.join();
        CHECK(right == 13);
    }
    fake.on_operation(note);
    CHECK(fake.live() == 0);
}

}  // namespace

// `gpu_test threads` runs the threads alone.
int main(int argc, char**) {
    const char *folder = std::getenv("HMAR_TEST_RECORDED"), *path = std::getenv("HMAR_TEST_ONNXRUNTIME");
    if (folder == nullptr || path == nullptr) {
        std::puts("HMAR_TEST_RECORDED and HMAR_TEST_ONNXRUNTIME are not set");
        return kSkipped;
    }
    bundle_folder = folder, onnxruntime = path;
    load_fakes();
    fake.on_operation(note);
    {
        const hmar::Bundle bundle(bundle_folder);
        if (argc < 2) {
            test_operations_and_inputs(bundle);
            test_outputs_are_those_of_the_images(bundle);
            test_graphs_are_bounded(bundle);
            test_refusals(bundle);
            test_what_does_not_fit(bundle);
            test_failing_calls(bundle);
            test_damaged_files();
            test_mutated_recordings();
        }
        test_threads(bundle);
    }
    CHECK(fake.live() == 0);
    CHECK(fake.violations() == 0);
    return checked();
}

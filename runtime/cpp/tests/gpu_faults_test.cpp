// Recorded generations on a stand-in for the driver: machines and bundles that do not fit, failing calls, and
// damaged recordings.
#include <unistd.h>

#include <cstring>
#include <random>
#include <set>

#include "bundle.h"
#include "consistent.h"
#include "error.h"
#include "launch_arguments.h"
#include "on_fakes.h"
#include "recording.h"

namespace {

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
                                      "cuTensorMapEncodeTiled",
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
    rejects("recordings.json", replaced(index, "\"format_version\": 2", "\"format_version\": 1"),
            "this release reads version 2");
    const std::string weights = Json::parse(index).at("weights_sha256");
    rejects("recordings.json", replaced(index, weights, std::string(64, '0')), "from other weights");
    const std::string graph = Json::parse(index).at("graphs").begin().value();
    rejects("recordings.json", replaced(index, graph, std::string(64, '0')), "from other graphs");
    rejects("recordings.json", replaced(index, "\"data.bin\"", "\"../data.bin\""), "not in the folder");
    rejects("data.bin", data.substr(1), "data.bin is cut short or altered");
    rejects("data.bin", replaced(data, data.substr(0, 8), std::string(8, 'x')),
            "data.bin is cut short or altered");
    const std::string file = Json::parse(index).at("recordings").at(0).at("file");
    rejects(file, replaced(copy.read(file), "[0,", "[2,"), "cut short or altered since it was recorded");
    fs::remove_all(recordings(copy.folder()));
    CHECK_THROWS(hmar::Session(bundle, options()), hmar::Error, "has no recordings");
    CHECK(fake.live() == 0);
}

// --- tensor maps

void test_tensor_maps() {
    using namespace hmar::core;
    const CudaDevice device;
    const CudaDevice::Current current(device);
    const DeviceMemory memory(device, 2 * 64 * 16);
    const TensorMapRule rule{{{64, -1}, {1, 1}}, {64, 8}};
    const KernelEntry entry{128, 0, false, {ParameterKind::tensor_map, ParameterKind::i32}, {{0, rule}}};
    const auto make = [&](const LaunchArgument& array, int64_t rows) {
        const RecordedLaunch launch{0, {1, 1, 1}, {array, rows}};
        LaunchArguments(device, launch, Kernel{&entry, nullptr}, "k",
                        [&](const BufferPointer&) { return memory.address(); });
        return true;
    };
    CHECK(make(BufferPointer{0, 0}, 16));
    CHECK_THROWS(make(NullPointer{}, 16), hmar::core::Error,
                 "argument 0 of its recording is of another kind");
    for (const int64_t rows : {0, -1}) {
        CHECK_THROWS(make(BufferPointer{0, 0}, rows), hmar::core::Error, text("an array of size ", rows));
    }

    const std::string table = read_file(fs::path(bundle_folder) / "tables" / "glue.json");
    const auto refuses = [&](const char* sizes, const char* box, const char* part) {
        fake.set_plugins("glue", text(R"({"90": {"k": {"threads": 128, "shared_bytes": 0, "parameters": )"
                                      R"({"x": "tensor_map", "n": "i32", "by": "fp32"}, "tensor_maps": )"
                                      R"({"x": {"sizes": )",
                                      sizes, R"(, "box": )", box, "}}}}}")
                                     .c_str());
        CHECK_THROWS(KernelTables(options().plugins).read("glue", "sm90"), hmar::core::Error, part);
    };
    refuses(R"([[1, "m"]])", "[64]", "whose size is no whole number: m");
    refuses(R"([[1, "by"]])", "[64]", "whose size is no whole number: by");
    refuses(R"([[1, "n"], [1, "n"]])", "[64]", "of 2 dimensions and a box of 1");
    refuses(R"([[1, "n"]])", "[16]", "with rows of 16 values");
    refuses(R"([["n", 1]])", "[64]", "that this release does not read");
    fake.set_plugins("glue", table.c_str());
}

// Random changes of bytes and of values: refused, or of no harm.
void test_mutated_recordings() {
    using namespace hmar::core;
    const hmar::core::Bundle bundle(bundle_folder, HMAR_CHECK_SIZES);
    // with an engine, so that a recording may run it
    Json with_engine = index_of(bundle_folder);
    with_engine["engines"] = {{"folder", "sm90_trt"},
                              {"library", "tensorrt"},
                              {"library_version", "10.14.1.48"},
                              {"needs_plugin", false},
                              {"plans", {{{"file", "a.plan"}, {"sha256", ""}, {"nbytes", 1}}}}};
    const std::string text = with_engine.dump();
    const RecordingIndex index = parse_recording_index(text, "index", bundle.manifest());
    const RecordingEntry& entry = index.recordings.front();
    const std::string original = read_file(recordings(bundle_folder) / entry.file.file);
    CHECK(is_consistent(parse_recording(original, "recording", bundle.manifest(), index, entry), index));
    std::mt19937 random(0);
    // all but most of the operations, so that a change hits all kinds of fields
    const std::string tail = R"(,[3,0,0,[0,0,8],[["x",[0,16,4],[2,2]]],[["y",[1,0,4],[2]]]]]})",
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

}  // namespace

int main() {
    return run_on_fakes([](const hmar::Bundle& bundle) {
        test_what_does_not_fit(bundle);
        test_failing_calls(bundle);
        test_damaged_files();
        test_tensor_maps();
        test_mutated_recordings();
    });
}

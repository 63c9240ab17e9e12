// Recorded generations on a stand-in for the driver: what is launched, copied and padded, requests that are
// refused, and threads. Kernels compute nothing here; tests/parity/test_cpp_gpu.py has them computed.
#include <atomic>
#include <cstring>
#include <map>
#include <thread>

#include "on_fakes.h"

namespace {

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
    if (kind == "pointer" || kind == "tensor_map")
        return recorded.is_array() && buffers.is_at(recorded, bits);
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
    scratch = operation->arguments[1] - marked.at("outputs").at("pixels").at(1).get<uint64_t>();
    const auto at = [](const Json& place) { return scratch + place.at(1).get<uint64_t>(); };
    const size_t batch = marked.at("plan").at("batch");
    const auto labels = values_at<int32_t>(at(marked.at("inputs").at("labels")), batch);
    const auto fill = [&](const Json& place, auto value_of) {
        using T = decltype(value_of(int32_t{}));
        const size_t count = place.at(2).get<size_t>() / sizeof(T) / batch;
        auto* values = reinterpret_cast<T*>(at(place));
        for (size_t b = 0; b < batch; ++b) std::fill_n(values + b * count, count, value_of(labels[b]));
    };
    fill(marked.at("outputs").at("pixels"), [](int32_t label) { return uint8_t(label); });
    fill(marked.at("outputs").at("image"), [](int32_t label) { return float(label) / 2; });
    for (size_t k = 0; k < marked.at("plan").at("is_guided").size(); ++k) {
        const std::string name = "s" + std::to_string(k) + "_tokens";
        fill(marked.at("outputs").at(name), [&](int32_t label) { return int32_t(100 * k) + label; });
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
    CHECK(index.at("recordings").size() > kGraphs);
    const int opened = fake.live();
    for (int round = 0; round < 2; ++round) {
        for (const Json& entry : index.at("recordings")) {
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
    CHECK(std::string(hmar_error_message(error)).find("no recording encodes") != std::string::npos);
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
    return run_on_fakes([&](const hmar::Bundle& bundle) {
        fake.on_operation(note);
        if (argc < 2) {
            test_operations_and_inputs(bundle);
            test_outputs_are_those_of_the_images(bundle);
            test_graphs_are_bounded(bundle);
            test_refusals(bundle);
        }
        test_threads(bundle);
    });
}

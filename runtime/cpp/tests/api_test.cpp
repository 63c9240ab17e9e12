// The C interface on a real bundle: right use from several threads, and every kind of wrong use.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "check.h"
#include "hmar_runtime.hpp"

namespace fs = std::filesystem;

namespace {

constexpr int kSkipped = 77;
std::string bundle_folder, library;

hmar_session_options options(int32_t max_batch = 8) {
    hmar_session_options options{};
    options.backend = HMAR_BACKEND_ORT_CPU;
    options.library = library.c_str();
    options.threads = 1;
    options.max_batch = max_batch;
    return options;
}

// The status of a call, and a part of its message.
template <typename... Parameters, typename... Arguments>
bool fails(hmar_status status, const std::string& part, hmar_status (*function)(Parameters...),
           Arguments... arguments) {
    hmar_error* error = nullptr;
    const hmar_status got = function(arguments..., &error);
    const std::string message = hmar_error_message(error);
    hmar_error_free(error);
    if (got == status && message.find(part) != std::string::npos) return true;
    std::fprintf(stderr, "expected %s '%s', got %s '%s'\n", hmar_status_name(status), part.c_str(),
                 hmar_status_name(got), message.c_str());
    return false;
}

// A copy of the bundle in a folder of its own, where files can be changed; most are links.
class Copy {
  public:
    Copy() : folder_(fs::temp_directory_path() / ("hmar_api_test_" + std::to_string(getpid()))) {
        fs::remove_all(folder_);
        fs::create_directories(folder_ / "graphs");
        for (const auto& entry : fs::directory_iterator(fs::path(bundle_folder) / "graphs")) {
            fs::create_symlink(fs::absolute(entry.path()), folder_ / "graphs" / entry.path().filename());
        }
        for (const char* name : {"manifest.json", "certificate.json"}) {
            fs::copy_file(fs::path(bundle_folder) / name, folder_ / name);
        }
    }
    ~Copy() { fs::remove_all(folder_); }

    std::string folder() const { return folder_.string(); }

    void write(const std::string& name, const std::string& text) const {
        fs::remove(folder_ / name);
        std::ofstream(folder_ / name, std::ios::binary) << text;
    }

    std::string read(const std::string& name) const {
        std::ifstream file(folder_ / name, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }

  private:
    const fs::path folder_;
};

void test_misuse_of_handles(const hmar::Bundle& bundle, const hmar::Session& session) {
    const auto bad = HMAR_INVALID_HANDLE;
    hmar_bundle none = nullptr, opened = nullptr;
    hmar_session no_session = nullptr, wrong = reinterpret_cast<hmar_session>(bundle.handle());
    hmar_bundle_info info;
    hmar_request request;
    const char* name;
    CHECK(fails(bad, "no open bundle", hmar_bundle_get_info, none, &info));
    CHECK(fails(bad, "no open bundle", hmar_session_open, none, nullptr, &no_session));
    CHECK(fails(bad, "no open bundle", hmar_request_init, none, &request));
    CHECK(fails(bad, "no open bundle", hmar_bundle_close, &none));
    CHECK(fails(bad, "no open session", hmar_session_backend, wrong, &name));
    CHECK(fails(bad, "no open session", hmar_generate, no_session, nullptr, nullptr));
    CHECK(fails(bad, "no open session", hmar_session_close, &wrong));
    CHECK(fails(HMAR_INVALID_ARGUMENT, "bundle is NULL", hmar_bundle_close, nullptr));
    CHECK(fails(HMAR_INVALID_ARGUMENT, "folder is NULL", hmar_bundle_open, nullptr, HMAR_CHECK_ALL, &opened));
    CHECK(fails(HMAR_INVALID_ARGUMENT, "info is NULL", hmar_bundle_get_info, bundle.handle(), nullptr));
    CHECK(fails(HMAR_INVALID_ARGUMENT, "request is NULL", hmar_generate, session.handle(), nullptr, nullptr));
    CHECK(hmar_bundle_get_info(none, &info, nullptr) == bad);  // a caller may want no message

    hmar::call(hmar_bundle_open, bundle_folder.c_str(), HMAR_CHECK_SIZES, &opened);
    hmar_bundle second_name = opened;
    hmar::call(hmar_bundle_close, &opened);
    CHECK(opened == nullptr);
    CHECK(fails(bad, "closed", hmar_bundle_close, &opened));
    CHECK(fails(bad, "closed", hmar_bundle_close, &second_name));
    CHECK(fails(bad, "closed", hmar_bundle_get_info, second_name, &info));
}

void test_misuse_of_arguments(const hmar::Bundle& bundle, const hmar::Session& session) {
    const auto rejects = [&](const char* part, auto change) {
        hmar::Request request(bundle, {1, 2});
        change(request);
        CHECK_THROWS(session.generate(request), hmar::Error, part);
    };
    rejects("one class per image", [](auto& r) { r.labels.clear(); });
    rejects("label 10 is out of range: 0..9", [](auto& r) { r.labels[1] = 10; });
    rejects("label -2 is out of range", [](auto& r) { r.labels[0] = -2; });
    rejects("cfg must be a finite number", [](auto& r) { r.cfg = -1; });
    rejects("cfg must be a finite number", [](auto& r) { r.cfg = 1.0 / 0.0; });
    rejects("top_k must be in 0..64", [](auto& r) { r.top_k = 65; });
    rejects("top_p must be in [0, 1]", [](auto& r) { r.top_p = 1.01; });
    rejects("skip_guidance_below", [](auto& r) { r.skip_guidance_below = 0.0 / 0.0; });
    rejects("has 1 entries, the model has 4", [](auto& r) { r.mask_schedule.resize(1); });
    rejects("token counts >= 0", [](auto& r) { r.mask_schedule[2][1] = -1; });
    rejects("has no masked passes", [](auto& r) { r.context = HMAR_CONTEXT_PREFIX; });
    rejects("context is 7", [](auto& r) { r.context = 7; });
    rejects("draws is 9", [](auto& r) { r.draws = 9; });
    rejects("expected 122 numbers", [](auto& r) { r.draws = HMAR_DRAWS_UNIFORMS; });
    rejects("one entry per image", [](auto& r) { r.image_index = {1}; });

    hmar_request request;
    hmar::call(hmar_request_init, bundle.handle(), &request);
    const int32_t labels[] = {1, 2};
    request.labels = labels, request.num_images = 2;
    size_t num_uniforms = 0;
    hmar::call(hmar_request_num_uniforms, session.handle(), &request, &num_uniforms);
    CHECK(num_uniforms == 122);
    std::vector<int32_t> tokens(60);
    hmar_output output{};
    const auto generate = [&](const char* part) {
        CHECK(fails(HMAR_INVALID_ARGUMENT, part, hmar_generate, session.handle(), &request, &output));
    };
    generate("hmar_output.struct_size is 0");
    output.struct_size = sizeof output;
    output.tokens = tokens.data(), output.tokens_size = 59;
    generate("tokens: expected room for 60 values, got 59");
    output.tokens_size = 60;
    request.struct_size -= 8;
    generate("hmar_request.struct_size");
    request.struct_size = sizeof request;
    request.cancel = reinterpret_cast<hmar_cancel>(bundle.handle());
    CHECK(fails(HMAR_INVALID_HANDLE, "no open cancel flag", hmar_generate, session.handle(), &request,
                &output));
    const std::vector<uint8_t> pixels(100);
    CHECK_THROWS(session.encode(pixels), hmar::Error, "pixels: expected a multiple of 12288");
    hmar_scale_event event{};
    CHECK(fails(HMAR_INVALID_ARGUMENT, "preview is NULL", hmar_scale_event_preview, &event, nullptr,
                size_t{0}));
}

void test_bad_bundles_and_libraries(const hmar::Bundle& bundle) {
    hmar_session_options wrong = options();
    wrong.library = "/nowhere/libonnxruntime.so";
    CHECK_THROWS(hmar::Session(bundle, wrong), hmar::Error, "/nowhere/libonnxruntime.so");
    wrong.library = "libm.so.6";
    CHECK_THROWS(hmar::Session(bundle, wrong), hmar::Error, "not ONNX Runtime");
    wrong = options();
    wrong.backend = HMAR_BACKEND_ORT_CUDA;
    CHECK_THROWS(hmar::Session(bundle, wrong), hmar::Error, "backend ort-cuda: this ONNX Runtime offers");
    wrong.backend = 5;
    CHECK_THROWS(hmar::Session(bundle, wrong), hmar::Error, "backend is 5");
    CHECK_THROWS(hmar::Session(bundle, options(-1)), hmar::Error, "must be >= 0");

    CHECK_THROWS(hmar::Bundle("/nowhere"), hmar::Error, "no bundle here");
    const Copy copy;
    const std::string manifest = copy.read("manifest.json"), certificate = copy.read("certificate.json");
    copy.write("certificate.json", std::string(certificate.size(), ' '));
    CHECK_THROWS(hmar::Bundle(copy.folder()), hmar::Error, "altered (sha256");
    CHECK(hmar::Bundle(copy.folder(), HMAR_CHECK_SIZES).info().num_scales == 4);
    copy.write("certificate.json", certificate + " ");
    CHECK_THROWS(hmar::Bundle(copy.folder(), HMAR_CHECK_SIZES), hmar::Error, "the manifest says");
    copy.write("certificate.json", certificate);

    // a graph whose output has another name than the manifest says, and one that is none
    std::string renamed = manifest;
    renamed.replace(renamed.find("\"ada_base\""), 10, "\"ada_odd\"");
    copy.write("manifest.json", renamed);
    const hmar::Bundle odd(copy.folder(), HMAR_CHECK_SIZES);
    CHECK_THROWS(hmar::Session(odd, options()).generate(hmar::Request(odd, {1})), hmar::Error, "ada_odd");
    copy.write("manifest.json", manifest);
    const size_t size = fs::file_size(fs::path(bundle_folder) / "graphs" / "cond.onnx");
    copy.write("graphs/cond.onnx", std::string(size, 'x'));
    const hmar::Bundle damaged(copy.folder(), HMAR_CHECK_SIZES);
    CHECK_THROWS(hmar::Session(damaged, options()).generate(hmar::Request(damaged, {1})), hmar::Error,
                 "cannot load this graph");
}

void test_any_batch(const hmar::Bundle& bundle, const hmar::Session& session) {
    hmar::Request request(bundle, {3, HMAR_NO_CLASS, 0, 9, 3});
    request.seed = uint64_t{1} << 63;
    const hmar::Images all = session.generate(request);
    const hmar::Images split = hmar::Session(bundle, options(2)).generate(request);
    CHECK(all.tokens == split.tokens);
    request.labels = {9}, request.image_index = {3};
    const hmar::Images one = session.generate(request);
    const auto fourth = all.tokens.begin() + 3 * bundle.info().num_tokens;
    CHECK(std::equal(one.tokens.begin(), one.tokens.end(), fourth));
    std::vector<int32_t> only_tokens(one.tokens.size());
    hmar_output output{};
    output.tokens = only_tokens.data(), output.tokens_size = only_tokens.size();
    session.generate(request, output);
    CHECK(only_tokens == one.tokens);
    CHECK(session.encode(all.pixels).size() == all.tokens.size());
}

void test_known_tokens(const hmar::Bundle& bundle, const hmar::Session& session) {
    hmar::Request request(bundle, {3, 8});
    const std::vector<int32_t> free = session.generate(request).tokens;
    request.known_tokens = free;
    for (int32_t& token : request.known_tokens) token = (token + 1) % 64;
    request.keep.assign(free.size(), 0);
    CHECK(session.generate(request).tokens == free);
    request.keep.assign(free.size(), 1);
    request.mask_schedule.clear();
    CHECK(session.generate(request).tokens == request.known_tokens);
    request.mask_schedule = {{}, {1, 3}, {2, 3, 4}, {4, 4, 8}};
    for (size_t i = 0; i < free.size(); i += 3) request.keep[i] = 0;
    const std::vector<int32_t> edited = session.generate(request).tokens;
    CHECK(edited == hmar::Session(bundle, options(1)).generate(request).tokens);
    size_t kept = 0, changed = 0;
    for (size_t i = 0; i < free.size(); ++i) {
        (request.keep[i] != 0 ? kept : changed) +=
            (edited[i] == request.known_tokens[i]) == (request.keep[i] != 0);
    }
    CHECK(kept == 40 && changed > 10);  // of 20, of which some may be drawn by chance
    request.known_tokens[1] = 64;
    CHECK_THROWS(session.generate(request), hmar::Error, "known_tokens[1] is 64");
    request.known_tokens.pop_back(), request.keep.pop_back();
    CHECK_THROWS(session.generate(request), hmar::Error, "expected both, with 60 entries each, got 59");
}

void test_callbacks_and_cancelling(const hmar::Bundle& bundle, const hmar::Session& session) {
    hmar::Request request(bundle, {1, 2, 3});
    std::vector<int> sides;
    std::vector<uint8_t> preview(3 * 64 * 64 * 3);
    request.on_scale = [&](const hmar_scale_event& event) {
        sides.push_back(event.pn);
        CHECK(event.num_images == 3 && event.tokens[0] >= 0);
        if (event.scale_idx == 3)
            hmar::call(hmar_scale_event_preview, &event, preview.data(), preview.size());
        CHECK(fails(HMAR_INVALID_ARGUMENT, "expected room for 36864", hmar_scale_event_preview, &event,
                    preview.data(), size_t{3}));
        return true;
    };
    CHECK(session.generate(request).pixels == preview);
    CHECK((sides == std::vector<int>{1, 2, 3, 4}));

    request.on_scale = [](const hmar_scale_event& event) { return event.scale_idx < 1; };
    CHECK_THROWS(session.generate(request), hmar::Error,
                 "ended the generation after scale 1 of images 0 to 2");
    request.on_scale = [](const hmar_scale_event&) -> bool { throw std::logic_error("the caller's own"); };
    CHECK_THROWS(session.generate(request), std::logic_error, "the caller's own");

    const hmar::Cancel cancel;
    request.cancel = &cancel;
    request.on_scale = [&](const hmar_scale_event& event) {
        if (event.scale_idx == 2) cancel.request();
        return true;
    };
    CHECK_THROWS(session.generate(request), hmar::Error, "cancelled before images 0 to 2");
    CHECK_THROWS(session.generate(request), hmar::Error, "cancelled");  // it stays set
    request.cancel = nullptr;
    CHECK(session.generate(request).tokens.size() == 90);
}

// Generations at once on one session, while the main thread closes what it can and ends one of them.
void test_threads(const hmar::Bundle& bundle) {
    auto opened = std::make_unique<hmar::Bundle>(bundle_folder, HMAR_CHECK_SIZES);
    auto session = std::make_unique<hmar::Session>(*opened, options());
    hmar::Request request(*opened, {1, 2});
    const hmar::Images expected = session->generate(request);
    opened.reset();
    CHECK(session->generate(request).tokens == expected.tokens);

    hmar::Request ended = request;
    const hmar::Cancel cancel;
    std::atomic<int> at_work{0}, equal{0}, cancelled{0};
    const auto wait = [&](const hmar_scale_event& event) {
        if (event.scale_idx == 0) ++at_work;
        while (event.scale_idx == 0 && at_work < 3) std::this_thread::yield();
        return true;
    };
    request.on_scale = ended.on_scale = wait;
    ended.cancel = &cancel;
    const hmar::Session& shared = *session;
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&] { equal += shared.generate(request).tokens == expected.tokens; });
    }
    threads.emplace_back([&] {
        try {
            while (true) shared.generate(ended);
        } catch (const hmar::Error& error) {
            cancelled += error.status() == HMAR_CANCELLED;
        }
    });
    while (at_work < 3) std::this_thread::yield();
    cancel.request();
    for (std::thread& thread : threads) thread.join();
    CHECK(equal == 2 && cancelled == 1);

    hmar_session closed = session->handle();
    hmar_request plain;
    hmar::call(hmar_request_init, bundle.handle(), &plain);
    const int32_t label = 4;
    plain.labels = &label, plain.num_images = 1, plain.user_data = &closed;
    plain.on_scale = [](const hmar_scale_event* event, void* session) {
        return event->scale_idx == 0 ? int(hmar_session_close(static_cast<hmar_session*>(session), nullptr))
                                     : 0;
    };
    hmar_output nothing{};
    nothing.struct_size = sizeof nothing;
    hmar::call(hmar_generate, closed, &plain, &nothing);
    CHECK(closed == nullptr);
    CHECK_THROWS(session->backend(), hmar::Error, "no open session");
}

}  // namespace

// `api_test threads` runs the threads alone.
int main(int argc, char** argv) {
    const char *folder = std::getenv("HMAR_TEST_BUNDLE"), *path = std::getenv("HMAR_TEST_ONNXRUNTIME");
    if (folder == nullptr || path == nullptr) {
        std::puts(
            "skipped: set HMAR_TEST_BUNDLE to the tiny bundle and HMAR_TEST_ONNXRUNTIME to "
            "libonnxruntime.so");
        return kSkipped;
    }
    bundle_folder = folder, library = path;
    const hmar::Bundle bundle(bundle_folder, HMAR_CHECK_ALL_BUT_WEIGHTS);
    test_threads(bundle);
    if (argc > 1 && std::string(argv[1]) == "threads") return checked();
    const hmar::Session session(bundle, options());
    CHECK(session.backend().find("ort-cpu (ONNX Runtime ") == 0);
    test_misuse_of_handles(bundle, session);
    test_misuse_of_arguments(bundle, session);
    test_bad_bundles_and_libraries(bundle);
    test_any_batch(bundle, session);
    test_known_tokens(bundle, session);
    test_callbacks_and_cancelling(bundle, session);
    return checked();
}

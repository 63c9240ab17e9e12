// What tests of recordings share: the stand-ins for the driver and the kernels, and the bundle.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "check.h"
#include "fake_cuda.h"
#include "hmar_runtime.hpp"

namespace fs = std::filesystem;
using Json = nlohmann::json;

inline constexpr const char* kParts[] = {"sampling", "decoder", "transformer", "glue"};
inline std::string bundle_folder, onnxruntime;

// The stand-ins' functions.
struct Fake {
    decltype(&fake_cuda_on_operation) on_operation;
    decltype(&fake_cuda_set_device) set_device;
    decltype(&fake_cuda_fail) fail;
    decltype(&fake_cuda_live) live;
    decltype(&fake_cuda_violations) violations;
    decltype(&fake_plugins_set) set_plugins;
};
inline Fake fake;

inline std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

template <typename Function>
void find(Function& function, void* library, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) std::abort();
}

inline void load_fakes() {
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

inline hmar_session_options options(int32_t backend = HMAR_BACKEND_GPU, int32_t max_batch = 0) {
    hmar_session_options options{};
    options.backend = backend;
    options.library = onnxruntime.c_str();
    options.plugins = FAKE_PLUGINS;
    options.threads = 1;
    options.max_batch = max_batch;
    return options;
}

inline fs::path recordings(const std::string& folder) {
    return fs::path(folder) / "engines" / "sm90_recordings";
}

inline Json index_of(const std::string& folder) {
    return Json::parse(read_file(recordings(folder) / "recordings.json"));
}

// The recording of the bundle's own settings for a batch.
inline Json recording_of(int batch) {
    const Json index = index_of(bundle_folder);
    for (const Json& entry : index.at("recordings")) {
        if (entry.at("plan").at("batch") == batch) {
            return Json::parse(read_file(recordings(bundle_folder) / entry.at("file").get<std::string>()));
        }
    }
    std::abort();
}

// Runs tests on the stand-ins; what `main` returns.
template <typename Tests>
int run_on_fakes(const Tests& tests) {
    constexpr int kSkipped = 77;
    const char *folder = std::getenv("HMAR_TEST_RECORDED"), *path = std::getenv("HMAR_TEST_ONNXRUNTIME");
    if (folder == nullptr || path == nullptr) {
        std::puts("HMAR_TEST_RECORDED and HMAR_TEST_ONNXRUNTIME are not set");
        return kSkipped;
    }
    bundle_folder = folder, onnxruntime = path;
    load_fakes();
    tests(hmar::Bundle(bundle_folder));
    CHECK(fake.live() == 0);
    CHECK(fake.violations() == 0);
    return checked();
}

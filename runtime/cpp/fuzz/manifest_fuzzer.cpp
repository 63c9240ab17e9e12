// libFuzzer target: what reads files of a bundle before any checksum is known to be right.
//
//   cmake -S runtime/cpp -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DHMAR_BUILD_FUZZERS=ON \
//     -DHMAR_SANITIZE=address,undefined
//   cmake --build build/fuzz --target manifest_fuzzer
//   build/fuzz/manifest_fuzzer -max_total_time=300 -dict=runtime/cpp/fuzz/manifest.dict FOUND
//   runtime/cpp/fuzz/corpus
#include <cstddef>
#include <cstdint>
#include <string>

#include "error.h"
#include "manifest.h"

using namespace hmar::core;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string json(reinterpret_cast<const char*>(data), size);
    try {
        const Manifest manifest = parse_manifest(json, "manifest.json");
        // what the runtime takes for granted of a manifest that it accepts
        for (const auto& [name, spec] : manifest.tensors) {
            if (spec.offset + spec.nbytes() > manifest.weights.nbytes) __builtin_trap();
        }
        for (const FileSpec& spec : manifest.files()) {
            if (spec.file.empty() || spec.file[0] == '/' || spec.file.find('\0') != std::string::npos) {
                __builtin_trap();
            }
            if (("/" + spec.file + "/").find("/../") != std::string::npos) __builtin_trap();
        }
        if (manifest.family == "hmar" && manifest.hmar().num_scales() < 2) __builtin_trap();
        if (manifest.family == "himar" && manifest.himar().num_dense() == 0) __builtin_trap();
    } catch (const Error&) {
    }
    try {
        parse_class_names(json, "classes.json", 3);
    } catch (const Error&) {
    }
    return 0;
}

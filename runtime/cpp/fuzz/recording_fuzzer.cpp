// libFuzzer target: what reads recordings of a bundle before any checksum is known to be right.
//
//   cmake -S runtime/cpp -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DHMAR_BUILD_FUZZERS=ON \
//     -DHMAR_SANITIZE=address,undefined
//   cmake --build build/fuzz --target recording_fuzzer
//   HMAR_FUZZ_BUNDLE=BUNDLE build/fuzz/recording_fuzzer -max_total_time=300 -max_len=100000 FOUND CORPUS
//
// BUNDLE has recordings; CORPUS is a folder with its recordings.json and a shortened generation.
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "bundle.h"
#include "consistent.h"
#include "error.h"
#include "recording.h"

using namespace hmar::core;

namespace {

struct Given {
    Given() : bundle(std::getenv("HMAR_FUZZ_BUNDLE"), HMAR_CHECK_SIZES) {
        std::ifstream file(bundle.folder() + "/engines/sm90_recordings/" + kRecordingIndexFile);
        const std::string json(std::istreambuf_iterator<char>(file), {});
        index = parse_recording_index(json, kRecordingIndexFile, bundle.manifest());
    }

    const Bundle bundle;
    RecordingIndex index;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Given& given = *new Given;
    const std::string json(reinterpret_cast<const char*>(data), size);
    try {
        parse_recording_index(json, kRecordingIndexFile, given.bundle.manifest());
    } catch (const Error&) {
    }
    try {
        const RecordingEntry& entry = given.index.recordings.front();
        const Recording recording =
            parse_recording(json, "recording", given.bundle.manifest(), given.index, entry);
        if (!is_consistent(recording, given.index)) __builtin_trap();
    } catch (const Error&) {
    }
    return 0;
}

// Recordings of work on a GPU, as runtime/recording.py writes them; docs/bundle.md describes the format.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "recorded_plan.h"

namespace hmar::core {

constexpr int64_t kRecordingVersion = 2;
constexpr const char* kRecordingIndexFile = "recordings.json";

// Buffers: written by the operations; of a recording, read by them; of weights, from here on.
constexpr int kScratch = 0, kConstants = 1, kFirstWeights = 2;

struct BufferPlace {
    int buffer;
    uint64_t offset, nbytes;
};

struct NullPointer {};
struct BufferPointer {
    int buffer;
    uint64_t offset;
};
using LaunchArgument = std::variant<NullPointer, BufferPointer, int64_t, double>;

struct RecordedLaunch {
    int kernel;  // of Recording::kernels
    std::array<unsigned, 3> grid;
    std::vector<LaunchArgument> arguments;  // in the order of the kernel's parameters
};
struct RecordedCopy {
    BufferPointer target, source;
    uint64_t nbytes;
};
struct RecordedZero {
    BufferPlace place;
};

// A tensor of an engine, by its name there.
struct RecordedTensor {
    std::string name;
    BufferPlace place;
    Dims shape;
};

// A run of a TensorRT engine.
struct RecordedRun {
    int plan;                            // of RecordedEngines::plans
    int profile;                         // of its optimization profiles
    std::optional<BufferPlace> scratch;  // what it may write; none = memory of its own
    std::vector<RecordedTensor> inputs, outputs;
};
using RecordedOperation = std::variant<RecordedLaunch, RecordedCopy, RecordedZero, RecordedRun>;

// What fills a part of a buffer: bytes of the bundle's weights file, or of the recordings' data file.
struct RecordedPiece {
    uint64_t at, nbytes, offset;
    bool is_of_weights;
};

struct BufferContents {
    uint64_t nbytes;
    std::vector<RecordedPiece> pieces;
    std::vector<std::pair<uint64_t, uint64_t>> zeros;  // offsets and sizes
};

struct Recording {
    RecordedPlan plan;
    uint64_t scratch_nbytes;
    BufferContents constants;
    std::map<std::string, BufferPlace> inputs, outputs;        // those of `memory_of` the plan
    std::vector<std::pair<std::string, std::string>> kernels;  // part of the plugin library, name
    std::vector<RecordedOperation> operations;

    bool runs_engines() const;
};

struct RecordingEntry {
    FileSpec file;
    RecordedPlan plan;
    uint64_t scratch_nbytes;
};

// The TensorRT engines that recordings run.
struct RecordedEngines {
    std::string folder;            // beside the folder of the recordings
    std::string library, version;  // what can load them, "tensorrt" or "tensorrt_rtx"
    bool needs_plugin;             // some hold the attention plugin
    std::vector<FileSpec> plans;
};

struct RecordingIndex {
    std::string gpu;                            // compute capability, as "sm90"
    std::map<std::string, std::string> tables;  // SHA-256 of the library's kernel tables, by part
    std::string weights_sha256;
    std::map<std::string, std::string> graphs;  // SHA-256, by name
    FileSpec data;
    std::vector<BufferContents> weights;
    std::optional<RecordedEngines> engines;
    std::vector<RecordingEntry> recordings;
};

// Both throw Error where the text is not of this version, has unknown, missing or mistyped fields, or refers
// to what is not there. `source` is what messages call it.

// For a bundle: pieces lie within its weights file, and plans are of its model.
RecordingIndex parse_recording_index(const std::string& json, const std::string& source,
                                     const Manifest& manifest);

// For an entry of an index.
Recording parse_recording(const std::string& json, const std::string& source, const Manifest& manifest,
                          const RecordingIndex& index, const RecordingEntry& entry);

}  // namespace hmar::core

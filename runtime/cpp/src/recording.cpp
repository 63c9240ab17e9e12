#include "recording.h"

#include <algorithm>

#include "json_record.h"

namespace hmar::core {
namespace {

// far above what there is; sums of two stay far below 2^63
constexpr int64_t kMaxBuffer = int64_t{1} << 48, kMaxOperations = 1 << 20, kMaxGrid = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxProfiles = 1 << 16, kMaxDim = int64_t{1} << 40;
constexpr size_t kMaxRank = 8;
constexpr const char* kRecordAgain =
    "; make it again with scripts/build_engines.py --only-recordings --force";

using Sizes = std::vector<uint64_t>;  // of buffers, by their numbers

// A list of so many items.
const Json& items(const Record& record, const Json& value, const char* name, size_t count) {
    if (!value.is_array() || value.size() != count) {
        record.fail(text(name, " must be a list of ", count, ", got ", Record::excerpt(value)));
    }
    return value;
}

uint64_t read_nbytes(const Record& record, const Json& value, const char* name) {
    return uint64_t(record.integer(value, name, 0, kMaxBuffer));
}

BufferPlace read_place(const Record& record, const Json& value, const char* name, const Sizes& sizes) {
    items(record, value, name, 3);
    const BufferPlace place{int(record.integer(value[0], name, 0, int64_t(sizes.size()) - 1)),
                            read_nbytes(record, value[1], name), read_nbytes(record, value[2], name)};
    if (place.offset + place.nbytes > sizes[size_t(place.buffer)]) {
        record.fail(text(name, ": ", Record::excerpt(value), " is outside its buffer of ",
                         sizes[size_t(place.buffer)], " bytes"));
    }
    return place;
}

// Places by name, each of exactly so many bytes.
std::map<std::string, BufferPlace> read_places(const Record& record, const Json& data, const char* name,
                                               const Sizes& sizes,
                                               const std::map<std::string, uint64_t>& expected) {
    Record places(data, text(record.where(), ".", name));
    std::map<std::string, BufferPlace> found;
    for (const auto& [key, nbytes] : expected) {
        const BufferPlace place = read_place(places, places.field(key.c_str()), key.c_str(), sizes);
        if (place.nbytes != nbytes) {
            places.fail(text(key, " has ", place.nbytes, " bytes, expected ", nbytes));
        }
        found.emplace(key, place);
    }
    places.finish();
    return found;
}

// An address of at least so many bytes.
BufferPointer read_pointer(const Record& record, const Json& value, const Sizes& sizes, uint64_t nbytes) {
    items(record, value, "pointer", 2);
    const BufferPointer pointer{int(record.integer(value[0], "buffer", 0, int64_t(sizes.size()) - 1)),
                                read_nbytes(record, value[1], "offset")};
    if (pointer.offset + nbytes > sizes[size_t(pointer.buffer)]) {
        record.fail(text(nbytes, " bytes at ", Record::excerpt(value), " are outside their buffer of ",
                         sizes[size_t(pointer.buffer)], " bytes"));
    }
    return pointer;
}

LaunchArgument read_argument(const Record& record, const Json& value, const Sizes& sizes) {
    if (value.is_array()) {
        if (value.size() == 2 && value[0] == -1 && value[1] == 0) return NullPointer{};
        return read_pointer(record, value, sizes, 1);
    }
    if (value.is_number_float()) return value.get<double>();
    return record.integer(value, "argument", INT32_MIN, INT32_MAX);
}

std::vector<RecordedTensor> read_tensors(const Record& record, const Json& value, const Sizes& sizes) {
    if (!value.is_array()) record.fail("tensors of a run must be a list");
    std::vector<RecordedTensor> tensors;
    for (const Json& item : value) {
        items(record, item, "tensor", 3);
        if (!item[0].is_string() || !item[2].is_array() || item[2].size() > kMaxRank) {
            record.fail(text("a tensor must be a name, a place and a shape, got ", Record::excerpt(item)));
        }
        RecordedTensor& tensor = tensors.emplace_back();
        tensor.name = item[0].get<std::string>();
        tensor.place = read_place(record, item[1], "tensor", sizes);
        for (const Json& dim : item[2]) {
            tensor.shape.push_back(record.integer(dim, "dimension", 1, kMaxDim));
        }
    }
    return tensors;
}

RecordedRun read_run(const Record& record, const Json& value, const Sizes& sizes, size_t num_plans) {
    items(record, value, "run", 6);
    RecordedRun run{int(record.integer(value[1], "plan", 0, int64_t(num_plans) - 1)),
                    int(record.integer(value[2], "profile", 0, kMaxProfiles)), std::nullopt,
                    read_tensors(record, value[4], sizes), read_tensors(record, value[5], sizes)};
    if (!value[3].is_null()) run.scratch = read_place(record, value[3], "scratch memory", sizes);
    return run;
}

RecordedOperation read_operation(const Record& record, const Json& value, const Sizes& sizes,
                                 size_t num_kernels, size_t num_plans) {
    if (!value.is_array() || value.empty()) record.fail("an operation must be a list");
    const int64_t kind = record.integer(value[0], "kind of operation", 0, 3);
    if (kind == 1) {
        items(record, value, "copy", 4);
        const uint64_t nbytes = read_nbytes(record, value[3], "bytes of a copy");
        return RecordedCopy{read_pointer(record, value[1], sizes, nbytes),
                            read_pointer(record, value[2], sizes, nbytes), nbytes};
    }
    if (kind == 2) {
        items(record, value, "zeros", 4);
        return RecordedZero{read_place(record, Json{value[1], value[2], value[3]}, "zeros", sizes)};
    }
    if (kind == 3) return read_run(record, value, sizes, num_plans);
    if (value.size() < 5) record.fail("a launch needs a kernel and a grid");
    RecordedLaunch launch{int(record.integer(value[1], "kernel", 0, int64_t(num_kernels) - 1)), {}, {}};
    for (size_t i = 0; i < 3; ++i) {
        launch.grid[i] = unsigned(record.integer(value[2 + i], "grid", 1, kMaxGrid));
    }
    for (size_t i = 5; i < value.size(); ++i) {
        launch.arguments.push_back(read_argument(record, value[i], sizes));
    }
    return launch;
}

BufferContents read_contents(const Json& data, const std::string& where, uint64_t weights_nbytes,
                             uint64_t data_nbytes) {
    Record record(data, where);
    BufferContents contents{uint64_t(record.integer("nbytes", 0, kMaxBuffer)), {}, {}};
    const auto check = [&](uint64_t at, uint64_t nbytes, uint64_t limit, const char* what) {
        if (at + nbytes > limit) record.fail(text(nbytes, " bytes at ", at, " of ", what, " of ", limit));
    };
    for (const Json& item : record.list("pieces")) {
        items(record, item, "piece", 4);
        const bool is_of_weights = item[2] == "weights";
        if (!is_of_weights && item[2] != "data") {
            record.fail(text("source ", Record::excerpt(item[2]), ", expected weights or data"));
        }
        const RecordedPiece piece{read_nbytes(record, item[0], "piece"),
                                  read_nbytes(record, item[1], "piece"),
                                  read_nbytes(record, item[3], "piece"), is_of_weights};
        check(piece.at, piece.nbytes, contents.nbytes, "a buffer");
        check(piece.offset, piece.nbytes, is_of_weights ? weights_nbytes : data_nbytes, "a file");
        contents.pieces.push_back(piece);
    }
    for (const Json& item : record.list("zeros")) {
        items(record, item, "zeros", 2);
        const auto at = read_nbytes(record, item[0], "zeros"), nbytes = read_nbytes(record, item[1], "zeros");
        check(at, nbytes, contents.nbytes, "a buffer");
        contents.zeros.emplace_back(at, nbytes);
    }
    record.finish();
    return contents;
}

// A name that leads nowhere else.
std::string read_local_name(Record& record, const char* field) {
    std::string name = record.string(field);
    if (name.empty() || name[0] == '.' || name.find_first_of(std::string("/\\\0", 3)) != std::string::npos) {
        record.fail(text("file ", Record::excerpt(name), " is not in the folder"));
    }
    return name;
}

FileSpec read_local_file(Record& record) {
    return {read_local_name(record, "file"), record.string("sha256"),
            uint64_t(record.integer("nbytes", 0, kMaxBuffer))};
}

RecordedEngines read_engines(const Json& data) {
    Record record(data, "engines");
    RecordedEngines engines{read_local_name(record, "folder"),
                            record.string("library"),
                            record.string("library_version"),
                            record.boolean("needs_plugin"),
                            {}};
    if (engines.library != "tensorrt" && engines.library != "tensorrt_rtx") {
        record.fail(text("library '", engines.library, "', expected tensorrt or tensorrt_rtx"));
    }
    for (const Json& item : record.list("plans")) {
        Record plan(item, text("engines.plans[", engines.plans.size(), "]"));
        engines.plans.push_back(read_local_file(plan));
        plan.finish();
    }
    record.finish();
    return engines;
}

std::map<std::string, std::string> read_digests(Record& index, const char* name) {
    const Json& data = index.field(name);
    if (!data.is_object()) index.fail(text(name, " must be an object, got ", data.type_name()));
    std::map<std::string, std::string> digests;
    for (const auto& [key, value] : data.items()) {
        if (!value.is_string()) index.fail(text(name, ".", key, " must be a string"));
        digests.emplace(key, value.get<std::string>());
    }
    return digests;
}

RecordingIndex read_recording_index(const Json& data, const Manifest& manifest) {
    Record record(data, "recordings");
    const Json& version = record.field("format_version");
    if (version != kRecordingVersion) {
        record.fail(text("format version ", Record::excerpt(version), ", this release reads version ",
                         kRecordingVersion));
    }
    record.string("runtime_version");
    RecordingIndex index;
    index.gpu = record.string("gpu");
    index.tables = read_digests(record, "tables");
    index.weights_sha256 = record.string("weights_sha256");
    index.graphs = read_digests(record, "graphs");
    Record file(record.field("data_file"), "data_file");
    index.data = read_local_file(file);
    file.finish();
    for (const Json& item : record.list("weights")) {
        index.weights.push_back(read_contents(item, "weights", manifest.weights.nbytes, index.data.nbytes));
    }
    if (const Json* engines = record.optional_field("engines")) index.engines = read_engines(*engines);
    for (const Json& item : record.list("recordings")) {
        Record entry(item, text("recordings[", index.recordings.size(), "]"));
        FileSpec spec = read_local_file(entry);
        RecordedPlan plan = read_plan(entry.field("plan"), entry.where() + ".plan", manifest);
        const auto scratch = uint64_t(entry.integer("scratch_nbytes", 0, kMaxBuffer));
        entry.finish();
        index.recordings.push_back({std::move(spec), std::move(plan), scratch});
    }
    record.finish();
    return index;
}

Recording read_recording(const Json& data, const Manifest& manifest, const RecordingIndex& index) {
    Record record(data, "recording");
    Recording recording{};
    recording.plan = read_plan(record.field("plan"), "plan", manifest);
    recording.scratch_nbytes = uint64_t(record.integer("scratch_nbytes", 0, kMaxBuffer));
    recording.constants =
        read_contents(record.field("constants"), "constants", manifest.weights.nbytes, index.data.nbytes);
    Sizes sizes = {recording.scratch_nbytes, recording.constants.nbytes};
    for (const BufferContents& contents : index.weights) sizes.push_back(contents.nbytes);
    const PlanMemory memory = memory_of(recording.plan, manifest);
    recording.inputs = read_places(record, record.field("inputs"), "inputs", sizes, memory.inputs);
    recording.outputs = read_places(record, record.field("outputs"), "outputs", sizes, memory.outputs);
    for (const Json& item : record.list("kernels")) {
        items(record, item, "kernel", 2);
        if (!item[0].is_string() || !item[1].is_string()) record.fail("a kernel must be a part and a name");
        recording.kernels.emplace_back(item[0].get<std::string>(), item[1].get<std::string>());
    }
    const Json& operations = record.list("operations");
    if (operations.size() > size_t(kMaxOperations)) record.fail(text(operations.size(), " operations"));
    recording.operations.reserve(operations.size());
    const size_t num_plans = index.engines ? index.engines->plans.size() : 0;
    for (const Json& item : operations) {
        recording.operations.push_back(
            read_operation(record, item, sizes, recording.kernels.size(), num_plans));
    }
    record.finish();
    return recording;
}

// Errors with the name of the file, and what to do.
template <typename Read>
auto with_source(const std::string& source, Read read) {
    try {
        return read();
    } catch (const Error& error) {
        throw Error(error.status, text(source, ": ", error.what(), kRecordAgain));
    }
}

}  // namespace

bool Recording::runs_engines() const {
    return std::any_of(operations.begin(), operations.end(), [](const RecordedOperation& operation) {
        return std::holds_alternative<RecordedRun>(operation);
    });
}

RecordingIndex parse_recording_index(const std::string& json, const std::string& source,
                                     const Manifest& manifest) {
    const Json data = parse_json(json, source);
    return with_source(source, [&] { return read_recording_index(data, manifest); });
}

Recording parse_recording(const std::string& json, const std::string& source, const Manifest& manifest,
                          const RecordingIndex& index, const RecordingEntry& entry) {
    const Json data = parse_json(json, source);
    return with_source(source, [&] {
        Recording recording = read_recording(data, manifest, index);
        if (!(recording.plan == entry.plan) || recording.scratch_nbytes != entry.scratch_nbytes) {
            throw Error(HMAR_INVALID_BUNDLE, text("its plan is not that of ", kRecordingIndexFile));
        }
        return recording;
    });
}

}  // namespace hmar::core

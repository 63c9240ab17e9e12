#include "gpu_recordings.h"

#include <algorithm>
#include <filesystem>

#include "mapped_file.h"
#include "sha256.h"

namespace hmar::core {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEngines = "engines";
constexpr const char* kHowToRecord =
    "make them with scripts/build_engines.py --only-recordings --gpu GPU --batch B,B,..";

// Folders of recordings in a bundle, in the order of their names.
std::vector<std::string> folders(const Bundle& bundle) {
    std::vector<std::string> found;
    std::error_code error;
    const auto end = fs::directory_iterator();
    for (auto it = fs::directory_iterator(fs::path(bundle.folder()) / kEngines, error); !error && it != end;
         it.increment(error)) {
        if (fs::is_regular_file(it->path() / kRecordingIndexFile, error))
            found.push_back(it->path().string());
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::string read_text(const std::string& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.data()), file.nbytes()};
}

std::string sha256_of(const void* data, size_t nbytes) {
    Sha256 sha256;
    sha256.update(data, nbytes);
    return sha256.hex();
}

[[noreturn]] void refuse(const std::string& reason) { throw Error(HMAR_BACKEND_UNAVAILABLE, reason); }

}  // namespace

void GpuRecordings::check_any(const Bundle& bundle) {
    if (folders(bundle).empty()) refuse(text(bundle.folder(), " has no recordings; ", kHowToRecord));
}

GpuRecordings::GpuRecordings(std::shared_ptr<const Bundle> bundle, const KernelTables& tables,
                             const std::string& gpu)
    : bundle_(std::move(bundle)) {
    check_any(*bundle_);
    std::string reasons;
    for (const std::string& folder : folders(*bundle_)) {
        try {
            open(folder, tables, gpu);
            return;
        } catch (const Error& error) {
            reasons += text(reasons.empty() ? "" : " | ", folder, ": ", error.what());
        }
    }
    refuse(text("no recordings run here: ", reasons, "; ", kHowToRecord));
}

void GpuRecordings::open(const std::string& folder, const KernelTables& tables, const std::string& gpu) {
    const Manifest& manifest = bundle_->manifest();
    RecordingIndex index =
        parse_recording_index(read_text(folder + "/" + kRecordingIndexFile), kRecordingIndexFile, manifest);
    if (index.gpu != gpu) refuse(text("recorded for ", index.gpu, ", this GPU is ", gpu));
    if (index.weights_sha256 != manifest.weights.sha256) {
        refuse("recorded from other weights than the bundle now holds");
    }
    std::map<std::string, std::string> graphs;
    for (const GraphSpec& graph : manifest.graphs) graphs.emplace(graph.name, graph.file.sha256);
    if (index.graphs != graphs) refuse("recorded from other graphs than the bundle now holds");
    for (const auto& [part, sha256] : index.tables) {
        if (tables.digest(part) != sha256) {
            refuse(text("recorded with other ", part, " kernels than ", tables.path(), " holds"));
        }
    }
    folder_ = folder;
    if (index.recordings.empty()) refuse("there is nothing in it");
    const MappedFile data(folder + "/" + index.data.file);
    const bool is_same =
        data.nbytes() == index.data.nbytes &&
        (bundle_->check() != HMAR_CHECK_ALL || sha256_of(data.data(), data.nbytes()) == index.data.sha256);
    if (!is_same) refuse(text(index.data.file, " is cut short or altered"));
    index_ = std::move(index);
}

std::string GpuRecordings::engines_folder() const {
    return fs::path(folder_).parent_path() / index_.engines.value().folder;
}

Recording GpuRecordings::load(const RecordingEntry& entry) const {
    const std::string path = folder_ + "/" + entry.file.file;
    const MappedFile file(path);
    if (file.nbytes() != entry.file.nbytes || sha256_of(file.data(), file.nbytes()) != entry.file.sha256) {
        throw Error(HMAR_CHECKSUM_MISMATCH,
                    text(path,
                         ": cut short or altered since it was recorded; make it again with "
                         "scripts/build_engines.py --only-recordings --force"));
    }
    const std::string json(reinterpret_cast<const char*>(file.data()), file.nbytes());
    return parse_recording(json, path, bundle_->manifest(), index_, entry);
}

}  // namespace hmar::core

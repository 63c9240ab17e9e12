#include "bundle.h"

#include <sys/stat.h>

#include "error.h"
#include "mapped_file.h"
#include "sha256.h"

namespace hmar::core {
namespace {

constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kAgain = "; export the bundle again or copy it anew";
constexpr size_t kShownDigits = 12;

std::string read(const std::string& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.data()), file.nbytes()};
}

bool is_regular(const std::string& path, uint64_t* nbytes) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return false;
    *nbytes = uint64_t(status.st_size);
    return true;
}

}  // namespace

Bundle::Bundle(const std::string& folder, hmar_check check) : folder_(folder), check_(check) {
    const std::string path = folder_ + "/" + kManifestFile;
    uint64_t nbytes = 0;
    if (!is_regular(path, &nbytes)) {
        throw Error(HMAR_INVALID_BUNDLE, text(folder, ": no bundle here, ", kManifestFile,
                                              " is missing; make one with scripts/export.py"));
    }
    manifest_ = parse_manifest(read(path), path);
    for (const FileSpec& spec : manifest_.files()) {
        const bool is_weights = spec.file == manifest_.weights.file;
        check_file(spec, check == HMAR_CHECK_ALL || (check == HMAR_CHECK_ALL_BUT_WEIGHTS && !is_weights));
    }
    if (manifest_.class_names) {
        const std::string names = this->path(*manifest_.class_names);
        class_names_ = parse_class_names(read(names), names, manifest_.num_classes());
    }
}

void Bundle::check_file(const FileSpec& spec, bool hash) const {
    const std::string full = path(spec);
    uint64_t nbytes = 0;
    if (!is_regular(full, &nbytes)) {
        throw Error(HMAR_CHECKSUM_MISMATCH, text(full, ": missing, though the manifest lists it", kAgain));
    }
    if (nbytes != spec.nbytes) {
        throw Error(HMAR_CHECKSUM_MISMATCH,
                    text(full, ": ", nbytes, " bytes, the manifest says ", spec.nbytes, kAgain));
    }
    if (!hash) return;
    const MappedFile file(full);
    Sha256 sha256;
    sha256.update(file.data(), file.nbytes());
    const std::string digest = sha256.hex();
    if (digest != spec.sha256) {
        throw Error(HMAR_CHECKSUM_MISMATCH,
                    text(full, ": altered (sha256 ", digest.substr(0, kShownDigits), ", the manifest says ",
                         spec.sha256.substr(0, kShownDigits), ")", kAgain));
    }
}

}  // namespace hmar::core

// A bundle folder whose manifest has been read and whose paths stay inside it.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"

namespace hmar::core {

class Bundle {
  public:
    // Reads the manifest and the class names, and checks files. Throws Error.
    Bundle(const std::string& folder, hmar_check check);

    const Manifest& manifest() const { return manifest_; }
    const std::string& folder() const { return folder_; }

    // Which files are compared with their SHA-256.
    hmar_check check() const { return check_; }

    // Names of the classes in label order; empty where the bundle has none.
    const std::vector<std::string>& class_names() const { return class_names_; }

    // Full path of a file of the bundle.
    std::string path(const FileSpec& spec) const { return folder_ + "/" + spec.file; }

  private:
    void check_file(const FileSpec& spec, bool hash) const;

    const std::string folder_;
    const hmar_check check_;
    Manifest manifest_;
    std::vector<std::string> class_names_;
};

}  // namespace hmar::core

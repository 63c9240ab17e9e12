// Which recordings of a bundle run on a GPU with a plugin library.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "kernel_library.h"
#include "recording.h"

namespace hmar::core {

// A folder of recordings that fit.
class GpuRecordings {
  public:
    // Throws Error: HMAR_BACKEND_UNAVAILABLE where a bundle has none for this GPU and library; the message
    // says what was found and why not.
    GpuRecordings(std::shared_ptr<const Bundle> bundle, const KernelTables& tables, const std::string& gpu);

    // Throws HMAR_BACKEND_UNAVAILABLE where a bundle has none at all; needs neither library nor GPU.
    static void check_any(const Bundle& bundle);

    const Bundle& bundle() const { return *bundle_; }
    const RecordingIndex& index() const { return index_; }
    std::string data_path() const { return folder_ + "/" + index_.data.file; }

    // The folder of the engines that they run; there must be some.
    std::string engines_folder() const;

    // Reads a recording and compares its SHA-256 with the index.
    Recording load(const RecordingEntry& entry) const;

  private:
    void open(const std::string& folder, const KernelTables& tables, const std::string& gpu);

    const std::shared_ptr<const Bundle> bundle_;
    std::string folder_;
    RecordingIndex index_;
};

}  // namespace hmar::core

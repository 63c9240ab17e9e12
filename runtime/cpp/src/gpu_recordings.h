// Which recordings of a bundle run on a GPU with a plugin library.
#pragma once

#include <memory>

#include "bundle.h"
#include "hmar_trajectory.h"
#include "kernel_library.h"
#include "recording.h"

namespace hmar::core {

// The work of a generation, as far as its plan decides it; plans that differ otherwise are equal.
struct PlannedWork {
    std::vector<bool> is_guided;                     // the next-scale pass of every scale
    std::vector<std::vector<size_t>> masked_counts;  // of every scale
    bool is_mask_guided;                             // false where there are no masked passes

    bool operator==(const PlannedWork& other) const;
};

PlannedWork planned_work(const Settings& settings, const ModelSpec& model);
PlannedWork planned_work(const RecordedPlan& plan, const ModelSpec& model);

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

    // Those of some work that are needed for up to `max_batch` images at once, by ascending batch: all
    // smaller ones, and the smallest that fits.
    std::vector<const RecordingEntry*> find(const PlannedWork& work, size_t max_batch) const;

    // Reads a recording and compares its SHA-256 with the index.
    Recording load(const RecordingEntry& entry) const;

  private:
    void open(const std::string& folder, const KernelTables& tables, const std::string& gpu);

    const std::shared_ptr<const Bundle> bundle_;
    std::string folder_;
    RecordingIndex index_;
};

}  // namespace hmar::core

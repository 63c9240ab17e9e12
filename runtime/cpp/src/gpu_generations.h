// Whole generations of HMAR on a GPU, each by one recording.
#pragma once

#include <memory>

#include "gpu_programs.h"
#include "hmar_trajectory.h"

namespace hmar::core {

// May be used from several threads at once.
class GpuGenerations {
  public:
    GpuGenerations(std::shared_ptr<GpuPrograms> programs, size_t max_batch)
        : programs_(std::move(programs)), max_batch_(max_batch) {}

    // Why a request cannot be served; "" where it can.
    std::string refusal(const HmarRequest& request) const;

    // Throws Error. Pixels of all images, padded to the batches that there are recordings of.
    void generate(const HmarRequest& request, const HmarOutput& output);

  private:
    // Those that are needed for up to `max_batch_` images at once, by ascending batch: all smaller ones, and
    // the smallest that fits.
    std::vector<const RecordingEntry*> recordings(const HmarRequest& request) const;
    void generate_part(const RecordingEntry& entry, const HmarRequest& request, const HmarOutput& output,
                       Part part);

    const std::shared_ptr<GpuPrograms> programs_;
    const size_t max_batch_;
};

}  // namespace hmar::core

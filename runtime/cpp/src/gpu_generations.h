// Whole generations of HMAR on a GPU: recordings, each captured as one CUDA graph and replayed.
#pragma once

#include <list>
#include <memory>
#include <mutex>

#include "gpu_recordings.h"
#include "mapped_file.h"

namespace hmar::core {

// May be used from several threads at once: generations take turns.
class GpuGenerations {
  public:
    // Loads the weights. `plugins` is libhmar_plugins.so, "" = the first that the dynamic linker finds.
    // Throws Error: HMAR_BACKEND_UNAVAILABLE where no recording of the bundle can run here, and why.
    static std::unique_ptr<GpuGenerations> open(const std::shared_ptr<const Bundle>& bundle,
                                                const std::string& plugins, size_t max_batch);
    GpuGenerations(const std::shared_ptr<const Bundle>& bundle, const std::string& plugins, size_t max_batch);
    ~GpuGenerations();

    // The backend and the device, for people.
    const std::string& name() const { return name_; }

    // Why a request cannot be served; "" where it can.
    std::string refusal(const HmarRequest& request) const;

    // Throws Error. Pixels of all images, padded to the batches that there are recordings of.
    void generate(const HmarRequest& request, const HmarOutput& output);

  private:
    struct Captured;

    std::vector<const RecordingEntry*> recordings(const HmarRequest& request) const;
    void load_weights();
    void release();
    void fill(const DeviceMemory& memory, const BufferContents& contents, const MappedFile& data) const;
    Captured& captured(const RecordingEntry& entry);
    std::unique_ptr<Captured> capture(const RecordingEntry& entry);
    void reserve_scratch(size_t nbytes);
    void run_part(Captured& captured, const HmarRequest& request, const HmarOutput& output, Part part);
    void write_inputs(const Captured& captured, const HmarRequest& request, Part part);
    void read_outputs(const Captured& captured, const HmarOutput& output, Part part);

    const KernelTables tables_;
    CudaDevice device_;
    const GpuRecordings recordings_;
    const size_t max_batch_;
    const MappedFile weights_file_;
    std::string name_;
    std::mutex turn_;
    // what follows is made and destroyed with the device's context being current, and guarded by turn_
    std::unique_ptr<KernelLibrary> kernels_;
    std::vector<std::unique_ptr<DeviceMemory>> weights_;
    std::unique_ptr<DeviceMemory> scratch_;
    std::unique_ptr<PinnedMemory> staging_;          // inputs of a run, then its outputs
    std::list<std::unique_ptr<Captured>> captured_;  // the latest used first
};

}  // namespace hmar::core

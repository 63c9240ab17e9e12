// Recorded work on a GPU: each recording is captured as one CUDA graph when it first runs, and replayed.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_recordings.h"
#include "mapped_file.h"
#include "tensorrt_engines.h"

namespace hmar::core {

// What a session on a GPU is opened with; "" = the first that the dynamic linker finds.
struct GpuOptions {
    std::string plugins;   // libhmar_plugins.so
    std::string tensorrt;  // libnvinfer.so or libtensorrt_rtx.so
};

// All of an input of a recording.
struct ProgramInput {
    std::string name;
    const void* values;
    size_t nbytes;
};

// The first bytes of an output.
struct ProgramOutput {
    std::string name;
    void* into;
    size_t nbytes;
};

// May be used from several threads at once: runs take turns.
class GpuPrograms {
  public:
    // Loads the weights. Throws Error: HMAR_BACKEND_UNAVAILABLE where no recordings of the bundle can run
    // here, and why.
    GpuPrograms(const std::shared_ptr<const Bundle>& bundle, const GpuOptions& options);
    ~GpuPrograms();

    const Bundle& bundle() const { return recordings_.bundle(); }
    const std::vector<RecordingEntry>& recordings() const { return recordings_.index().recordings; }

    // The backend and the device, for people.
    const std::string& name() const { return name_; }

    // Runs one of `recordings()`, given all of its inputs. Throws Error.
    void run(const RecordingEntry& entry, const std::vector<ProgramInput>& inputs,
             const std::vector<ProgramOutput>& outputs);

  private:
    struct Captured;

    void load_weights();
    void release();
    void fill(const DeviceMemory& memory, const BufferContents& contents, const MappedFile& data) const;
    Captured& find(const RecordingEntry& entry);
    void make_room(const RecordingEntry& entry);
    std::unique_ptr<Captured> load(const RecordingEntry& entry);
    void reserve_scratch(const RecordingEntry& entry);
    void reserve_staging(const std::vector<ProgramInput>& inputs, const std::vector<ProgramOutput>& outputs);
    void enqueue(const Captured& captured, const std::vector<const Kernel*>& kernels);
    void capture(Captured& captured);
    void write(const Captured& captured, const std::vector<ProgramInput>& inputs);
    void read(const Captured& captured, const std::vector<ProgramInput>& inputs,
              const std::vector<ProgramOutput>& outputs);

    const KernelTables tables_;
    CudaDevice device_;
    const GpuRecordings recordings_;
    const MappedFile weights_file_;
    const std::string name_;
    std::mutex turn_;
    // what follows is made and destroyed with the device's context being current, and guarded by turn_
    std::unique_ptr<KernelLibrary> kernels_;
    std::unique_ptr<TensorRtEngines> engines_;  // null where no recording runs any
    std::vector<std::unique_ptr<DeviceMemory>> weights_;
    std::unique_ptr<DeviceMemory> scratch_;
    std::unique_ptr<PinnedMemory> staging_;          // inputs of a run, then its outputs
    std::list<std::unique_ptr<Captured>> captured_;  // the latest used first
};

}  // namespace hmar::core

// TensorRT engines that recordings run. The library is loaded when asked for; building needs its headers
// alone.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "cuda_device.h"
#include "recording.h"

namespace hmar::core {

struct EngineOptions {
    std::string library;  // libnvinfer.so or libtensorrt_rtx.so; "" = the first that the dynamic linker finds
    std::string plugins;  // libhmar_plugins.so, for engines that hold its attention
    bool checks_plans;    // compare the SHA-256 of plans
};

// Plans are loaded, and contexts made, when they first run. The device's context must be current for every
// function, and when this is destroyed. Not thread-safe.
class TensorRtEngines {
  public:
    using Address = std::function<CuPointer(const BufferPlace&)>;

    virtual ~TensorRtEngines() = default;

    // Puts a run onto the device's stream. The first with a profile makes what cannot be captured. Throws
    // Error.
    virtual void run(const RecordedRun& run, const Address& address) = 0;
};

// Throws Error: HMAR_BACKEND_UNAVAILABLE where the library or the plugin is missing, or of another version
// than the engines are for. `folder` has the plans.
std::unique_ptr<TensorRtEngines> load_engines(const RecordedEngines& engines, const std::string& folder,
                                              const EngineOptions& options, const CudaDevice& device);

}  // namespace hmar::core

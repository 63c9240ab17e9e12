// What a launch of a recording passes to its kernel.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda_device.h"
#include "kernel_library.h"
#include "recording.h"

namespace hmar::core {

// A slot of 8 bytes for each argument, and tensor maps.
class LaunchArguments {
  public:
    using Address = std::function<CuPointer(const BufferPointer&)>;

    // Throws Error where the recording's arguments are not those that the kernel takes, or CUDA fails.
    LaunchArguments(const CudaDevice& device, const RecordedLaunch& launch, const Kernel& kernel,
                    const std::string& name, const Address& address);
    LaunchArguments(const LaunchArguments&) = delete;
    LaunchArguments& operator=(const LaunchArguments&) = delete;

    // What cuLaunchKernelEx takes.
    void** data() { return pointers_.data(); }

  private:
    std::vector<uint64_t> slots_;
    std::vector<void*> pointers_;
    std::vector<CuTensorMap> maps_;
};

}  // namespace hmar::core

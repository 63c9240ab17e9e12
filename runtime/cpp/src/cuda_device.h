// The first CUDA device of this process, through the driver's library, which is loaded when asked for.
#pragma once

#include <memory>
#include <string>

#include "cuda_api.h"
#include "error.h"

namespace hmar::core {

// A device with a context and one stream on which all work is in order. Not thread-safe.
class CudaDevice {
  public:
    // Throws Error: HMAR_BACKEND_UNAVAILABLE where there is no driver, or no device.
    CudaDevice();
    ~CudaDevice();
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    const CudaApi& api() const { return api_; }
    CuStream stream() const { return stream_; }
    const std::string& name() const { return name_; }

    // Compute capability, as "sm90".
    const std::string& gpu() const { return gpu_; }

    // Free and total bytes, for messages.
    std::string memory() const;

    // Throws Error where a call failed: HMAR_OUT_OF_MEMORY or HMAR_BACKEND_FAILED.
    void check(CuResult result, const std::string& what) const;

    void copy_in(CuPointer target, const void* source, size_t nbytes) const;
    void copy_out(void* target, CuPointer source, size_t nbytes) const;
    void copy(CuPointer target, CuPointer source, size_t nbytes) const;
    void zero(CuPointer target, size_t nbytes) const;
    void wait() const;

    // The device's context is the calling thread's while this lives.
    class Current {
      public:
        explicit Current(const CudaDevice& device);
        ~Current();
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

      private:
        const CudaDevice& device_;
    };

  private:
    void load();
    std::string error_name(CuResult result) const;

    CudaApi api_;
    CuDevice device_ = 0;
    CuContext context_ = nullptr;
    CuStream stream_ = nullptr;
    std::string name_, gpu_;
};

// Memory of a device; its context must be current when this is made and destroyed.
class DeviceMemory {
  public:
    DeviceMemory(const CudaDevice& device, size_t nbytes);
    ~DeviceMemory();
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    CuPointer address() const { return address_; }
    size_t nbytes() const { return nbytes_; }

  private:
    const CudaDevice& device_;
    const size_t nbytes_;
    CuPointer address_ = 0;  // none for no bytes
};

// Memory of the host that copies from and to the device do not wait for.
class PinnedMemory {
  public:
    PinnedMemory(const CudaDevice& device, size_t nbytes);
    ~PinnedMemory();
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;

    std::byte* data() const { return static_cast<std::byte*>(data_); }
    size_t nbytes() const { return nbytes_; }

  private:
    const CudaDevice& device_;
    const size_t nbytes_;
    void* data_ = nullptr;
};

}  // namespace hmar::core

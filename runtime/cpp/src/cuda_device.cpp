#include "cuda_device.h"

#include <dlfcn.h>

namespace hmar::core {
namespace {

constexpr const char* kDriver = "libcuda.so.1";
constexpr int kNameSize = 128;

}  // namespace

CudaDevice::CudaDevice() {
    load();
    const CuResult started = api_.cuInit(0);
    int count = 0;
    if (started == kCuSuccess) check(api_.cuDeviceGetCount(&count), "number of devices");
    if (started != kCuSuccess || count == 0) {
        throw Error(
            HMAR_BACKEND_UNAVAILABLE,
            text("no CUDA device (", started == kCuSuccess ? "cuDeviceGetCount: 0" : error_name(started),
                 "); use a machine with one, or another backend"));
    }
    check(api_.cuDeviceGet(&device_, 0), "first device");
    char name[kNameSize] = "";
    check(api_.cuDeviceGetName(name, kNameSize, device_), "name of the device");
    name_ = name;
    int major = 0, minor = 0;
    check(api_.cuDeviceGetAttribute(&major, kCuMajor, device_), "compute capability");
    check(api_.cuDeviceGetAttribute(&minor, kCuMinor, device_), "compute capability");
    gpu_ = text("sm", major, minor);
    check(api_.cuDevicePrimaryCtxRetain(&context_, device_), "context");
    try {
        const Current current(*this);
        check(api_.cuStreamCreate(&stream_, kCuNonBlocking), "stream");
    } catch (...) {
        api_.cuDevicePrimaryCtxRelease_v2(device_);
        throw;
    }
}

CudaDevice::~CudaDevice() {
    if (api_.cuCtxPushCurrent_v2(context_) == kCuSuccess) {
        api_.cuStreamDestroy_v2(stream_);
        CuContext popped;
        api_.cuCtxPopCurrent_v2(&popped);
    }
    api_.cuDevicePrimaryCtxRelease_v2(device_);
}

void CudaDevice::load() {
    // never closed: the driver does not expect to be unloaded
    void* library = dlopen(kDriver, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw Error(HMAR_BACKEND_UNAVAILABLE, text("no CUDA driver (", dlerror(),
                                                   "); install NVIDIA's driver, or use another backend"));
    }
    const char* missing = nullptr;
#define HMAR_LOAD(name, parameters)                                           \
    api_.name = reinterpret_cast<decltype(api_.name)>(dlsym(library, #name)); \
    if (api_.name == nullptr) missing = #name;
    HMAR_CUDA_FUNCTIONS(HMAR_LOAD)
#undef HMAR_LOAD
    if (missing != nullptr) {
        throw Error(HMAR_BACKEND_UNAVAILABLE,
                    text(kDriver, " has no ", missing, "; a driver for CUDA 12 or newer is needed"));
    }
}

std::string CudaDevice::error_name(CuResult result) const {
    const char* name = nullptr;
    if (api_.cuGetErrorName(result, &name) != kCuSuccess || name == nullptr) return text("error ", result);
    return name;
}

void CudaDevice::check(CuResult result, const std::string& what) const {
    if (result == kCuSuccess) return;
    if (result == kCuOutOfMemory) {
        throw Error(HMAR_OUT_OF_MEMORY,
                    text("GPU: ", what, ": ", error_name(result), "; ", memory(),
                         "; ask for fewer images, use a smaller max_batch, or free memory"));
    }
    throw Error(HMAR_BACKEND_FAILED, text("GPU: ", what, ": ", error_name(result)));
}

std::string CudaDevice::memory() const {
    size_t free = 0, total = 0;
    if (api_.cuMemGetInfo_v2(&free, &total) != kCuSuccess) return "free memory is not known";
    return text("free are ", free >> 20, " of ", total >> 20, " MiB");
}

void CudaDevice::copy_in(CuPointer target, const void* source, size_t nbytes) const {
    check(api_.cuMemcpyHtoDAsync_v2(target, source, nbytes, stream_),
          text("copy of ", nbytes, " bytes to it"));
}

void CudaDevice::copy_out(void* target, CuPointer source, size_t nbytes) const {
    check(api_.cuMemcpyDtoHAsync_v2(target, source, nbytes, stream_),
          text("copy of ", nbytes, " bytes from it"));
}

void CudaDevice::copy(CuPointer target, CuPointer source, size_t nbytes) const {
    check(api_.cuMemcpyDtoDAsync_v2(target, source, nbytes, stream_), text("copy of ", nbytes, " bytes"));
}

void CudaDevice::zero(CuPointer target, size_t nbytes) const {
    check(api_.cuMemsetD8Async(target, 0, nbytes, stream_), text(nbytes, " zeros"));
}

void CudaDevice::wait() const { check(api_.cuStreamSynchronize(stream_), "work"); }

CudaDevice::Current::Current(const CudaDevice& device) : device_(device) {
    device.check(device.api_.cuCtxPushCurrent_v2(device.context_), "context");
}

CudaDevice::Current::~Current() {
    CuContext popped;
    device_.api_.cuCtxPopCurrent_v2(&popped);
}

DeviceMemory::DeviceMemory(const CudaDevice& device, size_t nbytes) : device_(device), nbytes_(nbytes) {
    if (nbytes == 0) return;
    device.check(device.api().cuMemAlloc_v2(&address_, nbytes), text(nbytes >> 20, " MiB of memory"));
}

DeviceMemory::~DeviceMemory() {
    if (address_ != 0) device_.api().cuMemFree_v2(address_);
}

PinnedMemory::PinnedMemory(const CudaDevice& device, size_t nbytes) : device_(device), nbytes_(nbytes) {
    device.check(device.api().cuMemAllocHost_v2(&data_, nbytes), text(nbytes, " bytes of pinned memory"));
}

PinnedMemory::~PinnedMemory() { device_.api().cuMemFreeHost(data_); }

}  // namespace hmar::core

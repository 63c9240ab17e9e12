// Compiled where there is a cuda.h: what src/cuda_api.h declares is what CUDA declares.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "cuda_api.h"

namespace hmar::core {
namespace {

// Whether two functions take and return values of the same sizes.
template <typename Ours, typename Theirs>
struct IsSameAbi : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
struct IsSameAbi<R (*)(A...), S (*)(B...)> {
    template <size_t count>
    static constexpr bool check() {
        if constexpr (count != sizeof...(B)) {
            return false;
        } else {
            return sizeof(R) == sizeof(S) &&
                   ((sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>) && ...);
        }
    }
    static constexpr bool value = check<sizeof...(A)>();
};

#define CHECK_ABI(name, parameters) \
    static_assert(IsSameAbi<decltype(CudaApi::name), decltype(&::name)>::value, #name);
HMAR_CUDA_FUNCTIONS(CHECK_ABI)

#define CHECK_FIELD(ours, theirs) \
    static_assert(offsetof(CuLaunchConfig, ours) == offsetof(CUlaunchConfig, theirs), #theirs)
static_assert(sizeof(CuLaunchConfig) == sizeof(CUlaunchConfig));
CHECK_FIELD(grid_x, gridDimX);
CHECK_FIELD(block_x, blockDimX);
CHECK_FIELD(shared_bytes, sharedMemBytes);
CHECK_FIELD(stream, hStream);
CHECK_FIELD(attributes, attrs);
CHECK_FIELD(num_attributes, numAttrs);
static_assert(sizeof(CuLaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(CuLaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(CuPointer) == sizeof(CUdeviceptr) && sizeof(CuResult) == sizeof(CUresult));

static_assert(kCuSuccess == CUDA_SUCCESS && kCuOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(kCuNoDevice == CUDA_ERROR_NO_DEVICE);
static_assert(kCuMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kCuMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kCuMaxDynamicShared == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kCuNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(kCuCaptureThreadLocal == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
static_assert(kCuProgrammaticSerialization == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

}  // namespace
}  // namespace hmar::core

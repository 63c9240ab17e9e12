// What this library needs of the CUDA driver's interface, declared here so that no CUDA is needed to build.
#pragma once

#include <cstddef>

namespace hmar::core {

using CuResult = int;
using CuDevice = int;
using CuPointer = unsigned long long;
using CuContext = struct CuContextOpaque*;
using CuStream = struct CuStreamOpaque*;
using CuModule = struct CuModuleOpaque*;
using CuFunction = struct CuFunctionOpaque*;
using CuGraph = struct CuGraphOpaque*;
using CuGraphExec = struct CuGraphExecOpaque*;

constexpr CuResult kCuSuccess = 0, kCuOutOfMemory = 2, kCuNoDevice = 100;
constexpr int kCuMajor = 75, kCuMinor = 76;           // attributes of a device: its compute capability
constexpr int kCuMaxDynamicShared = 8;                // attribute of a function, bytes
constexpr unsigned kCuNonBlocking = 1;                // flag of a stream
constexpr int kCuCaptureThreadLocal = 1;              // mode of a capture
constexpr unsigned kCuProgrammaticSerialization = 6;  // attribute of a launch: may overlap the one before

struct CuLaunchAttribute {
    unsigned id;
    char pad[4];
    union {
        char room[64];
        int allowed;
    } value;
};
static_assert(sizeof(CuLaunchAttribute) == 72);

struct CuLaunchConfig {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    CuStream stream;
    CuLaunchAttribute* attributes;
    unsigned num_attributes;
};
static_assert(sizeof(CuLaunchConfig) == 56);

// How the copy engine reads an array; 128 bytes that the driver fills.
struct alignas(64) CuTensorMap {
    unsigned long long opaque[16];
};

// Of a tensor map: float16 values, no interleaving, rows of 64 or 128 bytes swizzled, 128 bytes asked for at
// once, zeros outside.
constexpr int kCuFloat16 = 6, kCuNotInterleaved = 0, kCuSwizzle64 = 2, kCuSwizzle128 = 3, kCuPromote128 = 2,
              kCuFillZeros = 0;

// Functions of libcuda.so.1, of CUDA 12 or newer: F(name, parameters).
#define HMAR_CUDA_FUNCTIONS(F)                                                    \
    F(cuInit, (unsigned flags))                                                   \
    F(cuGetErrorName, (CuResult result, const char** name))                       \
    F(cuDeviceGetCount, (int* count))                                             \
    F(cuDeviceGet, (CuDevice * device, int index))                                \
    F(cuDeviceGetName, (char* name, int size, CuDevice device))                   \
    F(cuDeviceGetAttribute, (int* value, int attribute, CuDevice device))         \
    F(cuDevicePrimaryCtxRetain, (CuContext * context, CuDevice device))           \
    F(cuDevicePrimaryCtxRelease_v2, (CuDevice device))                            \
    F(cuCtxPushCurrent_v2, (CuContext context))                                   \
    F(cuCtxPopCurrent_v2, (CuContext * context))                                  \
    F(cuMemGetInfo_v2, (size_t * free, size_t * total))                           \
    F(cuMemAlloc_v2, (CuPointer * address, size_t nbytes))                        \
    F(cuMemFree_v2, (CuPointer address))                                          \
    F(cuMemAllocHost_v2, (void** address, size_t nbytes))                         \
    F(cuMemFreeHost, (void* address))                                             \
    F(cuMemcpyHtoDAsync_v2, (CuPointer, const void*, size_t nbytes, CuStream))    \
    F(cuMemcpyDtoHAsync_v2, (void*, CuPointer, size_t nbytes, CuStream))          \
    F(cuMemcpyDtoDAsync_v2, (CuPointer, CuPointer, size_t nbytes, CuStream))      \
    F(cuMemsetD8Async, (CuPointer, unsigned char value, size_t nbytes, CuStream)) \
    F(cuStreamCreate, (CuStream * stream, unsigned flags))                        \
    F(cuStreamDestroy_v2, (CuStream stream))                                      \
    F(cuStreamSynchronize, (CuStream stream))                                     \
    F(cuStreamBeginCapture_v2, (CuStream stream, int mode))                       \
    F(cuStreamEndCapture, (CuStream stream, CuGraph * graph))                     \
    F(cuGraphInstantiateWithFlags, (CuGraphExec*, CuGraph, unsigned long long))   \
    F(cuGraphDestroy, (CuGraph graph))                                            \
    F(cuGraphExecDestroy, (CuGraphExec graph))                                    \
    F(cuGraphLaunch, (CuGraphExec graph, CuStream stream))                        \
    F(cuModuleLoadData, (CuModule * module, const void* image))                   \
    F(cuModuleUnload, (CuModule module))                                          \
    F(cuModuleGetFunction, (CuFunction*, CuModule module, const char* name))      \
    F(cuFuncSetAttribute, (CuFunction function, int attribute, int value))        \
    F(cuTensorMapEncodeTiled,                                                     \
      (CuTensorMap * map, int type, unsigned rank, void* address,                 \
       const unsigned long long* sizes, const unsigned long long* strides,        \
       const unsigned* box, const unsigned* steps, int interleave, int swizzle,   \
       int promotion, int fill))                                                  \
    F(cuLaunchKernelEx, (const CuLaunchConfig*, CuFunction, void** arguments, void** extra))

struct CudaApi {
#define HMAR_DECLARE(name, parameters) CuResult(*name) parameters = nullptr;
    HMAR_CUDA_FUNCTIONS(HMAR_DECLARE)
#undef HMAR_DECLARE
};

}  // namespace hmar::core

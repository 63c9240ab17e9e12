// Launcher of hmar::BlockSparseAttention: raw pointers and a stream, no framework headers.
// The contract of the op (maths, limits) is stated in ../spec.py.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

typedef enum { BSA_FLOAT32 = 0, BSA_FLOAT16 = 1, BSA_BFLOAT16 = 2 } bsa_dtype;
typedef enum { BSA_BLOCK_DIAGONAL = 0, BSA_BLOCK_CAUSAL = 1 } bsa_pattern;

// Element (b, t, h, i) of q, k and v lies at b * stride_b + t * stride_t + h * stride_h + i, counted in
// elements. Packed qkv (B, T, 3, H, d): q = qkv, k = qkv + H*d, v = qkv + 2*H*d, strides (T*3*H*d, 3*H*d, d).
// Separate q, k, v (B, T, H, d): strides (T*H*d, H*d, d). Pointers and strides must be multiples
// of 16 bytes. o is contiguous (B, T, H*d) and may not overlap the inputs.
typedef struct {
    const void* q;
    const void* k;
    const void* v;
    void* o;
    const int32_t* cu_seqlens;  // (num_blocks + 1), on the device
    const float* scale_mul;     // (H), on the device; null = no q/k L2 norm
    void* workspace;            // bsa_workspace_bytes on the device, null if that is 0
    int64_t stride_b, stride_t, stride_h;
    int32_t batch, length, heads, head_dim, num_blocks;
    float sm_scale;
    bsa_dtype dtype;
    bsa_pattern pattern;
} bsa_params;

// Enqueues the attention, one kernel or two, on the stream. Allocates nothing and never synchronises;
// capturable in a CUDA graph. cudaErrorInvalidValue: no variant for this dtype and head dim, or a pointer or
// stride is not aligned (see bsa_check for words). cudaErrorNoKernelImageForDevice: the library was not built
// for this GPU.
cudaError_t bsa_launch(const bsa_params* params, cudaStream_t stream);

// Workspace for a call of these sizes; enough for any smaller batch, length and heads too.
size_t bsa_workspace_bytes(bsa_dtype dtype, int32_t head_dim, int32_t qk_l2_norm, int32_t batch,
                           int32_t length, int32_t heads);

// Null if bsa_launch takes these parameters, else what is wrong (a static string). Reads host fields only.
const char* bsa_check(const bsa_params* params);

// Name of the kernel that bsa_launch takes on a GPU of this compute capability (90 for 9.0), null if there is
// none.
const char* bsa_kernel_name(const bsa_params* params, int32_t compute_capability);

// Version of the library, equal to the Python package's, and the compute capabilities that it holds kernels
// for, such as "80,86,89,90,120".
const char* bsa_version(void);
const char* bsa_architectures(void);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

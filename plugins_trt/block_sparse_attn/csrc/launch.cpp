// Picks the kernel of a call, loads it once per process and launches it.
#include <atomic>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <mutex>

#include "bsa.h"
#include "bsa_kernels.h"

extern "C" const unsigned char bsa_fatbin[];

namespace {

constexpr int kNumAttention = std::size(BSA_ATTENTION_KERNELS);
constexpr int kNumNormalizeKeys = std::size(BSA_NORMALIZE_KEYS_KERNELS);
constexpr int kMaxDevices = 64;  // of which a kernel remembers that it is ready
constexpr int kMaxGrid = 65535;  // in y and z
constexpr int64_t kMaxLength = int64_t{1} << 30;
constexpr int64_t kMaxStride = int64_t{1} << 23;  // a tile's offsets stay below 2^31

struct LoadedKernel {
    std::atomic<cudaKernel_t> handle{nullptr};
    std::atomic<uint64_t> ready_devices{0};
};

LoadedKernel loaded_attention[kNumAttention];
LoadedKernel loaded_normalize_keys[kNumNormalizeKeys];
std::mutex loading;
cudaLibrary_t library = nullptr;  // guarded by `loading`; stays for the life of the process

// Lets this thread load code while it, or another thread, captures a graph.
class RelaxedCapture {
  public:
    RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

  private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// The architecture whose kernels the driver runs on this GPU: the newest of its major version that is
// not newer than the GPU. 0 if there is none.
int architecture_for(int compute_capability) {
    int best = 0;
    for (const bsa_kernel& kernel : BSA_ATTENTION_KERNELS) {
        if (kernel.arch / 10 == compute_capability / 10 && kernel.arch <= compute_capability &&
            kernel.arch > best) {
            best = kernel.arch;
        }
    }
    return best;
}

int64_t num_tiles(const bsa_params& p, const bsa_kernel& kernel) {
    return (p.length + kernel.block - 1) / kernel.block;
}

// As choose_tile of variants.py. Null if the GPU has no kernel of this dtype and head dim.
const bsa_kernel* choose_kernel(const bsa_params& p, int compute_capability) {
    const int arch = architecture_for(compute_capability);
    for (const bsa_kernel& kernel : BSA_ATTENTION_KERNELS) {
        if (kernel.arch != arch || kernel.dtype != p.dtype || kernel.head_dim != p.head_dim ||
            kernel.qk_l2_norm != (p.scale_mul != nullptr)) {
            continue;
        }
        const int64_t tiles = num_tiles(p, kernel);
        if (tiles * p.heads * p.batch >= kernel.min_programs &&
            p.length >= int64_t{kernel.min_block} * p.num_blocks) {
            return &kernel;
        }
    }
    return nullptr;
}

cudaError_t load(const bsa_kernel& kernel, LoadedKernel& entry) {
    const std::lock_guard<std::mutex> lock(loading);
    const RelaxedCapture relaxed;
    if (library == nullptr) {
        const cudaError_t status =
            cudaLibraryLoadData(&library, bsa_fatbin, nullptr, nullptr, 0, nullptr, nullptr, 0);
        if (status != cudaSuccess) {
            library = nullptr;
            return status;
        }
    }
    cudaKernel_t handle = entry.handle.load();
    if (handle == nullptr) {
        const cudaError_t status = cudaLibraryGetKernel(&handle, library, kernel.name);
        if (status != cudaSuccess) {
            return status;
        }
    }
    // on the current device; also makes the driver load the kernel now, and not while a capture is on
    const cudaError_t status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(handle),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
    if (status == cudaSuccess) {
        entry.handle.store(handle);
    }
    return status;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % BSA_ALIGN_BYTES == 0; }

uint32_t item_bytes(bsa_dtype dtype) { return dtype == BSA_FLOAT32 ? 4 : 2; }

bool has_head_dim(int head_dim) {
    for (const int supported : {BSA_HEAD_DIMS}) {
        if (head_dim == supported) {
            return true;
        }
    }
    return false;
}

#define FIELD(type, name) type name;
#define ADDRESS(type, name) &arguments.name,

struct AttentionArguments {
    BSA_ATTENTION_PARAMETERS(FIELD)
};

struct NormalizeKeysArguments {
    BSA_NORMALIZE_KEYS_PARAMETERS(FIELD)
};

// Makes the kernel ready on the current device where it is not yet, and enqueues it.
cudaError_t launch(const bsa_kernel& kernel, LoadedKernel& entry, int device, const bsa_params& p,
                   void** arguments, cudaStream_t stream) {
    const uint64_t device_bit = device < kMaxDevices ? uint64_t{1} << device : 0;
    if ((entry.ready_devices.load() & device_bit) == 0) {
        const cudaError_t status = load(kernel, entry);
        if (status != cudaSuccess) {
            return status;
        }
        entry.ready_devices.fetch_or(device_bit);
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(num_tiles(p, kernel), p.heads, p.batch);
    config.blockDim = dim3(kernel.threads);
    config.dynamicSmemBytes = kernel.shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(entry.handle.load()), arguments);
}

// Normalised keys, to the workspace.
cudaError_t launch_normalize_keys(const bsa_params& p, int arch, int device, cudaStream_t stream) {
    NormalizeKeysArguments arguments{};
    arguments.k = p.k;
    arguments.scale_mul = p.scale_mul;
    arguments.normalized_k = p.workspace;
    arguments.stride_b = p.stride_b;
    arguments.stride_t = static_cast<int32_t>(p.stride_t);
    arguments.stride_h = static_cast<int32_t>(p.stride_h);
    arguments.length = p.length;
    arguments.heads = p.heads;
    void* pointers[] = {BSA_NORMALIZE_KEYS_PARAMETERS(ADDRESS)};
    for (const bsa_kernel& kernel : BSA_NORMALIZE_KEYS_KERNELS) {
        if (kernel.arch == arch && kernel.dtype == p.dtype && kernel.head_dim == p.head_dim) {
            LoadedKernel& entry = loaded_normalize_keys[&kernel - BSA_NORMALIZE_KEYS_KERNELS];
            return launch(kernel, entry, device, p, pointers, stream);
        }
    }
    return cudaErrorNoKernelImageForDevice;
}

}  // namespace

size_t bsa_workspace_bytes(bsa_dtype dtype, int32_t head_dim, int32_t qk_l2_norm, int32_t batch,
                           int32_t length, int32_t heads) {
    for (const bsa_kernel& kernel : BSA_NORMALIZE_KEYS_KERNELS) {
        if (qk_l2_norm && kernel.dtype == dtype && kernel.head_dim == head_dim) {
            return size_t{item_bytes(dtype)} * batch * heads * length * head_dim;  // (B, H, T, d)
        }
    }
    return 0;
}

const char* bsa_check(const bsa_params* params) {
    const bsa_params& p = *params;
    if (p.dtype != BSA_FLOAT32 && p.dtype != BSA_FLOAT16 && p.dtype != BSA_BFLOAT16) {
        return "dtype must be float32, float16 or bfloat16";
    }
    if (p.pattern != BSA_BLOCK_DIAGONAL && p.pattern != BSA_BLOCK_CAUSAL) {
        return "pattern must be block_diagonal or block_causal";
    }
    if (!has_head_dim(p.head_dim)) {
        return "head_dim must be one of " BSA_HEAD_DIMS_TEXT;
    }
    if (!(p.sm_scale > 0.0f) || !std::isfinite(p.sm_scale)) {
        return "sm_scale must be positive and finite";
    }
    if (p.batch < 0 || p.batch > kMaxGrid || p.heads < 1 || p.heads > kMaxGrid) {
        return "batch and heads must be at most 65535, and heads at least 1";
    }
    if (p.length < 0 || p.length > kMaxLength) {
        return "length must be at most 2^30";
    }
    if (p.num_blocks < 1) {
        return "num_blocks must be at least 1";
    }
    if (p.batch == 0 || p.length == 0) {
        return nullptr;  // nothing will be read or written
    }
    if (p.q == nullptr || p.k == nullptr || p.v == nullptr || p.o == nullptr || p.cu_seqlens == nullptr) {
        return "q, k, v, o and cu_seqlens must not be null";
    }
    if (p.workspace == nullptr &&
        bsa_workspace_bytes(p.dtype, p.head_dim, p.scale_mul != nullptr, p.batch, p.length, p.heads) > 0) {
        return "workspace must not be null: bsa_workspace_bytes says how large";
    }
    if (!is_aligned(p.q) || !is_aligned(p.k) || !is_aligned(p.v) || !is_aligned(p.o) ||
        !is_aligned(p.workspace)) {
        return "q, k, v, o and workspace must be aligned to 16 bytes";
    }
    const int64_t item = item_bytes(p.dtype);
    if ((p.stride_b * item) % BSA_ALIGN_BYTES != 0 || (p.stride_t * item) % BSA_ALIGN_BYTES != 0 ||
        (p.stride_h * item) % BSA_ALIGN_BYTES != 0) {
        return "strides must be multiples of 16 bytes";
    }
    if (p.stride_t < 0 || p.stride_t > kMaxStride || p.stride_h < 0 || p.stride_h > kMaxStride ||
        int64_t{p.heads} * p.head_dim > kMaxStride) {
        return "stride_t, stride_h and heads * head_dim must be at most 2^23 elements";
    }
    return nullptr;
}

cudaError_t bsa_launch(const bsa_params* params, cudaStream_t stream) {
    const bsa_params& p = *params;
    if (bsa_check(params) != nullptr) {
        return cudaErrorInvalidValue;
    }
    if (p.batch == 0 || p.length == 0) {
        return cudaSuccess;
    }
    int device = 0, major = 0, minor = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) {
        status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (status == cudaSuccess) {
        status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    if (status != cudaSuccess) {
        return status;
    }
    const bsa_kernel* kernel = choose_kernel(p, 10 * major + minor);
    if (kernel == nullptr) {
        return cudaErrorNoKernelImageForDevice;
    }
    if (kernel->normalizes_keys) {
        status = launch_normalize_keys(p, kernel->arch, device, stream);
        if (status != cudaSuccess) {
            return status;
        }
    }
    AttentionArguments arguments{};
    arguments.q = p.q;
    arguments.k = kernel->normalizes_keys ? p.workspace : p.k;
    arguments.v = p.v;
    arguments.o = p.o;
    arguments.cu_seqlens = p.cu_seqlens;
    arguments.scale_mul = p.scale_mul;
    arguments.stride_b = p.stride_b;
    arguments.stride_t = static_cast<int32_t>(p.stride_t);
    arguments.stride_h = static_cast<int32_t>(p.stride_h);
    arguments.length = p.length;
    arguments.heads = p.heads;
    arguments.num_blocks = p.num_blocks;
    arguments.sm_scale = p.sm_scale;
    arguments.is_causal = p.pattern == BSA_BLOCK_CAUSAL;
    void* pointers[] = {BSA_ATTENTION_PARAMETERS(ADDRESS)};
    LoadedKernel& entry = loaded_attention[kernel - BSA_ATTENTION_KERNELS];
    return launch(*kernel, entry, device, p, pointers, stream);
}

const char* bsa_kernel_name(const bsa_params* params, int32_t compute_capability) {
    const bsa_kernel* kernel = choose_kernel(*params, compute_capability);
    return kernel != nullptr ? kernel->name : nullptr;
}

const char* bsa_version(void) { return BSA_VERSION; }

const char* bsa_architectures(void) { return BSA_ARCHITECTURES; }

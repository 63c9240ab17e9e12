// ONNX Runtime custom op hmar::BlockSparseAttention. Contract: ../block_sparse_attn/spec.py.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_attention.h"
#ifdef HMAR_WITH_CUDA
#include "bsa.h"
#endif

namespace {

constexpr uint32_t kApiVersion = 18;  // ONNX Runtime 1.18: parallel loops and shape inference for custom ops
constexpr const char* kName = "BlockSparseAttention";
using Shape = std::vector<int64_t>;

[[noreturn]] void reject(const std::string& message) {
    throw std::invalid_argument(std::string(kName) + ": " + message);
}

std::string words(const Shape& shape) {
    std::string list;
    for (size_t i = 0; i < shape.size(); ++i) list += (i ? ", " : "") + std::to_string(shape[i]);
    return "(" + list + (shape.size() == 1 ? ",)" : ")");
}

struct Attributes {
    float sm_scale;
    bool causal, qk_l2_norm;

    explicit Attributes(const Ort::ConstKernelInfo& info)
        : sm_scale(read<float>(info, "sm_scale")), qk_l2_norm(read<int64_t>(info, "qk_l2_norm") != 0) {
        const auto pattern = read<std::string>(info, "pattern");
        if (pattern != "block_diagonal" && pattern != "block_causal") {
            reject("pattern must be one of ('block_diagonal', 'block_causal'), got '" + pattern + "'");
        }
        causal = pattern == "block_causal";
        if (!(sm_scale > 0)) {
            char text[32];
            snprintf(text, sizeof text, "%g", sm_scale);
            reject(std::string("sm_scale must be positive, got ") + text);
        }
    }

    template <typename T>
    static T read(const Ort::ConstKernelInfo& info, const char* name) {
        try {
            return info.GetAttribute<T>(name);
        } catch (const Ort::Exception& error) {
            reject(std::string("attribute ") + name + ": " + error.what());
        }
    }
};

// Inputs of one call, after all checks that need no device memory.
struct Operands {
    const void *q, *k, *v;
    const int32_t* cu_seqlens;
    const float* scale_mul;
    int64_t batch, length, heads, head_dim, num_blocks;
    int64_t stride_b, stride_t, stride_h;

    Operands(const Ort::KernelContext& context, hmar::Dtype dtype, bool packed, bool qk_l2_norm) {
        std::vector<Ort::ConstValue> inputs;  // without absent optional ones
        for (size_t i = 0; i < context.GetInputCount(); ++i) {
            if (auto value = context.GetInput(i)) inputs.push_back(value);
        }
        const size_t least = packed ? 2 : 4;
        if (inputs.size() != least && inputs.size() != least + 1) {
            reject(
                "takes 2 or 3 inputs (qkv, cu_seqlens[, scale_mul]) or 4 or 5 "
                "(q, k, v, cu_seqlens[, scale_mul]), got " +
                std::to_string(inputs.size()));
        }
        const Shape first = shape(inputs[0]), blocks = shape(inputs[least - 1]);
        if (packed) {
            if (first.size() != 5 || first[2] != 3)
                reject("qkv must be (B, T, 3, H, d), got " + words(first));
        } else {
            const Shape second = shape(inputs[1]), third = shape(inputs[2]);
            if (first.size() != 4 || second != first || third != first) {
                reject("q, k and v must be (B, T, H, d), all alike, got " + words(first) + ", " +
                       words(second) + " and " + words(third));
            }
        }
        batch = first[0], length = first[1], heads = first[packed ? 3 : 2], head_dim = first.back();
        if (blocks.size() != 1 || blocks[0] < 2) {
            reject("cu_seqlens must be (S + 1,) with at least one block, got " + words(blocks));
        }
        num_blocks = blocks[0] - 1;
        const bool has_scale_mul = inputs.size() > least;
        if (has_scale_mul != qk_l2_norm) {
            reject("scale_mul belongs to qk_l2_norm=1, got qk_l2_norm=" + std::to_string(qk_l2_norm));
        }
        if (has_scale_mul && shape(inputs[least]) != Shape{heads}) {
            reject("scale_mul must be " + words({heads}) + " for " + std::to_string(heads) + " heads, got " +
                   words(shape(inputs[least])));
        }
        stride_h = head_dim, stride_t = heads * head_dim * (packed ? 3 : 1), stride_b = length * stride_t;
        q = inputs[0].GetTensorRawData();
        if (packed) {
            const int64_t bytes = heads * head_dim * (dtype == hmar::Dtype::float32 ? 4 : 2);
            k = static_cast<const char*>(q) + bytes;
            v = static_cast<const char*>(k) + bytes;
        } else {
            k = inputs[1].GetTensorRawData(), v = inputs[2].GetTensorRawData();
        }
        cu_seqlens = inputs[least - 1].GetTensorData<int32_t>();
        scale_mul = has_scale_mul ? inputs[least].GetTensorData<float>() : nullptr;
    }

    static Shape shape(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }
};

// Tiles of all blocks; the values of cu_seqlens are on the host here, so they are checked.
std::vector<hmar::Tile> tiles_of(const Operands& x, bool causal) {
    const int32_t* ends = x.cu_seqlens + 1;
    bool ordered = x.cu_seqlens[0] == 0 && ends[x.num_blocks - 1] == x.length;
    for (int64_t s = 0; s < x.num_blocks; ++s) ordered = ordered && x.cu_seqlens[s] <= ends[s];
    if (!ordered) {
        reject("cu_seqlens must start with 0, never decrease and end with T = " + std::to_string(x.length) +
               ", got " + words(Shape(x.cu_seqlens, ends + x.num_blocks)));
    }
    std::vector<hmar::Tile> tiles;
    for (int64_t s = 0; s < x.num_blocks; ++s) {
        const int64_t start = x.cu_seqlens[s], stop = ends[s], first_key = causal ? 0 : start;
        for (int64_t i = start; i < stop; i += hmar::kTileRows) {
            tiles.push_back({i, std::min(hmar::kTileRows, stop - i), first_key, stop - first_key});
        }
    }
    return tiles;
}

void compute_on_cpu(const Ort::KernelContext& context, const Attributes& attributes, const Operands& x,
                    hmar::Dtype dtype, void* o) {
    struct Work {
        hmar::Attention attention;
        std::vector<hmar::Tile> tiles;
    } work;
    hmar::Attention& a = work.attention;
    a.q = x.q, a.k = x.k, a.v = x.v, a.o = o, a.scale_mul = x.scale_mul;
    a.stride_b = x.stride_b, a.stride_t = x.stride_t, a.stride_h = x.stride_h;
    a.length = x.length, a.heads = x.heads, a.head_dim = x.head_dim;
    a.sm_scale = attributes.sm_scale, a.dtype = dtype;
    work.tiles = tiles_of(x, attributes.causal);
    const size_t items = work.tiles.size() * size_t(x.batch * x.heads);
    if (items == 0) return;
    // Batches of about 50 microseconds, so that small packs stay on one thread.
    constexpr double kFlopsOfBatch = 1e6;
    double flops = 0;
    for (const auto& tile : work.tiles) flops += 4.0 * double(tile.num_queries * tile.num_keys * x.head_dim);
    flops *= double(x.batch * x.heads);
    const size_t batches = std::min(items, size_t(1 + flops / kFlopsOfBatch));
    context.ParallelFor(
        [](void* data, size_t item) {
            const auto& [attention, tiles] = *static_cast<const Work*>(data);
            const auto row = int64_t(item / tiles.size());
            const std::unique_ptr<float[]> scratch(new float[hmar::scratch_floats(attention.head_dim)]);
            hmar::attend(attention, tiles[item % tiles.size()], row / attention.heads, row % attention.heads,
                         scratch.get());
        },
        items, batches, &work);
}

#ifdef HMAR_WITH_CUDA
void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(kName) + ": " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error) + "; kernels built for: " + bsa_architectures());
}

void compute_on_cuda(const Ort::KernelContext& context, const Attributes& attributes, const Operands& x,
                     hmar::Dtype dtype, void* o) {
    bsa_params params = {};
    params.q = x.q, params.k = x.k, params.v = x.v, params.o = o;
    params.cu_seqlens = x.cu_seqlens, params.scale_mul = x.scale_mul;
    params.stride_b = x.stride_b, params.stride_t = x.stride_t, params.stride_h = x.stride_h;
    params.batch = int32_t(x.batch), params.length = int32_t(x.length), params.heads = int32_t(x.heads);
    params.head_dim = int32_t(x.head_dim), params.num_blocks = int32_t(x.num_blocks);
    params.sm_scale = attributes.sm_scale;
    params.dtype = dtype == hmar::Dtype::float32   ? BSA_FLOAT32
                   : dtype == hmar::Dtype::float16 ? BSA_FLOAT16
                                                   : BSA_BFLOAT16;
    params.pattern = attributes.causal ? BSA_BLOCK_CAUSAL : BSA_BLOCK_DIAGONAL;
    const size_t workspace_bytes = bsa_workspace_bytes(params.dtype, params.head_dim, attributes.qk_l2_norm,
                                                       params.batch, params.length, params.heads);
    const auto stream = static_cast<cudaStream_t>(context.GetGPUComputeStream());
    // In the stream's order, which memory from ONNX Runtime's allocator would not be.
    if (workspace_bytes > 0) check(cudaMallocAsync(&params.workspace, workspace_bytes, stream));
    const char* wrong = bsa_check(&params);
    const cudaError_t launched = wrong ? cudaSuccess : bsa_launch(&params, stream);
    if (params.workspace) check(cudaFreeAsync(params.workspace, stream));
    if (wrong) reject(wrong);
    check(launched);
}
#endif

enum class Device { cpu, cuda };

template <Device device>
struct Kernel {
    Attributes attributes;
    hmar::Dtype dtype;
    bool packed;

    OrtStatusPtr ComputeV2(OrtKernelContext* raw_context) const {
        try {
            const Ort::KernelContext context(raw_context);
            const Operands x(context, dtype, packed, attributes.qk_l2_norm);
            void* o =
                context.GetOutput(0, {x.batch, x.length, x.heads * x.head_dim}).GetTensorMutableRawData();
#ifdef HMAR_WITH_CUDA
            if constexpr (device == Device::cuda) {
                compute_on_cuda(context, attributes, x, dtype, o);
                return nullptr;
            }
#endif
            compute_on_cpu(context, attributes, x, dtype, o);
            return nullptr;
        } catch (const std::exception& error) {
            return Ort::Status(error.what(), ORT_INVALID_ARGUMENT).release();
        }
    }
};

// ONNX Runtime tells overloads apart by input types, so there is one per dtype and layout. The second input,
// int32 or as the first, decides the layout; inputs that a layout lacks carry the types that the other has
// there.
template <Device device>
struct Op : Ort::CustomOpBase<Op<device>, Kernel<device>, true> {
    hmar::Dtype dtype;
    bool packed;

    Op(hmar::Dtype dtype, bool packed) : dtype(dtype), packed(packed) { this->version = kApiVersion; }

    const char* GetName() const { return kName; }
    const char* GetExecutionProviderType() const {
        return device == Device::cpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
    }
    size_t GetInputTypeCount() const { return 5; }
    ONNXTensorElementDataType GetInputType(size_t i) const {
        if (i == 0 || (!packed && i < 3)) return GetOutputType(0);
        return i == 1 || i == 3 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
    OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t i) const {
        return i < 2 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    }
    size_t GetOutputTypeCount() const { return 1; }
    ONNXTensorElementDataType GetOutputType(size_t) const {
        return dtype == hmar::Dtype::float32   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
               : dtype == hmar::Dtype::float16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                               : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    }

    OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
        try {
            *kernel = new Kernel<device>{Attributes(Ort::ConstKernelInfo(info)), dtype, packed};
            return nullptr;
        } catch (const std::exception& error) {
            return Ort::Status(error.what(), ORT_INVALID_ARGUMENT).release();
        }
    }

    static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
        const auto first = context.GetInputShape(0);
        const size_t heads = first.size() - 2;
        if (first.size() != 4 && first.size() != 5) return Ort::Status{nullptr};  // the kernel says so
        const bool is_static = first[heads].IsInt() && first[heads + 1].IsInt();
        using Dim = Ort::ShapeInferContext::SymbolicInteger;
        const Dim width = is_static ? Dim(first[heads].AsInt() * first[heads + 1].AsInt()) : Dim("");
        return context.SetOutputShape(0, {first[0], first[1], width});
    }
};

template <Device device>
void add_ops(Ort::CustomOpDomain& domain) {
    for (const auto dtype : {hmar::Dtype::float32, hmar::Dtype::float16, hmar::Dtype::bfloat16}) {
        for (const bool packed : {true, false}) {
            domain.Add(new Op<device>(dtype, packed));  // kept for the process, as the domain is
        }
    }
}

Ort::CustomOpDomain make_domain() {
    Ort::CustomOpDomain domain("hmar");
    add_ops<Device::cpu>(domain);
#ifdef HMAR_WITH_CUDA
    add_ops<Device::cuda>(domain);
#endif
    return domain;
}

}  // namespace

#define HMAR_EXPORT extern "C" __attribute__((visibility("default")))

HMAR_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(kApiVersion);
    if (!api) {
        const std::string message = std::string("libhmar_ort.so: needs ONNX Runtime 1.") +
                                    std::to_string(kApiVersion) + " or newer, got " +
                                    base->GetVersionString();
        return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
    }
    Ort::InitApi(api);
    try {
        // sessions keep pointers into it, and may outlive this library's static objects
        static const auto* domain = new Ort::CustomOpDomain(make_domain());
        return api->AddCustomOpDomain(options, *domain);
    } catch (const std::exception& error) {
        return api->CreateStatus(ORT_FAIL, error.what());
    }
}

#ifndef HMAR_WITH_CUDA
// As in bsa.h; the launcher brings its own.
HMAR_EXPORT const char* bsa_version() { return HMAR_VERSION; }
HMAR_EXPORT const char* bsa_architectures() { return ""; }
#endif

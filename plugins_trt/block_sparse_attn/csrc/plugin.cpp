#include "plugin.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <iterator>
#include <stdexcept>

#include "bsa_kernels.h"
#include "logging.h"

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

namespace hmar {

namespace {

constexpr const char* kPatterns[] = {BSA_PATTERNS};
constexpr int kHeadDims[] = {BSA_HEAD_DIMS};

const char kLogPrefix[] = BSA_PLUGIN_NAMESPACE "::" BSA_OP_NAME ": ";

// Runs what may throw on behalf of an interface method, which may not. 0, or -1 and a message if it threw.
template <typename Function>
int32_t guarded(Function&& function) noexcept {
    try {
        function();
        return 0;
    } catch (const std::exception& error) {
        log_error(kLogPrefix + std::string(error.what()));
        return -1;
    }
}

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

float number(const PluginField& field) {
    if (field.length == 1 && field.type == PluginFieldType::kFLOAT32) {
        return *static_cast<const float*>(field.data);
    }
    if (field.length == 1 && field.type == PluginFieldType::kFLOAT64) {
        return static_cast<float>(*static_cast<const double*>(field.data));
    }
    fail("attribute " + std::string(field.name) + " must be one float");
}

int64_t integer(const PluginField& field) {
    if (field.length == 1 && field.type == PluginFieldType::kINT32) {
        return *static_cast<const int32_t*>(field.data);
    }
    if (field.length == 1 && field.type == PluginFieldType::kINT64) {
        return *static_cast<const int64_t*>(field.data);
    }
    fail("attribute " + std::string(field.name) + " must be one integer");
}

std::string text(const PluginField& field) {
    if (field.type != PluginFieldType::kCHAR || field.length < 0) {
        fail("attribute " + std::string(field.name) + " must be a string");
    }
    const char* begin = static_cast<const char*>(field.data);
    // some callers count the terminating zero, some do not
    return std::string(begin, std::find(begin, begin + field.length, '\0'));
}

bsa_pattern pattern_from(const std::string& name) {
    const auto* found = std::find(std::begin(kPatterns), std::end(kPatterns), name);
    if (found == std::end(kPatterns)) {
        std::string known;
        for (const char* pattern : kPatterns) {
            known += known.empty() ? pattern : std::string(" or ") + pattern;
        }
        fail("attribute pattern must be " + known + ", got \"" + name + "\"");
    }
    return static_cast<bsa_pattern>(found - kPatterns);
}

bool is_packed(int32_t num_inputs) { return num_inputs <= 3; }

// Inputs that hold queries, keys and values; they come first.
int32_t num_qkv(int32_t num_inputs) { return is_packed(num_inputs) ? 1 : 3; }

bool is_supported(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

bsa_dtype dtype_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT:
            return BSA_FLOAT32;
        case DataType::kHALF:
            return BSA_FLOAT16;
        case DataType::kBF16:
            return BSA_BFLOAT16;
        default:
            fail("q, k and v must be float32, float16 or bfloat16");
    }
}

std::string to_string(const Shape& shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) {
        text += (i ? ", " : "") + (shape[i] < 0 ? std::string("?") : std::to_string(shape[i]));
    }
    return text + ")";
}

Shape shape_of(const Dims& dims) { return Shape(dims.d, dims.d + std::max(dims.nbDims, 0)); }

Shape shape_of(const DimsExprs& dims) {
    Shape shape;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        shape.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : -1);
    }
    return shape;
}

bool differ(int64_t a, int64_t b) { return a >= 0 && b >= 0 && a != b; }

// What an engine's tensors are to the launcher.
bsa_params params_from(const Attributes& attributes, const PluginTensorDesc* descs, const void* const* inputs,
                       void* output, void* workspace) {
    const Dims& dims = descs[0].dims;  // (B, T, 3, H, d) or (B, T, H, d)
    const bool packed = dims.nbDims == 5;
    const int32_t num_main = packed ? 1 : 3;
    bsa_params p{};
    p.batch = static_cast<int32_t>(dims.d[0]);
    p.length = static_cast<int32_t>(dims.d[1]);
    p.heads = static_cast<int32_t>(dims.d[dims.nbDims - 2]);
    p.head_dim = static_cast<int32_t>(dims.d[dims.nbDims - 1]);
    p.num_blocks = static_cast<int32_t>(descs[num_main].dims.d[0] - 1);
    p.dtype = dtype_of(descs[0].type);
    p.pattern = attributes.pattern;
    p.sm_scale = attributes.sm_scale;
    const int64_t width = int64_t{p.heads} * p.head_dim;
    p.stride_h = p.head_dim;
    p.stride_t = packed ? 3 * width : width;
    p.stride_b = p.length * p.stride_t;
    const int64_t plane_bytes = width * (p.dtype == BSA_FLOAT32 ? 4 : 2);
    p.q = inputs[0];
    p.k = packed ? static_cast<const char*>(inputs[0]) + plane_bytes : inputs[1];
    p.v = packed ? static_cast<const char*>(inputs[0]) + 2 * plane_bytes : inputs[2];
    p.cu_seqlens = static_cast<const int32_t*>(inputs[num_main]);
    p.scale_mul = attributes.qk_l2_norm ? static_cast<const float*>(inputs[num_main + 1]) : nullptr;
    p.o = output;
    p.workspace = workspace;
    return p;
}

}  // namespace

Attributes attributes_from(const PluginFieldCollection& fields) {
    Attributes attributes;
    bool has_sm_scale = false;
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        const std::string name = field.name;
        if (name == "sm_scale") {
            attributes.sm_scale = number(field);
            has_sm_scale = true;
        } else if (name == "pattern") {
            attributes.pattern = pattern_from(text(field));
        } else if (name == "qk_l2_norm") {
            const int64_t value = integer(field);
            if (value != 0 && value != 1) {
                fail("attribute qk_l2_norm must be 0 or 1, got " + std::to_string(value));
            }
            attributes.qk_l2_norm = value == 1;
        } else if (name != "plugin_version" && name != "plugin_namespace") {
            fail("unknown attribute " + name + "; known: sm_scale, pattern, qk_l2_norm");
        }
    }
    if (!has_sm_scale) {
        fail("attribute sm_scale is missing");
    }
    if (!(attributes.sm_scale > 0.0f) || !std::isfinite(attributes.sm_scale)) {
        fail("attribute sm_scale must be positive and finite, got " + std::to_string(attributes.sm_scale));
    }
    return attributes;
}

BlockSparseAttention::BlockSparseAttention(const Attributes& attributes) : attributes_(attributes) {}

nvinfer1::IPluginCapability* BlockSparseAttention::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* BlockSparseAttention::clone() noexcept {
    IPluginV3* copy = nullptr;
    guarded([&] { copy = new BlockSparseAttention(attributes_); });
    return copy;
}

const char* BlockSparseAttention::getPluginName() const noexcept { return BSA_OP_NAME; }
const char* BlockSparseAttention::getPluginVersion() const noexcept { return BSA_PLUGIN_VERSION; }
const char* BlockSparseAttention::getPluginNamespace() const noexcept { return BSA_PLUGIN_NAMESPACE; }

void BlockSparseAttention::check_count(int32_t num_inputs) const {
    const int32_t packed = attributes_.qk_l2_norm ? 3 : 2;
    const int32_t separate = attributes_.qk_l2_norm ? 5 : 4;
    if (num_inputs != packed && num_inputs != separate) {
        const std::string tail = attributes_.qk_l2_norm ? "cu_seqlens, scale_mul)" : "cu_seqlens)";
        fail("with qk_l2_norm=" + std::to_string(attributes_.qk_l2_norm) + " the inputs are (qkv, " + tail +
             " or (q, k, v, " + tail + ", got " + std::to_string(num_inputs) + " inputs");
    }
}

void BlockSparseAttention::check_shapes(const std::vector<Shape>& shapes) const {
    const auto num_inputs = static_cast<int32_t>(shapes.size());
    check_count(num_inputs);
    const int32_t num_main = num_qkv(num_inputs);
    const Shape& first = shapes[0];
    if (is_packed(num_inputs)) {
        if (first.size() != 5 || differ(first[2], 3)) {
            fail("qkv must be (B, T, 3, H, d), got " + to_string(first));
        }
    } else {
        for (int32_t i = 0; i < num_main; ++i) {
            bool fits = shapes[i].size() == 4;
            for (size_t axis = 0; fits && axis < 4; ++axis) {
                fits = first.size() == 4 && !differ(shapes[i][axis], first[axis]);
            }
            if (!fits) {
                fail("q, k and v must be (B, T, H, d) and alike, got " + to_string(shapes[0]) + ", " +
                     to_string(shapes[1]) + " and " + to_string(shapes[2]));
            }
        }
    }
    const int64_t head_dim = first.back(), heads = first[first.size() - 2];
    if (head_dim >= 0 &&
        std::find(std::begin(kHeadDims), std::end(kHeadDims), head_dim) == std::end(kHeadDims)) {
        fail("no kernel for head dim " + std::to_string(head_dim) + "; supported: " BSA_HEAD_DIMS_TEXT);
    }
    const Shape& cu_seqlens = shapes[num_main];
    if (cu_seqlens.size() != 1 || cu_seqlens[0] == 0 || cu_seqlens[0] == 1) {
        fail("cu_seqlens must be (S + 1,) with at least one block, got " + to_string(cu_seqlens));
    }
    if (attributes_.qk_l2_norm) {
        const Shape& scale_mul = shapes[num_main + 1];
        if (scale_mul.size() != 1 || differ(scale_mul[0], heads)) {
            fail("scale_mul must be (H,) for " + (heads < 0 ? "H" : std::to_string(heads)) + " heads, got " +
                 to_string(scale_mul));
        }
    }
}

int32_t BlockSparseAttention::configurePlugin(const DynamicPluginTensorDesc* in, int32_t num_inputs,
                                              const DynamicPluginTensorDesc*, int32_t) noexcept {
    return guarded([&] {
        std::vector<Shape> shapes;
        for (int32_t i = 0; i < num_inputs; ++i) {
            shapes.push_back(shape_of(in[i].desc.dims));
        }
        check_shapes(shapes);
    });
}

int32_t BlockSparseAttention::getOutputDataTypes(DataType* output_types, int32_t, const DataType* input_types,
                                                 int32_t num_inputs) const noexcept {
    return guarded([&] {
        check_count(num_inputs);
        const int32_t num_main = num_qkv(num_inputs);
        for (int32_t i = 0; i < num_main; ++i) {
            if (input_types[i] != input_types[0] || !is_supported(input_types[i])) {
                fail("q, k and v must be float32, float16 or bfloat16, all of one type");
            }
        }
        if (input_types[num_main] != DataType::kINT32) {
            fail("cu_seqlens must be int32");
        }
        if (attributes_.qk_l2_norm && input_types[num_main + 1] != DataType::kFLOAT) {
            fail("scale_mul must be float32");
        }
        output_types[0] = input_types[0];
    });
}

int32_t BlockSparseAttention::getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs*,
                                              int32_t, DimsExprs* outputs, int32_t,
                                              nvinfer1::IExprBuilder& builder) noexcept {
    return guarded([&] {
        std::vector<Shape> shapes;
        for (int32_t i = 0; i < num_inputs; ++i) {
            shapes.push_back(shape_of(inputs[i]));
        }
        check_shapes(shapes);
        const DimsExprs& first = inputs[0];
        outputs[0].nbDims = 3;
        outputs[0].d[0] = first.d[0];
        outputs[0].d[1] = first.d[1];
        outputs[0].d[2] = builder.operation(nvinfer1::DimensionOperation::kPROD, *first.d[first.nbDims - 2],
                                            *first.d[first.nbDims - 1]);
    });
}

bool BlockSparseAttention::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                                     int32_t num_inputs, int32_t) noexcept {
    const PluginTensorDesc& desc = tensors[position].desc;
    if (desc.format != nvinfer1::TensorFormat::kLINEAR) {
        return false;
    }
    const int32_t num_main = num_qkv(num_inputs);
    if (position == 0) {
        return is_supported(desc.type);
    }
    if (position < num_main || position == num_inputs) {
        return desc.type == tensors[0].desc.type;
    }
    return desc.type == (position == num_main ? DataType::kINT32 : DataType::kFLOAT);
}

size_t BlockSparseAttention::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                              const DynamicPluginTensorDesc*, int32_t) const noexcept {
    size_t bytes = 0;
    guarded([&] {
        const Dims& dims = inputs[0].max;  // (B, T, H, d) or (B, T, 3, H, d)
        const auto size = [&](int32_t axis) { return static_cast<int32_t>(dims.d[axis]); };
        const int32_t last = dims.nbDims - 1;
        bytes = bsa_workspace_bytes(dtype_of(inputs[0].desc.type), size(last), attributes_.qk_l2_norm,
                                    size(0), size(1), size(last - 1));
    });
    return bytes;
}

int32_t BlockSparseAttention::onShapeChange(const PluginTensorDesc* in, int32_t num_inputs,
                                            const PluginTensorDesc*, int32_t) noexcept {
    return guarded([&] {
        std::vector<Shape> shapes;
        for (int32_t i = 0; i < num_inputs; ++i) {
            shapes.push_back(shape_of(in[i].dims));
        }
        check_shapes(shapes);
    });
}

int32_t BlockSparseAttention::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                                      const void* const* inputs, void* const* outputs, void* workspace,
                                      cudaStream_t stream) noexcept {
    return guarded([&] {
        const bsa_params params = params_from(attributes_, input_descs, inputs, outputs[0], workspace);
        const cudaError_t status = bsa_launch(&params, stream);
        if (status == cudaErrorNoKernelImageForDevice) {
            throw std::runtime_error(
                "no kernel for this GPU; the library holds kernels for compute capabilities " +
                std::string(bsa_architectures()) + ": build it with another HMAR_CUDA_ARCHS");
        }
        if (status != cudaSuccess) {
            const char* problem = bsa_check(&params);
            throw std::runtime_error(problem != nullptr ? problem : cudaGetErrorString(status));
        }
    });
}

IPluginV3* BlockSparseAttention::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

const PluginFieldCollection* BlockSparseAttention::getFieldsToSerialize() noexcept {
    const char* pattern = kPatterns[attributes_.pattern];
    qk_l2_norm_field_ = attributes_.qk_l2_norm;
    fields_ = {
        PluginField("sm_scale", &attributes_.sm_scale, PluginFieldType::kFLOAT32, 1),
        PluginField("pattern", pattern, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(pattern))),
        PluginField("qk_l2_norm", &qk_l2_norm_field_, PluginFieldType::kINT32, 1),
    };
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
}

IPluginV3* BlockSparseAttentionCreator::createPlugin(const char*, const PluginFieldCollection* fields,
                                                     nvinfer1::TensorRTPhase) noexcept {
    IPluginV3* plugin = nullptr;
    guarded([&] { plugin = new BlockSparseAttention(attributes_from(*fields)); });
    return plugin;
}

const PluginFieldCollection* BlockSparseAttentionCreator::getFieldNames() noexcept {
    static const PluginField fields[] = {
        PluginField("sm_scale", nullptr, PluginFieldType::kFLOAT32, 1),
        PluginField("pattern", nullptr, PluginFieldType::kCHAR, 0),
        PluginField("qk_l2_norm", nullptr, PluginFieldType::kINT32, 1),
    };
    static const PluginFieldCollection collection{static_cast<int32_t>(std::size(fields)), fields};
    return &collection;
}

const char* BlockSparseAttentionCreator::getPluginName() const noexcept { return BSA_OP_NAME; }
const char* BlockSparseAttentionCreator::getPluginVersion() const noexcept { return BSA_PLUGIN_VERSION; }
const char* BlockSparseAttentionCreator::getPluginNamespace() const noexcept { return BSA_PLUGIN_NAMESPACE; }

}  // namespace hmar

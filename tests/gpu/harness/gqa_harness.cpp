// Runs our plugin inside an engine of a TensorRT-RTX that maps no custom nodes to plugins (1.4, the newest
// that runs on Hopper GPUs). Its parser does look for a plugin for com.microsoft::GroupQueryAttention, so
// this creator takes that name and hands the node's tensors to hmar::BlockSparseAttention. A test harness,
// not a product.
//
//     query, key, value, past_key, past_value, seqlens, cos_cache, sin_cache -> o, present_key, present_value
//
// seqlens is cu_seqlens. What the node's attributes say here:
//     scale                  sm_scale
//     num_heads              heads
//     local_window_size      -1 = block_diagonal, else block_causal
//     rotary_interleaved 1   qk_l2_norm; cos_cache (1, H) is scale_mul
//     kv_num_heads 1         query (B, T, 3*H*d) is packed qkv, key and value are not read; else all are (B,
//     T, H*d)
// The past and sin_cache are not read and the present outputs not written.
#include <NvInferRuntime.h>

#include <cstring>
#include <iterator>
#include <vector>

#include "plugin.h"

using namespace nvinfer1;

namespace {

enum Input { kQuery, kKey, kValue, kPastKey, kPastValue, kCuSeqlens, kScaleMul, kSinCache, kNumInputs };

struct NodeAttributes {
    float scale = 0.0f;
    int32_t num_heads = 0, kv_num_heads = 0, local_window_size = -1, rotary_interleaved = 0;

    bool packed() const { return kv_num_heads == 1; }
    hmar::Attributes inner() const {
        return {scale, local_window_size < 0 ? BSA_BLOCK_DIAGONAL : BSA_BLOCK_CAUSAL,
                rotary_interleaved == 1};
    }
};

constexpr struct {
    const char* name;
    int32_t NodeAttributes::* value;
} kIntegers[] = {
    {"num_heads", &NodeAttributes::num_heads},
    {"kv_num_heads", &NodeAttributes::kv_num_heads},
    {"local_window_size", &NodeAttributes::local_window_size},
    {"rotary_interleaved", &NodeAttributes::rotary_interleaved},
};

class GqaPlugin final : public IPluginV3,
                        public IPluginV3OneCore,
                        public IPluginV3OneBuildV2,
                        public IPluginV3OneRuntime {
  public:
    explicit GqaPlugin(const NodeAttributes& attributes)
        : attributes_(attributes), plugin_(attributes.inner()) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE:
                return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD:
                return static_cast<IPluginV3OneBuildV2*>(this);
            case PluginCapabilityType::kRUNTIME:
                return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new GqaPlugin(attributes_); }
    const char* getPluginName() const noexcept override { return "GroupQueryAttention"; }
    const char* getPluginVersion() const noexcept override { return "1"; }
    const char* getPluginNamespace() const noexcept override { return ""; }

    int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) noexcept override {
        return 0;
    }
    int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                               int32_t) const noexcept override {
        outputs[0] = inputs[kQuery];
        outputs[1] = outputs[2] = inputs[kPastKey];
        return 0;
    }
    int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t, DimsExprs* outputs,
                            int32_t, IExprBuilder& builder) noexcept override {
        outputs[0] = inputs[kQuery];
        if (attributes_.packed()) {
            outputs[0].d[2] =
                builder.operation(DimensionOperation::kFLOOR_DIV, *inputs[kQuery].d[2], *builder.constant(3));
        }
        outputs[1] = outputs[2] = inputs[kPastKey];
        return 0;
    }
    bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t,
                                   int32_t) noexcept override {
        return tensors[position].desc.format == TensorFormat::kLINEAR;
    }
    int32_t getNbOutputs() const noexcept override { return 3; }
    size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) const noexcept override {
        PluginTensorDesc largest[kNumInputs] = {};
        for (int32_t i = 0; i < kNumInputs; ++i) {
            largest[i] = inputs[i].desc;
            largest[i].dims = inputs[i].max;
        }
        std::vector<DynamicPluginTensorDesc> descs;
        for (const PluginTensorDesc& desc : plugin_descs(largest)) {
            descs.push_back({desc, desc.dims, desc.dims, desc.dims});
        }
        return plugin_.getWorkspaceSize(descs.data(), static_cast<int32_t>(descs.size()), nullptr, 0);
    }

    int32_t onShapeChange(const PluginTensorDesc* in, int32_t, const PluginTensorDesc* out,
                          int32_t) noexcept override {
        std::vector<PluginTensorDesc> descs = plugin_descs(in);
        return plugin_.onShapeChange(descs.data(), static_cast<int32_t>(descs.size()), out, 1);
    }
    int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        std::vector<const void*> tensors;
        for (const Input input : plugin_inputs()) {
            tensors.push_back(inputs[input]);
        }
        return plugin_.enqueue(plugin_descs(input_descs).data(), output_descs, tensors.data(), outputs,
                               workspace, stream);
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    const PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_ = {PluginField("scale", &attributes_.scale, PluginFieldType::kFLOAT32, 1)};
        for (const auto& integer : kIntegers) {
            fields_.emplace_back(integer.name, &(attributes_.*integer.value), PluginFieldType::kINT32, 1);
        }
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
        return &collection_;
    }

  private:
    // The node's inputs that our plugin takes, in its order.
    std::vector<Input> plugin_inputs() const {
        std::vector<Input> inputs = {kQuery};
        if (!attributes_.packed()) {
            inputs.insert(inputs.end(), {kKey, kValue});
        }
        inputs.push_back(kCuSeqlens);
        if (attributes_.inner().qk_l2_norm) {
            inputs.push_back(kScaleMul);
        }
        return inputs;
    }

    // The same with the shapes that it wants: (B, T, 3, H, d) or (B, T, H, d), and (H,).
    std::vector<PluginTensorDesc> plugin_descs(const PluginTensorDesc* all) const {
        std::vector<PluginTensorDesc> descs;
        for (const Input input : plugin_inputs()) {
            PluginTensorDesc desc = all[input];
            if (input == kScaleMul) {
                desc.dims.nbDims = 1;
                desc.dims.d[0] = all[input].dims.d[1];
            } else if (input != kCuSeqlens) {
                const int64_t parts = attributes_.packed() ? 3 : 1, width = all[input].dims.d[2];
                int32_t axis = 2;
                if (attributes_.packed()) {
                    desc.dims.d[axis++] = parts;
                }
                desc.dims.d[axis++] = attributes_.num_heads;
                desc.dims.d[axis++] = width / parts / attributes_.num_heads;
                desc.dims.nbDims = axis;
            }
            descs.push_back(desc);
        }
        return descs;
    }

    NodeAttributes attributes_;
    hmar::BlockSparseAttention plugin_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_;
};

class GqaCreator final : public IPluginCreatorV3One {
  public:
    IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                            TensorRTPhase) noexcept override {
        NodeAttributes attributes;
        for (int32_t i = 0; i < fields->nbFields; ++i) {
            const PluginField& field = fields->fields[i];
            if (std::strcmp(field.name, "scale") == 0) {
                attributes.scale = *static_cast<const float*>(field.data);
            }
            for (const auto& integer : kIntegers) {
                if (std::strcmp(field.name, integer.name) == 0) {
                    attributes.*integer.value = *static_cast<const int32_t*>(field.data);
                }
            }
        }
        return new GqaPlugin(attributes);
    }
    const PluginFieldCollection* getFieldNames() noexcept override {
        static const PluginField fields[] = {PluginField("scale", nullptr, PluginFieldType::kFLOAT32, 1)};
        static const PluginFieldCollection collection{static_cast<int32_t>(std::size(fields)), fields};
        return &collection;  // the parser passes all attributes of this node in any case
    }
    const char* getPluginName() const noexcept override { return "GroupQueryAttention"; }
    const char* getPluginVersion() const noexcept override { return "1"; }
    const char* getPluginNamespace() const noexcept override { return ""; }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void setLoggerFinder(ILoggerFinder*) {}

EXPORT IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
    static GqaCreator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    num_creators = static_cast<int32_t>(std::size(creators));
    return creators;
}

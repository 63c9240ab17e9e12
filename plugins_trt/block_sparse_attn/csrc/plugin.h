// hmar::BlockSparseAttention for TensorRT 10.13 to 11.x and TensorRT-RTX. The contract of the op is stated in
// ../spec.py. Nothing here touches a GPU before onShapeChange and enqueue.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "bsa.h"

namespace hmar {

struct Attributes {
    float sm_scale = 0.0f;
    bsa_pattern pattern = BSA_BLOCK_DIAGONAL;
    bool qk_l2_norm = false;
};

// Throws std::invalid_argument: an attribute is missing, unknown, of a wrong type or out of range.
Attributes attributes_from(const nvinfer1::PluginFieldCollection& fields);

// Dimensions of one tensor; -1 = not known yet.
using Shape = std::vector<int64_t>;

// Inputs are (qkv, cu_seqlens[, scale_mul]) with qkv (B, T, 3, H, d), or (q, k, v, cu_seqlens[, scale_mul])
// with q, k, v (B, T, H, d). The output is (B, T, H*d).
class BlockSparseAttention final : public nvinfer1::IPluginV3,
                                   public nvinfer1::IPluginV3OneCore,
                                   public nvinfer1::IPluginV3OneBuildV2,
                                   public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit BlockSparseAttention(const Attributes& attributes);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuildV2
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                            const nvinfer1::DynamicPluginTensorDesc* out,
                            int32_t num_outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                               const nvinfer1::DataType* input_types,
                               int32_t num_inputs) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                            const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                            nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                   int32_t num_inputs, int32_t num_outputs) noexcept override;
    int32_t getNbOutputs() const noexcept override { return 1; }
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                            const nvinfer1::DynamicPluginTensorDesc* outputs,
                            int32_t num_outputs) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::PluginTensorDesc* out, int32_t num_outputs) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                    const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

  private:
    void check_count(int32_t num_inputs) const;
    void check_shapes(const std::vector<Shape>& shapes) const;

    Attributes attributes_;
    std::array<nvinfer1::PluginField, 3> fields_;
    nvinfer1::PluginFieldCollection collection_;
    int32_t qk_l2_norm_field_;
};

class BlockSparseAttentionCreator final : public nvinfer1::IPluginCreatorV3One {
  public:
    // Null, and a message in the log, if the attributes do not fit the contract.
    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;
};

}  // namespace hmar

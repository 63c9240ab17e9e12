// What cases of plugin_test.cpp stand on: TensorRT's side of the plugin interfaces, and checks.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bsa.h"

using namespace nvinfer1;

namespace {

int num_failures = 0;
std::string logged;
void* library = nullptr;
void* fake_nvinfer = nullptr;

std::map<std::string, std::function<void()>>& cases() {
    static std::map<std::string, std::function<void()>> all;
    return all;
}

#define CASE(name)                                                 \
    void name();                                                   \
    const bool name##_added = cases().emplace(#name, name).second; \
    void name()

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            std::printf("line %d: %s\n    logged: %s\n", __LINE__, #condition, logged.c_str()); \
            ++num_failures;                                                                     \
        }                                                                                       \
    } while (false)

template <typename Function>
Function* symbol(const char* name, void* from = library) {
    auto* found = reinterpret_cast<Function*>(dlsym(from, name));
    if (found == nullptr) {
        std::printf("no symbol %s\n", name);
        std::exit(2);
    }
    return found;
}

void set_logger(ILogger* logger) { symbol<void(ILogger*)>("fake_set_logger", fake_nvinfer)(logger); }

class Logger final : public ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        logged = severity == Severity::kERROR ? message : "not an error";
    }
} logger;

bool has_logged(const char* text) { return logged.find(text) != std::string::npos; }

class Dimension final : public IDimensionExpr {
  public:
    explicit Dimension(int64_t value) : value_(value) { mImpl = &value_; }

  private:
    struct Value final : apiv::VDimensionExpr {
        explicit Value(int64_t value) : value(value) {}
        bool isConstant() const override { return value >= 0; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
        int64_t value;
    } value_;
};

// Makes dimensions; one that is not known yet (-1) stays so in a product.
class ExprBuilder final : public IExprBuilder {
  public:
    ExprBuilder() { mImpl = &pool_; }
    DimsExprs dims(const std::vector<int64_t>& shape) {
        DimsExprs dims{};
        dims.nbDims = static_cast<int32_t>(shape.size());
        for (size_t i = 0; i < shape.size(); ++i) {
            dims.d[i] = pool_.constant(shape[i]);
        }
        return dims;
    }

  private:
    struct Pool final : apiv::VExprBuilder {
        const IDimensionExpr* constant(int64_t value) override {
            made.push_back(std::make_unique<Dimension>(value));
            return made.back().get();
        }
        const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                        const IDimensionExpr& second) override {
            CHECK(operation == DimensionOperation::kPROD);
            const bool known = first.isConstant() && second.isConstant();
            return constant(known ? first.getConstantValue() * second.getConstantValue() : -1);
        }
        const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                                const IDimensionExpr&) override {
            return nullptr;
        }
        std::vector<std::unique_ptr<Dimension>> made;
    } pool_;
};

IPluginCreatorV3One& creator() {
    int32_t num_creators = 0;
    auto* get_creators = symbol<IPluginCreatorInterface* const*(int32_t&)>("getCreators");
    IPluginCreatorInterface* const* creators = get_creators(num_creators);
    CHECK(num_creators == 1);
    CHECK(std::string(creators[0]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
    return *static_cast<IPluginCreatorV3One*>(creators[0]);
}

using Plugin = std::unique_ptr<IPluginV3>;

Plugin create(const std::vector<PluginField>& fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    logged.clear();
    return Plugin(creator().createPlugin("node", &collection, phase));
}

const float kScale = 0.125f;
const int32_t kTrue = 1, kFalse = 0;
const PluginField kSmScale("sm_scale", &kScale, PluginFieldType::kFLOAT32, 1);

PluginField qk_l2_norm(const int32_t& value) {
    return PluginField("qk_l2_norm", &value, PluginFieldType::kINT32, 1);
}

PluginField pattern(const char* value, int32_t length) {
    return PluginField("pattern", value, PluginFieldType::kCHAR, length);
}

PluginField pattern(const char* value) { return pattern(value, static_cast<int32_t>(std::strlen(value))); }

IPluginV3OneBuildV2& build_of(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneBuildV2*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

using Shapes = std::vector<std::vector<int64_t>>;

// The output shape, empty if the plugin refused; -1 = not known.
std::vector<int64_t> output_shape(IPluginV3& plugin, const Shapes& shapes) {
    ExprBuilder builder;
    std::vector<DimsExprs> inputs;
    for (const std::vector<int64_t>& shape : shapes) {
        inputs.push_back(builder.dims(shape));
    }
    DimsExprs output{};
    logged.clear();
    const int32_t status = build_of(plugin).getOutputShapes(
        inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 0, &output, 1, builder);
    std::vector<int64_t> result;
    for (int32_t i = 0; status == 0 && i < output.nbDims; ++i) {
        result.push_back(output.d[i]->isConstant() ? output.d[i]->getConstantValue() : -1);
    }
    CHECK((status == 0) == logged.empty());
    return result;
}

PluginTensorDesc desc(const std::vector<int64_t>& shape, DataType type,
                      TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc result{};
    result.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), result.dims.d);
    result.type = type;
    result.format = format;
    return result;
}

// Whether the plugin takes the last of the tensors, as TensorRT asks: knowing those before it.
bool takes(IPluginV3& plugin, const std::vector<DataType>& types, int32_t num_inputs,
           TensorFormat format = TensorFormat::kLINEAR) {
    std::vector<DynamicPluginTensorDesc> tensors(num_inputs + 1);
    for (size_t i = 0; i < types.size(); ++i) {
        tensors[i].desc = desc({}, types[i], format);
    }
    const auto position = static_cast<int32_t>(types.size()) - 1;
    return build_of(plugin).supportsFormatCombination(position, tensors.data(), num_inputs, 1);
}

}  // namespace

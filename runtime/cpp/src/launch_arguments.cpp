#include "launch_arguments.h"

#include <cstring>
#include <variant>

namespace hmar::core {
namespace {

// Writes an argument to its slot; false where it is of another kind.
bool store(const LaunchArgument& argument, ParameterKind kind, uint64_t* slot,
           const LaunchArguments::Address& address) {
    if (kind == ParameterKind::pointer || kind == ParameterKind::tensor_map) {
        const auto* pointer = std::get_if<BufferPointer>(&argument);
        if (pointer != nullptr) {
            *slot = address(*pointer);
            return true;
        }
        return kind == ParameterKind::pointer && std::holds_alternative<NullPointer>(argument);
    }
    const auto* integer = std::get_if<int64_t>(&argument);
    if (kind == ParameterKind::i32) {
        if (integer == nullptr) return false;
        const auto value = int32_t(*integer);
        std::memcpy(slot, &value, sizeof value);
        return true;
    }
    const auto* real = std::get_if<double>(&argument);
    if (real == nullptr && integer == nullptr) return false;
    const auto value = real != nullptr ? float(*real) : float(*integer);
    std::memcpy(slot, &value, sizeof value);
    return true;
}

// As kernel_library.py does it.
CuResult encode(const CudaApi& api, const TensorMapRule& rule, const RecordedLaunch& launch, uint64_t address,
                CuTensorMap& map, const std::string& what) {
    std::vector<unsigned long long> sizes, strides;
    unsigned long long nbytes = sizeof(uint16_t);
    for (const auto& [times, parameter] : rule.sizes) {
        const int64_t factor = parameter < 0 ? 1 : std::get<int64_t>(launch.arguments[size_t(parameter)]);
        if (factor < 1) throw Error(HMAR_INVALID_BUNDLE, text("an array of size ", factor, " for ", what));
        sizes.push_back(times * uint64_t(factor));
        strides.push_back(nbytes *= sizes.back());
    }
    const std::vector<unsigned> steps(sizes.size(), 1);
    const int swizzle = rule.box[0] * sizeof(uint16_t) == 64 ? kCuSwizzle64 : kCuSwizzle128;
    return api.cuTensorMapEncodeTiled(&map, kCuFloat16, unsigned(sizes.size()),
                                      reinterpret_cast<void*>(address), sizes.data(), strides.data(),
                                      rule.box.data(), steps.data(), kCuNotInterleaved, swizzle,
                                      kCuPromote128, kCuFillZeros);
}

}  // namespace

LaunchArguments::LaunchArguments(const CudaDevice& device, const RecordedLaunch& launch, const Kernel& kernel,
                                 const std::string& name, const Address& address)
    : slots_(launch.arguments.size()),
      pointers_(launch.arguments.size()),
      maps_(kernel.entry->tensor_maps.size()) {
    const std::vector<ParameterKind>& kinds = kernel.entry->parameters;
    if (kinds.size() != launch.arguments.size()) {
        throw Error(HMAR_INVALID_BUNDLE, text("kernel ", name, " takes ", kinds.size(),
                                              " arguments, its recording has ", launch.arguments.size()));
    }
    for (size_t i = 0; i < kinds.size(); ++i) {
        if (!store(launch.arguments[i], kinds[i], &slots_[i], address)) {
            throw Error(HMAR_INVALID_BUNDLE,
                        text("kernel ", name, ": argument ", i, " of its recording is of another kind"));
        }
        pointers_[i] = &slots_[i];
    }
    size_t next = 0;
    for (const auto& [place, rule] : kernel.entry->tensor_maps) {
        CuTensorMap& map = maps_[next++];
        const std::string what = text("kernel ", name, ": tensor map of argument ", place);
        device.check(encode(device.api(), rule, launch, slots_[place], map, what), what);
        pointers_[place] = &map;
    }
}

}  // namespace hmar::core

// Modules and launches of the stand-in for libcuda.so.1. A module is text: a kernel a line, its name and its
// parameters' kinds ("p" address, "i" int32, "f" float32, "t" tensor map, whose address a test sees).
#include <sstream>

#include "fake_cuda_state.h"

using namespace fake_cuda;

namespace {

constexpr uint64_t kIsTensorMap = 0x70614D726F736E65;

using Module = std::map<std::string, Function>;

}  // namespace

FAKE cuModuleLoadData(CuModule* module, const void* image) {
    BEGIN(true);
    auto* functions = new Module;
    std::istringstream lines(static_cast<const char*>(image));
    for (std::string name, kinds; lines >> name >> kinds;) functions->emplace(name, Function{name, kinds});
    state.modules.insert(functions);
    *module = reinterpret_cast<CuModule>(functions);
    return kCuSuccess;
}

FAKE cuModuleUnload(CuModule module) {
    BEGIN(true);
    if (remove(state.modules, module) != kCuSuccess) return kInvalidValue;
    delete reinterpret_cast<Module*>(module);
    return kCuSuccess;
}

FAKE cuModuleGetFunction(CuFunction* function, CuModule module, const char* name) {
    BEGIN(true);
    auto& functions = *reinterpret_cast<Module*>(module);
    const auto found = functions.find(name);
    if (found == functions.end()) return kNotFound;
    *function = reinterpret_cast<CuFunction>(&found->second);
    return kCuSuccess;
}

FAKE cuFuncSetAttribute(CuFunction function, int attribute, int value) {
    BEGIN(true);
    if (attribute != kCuMaxDynamicShared) return violation(kInvalidValue, __func__);
    reinterpret_cast<Function*>(function)->max_shared = value;
    return kCuSuccess;
}

FAKE cuTensorMapEncodeTiled(CuTensorMap* map, int type, unsigned rank, void* address,
                            const unsigned long long* sizes, const unsigned long long* strides,
                            const unsigned* box, const unsigned* steps, int interleave, int swizzle,
                            int promotion, int fill) {
    BEGIN(false);
    const auto start = reinterpret_cast<uint64_t>(address);
    bool is_valid = type == kCuFloat16 && rank >= 1 && rank <= 5 && start % 16 == 0 &&
                    reinterpret_cast<uint64_t>(map) % 64 == 0 && interleave == kCuNotInterleaved &&
                    promotion == kCuPromote128 && fill == kCuFillZeros &&
                    box[0] * 2 == (swizzle == kCuSwizzle128  ? 128
                                   : swizzle == kCuSwizzle64 ? 64
                                                             : 0);
    uint64_t nbytes = 2;
    for (unsigned i = 0; i < rank; ++i) {
        if (i > 0) is_valid = is_valid && strides[i - 1] == nbytes && nbytes % 16 == 0;
        is_valid = is_valid && sizes[i] > 0 && box[i] > 0 && box[i] <= 256 && steps[i] == 1;
        nbytes *= sizes[i];
    }
    if (!is_valid || !is_device_memory(start, nbytes)) return violation(kInvalidValue, __func__);
    *map = {{start, kIsTensorMap}};
    return kCuSuccess;
}

FAKE cuLaunchKernelEx(const CuLaunchConfig* config, CuFunction handle, void** arguments, void** extra) {
    BEGIN(true);
    const auto* function = reinterpret_cast<const Function*>(handle);
    if (extra != nullptr || int(config->shared_bytes) > function->max_shared || config->block_y != 1 ||
        config->block_z != 1) {
        return violation(kInvalidValue, __func__);
    }
    Operation operation{0, function, *config, false, {}, 0, 0, 0};
    for (unsigned i = 0; i < config->num_attributes; ++i) {
        const CuLaunchAttribute& attribute = config->attributes[i];
        if (attribute.id != kCuProgrammaticSerialization) return violation(kInvalidValue, __func__);
        operation.overlaps = attribute.value.allowed == 1;
    }
    for (size_t i = 0; i < function->kinds.size(); ++i) {
        uint64_t bits = 0;
        const char kind = function->kinds[i];
        std::memcpy(&bits, arguments[i], kind == 'p' || kind == 't' ? sizeof bits : sizeof(uint32_t));
        if (kind == 't' && static_cast<const CuTensorMap*>(arguments[i])->opaque[1] != kIsTensorMap) {
            return violation(kInvalidValue, __func__);
        }
        operation.arguments.push_back(bits);
    }
    return enqueue(config->stream, std::move(operation));
}

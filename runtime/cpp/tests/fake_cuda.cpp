// A stand-in for libcuda.so.1. A module is text: a kernel a line, its name and its parameters' kinds ("p"
// address, "i" int32, "f" float32, "t" tensor map, whose address a test sees).
#include "fake_cuda.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_api.h"

using namespace hmar::core;

namespace {

constexpr CuResult kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500, kCaptureUnsupported = 900;
constexpr size_t kTotalMemory = size_t{1} << 34;
constexpr uint64_t kIsTensorMap = 0x70614D726F736E65;
constexpr int kPoison = 0xFF;  // NaN as a float, -1 as an index

struct Function {
    std::string name, kinds;
    int max_shared = 48 << 10;
};

struct Operation {
    int kind;
    const Function* function;
    CuLaunchConfig config;
    bool overlaps;
    std::vector<uint64_t> arguments;
    uint64_t target, source, nbytes;
    void (*call)(void* data) = nullptr;
    std::shared_ptr<void> data = nullptr;
};

using Operations = std::vector<Operation>;

struct Stream {
    bool is_capturing = false;
    Operations captured;
};

struct State {
    std::recursive_mutex mutex;
    std::map<uint64_t, size_t> memory;  // device memory by address
    std::set<void*> pinned, streams, graphs, executables, modules;
    int retained = 0, violations = 0;
    int count = 1, major = 9, minor = 0;
    std::string failing;
    int failing_nth = 0, failing_calls = 0;
    CuResult failing_result = 0;
    FakeOnOperation on_operation = nullptr;
};

State& state = *new State;
thread_local std::vector<CuContext> contexts;
thread_local bool is_capturing = false;  // this thread, on any stream: it may neither allocate nor wait
char the_context;

CuResult violation(CuResult result, const char* function) {
    std::fprintf(stderr, "%s: not allowed here: %d\n", function, result);
    ++state.violations;
    return result;
}

// Whether a call is to fail; the result, or success.
CuResult begin(const char* function, bool needs_context = true) {
    if (state.failing == function && ++state.failing_calls == state.failing_nth) return state.failing_result;
    if (needs_context && contexts.empty()) return violation(kInvalidContext, function);
    return kCuSuccess;
}

#define BEGIN(needs_context)                                       \
    const std::lock_guard<std::recursive_mutex> lock(state.mutex); \
    if (const CuResult result = begin(__func__, needs_context)) return result

bool is_device_memory(uint64_t address, size_t nbytes) {
    auto after = state.memory.upper_bound(address);
    if (after == state.memory.begin()) return false;
    --after;
    return address + nbytes <= after->first + after->second;
}

void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

void execute(const Operation& operation) {
    if (operation.kind == 1) std::memcpy(at(operation.target), at(operation.source), operation.nbytes);
    if (operation.kind == 2) std::memset(at(operation.target), 0, operation.nbytes);
}

void report(const Operation& operation) {
    if (state.on_operation == nullptr) return;
    const CuLaunchConfig& config = operation.config;
    const FakeOperation seen{operation.kind,
                             operation.function == nullptr ? "" : operation.function->name.c_str(),
                             {config.grid_x, config.grid_y, config.grid_z},
                             config.block_x,
                             config.shared_bytes,
                             operation.overlaps,
                             operation.arguments.data(),
                             operation.arguments.size(),
                             operation.target,
                             operation.source,
                             operation.nbytes};
    state.on_operation(&seen);
}

CuResult enqueue(CuStream handle, Operation operation) {
    auto& stream = *reinterpret_cast<Stream*>(handle);
    if (stream.is_capturing) {
        stream.captured.push_back(std::move(operation));
    } else {
        execute(operation);
    }
    return kCuSuccess;
}

template <typename T>
CuResult remove(std::set<void*>& objects, T* object) {
    if (objects.erase(object) == 0) return violation(kInvalidValue, __func__);
    return kCuSuccess;
}

using Module = std::map<std::string, Function>;

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default"))) CuResult

FAKE cuInit(unsigned) {
    BEGIN(false);
    return state.count == 0 ? kCuNoDevice : kCuSuccess;
}

FAKE cuGetErrorName(CuResult result, const char** name) {
    *name = result == kCuOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_TEST";
    return kCuSuccess;
}

FAKE cuDeviceGetCount(int* count) {
    BEGIN(false);
    *count = state.count;
    return kCuSuccess;
}

FAKE cuDeviceGet(CuDevice* device, int index) {
    BEGIN(false);
    *device = index;
    return index == 0 ? kCuSuccess : kInvalidValue;
}

FAKE cuDeviceGetName(char* name, int size, CuDevice) {
    BEGIN(false);
    std::strncpy(name, "Fake GPU", size_t(size));
    return kCuSuccess;
}

FAKE cuDeviceGetAttribute(int* value, int attribute, CuDevice) {
    BEGIN(false);
    *value = attribute == kCuMajor ? state.major : state.minor;
    return attribute == kCuMajor || attribute == kCuMinor ? kCuSuccess : kInvalidValue;
}

FAKE cuDevicePrimaryCtxRetain(CuContext* context, CuDevice) {
    BEGIN(false);
    ++state.retained;
    *context = reinterpret_cast<CuContext>(&the_context);
    return kCuSuccess;
}

FAKE cuDevicePrimaryCtxRelease_v2(CuDevice) {
    BEGIN(false);
    return --state.retained < 0 ? violation(kInvalidContext, __func__) : kCuSuccess;
}

FAKE cuCtxPushCurrent_v2(CuContext context) {
    BEGIN(false);
    if (state.retained == 0) return violation(kInvalidContext, __func__);
    contexts.push_back(context);
    return kCuSuccess;
}

FAKE cuCtxPopCurrent_v2(CuContext* context) {
    BEGIN(true);
    *context = contexts.back();
    contexts.pop_back();
    return kCuSuccess;
}

FAKE cuMemGetInfo_v2(size_t* free, size_t* total) {
    BEGIN(false);
    if (contexts.empty()) return kInvalidContext;
    *free = *total = kTotalMemory;
    return kCuSuccess;
}

FAKE cuMemAlloc_v2(CuPointer* address, size_t nbytes) {
    BEGIN(true);
    if (is_capturing) return violation(kCaptureUnsupported, __func__);
    if (nbytes == 0) return violation(kInvalidValue, __func__);
    if (nbytes > kTotalMemory) return kCuOutOfMemory;
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, nbytes) != 0) return kCuOutOfMemory;
    std::memset(memory, kPoison, nbytes);
    *address = reinterpret_cast<uint64_t>(memory);
    state.memory[*address] = nbytes;
    return kCuSuccess;
}

FAKE cuMemFree_v2(CuPointer address) {
    BEGIN(true);
    if (state.memory.erase(address) == 0) return violation(kInvalidValue, __func__);
    std::free(at(address));
    return kCuSuccess;
}

FAKE cuMemAllocHost_v2(void** address, size_t nbytes) {
    BEGIN(true);
    *address = std::malloc(nbytes);
    state.pinned.insert(*address);
    return kCuSuccess;
}

FAKE cuMemFreeHost(void* address) {
    BEGIN(true);
    if (remove(state.pinned, address) != kCuSuccess) return kInvalidValue;
    std::free(address);
    return kCuSuccess;
}

FAKE cuMemcpyHtoDAsync_v2(CuPointer target, const void* source, size_t nbytes, CuStream) {
    BEGIN(true);
    if (is_capturing || !is_device_memory(target, nbytes)) return violation(kInvalidValue, __func__);
    std::memcpy(at(target), source, nbytes);
    return kCuSuccess;
}

FAKE cuMemcpyDtoHAsync_v2(void* target, CuPointer source, size_t nbytes, CuStream) {
    BEGIN(true);
    if (is_capturing || !is_device_memory(source, nbytes)) return violation(kInvalidValue, __func__);
    std::memcpy(target, at(source), nbytes);
    return kCuSuccess;
}

FAKE cuMemcpyDtoDAsync_v2(CuPointer target, CuPointer source, size_t nbytes, CuStream stream) {
    BEGIN(true);
    if (!is_device_memory(target, nbytes) || !is_device_memory(source, nbytes))
        return violation(kInvalidValue, __func__);
    return enqueue(stream, {1, nullptr, {}, false, {}, target, source, nbytes});
}

FAKE cuMemsetD8Async(CuPointer target, unsigned char value, size_t nbytes, CuStream stream) {
    BEGIN(true);
    if (value != 0 || !is_device_memory(target, nbytes)) return violation(kInvalidValue, __func__);
    return enqueue(stream, {2, nullptr, {}, false, {}, target, 0, nbytes});
}

FAKE cuStreamCreate(CuStream* stream, unsigned flags) {
    BEGIN(true);
    *stream = reinterpret_cast<CuStream>(new Stream);
    state.streams.insert(*stream);
    return flags == kCuNonBlocking ? kCuSuccess : violation(kInvalidValue, __func__);
}

FAKE cuStreamDestroy_v2(CuStream stream) {
    BEGIN(true);
    if (remove(state.streams, stream) != kCuSuccess) return kInvalidValue;
    delete reinterpret_cast<Stream*>(stream);
    return kCuSuccess;
}

FAKE cuStreamSynchronize(CuStream) {
    BEGIN(true);
    return is_capturing ? violation(kCaptureUnsupported, __func__) : kCuSuccess;
}

FAKE cuStreamBeginCapture_v2(CuStream handle, int mode) {
    BEGIN(true);
    auto& stream = *reinterpret_cast<Stream*>(handle);
    if (is_capturing || stream.is_capturing || mode != kCuCaptureThreadLocal) {
        return violation(kInvalidValue, __func__);
    }
    is_capturing = stream.is_capturing = true;
    return kCuSuccess;
}

FAKE cuStreamEndCapture(CuStream handle, CuGraph* graph) {
    const std::lock_guard<std::recursive_mutex> whole(state.mutex);
    auto& stream = *reinterpret_cast<Stream*>(handle);
    const bool was_capturing = stream.is_capturing;
    const Operations captured = std::move(stream.captured);
    stream.captured.clear();
    is_capturing = stream.is_capturing = false;  // whatever comes of it
    BEGIN(true);
    if (!was_capturing) return violation(kInvalidValue, __func__);
    auto* operations = new Operations(captured);
    state.graphs.insert(operations);
    *graph = reinterpret_cast<CuGraph>(operations);
    return kCuSuccess;
}

FAKE cuGraphInstantiateWithFlags(CuGraphExec* executable, CuGraph graph, unsigned long long) {
    BEGIN(true);
    auto* operations = new Operations(*reinterpret_cast<const Operations*>(graph));
    state.executables.insert(operations);
    *executable = reinterpret_cast<CuGraphExec>(operations);
    return kCuSuccess;
}

FAKE cuGraphDestroy(CuGraph graph) {
    BEGIN(true);
    if (remove(state.graphs, graph) != kCuSuccess) return kInvalidValue;
    delete reinterpret_cast<Operations*>(graph);
    return kCuSuccess;
}

FAKE cuGraphExecDestroy(CuGraphExec executable) {
    BEGIN(true);
    if (remove(state.executables, executable) != kCuSuccess) return kInvalidValue;
    delete reinterpret_cast<Operations*>(executable);
    return kCuSuccess;
}

FAKE cuGraphLaunch(CuGraphExec executable, CuStream) {
    BEGIN(true);
    if (state.executables.count(executable) == 0) return violation(kInvalidValue, __func__);
    for (const Operation& operation : *reinterpret_cast<const Operations*>(executable)) {
        execute(operation);
        if (operation.call != nullptr) operation.call(operation.data.get());
        report(operation);
    }
    return kCuSuccess;
}

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

#define TEST_API extern "C" __attribute__((visibility("default")))

TEST_API void fake_cuda_on_operation(FakeOnOperation callback) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    state.on_operation = callback;
}

TEST_API void fake_cuda_enqueue(void* stream, void (*call)(void*), void* data, void (*release)(void*)) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    Operation operation{3, nullptr, {}, false, {}, 0, 0, 0};
    operation.call = call, operation.data = std::shared_ptr<void>(data, release);
    enqueue(static_cast<CuStream>(stream), std::move(operation));
}

TEST_API void fake_cuda_check_not_capturing(const char* function) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    if (is_capturing || contexts.empty()) violation(kCaptureUnsupported, function);
}

TEST_API void fake_cuda_set_device(int count, int major, int minor) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    state.count = count, state.major = major, state.minor = minor;
}

TEST_API int fake_cuda_fail(const char* function, int nth, int result) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    const int calls = state.failing_calls;
    state.failing = function == nullptr ? "" : function;
    state.failing_nth = nth, state.failing_result = result, state.failing_calls = 0;
    return calls;
}

TEST_API int fake_cuda_live(void) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    return int(state.memory.size() + state.pinned.size() + state.streams.size() + state.graphs.size() +
               state.executables.size() + state.modules.size()) +
           state.retained;
}

TEST_API int fake_cuda_violations(void) {
    const std::lock_guard<std::recursive_mutex> lock(state.mutex);
    return state.violations;
}

// A stand-in for libcuda.so.1: devices, memory, streams and graphs. Modules and launches are
// fake_cuda_kernels.cpp.
#include <cstdlib>

#include "fake_cuda_state.h"

using namespace fake_cuda;

namespace {

constexpr size_t kTotalMemory = size_t{1} << 34;
constexpr int kPoison = 0xFF;  // NaN as a float, -1 as an index

char the_context;

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

}  // namespace

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

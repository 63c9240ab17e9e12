// What the files of the stand-in for the CUDA driver share: its objects, and how calls begin.
#pragma once

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda_api.h"
#include "fake_cuda.h"

#define FAKE extern "C" __attribute__((visibility("default"))) CuResult

namespace fake_cuda {

using namespace hmar::core;

constexpr CuResult kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500, kCaptureUnsupported = 900;

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

inline State& state = *new State;
inline thread_local std::vector<CuContext> contexts;
inline thread_local bool is_capturing =
    false;  // this thread, on any stream: it may neither allocate nor wait

inline CuResult violation(CuResult result, const char* function) {
    std::fprintf(stderr, "%s: not allowed here: %d\n", function, result);
    ++state.violations;
    return result;
}

// Whether a call is to fail; the result, or success.
inline CuResult begin(const char* function, bool needs_context = true) {
    if (state.failing == function && ++state.failing_calls == state.failing_nth) return state.failing_result;
    if (needs_context && contexts.empty()) return violation(kInvalidContext, function);
    return kCuSuccess;
}

#define BEGIN(needs_context)                                       \
    const std::lock_guard<std::recursive_mutex> lock(state.mutex); \
    if (const CuResult result = begin(__func__, needs_context)) return result

inline bool is_device_memory(uint64_t address, size_t nbytes) {
    auto after = state.memory.upper_bound(address);
    if (after == state.memory.begin()) return false;
    --after;
    return address + nbytes <= after->first + after->second;
}

inline void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

inline void execute(const Operation& operation) {
    if (operation.kind == 1) std::memcpy(at(operation.target), at(operation.source), operation.nbytes);
    if (operation.kind == 2) std::memset(at(operation.target), 0, operation.nbytes);
}

inline CuResult enqueue(CuStream handle, Operation operation) {
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

}  // namespace fake_cuda

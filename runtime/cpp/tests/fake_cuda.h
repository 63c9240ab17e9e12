// What tests ask of the stand-in for libcuda.so.1, which has memory of the host and executes graphs at once.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct FakeOperation {
    int kind;  // 0 = launch, 1 = copy, 2 = zeros, 3 = what `fake_cuda_enqueue` was given; as in recordings
    const char* kernel;
    unsigned grid[3], threads, shared_bytes, overlaps;
    const uint64_t* arguments;  // bits of each, in the order of the parameters
    size_t num_arguments;
    uint64_t target, source, nbytes;
};

// Called for every operation of a graph that is launched, instead of kernels and after copies and zeros.
typedef void (*FakeOnOperation)(const FakeOperation* operation);
void fake_cuda_on_operation(FakeOnOperation callback);

// The only device; count is 0 or 1.
void fake_cuda_set_device(int count, int major, int minor);

// Makes the n-th call of a function from now on, from 1, return a result; null = none. Returns how many calls
// the function before it had.
int fake_cuda_fail(const char* function, int nth, int result);

// Memory, streams, graphs, modules and contexts that have not been freed.
int fake_cuda_live(void);

// Calls without a current context, copies beyond memory, and others that CUDA does not allow.
int fake_cuda_violations(void);

// For fake_tensorrt.cpp: puts a call onto a stream, which a graph that is launched makes; `data` is released
// when it is not needed any more.
void fake_cuda_enqueue(void* stream, void (*call)(void* data), void* data, void (*release)(void* data));

// Counts a violation if this thread captures a stream, or has no context.
void fake_cuda_check_not_capturing(const char* function);

// For fake_plugins.cpp: the table of a part ("sampling", "decoder", "transformer", "glue"), JSON by
// architecture.
void fake_plugins_set(const char* part, const char* table);
}

// What tests ask of the stand-in for libnvinfer.so, whose plans are any bytes and whose runs a test computes.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct FakeTensor {
    const char* name;
    uint64_t address;
    const int64_t* shape;  // null for outputs
    size_t rank;
};

struct FakeRun {
    const char* plan;
    size_t plan_size;
    int32_t profile;
    uint64_t scratch;  // 0 = the context has memory of its own
    const FakeTensor* tensors;
    size_t num_tensors;
};

// Called for every run of a graph that is launched.
typedef void (*FakeOnRun)(const FakeRun* run);
void fake_tensorrt_on_run(FakeOnRun callback);

// Makes all calls of some functions fail from now on, such as "loadLibrary,enqueueV3"; null = none.
void fake_tensorrt_fail(const char* function);

// Runtimes, engines and contexts that have not been freed.
int fake_tensorrt_live(void);

// The plugin library that was loaded last; "" = none.
const char* fake_tensorrt_plugins(void);
}

// A stand-in for libnvinfer.so of the version whose headers it is built with. The interfaces that the library
// implements have hundreds of virtual functions; here an object has those that the runtime calls, in their
// places, and any other ends the program.
#include "fake_tensorrt.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <typeinfo>
#include <vector>

#include "fake_cuda.h"

namespace trt = nvinfer1;

namespace {

// --- virtual functions by their places

constexpr size_t kPlaces = 200, kBefore = 2;  // before them: the offset to the whole, and the type
using Function = void (*)();

void unexpected() {
    std::fputs("a function of TensorRT that the stand-in does not have\n", stderr);
    std::abort();
}

template <typename Interface>
class Table {
  public:
    Table() {
        for (Function& entry : entries_) entry = unexpected;
        entries_[0] = nullptr;
        entries_[1] = reinterpret_cast<Function>(const_cast<std::type_info*>(&typeid(Interface)));
    }

    // `member` is a virtual function of the interface; as the ABI of GCC and Clang has it, 1 + its offset.
    template <typename Member, typename Own>
    void set(Member member, Own* function) {
        ptrdiff_t bits[2];
        static_assert(sizeof member == sizeof bits);
        std::memcpy(bits, &member, sizeof bits);
        entries_[kBefore + size_t(bits[0] - 1) / sizeof(Function)] = reinterpret_cast<Function>(function);
    }

    const Function* functions() const { return entries_ + kBefore; }

  private:
    Function entries_[kBefore + kPlaces];
};

// An object of an interface: what its functions take as `this`.
template <typename Owner>
struct Object {
    const Function* functions;
    Owner* owner;
};

// --- state

struct State {
    FakeOnRun on_run = nullptr;
    std::string failing, plugins;
    int live = 0;
};
State& state = *new State;

template <typename F>
F cuda(const char* name) {
    void* function = dlsym(RTLD_DEFAULT, name);
    if (function == nullptr) std::abort();
    return reinterpret_cast<F>(function);
}

bool fails(const char* function) { return state.failing.find(function) != std::string::npos; }

// What CUDA cannot do while it captures.
void check_not_capturing(const char* function) {
    cuda<decltype(&fake_cuda_check_not_capturing)>("fake_cuda_check_not_capturing")(function);
}

struct Counted {
    Counted() { ++state.live; }
    ~Counted() { --state.live; }
};

// --- contexts

struct Run {
    std::string plan;
    int32_t profile = -1;
    uint64_t scratch = 0;
    std::map<std::string, std::vector<int64_t>> shapes;
    std::map<std::string, uint64_t> addresses;
};

void report(void* data) {
    const Run& run = *static_cast<const Run*>(data);
    std::vector<FakeTensor> tensors;
    for (const auto& [name, address] : run.addresses) {
        const auto shape = run.shapes.find(name);
        const bool is_input = shape != run.shapes.end();
        tensors.push_back({name.c_str(), address, is_input ? shape->second.data() : nullptr,
                           is_input ? shape->second.size() : 0});
    }
    const FakeRun seen{run.plan.data(), run.plan.size(), run.profile,
                       run.scratch,     tensors.data(),  tensors.size()};
    if (state.on_run != nullptr) state.on_run(&seen);
}

class Context : public trt::IExecutionContext, Counted {
  public:
    Context(const std::string& plan, trt::ExecutionContextAllocationStrategy strategy);

    Run run;
    const bool is_user_managed;

  private:
    Object<Context> object_;
};

bool set_profile(Object<Context>* self, int32_t profile, cudaStream_t) {
    check_not_capturing("setOptimizationProfileAsync");
    self->owner->run.profile = profile;
    return !fails("setOptimizationProfileAsync");
}

void set_memory(Object<Context>* self, void* memory, int64_t) {
    self->owner->run.scratch = reinterpret_cast<uint64_t>(memory);
}

bool set_shape(Object<Context>* self, const char* name, const trt::Dims& dims) {
    self->owner->run.shapes[name].assign(dims.d, dims.d + dims.nbDims);
    return true;
}

bool set_address(Object<Context>* self, const char* name, void* address) {
    if (fails("setTensorAddress")) return false;
    self->owner->run.addresses[name] = reinterpret_cast<uint64_t>(address);
    return true;
}

bool enqueue(Object<Context>* self, cudaStream_t stream) {
    const Context& context = *self->owner;
    if (fails("enqueueV3") || context.run.profile < 0) return false;
    if (context.is_user_managed != (context.run.scratch != 0)) return false;
    cuda<decltype(&fake_cuda_enqueue)>("fake_cuda_enqueue")(stream, report, new Run(context.run),
                                                            [](void* run) { delete static_cast<Run*>(run); });
    return true;
}

const Table<trt::apiv::VExecutionContext>& context_table() {
    using V = trt::apiv::VExecutionContext;
    static const auto table = [] {
        Table<V> table;
        table.set(&V::setOptimizationProfileAsync, set_profile);
        table.set(&V::setDeviceMemoryV2, set_memory);
        table.set(&V::setInputShape, set_shape);
        table.set(&V::setTensorAddress, set_address);
        table.set(&V::enqueueV3, enqueue);
        return table;
    }();
    return table;
}

Context::Context(const std::string& plan, trt::ExecutionContextAllocationStrategy strategy)
    : is_user_managed(strategy == trt::ExecutionContextAllocationStrategy::kUSER_MANAGED),
      object_{context_table().functions(), this} {
    run.plan = plan;
    mImpl = reinterpret_cast<trt::apiv::VExecutionContext*>(&object_);
}

// --- engines

class Engine : public trt::ICudaEngine, Counted {
  public:
    explicit Engine(std::string plan);
    const std::string plan;

  private:
    Object<Engine> object_;
};

trt::IExecutionContext* create_context(Object<Engine>* self,
                                       trt::ExecutionContextAllocationStrategy strategy) {
    check_not_capturing("createExecutionContext");
    return fails("createExecutionContext") ? nullptr : new Context(self->owner->plan, strategy);
}

const Table<trt::apiv::VCudaEngine>& engine_table() {
    using V = trt::apiv::VCudaEngine;
    static const auto table = [] {
        Table<V> table;
        table.set(&V::createExecutionContext, create_context);
        return table;
    }();
    return table;
}

Engine::Engine(std::string bytes) : plan(std::move(bytes)), object_{engine_table().functions(), this} {
    mImpl = reinterpret_cast<trt::apiv::VCudaEngine*>(&object_);
}

// --- the registry of plugins, and runtimes

class Runtime : public trt::IRuntime, Counted {
  public:
    explicit Runtime(trt::ILogger& logger);
    trt::ILogger& logger;
    trt::IPluginRegistry* registry() const { return registry_; }

  private:
    Object<Runtime> registry_object_;
    trt::IPluginRegistry* const registry_;
    Object<Runtime> object_;
};

void* load_plugins(Object<Runtime>* self, const char* path) {
    if (fails("loadLibrary")) {
        self->owner->logger.log(trt::ILogger::Severity::kERROR, "no such library");
        return nullptr;
    }
    state.plugins = path;
    return self;
}

trt::IPluginRegistry& plugin_registry(Object<Runtime>* self) { return *self->owner->registry(); }

trt::ICudaEngine* deserialize(Object<Runtime>* self, const void* plan, size_t size) {
    check_not_capturing("deserializeCudaEngine");
    if (!fails("deserializeCudaEngine")) return new Engine(std::string(static_cast<const char*>(plan), size));
    self->owner->logger.log(trt::ILogger::Severity::kERROR, "made for another device");
    return nullptr;
}

const Table<trt::IPluginRegistry>& registry_table() {
    static const auto table = [] {
        Table<trt::IPluginRegistry> table;
        table.set(&trt::IPluginRegistry::loadLibrary, load_plugins);
        return table;
    }();
    return table;
}

const Table<trt::apiv::VRuntime>& runtime_table() {
    using V = trt::apiv::VRuntime;
    using Deserialize = trt::ICudaEngine* (V::*)(const void*, size_t) noexcept;
    static const auto table = [] {
        Table<V> table;
        table.set(static_cast<Deserialize>(&V::deserializeCudaEngine), deserialize);
        table.set(&V::getPluginRegistry, plugin_registry);
        return table;
    }();
    return table;
}

Runtime::Runtime(trt::ILogger& logger)
    : logger(logger),
      registry_object_{registry_table().functions(), this},
      registry_(reinterpret_cast<trt::IPluginRegistry*>(&registry_object_)),
      object_{runtime_table().functions(), this} {
    mImpl = reinterpret_cast<trt::apiv::VRuntime*>(&object_);
}

}  // namespace

#define TEST_API extern "C" __attribute__((visibility("default")))

TEST_API void* createInferRuntime_INTERNAL(void* logger, int32_t version) {
    if (fails("createInferRuntime") || version != NV_TENSORRT_VERSION) return nullptr;
    return static_cast<trt::IRuntime*>(new Runtime(*static_cast<trt::ILogger*>(logger)));
}

TEST_API int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }
TEST_API int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
TEST_API int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
TEST_API int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
TEST_API int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }

TEST_API void fake_tensorrt_on_run(FakeOnRun callback) { state.on_run = callback; }
TEST_API void fake_tensorrt_fail(const char* function) {
    state.failing = function == nullptr ? "" : function;
}
TEST_API int fake_tensorrt_live(void) { return state.live; }
TEST_API const char* fake_tensorrt_plugins(void) { return state.plugins.c_str(); }

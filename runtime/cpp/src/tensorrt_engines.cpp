#include "tensorrt_engines.h"

#ifdef HMAR_HAS_TENSORRT

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

#include "mapped_file.h"
#include "sha256.h"

namespace hmar::core {
namespace {

namespace trt = nvinfer1;

constexpr const char* kRebuild = "; build it again with scripts/build_engines.py --force";
constexpr size_t kKeptMessages = 3;

// Keeps the latest warnings and errors, for messages.
class Logger : public trt::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kWARNING) return;
        try {
            if (messages_.size() == kKeptMessages) messages_.erase(messages_.begin());
            messages_.emplace_back(message);
        } catch (const std::exception&) {
            // a message less
        }
    }

    // " (a; b)", and nothing more until there are others.
    std::string take() {
        std::string all;
        for (const std::string& message : messages_) all += (all.empty() ? " (" : "; ") + message;
        messages_.clear();
        return all.empty() ? all : all + ")";
    }

  private:
    std::vector<std::string> messages_;
};

[[noreturn]] void unavailable(const std::string& reason) { throw Error(HMAR_BACKEND_UNAVAILABLE, reason); }

// The file that is loaded where none is named.
std::string default_library(const RecordedEngines& engines) {
    if (engines.library == "tensorrt_rtx") return "libtensorrt_rtx.so.1";
    return "libnvinfer.so." + engines.version.substr(0, engines.version.find('.'));
}

// Up to four numbers at the beginning of a version.
std::vector<int> numbers(const std::string& version) {
    int n[4] = {};
    const int count = std::sscanf(version.c_str(), "%d.%d.%d.%d", &n[0], &n[1], &n[2], &n[3]);
    return {n, n + std::max(count, 0)};
}

// The library is called through the headers' virtual functions, whose places differ between releases.
void check_headers(const RecordedEngines& engines) {
    const std::vector<int> version = numbers(engines.version);
    const int major = version.empty() ? 0 : version[0], minor = version.size() < 2 ? 0 : version[1];
    const bool is_rtx = engines.library == "tensorrt_rtx";
#ifdef TRT_MAJOR_RTX
    const bool fits = is_rtx && major == NV_TENSORRT_MAJOR && minor == NV_TENSORRT_MINOR;
#else
    // TensorRT-RTX 1.4 was tried with the headers of 10.14; 1.7 calls other functions of a logger
    const bool fits =
        is_rtx ? NV_TENSORRT_MAJOR == 10 && major == 1 && minor <= 4 : major == NV_TENSORRT_MAJOR;
#endif
    if (!fits) {
        unavailable(text("the engines are for ", engines.library, " ", engines.version,
                         ", this library was built with the headers of ", NV_TENSORRT_MAJOR, ".",
                         NV_TENSORRT_MINOR, "; build it with -DTENSORRT_ROOT of that TensorRT"));
    }
}

class Library {
  public:
    Library(const RecordedEngines& engines, const EngineOptions& options)
        : path_(options.library.empty() ? default_library(engines) : options.library) {
        check_headers(engines);
        // never closed: it brings CUDA's runtime, which does not expect to be unloaded
        handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_ == nullptr) {
            unavailable(text("TensorRT cannot be loaded (", dlerror(), "); install ", engines.library, " ",
                             engines.version, ", or name its library as the session's tensorrt"));
        }
        const std::vector<int> version = {
            number("getInferLibMajorVersion"), number("getInferLibMinorVersion"),
            number("getInferLibPatchVersion"), number("getInferLibBuildVersion")};
        const std::vector<int> wanted = numbers(engines.version);
        if (!std::equal(wanted.begin(), wanted.end(), version.begin())) {
            unavailable(text(path_, " is version ", version[0], ".", version[1], ".", version[2], ".",
                             version[3], ", the engines are for ", engines.library, " ", engines.version,
                             "; install that, or build and record them again"));
        }
    }

    std::unique_ptr<trt::IRuntime> make_runtime(Logger& logger) const {
        const auto create = find<void* (*)(void*, int32_t)>("createInferRuntime_INTERNAL");
        auto* runtime = static_cast<trt::IRuntime*>(create(&logger, number("getInferLibVersion")));
        if (runtime == nullptr) unavailable(text(path_, ": no runtime", logger.take()));
        return std::unique_ptr<trt::IRuntime>(runtime);
    }

  private:
    template <typename Function>
    Function find(const char* name) const {
        void* function = dlsym(handle_, name);
        if (function == nullptr) {
            unavailable(text(path_, " has no ", name, "; TensorRT 10.13 or newer is needed"));
        }
        return reinterpret_cast<Function>(function);
    }

    int32_t number(const char* name) const { return find<int32_t (*)()>(name)(); }

    const std::string path_;
    void* handle_;
};

class Engines : public TensorRtEngines {
  public:
    Engines(const RecordedEngines& engines, std::string folder, const EngineOptions& options,
            const CudaDevice& device)
        : of_(engines),
          folder_(std::move(folder)),
          checks_plans_(options.checks_plans),
          device_(device),
          runtime_(Library(engines, options).make_runtime(logger_)) {
        if (!engines.needs_plugin) return;
        if (runtime_->getPluginRegistry().loadLibrary(options.plugins.c_str()) == nullptr) {
            // it also refuses what this process has registered before, and then there is nothing wrong
            plugin_refusal_ =
                text("; TensorRT did not take the attention plugin of ", options.plugins, logger_.take());
        }
    }

    void run(const RecordedRun& run, const Address& address) override {
        const FileSpec& plan = of_.plans[size_t(run.plan)];
        const auto key = std::make_pair(run.plan, run.profile);
        auto found = contexts_.find(key);
        if (found == contexts_.end()) {
            found = contexts_.emplace(key, make_context(run, plan.file)).first;
        }
        trt::IExecutionContext& context = *found->second;
        if (run.scratch) set_scratch(context, address(*run.scratch), run.scratch->nbytes);
        // an input that an engine does not read is none of its tensors; what it misses it says itself
        for (const RecordedTensor& input : run.inputs) bind(context, input, address);
        for (const RecordedTensor& output : run.outputs) {
            if (!bind(context, output, address)) {
                fail(text("engine ", plan.file, ": no output ", output.name, logger_.take(), kRebuild));
            }
        }
        if (!context.enqueueV3(reinterpret_cast<cudaStream_t>(device_.stream()))) {
            fail(text("engine ", plan.file, ": cannot run", logger_.take()));
        }
    }

  private:
    [[noreturn]] static void fail(const std::string& reason) { throw Error(HMAR_BACKEND_FAILED, reason); }

    void set_scratch(trt::IExecutionContext& context, CuPointer address, uint64_t nbytes) const {
        auto* memory = reinterpret_cast<void*>(address);
#if NV_TENSORRT_MAJOR == 10 && !defined(TRT_MAJOR_RTX)
        if (of_.library == "tensorrt_rtx") {  // of the functions that 1.4 has in these headers' places
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
            context.setDeviceMemory(memory);
#pragma GCC diagnostic pop
            return;
        }
#endif
        context.setDeviceMemoryV2(memory, int64_t(nbytes));
    }

    static bool bind(trt::IExecutionContext& context, const RecordedTensor& tensor, const Address& address) {
        return context.setTensorAddress(tensor.name.c_str(), reinterpret_cast<void*>(address(tensor.place)));
    }

    trt::ICudaEngine& engine(int index) {
        const auto found = engines_.find(index);
        if (found != engines_.end()) return *found->second;
        const FileSpec& plan = of_.plans[size_t(index)];
        const std::string path = folder_ + "/" + plan.file;
        const MappedFile file(path);
        Sha256 sha256;
        if (checks_plans_) sha256.update(file.data(), file.nbytes());
        if (file.nbytes() != plan.nbytes || (checks_plans_ && sha256.hex() != plan.sha256)) {
            throw Error(HMAR_CHECKSUM_MISMATCH,
                        text(path, ": cut short or altered since it was recorded", kRebuild));
        }
        std::unique_ptr<trt::ICudaEngine> engine(runtime_->deserializeCudaEngine(file.data(), file.nbytes()));
        if (engine == nullptr) {
            fail(text("engine ", plan.file, ": ", of_.library, " ", of_.version, " cannot load this plan of ",
                      file.nbytes() >> 20, " MiB (", device_.memory(), ")", logger_.take(), plugin_refusal_,
                      kRebuild));
        }
        return *engines_.emplace(index, std::move(engine)).first->second;
    }

#ifdef TRT_MAJOR_RTX
    trt::IExecutionContext* create_context(int plan, trt::ExecutionContextAllocationStrategy strategy) {
        trt::ICudaEngine& engine = this->engine(plan);
        std::unique_ptr<trt::IRuntimeConfig> config(engine.createRuntimeConfig());
        if (config == nullptr) return nullptr;
        config->setExecutionContextAllocationStrategy(strategy);
        // by default kernels are replaced while others already run, and a captured graph keeps those
        config->setDynamicShapesKernelSpecializationStrategy(
            trt::DynamicShapesKernelSpecializationStrategy::kEAGER);
        if (kernels_.count(plan) == 0) kernels_[plan] = load_kernels(*config, of_.plans[size_t(plan)].file);
        if (kernels_[plan] != nullptr) config->setRuntimeCache(*kernels_[plan]);
        configs_.push_back(std::move(config));  // the context refers to it
        return engine.createExecutionContext(configs_.back().get());
    }

    // Kernels that the Python runtime has compiled for this GPU and kept beside the plan; none if it has not.
    std::unique_ptr<trt::IRuntimeCache> load_kernels(const trt::IRuntimeConfig& config,
                                                     const std::string& plan) const {
        std::unique_ptr<trt::IRuntimeCache> kernels(config.createRuntimeCache());
        const std::string stem = plan.substr(0, plan.rfind('.'));
        const std::string path = folder_ + "/" + stem + "." + device_.gpu() + ".kernels";
        try {
            const MappedFile file(path);
            // it refuses those of another version
            if (kernels != nullptr) kernels->deserialize(file.data(), file.nbytes());
        } catch (const Error&) {
            // they are compiled anew
        }
        return kernels;
    }
#else
    trt::IExecutionContext* create_context(int plan, trt::ExecutionContextAllocationStrategy strategy) {
        return engine(plan).createExecutionContext(strategy);
    }
#endif

    std::unique_ptr<trt::IExecutionContext> make_context(const RecordedRun& run, const std::string& name) {
        using Strategy = trt::ExecutionContextAllocationStrategy;
        std::unique_ptr<trt::IExecutionContext> context(
            create_context(run.plan, run.scratch ? Strategy::kUSER_MANAGED : Strategy::kON_PROFILE_CHANGE));
        if (context == nullptr) {
            fail(text("engine ", name, ": no context (", device_.memory(), ")", logger_.take()));
        }
        if (!context->setOptimizationProfileAsync(run.profile,
                                                  reinterpret_cast<cudaStream_t>(device_.stream()))) {
            fail(text("engine ", name, ": no profile ", run.profile, logger_.take(), kRebuild));
        }
        for (const RecordedTensor& input : run.inputs) {
            trt::Dims dims{};
            dims.nbDims = int32_t(input.shape.size());
            std::copy(input.shape.begin(), input.shape.end(), dims.d);
            // an input that the engine does not read is refused, too
            context->setInputShape(input.name.c_str(), dims);
        }
        logger_.take();
        return context;
    }

    const RecordedEngines of_;
    const std::string folder_;
    const bool checks_plans_;
    const CudaDevice& device_;
    Logger logger_;               // the runtime refers to it
    std::string plugin_refusal_;  // "" = the plugin was loaded, or is not needed
    std::unique_ptr<trt::IRuntime> runtime_;
#ifdef TRT_MAJOR_RTX
    std::map<int, std::unique_ptr<trt::IRuntimeCache>> kernels_;  // by plan
    std::vector<std::unique_ptr<trt::IRuntimeConfig>> configs_;
#endif
    std::map<int, std::unique_ptr<trt::ICudaEngine>> engines_;                         // by plan
    std::map<std::pair<int, int>, std::unique_ptr<trt::IExecutionContext>> contexts_;  // by plan and profile
};

}  // namespace

std::unique_ptr<TensorRtEngines> load_engines(const RecordedEngines& engines, const std::string& folder,
                                              const EngineOptions& options, const CudaDevice& device) {
    return std::make_unique<Engines>(engines, folder, options, device);
}

}  // namespace hmar::core

#else

namespace hmar::core {

std::unique_ptr<TensorRtEngines> load_engines(const RecordedEngines& engines, const std::string&,
                                              const EngineOptions&, const CudaDevice&) {
    throw Error(
        HMAR_BACKEND_UNAVAILABLE,
        text("the recordings run engines of ", engines.library, " ", engines.version,
             ", and this library was built without TensorRT's headers; build it with -DTENSORRT_ROOT"));
}

}  // namespace hmar::core

#endif

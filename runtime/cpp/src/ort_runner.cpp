#include "ort_runner.h"

#include <algorithm>

#include "shared_graphs.h"

namespace hmar::core {
namespace {

constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr int kLogErrors = 3;
// as in runtime/backends/onnxrt.py, which says why
constexpr const char* kCudaKeys[] = {"use_tf32", "cudnn_conv_algo_search", "arena_extend_strategy"};
constexpr const char* kCudaValues[] = {"0", "HEURISTIC", "kSameAsRequested"};

// Calls a function of the table that makes an object.
template <typename T, typename Make>
OrtHandle<T> made(const OrtLibrary& library, void (*release)(T*), const char* what, Make make) {
    T* object = nullptr;
    library.check(make(&object), HMAR_BACKEND_FAILED, what);
    return {object, release};
}

OrtHandle<OrtEnv> make_env(const OrtLibrary& library) {
    const OrtApi& api = library.api();
    return made<OrtEnv>(library, api.ReleaseEnv, "environment",
                        [&](OrtEnv** env) { return api.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "hmar", env); });
}

OrtHandle<OrtMemoryInfo> make_memory(const OrtLibrary& library) {
    const OrtApi& api = library.api();
    return made<OrtMemoryInfo>(library, api.ReleaseMemoryInfo, "memory", [&](OrtMemoryInfo** memory) {
        return api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, memory);
    });
}

}  // namespace

OrtRunner::OrtRunner(std::shared_ptr<const Bundle> bundle, const OrtOptions& options)
    : StepRunner(std::move(bundle)),
      library_(options.library),
      threads_(options.threads),
      env_(make_env(library_)),
      memory_(make_memory(library_)),
      weights_file_(this->bundle().path(manifest().weights)) {
    const std::vector<std::string> providers = library_.providers();
    const bool has_cuda = std::find(providers.begin(), providers.end(), kCuda) != providers.end();
    if (options.backend == HMAR_BACKEND_ORT_CUDA && !has_cuda) {
        throw Error(HMAR_BACKEND_UNAVAILABLE,
                    text("backend ort-cuda: this ONNX Runtime offers ", listed(providers),
                         "; load the library of onnxruntime-gpu, or use the backend ort-cpu"));
    }
    uses_cuda_ = has_cuda && options.backend != HMAR_BACKEND_ORT_CPU;
    // the CPU computes float16 in float32, from a copy of the weights per session: few graphs need few
    shares_graphs_ = manifest().precision == "fp16" && !uses_cuda_;
    name_ = text(uses_cuda_ ? "ort-cuda" : "ort-cpu", " (ONNX Runtime ", library_.version(), ")");
    map_weights();
}

void OrtRunner::map_weights() {
    for (const auto& [name, spec] : manifest().tensors) {
        if (spec.offset + spec.nbytes() > weights_file_.nbytes()) {
            throw Error(HMAR_CHECKSUM_MISMATCH, text(bundle().path(manifest().weights), ": cut short"));
        }
        // ONNX Runtime takes a pointer to what it may write, and does not write to initializers
        std::byte* data = const_cast<std::byte*>(weights_file_.data()) + spec.offset;
        weights_.emplace_back(name, wrap(spec.dtype, spec.shape, data, spec.nbytes()));
    }
}

Values OrtRunner::run(const GraphSpec& graph, const Values& feeds) {
    if (shares_graphs_ && has_shared_graphs(graph)) return run_by_shared_graphs(*this, graph, feeds);
    return StepRunner::run(graph, feeds);
}

std::vector<Tensor> OrtRunner::run_in_order(const GraphSpec& graph, const std::vector<Tensor>& inputs) {
    std::vector<OrtHandle<OrtValue>> owners;
    std::vector<const OrtValue*> fed;
    std::vector<const char*> input_names, output_names;
    for (size_t i = 0; i < inputs.size(); ++i) {
        const Tensor& input = inputs[i];
        owners.push_back(wrap(input.dtype, input.shape, input.data.get(), input.nbytes()));
        fed.push_back(owners.back().get());
        input_names.push_back(graph.inputs[i].name.c_str());
    }
    for (const TensorSpec& spec : graph.outputs) output_names.push_back(spec.name.c_str());
    std::vector<OrtValue*> results(graph.outputs.size(), nullptr);
    OrtStatus* status =
        library_.api().Run(session(graph), nullptr, input_names.data(), fed.data(), fed.size(),
                           output_names.data(), output_names.size(), results.data());
    library_.check(status, HMAR_BACKEND_FAILED, text("graph ", graph.name, ": backend ", name_, " failed"));
    std::vector<OrtHandle<OrtValue>> owned;
    for (OrtValue* value : results) owned.emplace_back(value, library_.api().ReleaseValue);
    std::vector<Tensor> outputs;
    for (size_t i = 0; i < owned.size(); ++i) {
        outputs.push_back(unwrap(owned[i].release(), graph.outputs[i], graph.name));
    }
    return outputs;
}

OrtSession* OrtRunner::session(const GraphSpec& graph) {
    const std::lock_guard<std::mutex> lock(making_);
    auto found = sessions_.find(graph.name);
    if (found == sessions_.end()) found = sessions_.emplace(graph.name, make_session(graph)).first;
    return found->second.get();
}

OrtHandle<OrtSession> OrtRunner::make_session(const GraphSpec& graph) const {
    const std::string path = bundle().path(graph.file);
    const OrtHandle<OrtSessionOptions> options = session_options();
    OrtSession* session = nullptr;
    OrtStatus* status = library_.api().CreateSession(env_.get(), path.c_str(), options.get(), &session);
    library_.check(status, HMAR_BACKEND_FAILED,
                   text(path, ": backend ", name_, " cannot load this graph", hint()));
    return {session, library_.api().ReleaseSession};
}

OrtHandle<OrtSessionOptions> OrtRunner::session_options() const {
    const OrtApi& api = library_.api();
    const auto check = [&](OrtStatus* status) {
        library_.check(status, HMAR_BACKEND_FAILED, "session options");
    };
    auto options = made<OrtSessionOptions>(library_, api.ReleaseSessionOptions, "session options",
                                           api.CreateSessionOptions);
    check(api.SetSessionLogSeverityLevel(options.get(), kLogErrors));
    check(api.SetIntraOpNumThreads(options.get(), threads_));
    check(api.AddSessionConfigEntry(options.get(), "session.disable_prepacking", "1"));
    for (const auto& [name, value] : weights_) {
        check(api.AddInitializer(options.get(), name.c_str(), value.get()));
    }
    if (uses_cuda_) {
        const auto cuda = made<OrtCUDAProviderOptionsV2>(library_, api.ReleaseCUDAProviderOptions,
                                                         "CUDA options", api.CreateCUDAProviderOptions);
        check(api.UpdateCUDAProviderOptions(cuda.get(), kCudaKeys, kCudaValues, std::size(kCudaKeys)));
        check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options.get(), cuda.get()));
    }
    return options;
}

OrtHandle<OrtValue> OrtRunner::wrap(Dtype dtype, const Shape& shape, void* data, size_t nbytes) const {
    const OrtApi& api = library_.api();
    return made<OrtValue>(library_, api.ReleaseValue, "tensor", [&](OrtValue** value) {
        return api.CreateTensorWithDataAsOrtValue(memory_.get(), data, nbytes, shape.data(), shape.size(),
                                                  element_type(dtype), value);
    });
}

// Takes the value over; the tensor's memory is the value's.
Tensor OrtRunner::unwrap(OrtValue* value, const TensorSpec& spec, const std::string& graph) const {
    const OrtApi& api = library_.api();
    const std::string what = text("graph ", graph, ", output ", spec.name);
    const std::shared_ptr<OrtValue> owner(value, api.ReleaseValue);
    const auto info = made<OrtTensorTypeAndShapeInfo>(
        library_, api.ReleaseTensorTypeAndShapeInfo, what.c_str(),
        [&](OrtTensorTypeAndShapeInfo** made) { return api.GetTensorTypeAndShape(value, made); });
    const auto check = [&](OrtStatus* status) { library_.check(status, HMAR_BACKEND_FAILED, what); };
    ONNXTensorElementDataType type;
    size_t rank = 0;
    void* data = nullptr;
    check(api.GetTensorElementType(info.get(), &type));
    check(api.GetDimensionsCount(info.get(), &rank));
    Shape shape(rank);
    check(api.GetDimensions(info.get(), shape.data(), rank));
    check(api.GetTensorMutableData(value, &data));
    if (type != element_type(spec.dtype)) {
        throw Error(HMAR_INVALID_BUNDLE, text(what, ": is not ", dtype_name(spec.dtype),
                                              ", as the manifest says; export it again"));
    }
    return {spec.dtype, shape, std::shared_ptr<void>(owner, data)};
}

std::string OrtRunner::hint() const {
    if (manifest().precision != "bf16" || uses_cuda_) return "";
    return " (ONNX Runtime's CPU provider lacks bfloat16 kernels: use a GPU, or export with --precision "
           "fp32)";
}

}  // namespace hmar::core

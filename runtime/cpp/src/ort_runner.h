// Graphs on ONNX Runtime, on the CPU or a CUDA device.
#pragma once

#include <map>
#include <mutex>

#include "mapped_file.h"
#include "ort_library.h"
#include "step_runner.h"

namespace hmar::core {

struct OrtOptions {
    hmar_backend backend = HMAR_BACKEND_AUTO;
    std::string library;  // "" = the first that the dynamic linker finds
    int threads = 0;      // of one operator; 0 = one per core
};

// One session per graph, made when it is first used; all share one copy of the weights, as
// runtime/backends/onnxrt.py explains. Values between steps are on the host.
class OrtRunner : public StepRunner {
  public:
    OrtRunner(std::shared_ptr<const Bundle> bundle, const OrtOptions& options);

    const std::string& name() const override { return name_; }
    Values run(const GraphSpec& graph, const Values& feeds) override;

  protected:
    std::vector<Tensor> run_in_order(const GraphSpec& graph, const std::vector<Tensor>& inputs) override;

  private:
    OrtSession* session(const GraphSpec& graph);
    OrtHandle<OrtSession> make_session(const GraphSpec& graph) const;
    OrtHandle<OrtSessionOptions> session_options() const;
    OrtHandle<OrtValue> wrap(Dtype dtype, const Shape& shape, void* data, size_t nbytes) const;
    Tensor unwrap(OrtValue* value, const TensorSpec& spec, const std::string& graph) const;
    void map_weights();
    std::string hint() const;

    const OrtLibrary library_;
    const int threads_;
    bool uses_cuda_ = false, shares_graphs_ = false;
    std::string name_;
    const OrtHandle<OrtEnv> env_;
    const OrtHandle<OrtMemoryInfo> memory_;
    const MappedFile weights_file_;
    std::vector<std::pair<std::string, OrtHandle<OrtValue>>> weights_;
    std::mutex making_;
    std::map<std::string, OrtHandle<OrtSession>> sessions_;  // guarded by making_; none is removed
};

}  // namespace hmar::core

// ONNX Runtime, loaded when it is asked for and never linked.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "hmar_runtime.h"
#include "manifest.h"

namespace hmar::core {

// An object of ONNX Runtime, freed by the function of its table.
template <typename T>
using OrtHandle = std::unique_ptr<T, void (*)(T*)>;

class OrtLibrary {
  public:
    // Loads a library; "" = the first that the dynamic linker finds. It stays loaded for the life of the
    // process. Throws Error where there is none, or it is too old.
    explicit OrtLibrary(const std::string& path);

    const OrtApi& api() const { return *api_; }
    const std::string& version() const { return version_; }
    std::vector<std::string> providers() const;

    // Takes the result of a call of the table; throws Error(status) where it failed. `what` opens the
    // message.
    void check(OrtStatus* result, hmar_status status, const std::string& what) const;

  private:
    const OrtApi* api_ = nullptr;
    std::string version_;
};

ONNXTensorElementDataType element_type(Dtype dtype);

}  // namespace hmar::core

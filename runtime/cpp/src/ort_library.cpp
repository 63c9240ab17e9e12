#include "ort_library.h"

#include <dlfcn.h>

#include "error.h"

namespace hmar::core {
namespace {

constexpr uint32_t kApiVersion = 17;                               // ONNX Runtime 1.17
constexpr const char* kOutOfMemory = "Failed to allocate memory";  // in messages of its arenas

void* open_library(const std::string& path) {
    std::vector<std::string> names = {path};
    if (path.empty()) names = {"libonnxruntime.so", "libonnxruntime.so.1"};
    std::string reasons;
    for (const std::string& name : names) {
        if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
        reasons = reasons + (reasons.empty() ? "" : "; ") + dlerror();
    }
    throw Error(HMAR_BACKEND_UNAVAILABLE,
                text("ONNX Runtime cannot be loaded (", reasons,
                     "); install it, or name its libonnxruntime.so as the session's library: "
                     "Python's package has one in onnxruntime/capi"));
}

}  // namespace

OrtLibrary::OrtLibrary(const std::string& path) {
    void* library = open_library(path);
    const auto get_base = reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(library, "OrtGetApiBase"));
    if (get_base == nullptr) {
        throw Error(HMAR_BACKEND_UNAVAILABLE, text(path, ": not ONNX Runtime, it has no OrtGetApiBase"));
    }
    version_ = get_base()->GetVersionString();
    api_ = get_base()->GetApi(kApiVersion);
    if (api_ == nullptr) {
        throw Error(HMAR_BACKEND_UNAVAILABLE,
                    text("ONNX Runtime ", version_, " is too old; 1.", kApiVersion, " or newer is needed"));
    }
}

std::vector<std::string> OrtLibrary::providers() const {
    char** names = nullptr;
    int count = 0;
    check(api_->GetAvailableProviders(&names, &count), HMAR_BACKEND_UNAVAILABLE, "execution providers");
    std::vector<std::string> providers(names, names + count);
    check(api_->ReleaseAvailableProviders(names, count), HMAR_BACKEND_UNAVAILABLE, "execution providers");
    return providers;
}

void OrtLibrary::check(OrtStatus* result, hmar_status status, const std::string& what) const {
    if (result == nullptr) return;
    const OrtHandle<OrtStatus> owner(result, api_->ReleaseStatus);
    const std::string message = api_->GetErrorMessage(result);
    if (message.find(kOutOfMemory) != std::string::npos) {
        throw Error(HMAR_OUT_OF_MEMORY,
                    text(what, ": ", message, "; open the session with a smaller max_batch, or free memory"));
    }
    throw Error(status, text(what, ": ", message));
}

ONNXTensorElementDataType element_type(Dtype dtype) {
    constexpr ONNXTensorElementDataType kTypes[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
    return kTypes[size_t(dtype)];
}

}  // namespace hmar::core

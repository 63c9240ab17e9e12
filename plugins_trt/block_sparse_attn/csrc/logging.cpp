#include "logging.h"

#include <NvInferRuntime.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <typeinfo>

namespace hmar {

// TensorRT 11 made ILogger a versioned interface, which moved log() in its vtable. One library serves loggers
// of both kinds, so it goes by what a logger says it is and not by the headers that it was compiled with.
// (Not in an unnamed namespace: there the compiler would know that nothing implements them.)
class PlainLogger {
  public:
    static constexpr const char* kTypeName = "N8nvinfer17ILoggerE";
    virtual void log(int32_t severity, const char* message) noexcept = 0;
    virtual ~PlainLogger() = default;
};

class VersionedLogger : public nvinfer1::IVersionedInterface {
  public:
    static constexpr const char* kTypeName = "N8nvinfer15v_1_07ILoggerE";
    virtual void log(int32_t severity, const char* message) noexcept = 0;
};

namespace {

constexpr const char* kTensorRtLibraries[] = {"libtensorrt_rtx.so.1", "libnvinfer.so.11", "libnvinfer.so.10",
                                              "libnvinfer_lean.so.11", "libnvinfer_lean.so.10"};
constexpr int32_t kError = 1;  // ILogger::Severity::kERROR

bool derives_from(const std::type_info& type, const char* base) {
    if (std::strcmp(type.name(), base) == 0) {
        return true;
    }
    if (const auto* single = dynamic_cast<const abi::__si_class_type_info*>(&type)) {
        return derives_from(*single->__base_type, base);
    }
    if (const auto* several = dynamic_cast<const abi::__vmi_class_type_info*>(&type)) {
        for (unsigned i = 0; i < several->__base_count; ++i) {
            if (derives_from(*several->__base_info[i].__base_type, base)) {
                return true;
            }
        }
    }
    return false;
}

// Null if the object's class was compiled without run-time type information.
const std::type_info* type_of(const void* object) {
    const auto* vtable = *static_cast<const std::type_info* const* const*>(object);
    return vtable[-1];
}

// Linking getLogger would tie the library to one TensorRT: it is looked up in the one that is loaded already.
void* find_logger() noexcept {
    for (const char* name : kTensorRtLibraries) {
        if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD); library != nullptr) {
            auto* get_logger = reinterpret_cast<void* (*)()>(dlsym(library, "getLogger"));
            void* logger = get_logger != nullptr ? get_logger() : nullptr;
            dlclose(library);
            return logger;
        }
    }
    return nullptr;
}

}  // namespace

void log_error(const std::string& message) noexcept {
    void* logger = find_logger();
    const std::type_info* type = logger != nullptr ? type_of(logger) : nullptr;
    if (type != nullptr && derives_from(*type, VersionedLogger::kTypeName)) {
        static_cast<VersionedLogger*>(logger)->log(kError, message.c_str());
    } else if (type != nullptr && derives_from(*type, PlainLogger::kTypeName)) {
        static_cast<PlainLogger*>(logger)->log(kError, message.c_str());
    } else {
        std::fprintf(stderr, "%s\n", message.c_str());
    }
}

}  // namespace hmar

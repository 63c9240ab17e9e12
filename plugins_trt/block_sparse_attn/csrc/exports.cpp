// What TensorRT looks up in the library.
#include <NvInferRuntime.h>

#include <atomic>
#include <cstdio>
#include <iterator>

#include "logging.h"
#include "plugin.h"

#define HMAR_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

HMAR_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

HMAR_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
    static hmar::BlockSparseAttentionCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    num_creators = static_cast<int32_t>(std::size(creators));
    return creators;
}

void hmar::log_error(const std::string& message) noexcept {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    nvinfer1::ILogger* logger = finder != nullptr ? finder->findLogger() : nullptr;
    if (logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    } else {
        std::fprintf(stderr, "%s\n", message.c_str());
    }
}

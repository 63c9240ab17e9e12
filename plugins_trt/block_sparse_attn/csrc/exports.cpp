// What TensorRT looks up in the library.
#include <NvInferRuntime.h>

#include <iterator>

#include "plugin.h"

#define HMAR_EXPORT extern "C" __attribute__((visibility("default")))

// Called when the library comes out of a plan. The finder's vtable differs between TensorRT 10 and 11, and
// logging.cpp finds the logger without it.
HMAR_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

HMAR_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
    static hmar::BlockSparseAttentionCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    num_creators = static_cast<int32_t>(std::size(creators));
    return creators;
}

// Stands in for libnvinfer: hands out the logger that a test gives it.
#include <NvInferRuntime.h>

namespace {
nvinfer1::ILogger* logger = nullptr;
}

extern "C" nvinfer1::ILogger* getLogger() { return logger; }
extern "C" void fake_set_logger(nvinfer1::ILogger* given) { logger = given; }

// The sampling kernels of plugins_trt/sampling/kernel.py, for a program that launches them itself.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// The fatbinary, for cuModuleLoadData or cuLibraryLoadData.
const void* hmar_sampling_image(void);

// JSON: by architecture and name of the kernel, how it is launched; see sampling/aot.py.
const char* hmar_sampling_table(void);

#ifdef __cplusplus
}
#endif

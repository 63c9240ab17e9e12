// The decoder's kernels of plugins_trt/decoder/kernel.py, for a program that launches them itself.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// The fatbinary, for cuModuleLoadData or cuLibraryLoadData.
const void* hmar_decoder_image(void);

// JSON: by architecture and name of the kernel, how it is launched; see decoder/aot.py.
const char* hmar_decoder_table(void);

#ifdef __cplusplus
}
#endif

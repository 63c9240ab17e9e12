#include "sampling.h"

#define HMAR_EXPORT __attribute__((visibility("default")))

extern "C" {

extern const char hmar_sampling_fatbin[];
extern const char hmar_sampling_json[];

HMAR_EXPORT const void* hmar_sampling_image(void) { return hmar_sampling_fatbin; }

HMAR_EXPORT const char* hmar_sampling_table(void) { return hmar_sampling_json; }
}

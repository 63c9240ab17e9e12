#include "decoder.h"

#define HMAR_EXPORT __attribute__((visibility("default")))

extern "C" {

extern const char hmar_decoder_fatbin[];
extern const char hmar_decoder_json[];

HMAR_EXPORT const void* hmar_decoder_image(void) { return hmar_decoder_fatbin; }

HMAR_EXPORT const char* hmar_decoder_table(void) { return hmar_decoder_json; }
}

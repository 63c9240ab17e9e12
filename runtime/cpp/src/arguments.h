// Checks of what callers of the C interface pass. All throw Error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "generation.h"

namespace hmar::core {

[[noreturn]] void reject(const std::string& message);

template <typename T>
T* required(T* pointer, const char* name) {
    if (pointer == nullptr) reject(text(name, " is NULL"));
    return pointer;
}

// A caller's struct that was not set up, or compiled with another header.
void check_size(size_t struct_size, size_t expected, const char* name);

// An array that is not null and has another size.
void check_array(const void* array, size_t size, size_t expected, const char* name);

// A setting that is not a finite number in 0..most; `wanted` says that in words.
void check_setting(double value, double most, const char* name, const char* wanted);

// Labels with num_classes for no class.
std::vector<int32_t> read_labels(const int32_t* labels, size_t num_images, int32_t num_classes);

// The caller's indices, or 0, 1, 2, ..
std::vector<uint64_t> read_image_index(const uint64_t* image_index, size_t num_images);

// Ends a generation as its callback asked for, after a scale or step.
[[noreturn]] void stop(const std::string& after, Part images);

// Values of one image: side * side * 3.
size_t image_size(size_t side_px);

// Number of images in a caller's pixels.
size_t count_images(const uint8_t* pixels, size_t pixels_size, int32_t side_px);

}  // namespace hmar::core

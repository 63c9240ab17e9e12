#include "arguments.h"

#include <cmath>
#include <numeric>

namespace hmar::core {

void reject(const std::string& message) { throw Error(HMAR_INVALID_ARGUMENT, message); }

void check_size(size_t struct_size, size_t expected, const char* name) {
    if (struct_size != expected) {
        reject(text(name, ".struct_size is ", struct_size, ", expected sizeof(", name, ") = ", expected,
                    "; set the struct up first, and compile with this library's header"));
    }
}

void check_array(const void* array, size_t size, size_t expected, const char* name) {
    if (array != nullptr && size != expected) {
        reject(text(name, ": expected room for ", expected, " values, got ", size));
    }
}

void check_setting(double value, double most, const char* name, const char* wanted) {
    if (!(value >= 0 && value <= most) || std::isinf(value)) {
        reject(text(name, " must be ", wanted, ", got ", value));
    }
}

std::vector<int32_t> read_labels(const int32_t* labels, size_t num_images, int32_t num_classes) {
    if (labels == nullptr || num_images == 0) reject("labels: give one class per image");
    std::vector<int32_t> checked(labels, labels + num_images);
    for (int32_t& label : checked) {
        if (label != HMAR_NO_CLASS && (label < 0 || label >= num_classes)) {
            reject(text("label ", label, " is out of range: 0..", num_classes - 1,
                        ", or HMAR_NO_CLASS for unconditional"));
        }
        if (label == HMAR_NO_CLASS) label = num_classes;
    }
    return checked;
}

std::vector<uint64_t> read_image_index(const uint64_t* image_index, size_t num_images) {
    std::vector<uint64_t> indices(num_images);
    std::iota(indices.begin(), indices.end(), uint64_t{0});
    if (image_index != nullptr) indices.assign(image_index, image_index + num_images);
    return indices;
}

void stop(const std::string& after, Part images) {
    throw Error(HMAR_STOPPED, text("the callback ended the generation after ", after, " of images ",
                                   images.first, " to ", images.first + images.count - 1));
}

size_t image_size(size_t side_px) { return side_px * side_px * 3; }

size_t count_images(const uint8_t* pixels, size_t pixels_size, int32_t side_px) {
    const size_t size = image_size(size_t(side_px));
    required(pixels, "pixels");
    if (pixels_size == 0 || pixels_size % size != 0)
        reject(text("pixels: expected a multiple of ", size, " values (", side_px, " x ", side_px,
                    " x 3), got ", pixels_size));
    return pixels_size / size;
}

}  // namespace hmar::core

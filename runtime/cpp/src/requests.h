// What callers of the C interface pass, checked and turned into the library's own types.
#pragma once

#include "session.h"

namespace hmar::core {

// A bundle behind a handle, with its settings in the form of the C interface.
struct OpenBundle {
    OpenBundle(const std::string& folder, hmar_check check);

    // The published settings; pointers into this object.
    hmar_request defaults() const;

    const std::shared_ptr<const Bundle> bundle;
    std::vector<int32_t> schedule_counts, schedule_lengths;
};

// What `hmar_scale_event.preview` points to.
struct PreviewedEvent {
    const ScaleEvent& event;
    size_t pixels_size;
};

// Values of one image: side * side * 3.
size_t image_size(const ModelSpec& model);

// Throws Error where a caller's struct was not set up, or compiled with another header.
void check_size(size_t struct_size, size_t expected, const char* name);

// Throws Error where an array that is not null has another size.
void check_array(const void* array, size_t size, size_t expected, const char* name);

// The settings of a request for a model. Throws Error.
Settings read_settings(const hmar_request& request, const ModelSpec& model);

// All of a request but its cancel flag. Throws Error. Refers to the caller's uniforms, known tokens and
// callback.
Request read_request(const hmar_request& request, const ModelSpec& model);

Output read_output(const hmar_output& output, const ModelSpec& model, size_t num_images);

}  // namespace hmar::core

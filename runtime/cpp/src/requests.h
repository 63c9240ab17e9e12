// What callers of the C interface pass, checked and turned into the library's own types.
#pragma once

#include "session.h"

namespace hmar::core {

// What `preview` of an event points to.
struct Preview {
    const std::function<void(uint8_t*)>& write;
    size_t pixels_size;
};

// The settings of a request for a model. Throws Error.
Settings read_settings(const hmar_request& request, const ModelSpec& model);

// All of a request but its cancel flag. Throws Error. Refers to the caller's arrays, and to the request's
// callbacks.
HmarRequest read_request(const hmar_request& request, const ModelSpec& model);
HimarRequest read_request(const hmar_himar_request& request, const HimarModelSpec& model);

// Where the caller wants results. Throws Error where an array has another size.
HmarOutput read_output(const hmar_output& output, const ModelSpec& model, size_t num_images);
HimarOutput read_output(const hmar_himar_output& output, const HimarModelSpec& model, size_t num_images);

}  // namespace hmar::core

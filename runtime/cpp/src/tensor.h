// An array on the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "manifest.h"

namespace hmar::core {

using Shape = std::vector<int64_t>;

template <typename T>
constexpr Dtype dtype_of() {
    if constexpr (std::is_same_v<T, float>) return Dtype::float32;
    if constexpr (std::is_same_v<T, int32_t>) return Dtype::int32;
    if constexpr (std::is_same_v<T, bool>) return Dtype::boolean;
}

inline int64_t num_items(const Shape& shape) {
    int64_t items = 1;
    for (const int64_t dim : shape) items *= dim;
    return items;
}

struct Tensor {
    Dtype dtype = Dtype::float32;
    Shape shape;
    std::shared_ptr<void> data;  // owner of the memory, which copies of the tensor share

    size_t nbytes() const { return item_bytes(dtype) * size_t(num_items(shape)); }

    // Throws Error where the shape is another.
    void check_shape(const Shape& wanted, const std::string& name) const {
        if (shape != wanted) {
            throw Error(HMAR_BACKEND_FAILED, text(name, " is (", listed(shape), "), expected (",
                                                  listed(wanted), "); export the bundle again"));
        }
    }

    // The values of a tensor that must have this type and shape; `name` is for the message of the Error.
    template <typename T>
    T* values(const Shape& wanted, const std::string& name) const {
        if (dtype != dtype_of<T>() || shape != wanted) {
            throw Error(HMAR_BACKEND_FAILED,
                        text(name, " is ", dtype_name(dtype), " (", listed(shape), "), expected ",
                             dtype_name(dtype_of<T>()), " (", listed(wanted), "); export the bundle again"));
        }
        return static_cast<T*>(data.get());
    }
};

using Values = std::map<std::string, Tensor>;

// A tensor of zeros.
inline Tensor make_tensor(Dtype dtype, const Shape& shape) {
    const auto values = std::make_shared<std::vector<char>>(item_bytes(dtype) * size_t(num_items(shape)));
    return {dtype, shape, std::shared_ptr<void>(values, values->data())};
}

// A tensor whose values are still to be written.
inline Tensor make_empty(Dtype dtype, const Shape& shape) {
    const size_t nbytes = item_bytes(dtype) * size_t(num_items(shape));
    return {dtype, shape, std::shared_ptr<void>(new std::byte[nbytes], [](void* values) {
                delete[] static_cast<std::byte*>(values);
            })};
}

template <typename T>
Tensor make_tensor(const Shape& shape) {
    return make_tensor(dtype_of<T>(), shape);
}

// The same input for each half of the guided batch.
inline Tensor repeated(const Tensor& tensor, int halves) {
    if (halves == 1) return tensor;
    const auto* bytes = static_cast<const char*>(tensor.data.get());
    Shape shape = tensor.shape;
    shape[0] *= 2;
    const Tensor both = make_tensor(tensor.dtype, shape);
    auto* to = static_cast<char*>(both.data.get());
    std::copy_n(bytes, tensor.nbytes(), std::copy_n(bytes, tensor.nbytes(), to));
    return both;
}

}  // namespace hmar::core

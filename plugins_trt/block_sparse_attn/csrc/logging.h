// Messages of the library to TensorRT's logger.
#pragma once

#include <string>

namespace hmar {

// Goes to the logger of the engine or builder that called, or to stderr if TensorRT named none.
void log_error(const std::string& message) noexcept;

}  // namespace hmar

// Messages of the library to the process's TensorRT logger.
#pragma once

#include <string>

namespace hmar {

// Goes to stderr if no TensorRT is loaded, it has no logger, or one of a kind that is not known here.
void log_error(const std::string& message) noexcept;

}  // namespace hmar

// The exception of this library; c_api.cpp turns it into a status and a message.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "hmar_runtime.h"

namespace hmar::core {

class Error : public std::runtime_error {
  public:
    Error(hmar_status status, const std::string& message) : std::runtime_error(message), status(status) {}

    const hmar_status status;
};

// The parts one after the other.
template <typename... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream stream;
    (stream << ... << parts);
    return stream.str();
}

// "1, 2, 3"
template <typename Items>
std::string listed(const Items& items) {
    std::ostringstream stream;
    const char* separator = "";
    for (const auto& item : items) {
        stream << separator << item;
        separator = ", ";
    }
    return stream.str();
}

}  // namespace hmar::core

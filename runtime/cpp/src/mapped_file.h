// A file mapped into memory, for reading.
#pragma once

#include <cstddef>
#include <string>

namespace hmar::core {

class MappedFile {
  public:
    // Throws Error where the file cannot be read or mapped.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::byte* data() const { return static_cast<const std::byte*>(data_); }
    size_t nbytes() const { return nbytes_; }

  private:
    void* data_ = nullptr;  // null for an empty file
    size_t nbytes_ = 0;
};

}  // namespace hmar::core

#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "error.h"

namespace hmar::core {
namespace {

[[noreturn]] void fail(const std::string& path, int number) {
    throw Error(HMAR_INVALID_BUNDLE,
                text(path, ": cannot be read: ", std::generic_category().message(number)));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail(path, errno);
    struct stat status;
    int number = fstat(file, &status) != 0 ? errno : S_ISREG(status.st_mode) ? 0 : EISDIR;
    if (number == 0 && status.st_size > 0) {
        nbytes_ = size_t(status.st_size);
        data_ = mmap(nullptr, nbytes_, PROT_READ, MAP_PRIVATE, file, 0);
        if (data_ == MAP_FAILED) number = errno;
    }
    close(file);
    if (number != 0) fail(path, number);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(data_, nbytes_);
}

}  // namespace hmar::core

// Handles that are names: looked up, never followed, so that a closed or made-up one does no harm.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "error.h"

namespace hmar::core {

// A value that no other handle of the process has or had.
inline uintptr_t next_handle() {
    static std::atomic<uintptr_t> last{0};
    return ++last;
}

// Objects of one kind by handle. Thread-safe; an object lives until its last user lets go.
template <typename Handle, typename Object>
class Handles {
  public:
    explicit Handles(const char* kind) : kind_(kind) {}

    Handle add(std::shared_ptr<Object> object) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto handle = reinterpret_cast<Handle>(next_handle());
        objects_.emplace(handle, std::move(object));
        return handle;
    }

    // Throws Error where there is no such object.
    std::shared_ptr<Object> find(Handle handle) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find(handle);
        if (found == objects_.end()) reject();
        return found->second;
    }

    void remove(Handle handle) {
        std::shared_ptr<Object> last;  // destroyed after the lock is gone
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find(handle);
        if (found == objects_.end()) reject();
        last = std::move(found->second);
        objects_.erase(found);
    }

  private:
    [[noreturn]] void reject() const {
        throw Error(HMAR_INVALID_HANDLE,
                    text("this is no open ", kind_, "; it is zero, closed, or another handle"));
    }

    const char* const kind_;
    mutable std::mutex mutex_;
    std::map<Handle, std::shared_ptr<Object>> objects_;
};

}  // namespace hmar::core

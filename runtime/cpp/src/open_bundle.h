// A bundle behind a handle, with what it says in the form of the C interface.
#pragma once

#include <memory>
#include <vector>

#include "bundle.h"

namespace hmar::core {

class OpenBundle {
  public:
    OpenBundle(const std::string& folder, int32_t check);

    const std::shared_ptr<const Bundle>& bundle() const { return bundle_; }

    // Pointers are into this object.
    hmar_bundle_info info() const;

    // The published settings; pointers are into this object. Throws Error for a bundle of the other family.
    hmar_request defaults() const;
    hmar_himar_request himar_defaults() const;

  private:
    const std::shared_ptr<const Bundle> bundle_;
    std::vector<int32_t> schedule_counts_, schedule_lengths_;
};

}  // namespace hmar::core

// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace hmar::core {

class Sha256 {
  public:
    Sha256();

    // With or without the processor's instructions for it, which must then be there.
    explicit Sha256(bool by_instructions) : by_instructions_(by_instructions) {}

    void update(const void* data, size_t nbytes);

    // Digest of all updates in lower-case hexadecimal; to be called once.
    std::string hex();

  private:
    void absorb(const uint8_t* blocks, size_t count);
    void absorb_block(const uint8_t* block);

    const bool by_instructions_;

    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> block_;
    uint64_t nbytes_ = 0;
};

}  // namespace hmar::core

#include "sha256.h"

#include <algorithm>
#include <cstring>

#include "sha256_x86.h"

namespace hmar::core {

const uint32_t kSha256Rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

namespace {

uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

}  // namespace

Sha256::Sha256() : Sha256(has_sha_instructions()) {}

void Sha256::update(const void* data, size_t nbytes) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    while (nbytes > 0) {
        const size_t filled = nbytes_ % 64;
        if (filled == 0 && nbytes >= 64) {
            const size_t whole = nbytes / 64 * 64;
            absorb(bytes, whole / 64);
            bytes += whole, nbytes -= whole, nbytes_ += whole;
            continue;
        }
        const size_t taken = std::min(64 - filled, nbytes);
        std::memcpy(block_.data() + filled, bytes, taken);
        bytes += taken, nbytes -= taken, nbytes_ += taken;
        if (nbytes_ % 64 == 0) absorb(block_.data(), 1);
    }
}

std::string Sha256::hex() {
    const uint64_t nbits = nbytes_ * 8;
    const uint8_t one = 0x80, zero = 0;
    update(&one, 1);
    while (nbytes_ % 64 != 56) update(&zero, 1);
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = uint8_t(nbits >> (56 - 8 * i));
    update(length, 8);
    std::string digest;
    for (const uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) digest += "0123456789abcdef"[word >> shift & 15];
    }
    return digest;
}

void Sha256::absorb(const uint8_t* blocks, size_t count) {
    if (by_instructions_) {
        absorb_by_instructions(state_.data(), blocks, count);
        return;
    }
    for (size_t i = 0; i < count; ++i) absorb_block(blocks + 64 * i);
}

void Sha256::absorb_block(const uint8_t* block) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
        w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 |
               uint32_t{block[4 * i + 2]} << 8 | block[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
        const uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        const uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
        const uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
        const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Rounds[i] + w[i];
        const uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
        const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) state_[i] += added[i];
}

}  // namespace hmar::core

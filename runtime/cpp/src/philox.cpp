#include "philox.h"

namespace hmar::core {

Words philox_4x32(Words counter, std::array<uint32_t, 2> key) {
    auto [c0, c1, c2, c3] = counter;
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
        c0 = uint32_t(p1 >> 32) ^ c1 ^ key[0], c1 = uint32_t(p1);
        c2 = uint32_t(p0 >> 32) ^ c3 ^ key[1], c3 = uint32_t(p0);
        key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
    }
    return {c0, c1, c2, c3};
}

Words philox_block(uint64_t seed, uint64_t image_index, uint32_t second, uint32_t first) {
    return philox_4x32({first, second, uint32_t(image_index), uint32_t(image_index >> 32)},
                       {uint32_t(seed), uint32_t(seed >> 32)});
}

double unit_interval(const Words& words) {
    return double((words[0] | uint64_t{words[1]} << 32) >> 11) * 0x1p-53;
}

double uniform(uint64_t seed, uint64_t image_index, int scale_idx, int pass_idx, uint32_t position) {
    const auto pass = uint32_t(kMaxPasses * scale_idx + pass_idx);
    return unit_interval(philox_block(seed, image_index, pass, position));
}

}  // namespace hmar::core

#include "cpu_attention.h"

#include "cpu_tile.h"

namespace hmar {

void attend(const Attention& attention, const Tile& tile, int64_t b, int64_t h, float* scratch) {
#ifdef HMAR_CPU_AVX2
    static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2) return attend_avx2(attention, tile, b, h, scratch);
#endif
    attend_baseline(attention, tile, b, h, scratch);
}

size_t scratch_floats(int64_t head_dim) {
    const int64_t width = round_up(head_dim, kWidthStep);
    // q and o, k transposed, v, p, one row
    return size_t(2 * kTileRows * width + 2 * kTileKeys * width + kTileRows * kTileKeys + width);
}

}  // namespace hmar

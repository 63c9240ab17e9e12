// One tile of the attention, compiled once per instruction set. Includes no standard C++ headers: an inline
// function of theirs compiled for AVX2 could be the copy that the linker keeps for everyone.
#pragma once

#include "cpu_attention.h"

namespace hmar {

constexpr int64_t kTileKeys = 64;
constexpr int64_t kWidthStep = 16;  // rows of scratch matrices are padded to a multiple of it

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

void attend_baseline(const Attention& attention, const Tile& tile, int64_t b, int64_t h, float* scratch);
void attend_avx2(const Attention& attention, const Tile& tile, int64_t b, int64_t h, float* scratch);

}  // namespace hmar

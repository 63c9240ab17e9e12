// hmar::BlockSparseAttention on a CPU: raw pointers, no framework headers. Contract:
// ../block_sparse_attn/spec.py.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hmar {

enum class Dtype { float32, float16, bfloat16 };

// Element (b, t, h, i) of q, k and v lies at b * stride_b + t * stride_t + h * stride_h + i, counted in
// elements. o is contiguous (B, T, H * d).
struct Attention {
    const void* q;
    const void* k;
    const void* v;
    void* o;
    const float* scale_mul;  // (H); null = no q/k L2 norm
    int64_t stride_b, stride_t, stride_h;
    int64_t length, heads, head_dim;
    float sm_scale;
    Dtype dtype;
};

// Up to kTileRows queries of one block, and all keys that they attend to.
struct Tile {
    int64_t first_query, num_queries, first_key, num_keys;
};

constexpr int64_t kTileRows = 64;

// Fills o for the queries of a tile in row b, head h. The scratch holds scratch_floats(head_dim).
void attend(const Attention& attention, const Tile& tile, int64_t b, int64_t h, float* scratch);

size_t scratch_floats(int64_t head_dim);

}  // namespace hmar

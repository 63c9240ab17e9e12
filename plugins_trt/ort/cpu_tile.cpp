// HMAR_ATTEND names the function for the instruction set that this file is compiled for.
#include "cpu_tile.h"

namespace hmar {
namespace {

// One register; gcc keeps wider vectors in memory.
#ifdef __AVX2__
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t IntVector __attribute__((vector_size(kLanes * sizeof(int32_t))));

constexpr float kNormFloor = 1e-12f;
// A product holds kRowsAtOnce x kVectorsAtOnce sums in registers.
constexpr int64_t kRowsAtOnce = 4;
constexpr int64_t kVectorsAtOnce = 2;
static_assert(kWidthStep % (kVectorsAtOnce * kLanes) == 0);

Vector& vector(float* x) { return *reinterpret_cast<Vector*>(x); }
const Vector& vector(const float* x) { return *reinterpret_cast<const Vector*>(x); }

uint32_t bits(float x) { return __builtin_bit_cast(uint32_t, x); }
float from_bits(uint32_t x) { return __builtin_bit_cast(float, x); }

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
    const float subnormal = float(magnitude) * 0x1p-24f;
    const uint32_t rebased = (magnitude << 13) + ((127 - 15) << 23);
    const uint32_t normal = magnitude >= 0x7c00 ? rebased + ((255 - 127 - 16) << 23) : rebased;
    return from_bits(sign | (magnitude < 0x0400 ? bits(subnormal) : normal));
}

uint16_t float_to_half(float x) {
    const uint32_t sign = bits(x) >> 16 & 0x8000, magnitude = bits(x) & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);   // NaN
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to infinity
    // below the smallest normal half, adding 0.5 makes the float unit round to steps of 2^-24
    if (magnitude < 0x38800000) return uint16_t(sign | (bits(from_bits(magnitude) + 0.5f) - bits(0.5f)));
    const uint32_t rebased = magnitude - ((127 - 15) << 23);
    return uint16_t(sign | ((rebased + 0x0fff + (rebased >> 13 & 1)) >> 13));
}

uint16_t float_to_bfloat(float x) {
    if ((bits(x) & 0x7fffffff) > 0x7f800000) return uint16_t(bits(x) >> 16 | 0x40);  // NaN
    return uint16_t((bits(x) + 0x7fff + (bits(x) >> 16 & 1)) >> 16);
}

void load(Dtype dtype, const void* source, int64_t offset, int64_t n, float* row) {
    const float* floats = static_cast<const float*>(source) + offset;
    const uint16_t* shorts = static_cast<const uint16_t*>(source) + offset;
    switch (dtype) {
        case Dtype::float32:
            for (int64_t i = 0; i < n; ++i) row[i] = floats[i];
            break;
        case Dtype::float16:
            for (int64_t i = 0; i < n; ++i) row[i] = half_to_float(shorts[i]);
            break;
        case Dtype::bfloat16:
            for (int64_t i = 0; i < n; ++i) row[i] = from_bits(uint32_t(shorts[i]) << 16);
            break;
    }
}

void store(Dtype dtype, const float* row, int64_t n, void* target, int64_t offset) {
    float* floats = static_cast<float*>(target) + offset;
    uint16_t* shorts = static_cast<uint16_t*>(target) + offset;
    switch (dtype) {
        case Dtype::float32:
            for (int64_t i = 0; i < n; ++i) floats[i] = row[i];
            break;
        case Dtype::float16:
            for (int64_t i = 0; i < n; ++i) shorts[i] = float_to_half(row[i]);
            break;
        case Dtype::bfloat16:
            for (int64_t i = 0; i < n; ++i) shorts[i] = float_to_bfloat(row[i]);
            break;
    }
}

void fill(float* x, int64_t n, float value) {
    for (int64_t i = 0; i < n; ++i) x[i] = value;
}

void scale(float* x, int64_t width, float factor) {
    for (int64_t i = 0; i < width; i += kLanes) vector(x + i) *= factor;
}

float inverse_norm(const float* row, int64_t width) {
    Vector squares = {};
    for (int64_t i = 0; i < width; i += kLanes) squares += vector(row + i) * vector(row + i);
    float sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += squares[i];
    const float norm = __builtin_sqrtf(sum);
    return 1 / (norm < kNormFloor ? kNormFloor : norm);
}

// e^x for x <= 0, within 2 units in the last place; 0 below -87; NaN stays NaN.
Vector exponential(Vector x) {
    const IntVector is_tiny = x < -87.0f;
    x = is_tiny ? Vector{} : x;
    const float to_integer = 0x1.8p23f;  // adding and subtracting it rounds to an integer
    const Vector n = (x * 1.44269504f + to_integer) - to_integer;
    const Vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
    Vector series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    const IntVector exponent = (__builtin_convertvector(n, IntVector) + 127) << 23;
    return is_tiny ? Vector{} : series * (Vector)exponent;
}

// c += a b; a is (rows, depth), b (depth, width), c (rows, width); rows and width in steps of what is done at
// once.
void multiply_add(const float* a, int64_t stride_a, const float* b, int64_t stride_b, float* c,
                  int64_t stride_c, int64_t rows, int64_t depth, int64_t width) {
    for (int64_t i = 0; i < rows; i += kRowsAtOnce) {
        for (int64_t j = 0; j < width; j += kVectorsAtOnce * kLanes) {
            Vector sums[kRowsAtOnce][kVectorsAtOnce];
            for (int64_t r = 0; r < kRowsAtOnce; ++r) {
                for (int64_t s = 0; s < kVectorsAtOnce; ++s) {
                    sums[r][s] = vector(c + (i + r) * stride_c + j + s * kLanes);
                }
            }
            for (int64_t n = 0; n < depth; ++n) {
                for (int64_t r = 0; r < kRowsAtOnce; ++r) {
                    const float factor = a[(i + r) * stride_a + n];
                    for (int64_t s = 0; s < kVectorsAtOnce; ++s) {
                        sums[r][s] += factor * vector(b + n * stride_b + j + s * kLanes);
                    }
                }
            }
            for (int64_t r = 0; r < kRowsAtOnce; ++r) {
                for (int64_t s = 0; s < kVectorsAtOnce; ++s) {
                    vector(c + (i + r) * stride_c + j + s * kLanes) = sums[r][s];
                }
            }
        }
    }
}

// Turns a row of logits into e^(logit - largest) and returns their sum. `largest` holds the largest so far,
// and is raised; entries from n up to a full vector become 0.
float softmax_numerators(float* p, int64_t n, float& largest) {
    for (int64_t j = n; j < round_up(n, kLanes); ++j) p[j] = -__builtin_inff();
    Vector most = vector(p);
    for (int64_t j = kLanes; j < n; j += kLanes) most = vector(p + j) > most ? vector(p + j) : most;
    for (int64_t i = 0; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
    Vector sums = {};
    for (int64_t j = 0; j < n; j += kLanes) {
        vector(p + j) = exponential(vector(p + j) - largest);
        if (j + kLanes > n) {
            for (int64_t i = n; i < j + kLanes; ++i) p[i] = 0;
        }
        sums += vector(p + j);
    }
    float sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += sums[i];
    return sum;
}

}  // namespace

void HMAR_ATTEND(const Attention& attention, const Tile& tile, int64_t b, int64_t h, float* scratch) {
    const Attention& a = attention;
    const int64_t d = a.head_dim, width = round_up(d, kWidthStep),
                  rows = round_up(tile.num_queries, kRowsAtOnce);
    float* q = scratch;                      // (rows, width)
    float* o = q + kTileRows * width;        // (rows, width)
    float* k_t = o + kTileRows * width;      // (d, kTileKeys)
    float* v = k_t + width * kTileKeys;      // (kTileKeys, width)
    float* p = v + kTileKeys * width;        // (rows, kTileKeys)
    float* key = p + kTileRows * kTileKeys;  // (width)
    float largest[kTileRows], sums[kTileRows];
    const int64_t head = b * a.stride_b + h * a.stride_h;
    const bool normalise = a.scale_mul != nullptr;
    const float factor = normalise ? a.sm_scale * a.scale_mul[h] : a.sm_scale;

    fill(q, rows * width, 0);
    fill(o, rows * width, 0);
    if (width != d) fill(v, kTileKeys * width, 0);
    fill(key, width, 0);
    fill(largest, rows, -__builtin_inff());
    fill(sums, rows, 0);
    for (int64_t i = 0; i < tile.num_queries; ++i) {
        float* row = q + i * width;
        load(a.dtype, a.q, head + (tile.first_query + i) * a.stride_t, d, row);
        scale(row, width, normalise ? factor * inverse_norm(row, width) : factor);
    }
    for (int64_t done = 0; done < tile.num_keys; done += kTileKeys) {
        const int64_t left = tile.num_keys - done, keys = left < kTileKeys ? left : kTileKeys;
        const int64_t columns = round_up(keys, kWidthStep);
        for (int64_t j = 0; j < keys; ++j) {
            const int64_t at = head + (tile.first_key + done + j) * a.stride_t;
            load(a.dtype, a.k, at, d, key);
            if (normalise) scale(key, width, inverse_norm(key, width));
            for (int64_t n = 0; n < d; ++n) k_t[n * kTileKeys + j] = key[n];
            load(a.dtype, a.v, at, d, v + j * width);
        }
        for (int64_t n = 0; n < d; ++n) fill(k_t + n * kTileKeys + keys, columns - keys, 0);
        fill(p, rows * kTileKeys, 0);
        multiply_add(q, width, k_t, kTileKeys, p, kTileKeys, rows, d, columns);
        for (int64_t i = 0; i < tile.num_queries; ++i) {
            const float before = largest[i];
            const float sum = softmax_numerators(p + i * kTileKeys, keys, largest[i]);
            if (largest[i] != before) {
                const float shrink = exponential(Vector{} + (before - largest[i]))[0];
                sums[i] *= shrink;
                scale(o + i * width, width, shrink);
            }
            sums[i] += sum;
        }
        multiply_add(p, kTileKeys, v, width, o, width, rows, keys, width);
    }
    for (int64_t i = 0; i < tile.num_queries; ++i) {
        scale(o + i * width, width, 1 / sums[i]);
        store(a.dtype, o + i * width, d, a.o, ((b * a.length + tile.first_query + i) * a.heads + h) * d);
    }
}

}  // namespace hmar

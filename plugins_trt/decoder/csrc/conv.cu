// Convolution of many pixels on Hopper; arguments as of `conv_kernel` in `plugins_trt/decoder/kernel.py`, and
// the number of images, with tensor maps in place of `x` and `weights`: of all channels of a step, and of
// those of the rest, if there is one.
//
// Grid (an even number,), programs which compute one tile after the other: BLOCK_M pixels, 16 to a row, and
// BLOCK_N output channels. Neighbouring programs compute neighbouring tiles, and the same weights pass
// through both. The copy engine reads a tap of the pixels as a box of the map, moved by a pixel; beyond the
// map it reads zeros.
//
// Compile-time: NAME of the kernel; CLUSTER; CIN, COUT, SIDE, UPSAMPLES, HAS_RESIDUAL, HAS_SUMS; TILE_H,
// TILE_W and BLOCK_N of a tile; STAGES.
#include "hopper.cuh"
#include "wgmma.h"

constexpr int BLOCK_M = TILE_H * TILE_W;
constexpr int PARTS = BLOCK_M / 64;  // instructions that share the weights
constexpr int PIXELS = 2 * PARTS;    // of a tile that a thread has values of
// whether registers are left for what the next chunk needs
constexpr bool LOADS_AHEAD = !HAS_RESIDUAL || PARTS * BLOCK_N <= 256;
constexpr int CHUNK = 32;  // channels that a thread finishes at once, for four threads
constexpr int TAPS_SIDE = UPSAMPLES ? 2 : SIDE, TAPS = TAPS_SIDE * TAPS_SIDE, PHASES = UPSAMPLES ? 4 : 1;
constexpr int NUM_N = (COUT + BLOCK_N - 1) / BLOCK_N;
constexpr int FULL_STEPS = CIN / DEPTH * TAPS;  // all taps of DEPTH channels come before other channels
constexpr int REST = CIN % DEPTH;               // channels left; a step has two taps of them
constexpr int STEPS = FULL_STEPS + (REST ? (TAPS + 1) / 2 : 0);
constexpr int X_NBYTES = BLOCK_M * ROW_NBYTES, W_NBYTES = BLOCK_N * ROW_NBYTES;
constexpr int STAGE_NBYTES = X_NBYTES + W_NBYTES;
constexpr int W_ROWS = BLOCK_N / CLUSTER;  // of the weights, that one program asks for
static_assert(CLUSTER == 2 && TILE_W == 16 && BLOCK_M % 64 == 0 && BLOCK_N % CHUNK == 0 && COUT % CHUNK == 0);
static_assert(W_ROWS * ROW_NBYTES % ALIGNMENT == 0 && (REST == 0 || REST == DEPTH / 2));
using Stages = Ring<STAGES, STAGE_NBYTES>;

struct Map {
    int height, width, batch;

    DEVICE int tiles_x() const { return (width + TILE_W - 1) / TILE_W; }
    DEVICE int tiles() const { return (height + TILE_H - 1) / TILE_H * tiles_x(); }
    DEVICE int num_pairs() const { return (tiles() * batch + CLUSTER - 1) / CLUSTER * PHASES * NUM_N; }
};

struct Tile {
    int n, y, x, phase, image;  // first channel, first pixel
    int number;                 // of its image

    // This program's tile of a pair. An odd last one has no neighbour: its image is the one after the last.
    DEVICE Tile(int pair, const Map& map) {
        n = pair % NUM_N * BLOCK_N, pair /= NUM_N;
        phase = pair % PHASES, pair /= PHASES;
        int tile = pair * CLUSTER + rank_in_cluster();
        image = tile / map.tiles(), tile %= map.tiles();
        number = phase * map.tiles() + tile;
        y = tile / map.tiles_x() * TILE_H, x = tile % map.tiles_x() * TILE_W;
    }
};

// What the copy engine reads: all channels of a step, and those of the rest.
struct Sources {
    const TensorMap &x, &weights, &x_rest, &weights_rest;
};

// Asks for the tiles of all steps.
DEVICE void copy_steps(Stages& ring, const Sources& from, const Tile& at) {
    // the first tap reads the pixel that lies this far below and to the right
    const int top = at.y + (UPSAMPLES ? at.phase / 2 - 1 : -(SIDE / 2));
    const int left = at.x + (UPSAMPLES ? at.phase % 2 - 1 : -(SIDE / 2));
    const int first = W_ROWS * rank_in_cluster();
    // some channels of a tap; `part` is which half of the stage, if they do not fill it
    const auto copy = [&](const TensorMap& x_map, const TensorMap& w_map, int channels, int part, int tap,
                          int channel) {
        const u32 x = ring.data() + part * X_NBYTES / 2, w = ring.data() + X_NBYTES + part * W_NBYTES / 2;
        copy_tile(x, x_map, ring.full(), channel, left + tap % TAPS_SIDE, top + tap / TAPS_SIDE, at.image);
        copy_to_all(w + first * 2 * channels, w_map, ring.full(), channel, tap,
                    at.phase * COUT + at.n + first);
    };
    for (int step = 0; step < FULL_STEPS; ++step, ++ring.step) {
        wait(ring.empty(), ring.parity() ^ 1);
        expect(ring.full(), STAGE_NBYTES);
        copy(from.x, from.weights, DEPTH, 0, step % TAPS, step / TAPS * DEPTH);
    }
    if constexpr (REST > 0)
        for (int tap = 0; tap < TAPS; tap += 2, ++ring.step) {
            const int count = min(TAPS - tap, 2);
            wait(ring.empty(), ring.parity() ^ 1);
            expect(ring.full(), count * STAGE_NBYTES / 2);
            for (int part = 0; part < count; ++part)
                copy(from.x_rest, from.weights_rest, REST, part, tap + part, CIN - REST);
        }
}

// Some channels of a tap, which are all of a row in shared memory.
template <int CHANNELS>
DEVICE void multiply_tap(float (&acc)[PARTS][BLOCK_N / 2], u32 x, u32 w, bool is_first) {
    constexpr int SPAN = 2 * CHANNELS;
#pragma unroll
    for (int k = 0; k < CHANNELS; k += K)
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
            wgmma<BLOCK_N, 0>(acc[part], describe<SPAN>(x + part * 64 * SPAN + 2 * k, 16, 8 * SPAN),
                              describe<SPAN>(w + 2 * k, 16, 8 * SPAN), !is_first || k > 0);
}

// Returns the barrier of the stage that is still being read.
DEVICE u32 multiply(float (&acc)[PARTS][BLOCK_N / 2], Stages& ring) {
    u32 before = 0;
    const auto begin = [&] {
        wait(ring.full(), ring.parity());
        fence_products();
    };
    const auto end = [&] {
        commit_products();
        wait_for_products<1>();
        if (before && threadIdx.x % 32 == 0) arrive_at_all(before);
        before = ring.empty();
        ++ring.step;
    };
    for (int step = 0; step < FULL_STEPS; ++step) {
        begin();
        multiply_tap<DEPTH>(acc, ring.data(), ring.data() + X_NBYTES, step == 0);
        end();
    }
    if constexpr (REST > 0) {
        // without a condition between the products, which would keep them from overlapping
        for (int tap = 0; tap + 1 < TAPS; tap += 2) {
            begin();
            const u32 x = ring.data(), w = x + X_NBYTES;
            multiply_tap<REST>(acc, x, w, FULL_STEPS == 0 && tap == 0);
            multiply_tap<REST>(acc, x + X_NBYTES / 2, w + W_NBYTES / 2, false);
            end();
        }
        if constexpr (TAPS % 2) {
            begin();
            multiply_tap<REST>(acc, ring.data(), ring.data() + X_NBYTES, FULL_STEPS == 0 && TAPS == 1);
            end();
        }
    }
    return before;
}

// Where a thread's pixels are.
struct Pixels {
    long long place[PIXELS];  // of a pixel's first channel of this thread, in the output
    bool is_one[PIXELS];

    DEVICE Pixels(const Tile& at, const Map& map) {
        constexpr int SCALE = UPSAMPLES ? 2 : 1;
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            int y = at.y + i / 2 * 4 + threadIdx.x % WARPGROUP / 32;
            int x = at.x + i % 2 * 8 + threadIdx.x % 32 / 4;
            is_one[i] = y < map.height && x < map.width && at.image < map.batch;
            if (UPSAMPLES) y = 2 * y + at.phase / 2, x = 2 * x + at.phase % 2;
            place[i] = (((long long)at.image * map.height * SCALE + y) * map.width * SCALE + x) * COUT +
                       at.n + 8 * (threadIdx.x % 4);
        }
    }
};

// What a chunk needs beside the product.
struct Operands {
    float2 bias[4];
    uint4 residual[PIXELS];

    DEVICE void load(const Pixels& pixel, int n, int chunk, const float* bias_of, const u16* residual_of) {
#pragma unroll
        for (int block = 0; block < 4; ++block)
            bias[block] =
                *reinterpret_cast<const float2*>(bias_of + n + chunk + 8 * block + 2 * (threadIdx.x % 4));
        if (HAS_RESIDUAL)
#pragma unroll
            for (int i = 0; i < PIXELS; ++i)
                residual[i] = load16(residual_of + pixel.place[i] + chunk, pixel.is_one[i]);
    }
};

// Adds up values with those of the thread at a distance; each of the two keeps one half of the sums.
template <int HALF>
DEVICE void add_halves(float (&v)[16], int distance) {
    const bool is_upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const float sent = is_upper ? v[i] : v[i + HALF], kept = is_upper ? v[i + HALF] : v[i];
        v[i] = kept + __shfl_xor_sync(~0u, sent, distance);
    }
}

// Rounds and stores a tile. With HAS_SUMS, a warp leaves the sums over its pixels, and those of the squares,
// in `sums`: (2, BLOCK_N).
DEVICE void finish(const float (&acc)[PARTS][BLOCK_N / 2], const Pixels& pixel, int n, const float* bias,
                   const u16* residual, u16* out, float* sums) {
    Operands next;
    if (LOADS_AHEAD) next.load(pixel, n, 0, bias, residual);
#pragma unroll
    for (int chunk = 0; chunk < BLOCK_N; chunk += CHUNK) {
        if (n + chunk >= COUT) return;
        if (!LOADS_AHEAD) next.load(pixel, n, chunk, bias, residual);
        const Operands of = next;
        if (LOADS_AHEAD && chunk + CHUNK < BLOCK_N && n + chunk + CHUNK < COUT)
            next.load(pixel, n, chunk + CHUNK, bias, residual);
        float added[16] = {};  // by block, and by sum or square, of two channels
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            u32 y[4], old[4];
            if (HAS_RESIDUAL) spread(of.residual[i], old);
#pragma unroll
            for (int block = 0; block < 4; ++block) {
                const float* const two = &acc[i / 2][chunk / 2 + 4 * block + i % 2 * 2];
                float2 value{two[0] + of.bias[block].x, two[1] + of.bias[block].y};
                if (HAS_RESIDUAL) {
                    const float2 was = unpack(old[block]);
                    value.x += was.x, value.y += was.y;
                }
                y[block] = pack(value.x, value.y);
                if (HAS_SUMS && pixel.is_one[i]) {
                    const float2 rounded = unpack(y[block]);
                    float* const sum = &added[4 * block];
                    sum[0] += rounded.x, sum[1] += rounded.y;
                    sum[2] += rounded.x * rounded.x, sum[3] += rounded.y * rounded.y;
                }
            }
            store16(out + pixel.place[i] + chunk, y, pixel.is_one[i]);
        }
        if (HAS_SUMS) {
            // over the 8 pixels of a row that other threads have: a thread is left with one block's sums, or
            // with its squares
            add_halves<8>(added, 16), add_halves<4>(added, 8), add_halves<2>(added, 4);
            const int lane = threadIdx.x % 32, block = lane / 16 * 2 + lane / 8 % 2, is_square = lane / 4 % 2;
            float* const to = sums + is_square * BLOCK_N + chunk + 8 * block + 2 * (lane % 4);
            to[0] = added[0], to[1] = added[1];
        }
    }
}

// Adds the sums of a warpgroup's warps, each (2, BLOCK_N), into (2, COUT).
DEVICE void write_sums(const float* sums, float* out, int n) {
    for (int i = threadIdx.x % WARPGROUP; i < 2 * BLOCK_N; i += WARPGROUP) {
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPGROUP / 32; ++warp) total += sums[warp * 2 * BLOCK_N + i];
        const int channel = n + i % BLOCK_N;
        if (channel < COUT) out[i / BLOCK_N * COUT + channel] = total;
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, const float* bias,
         const u16* residual, u16* out, float* sums, int batch, int height, int width,
         const __grid_constant__ TensorMap x_rest, const __grid_constant__ TensorMap weights_rest) {
    char* const memory = align_stages(global_smem);
    Stages ring(memory);
    if (threadIdx.x == 0) ring.init();
    sync_cluster();

    const Map map{height, width, batch};
    const int warpgroup = threadIdx.x / WARPGROUP, first = blockIdx.x / CLUSTER, pairs = gridDim.x / CLUSTER;
    if (warpgroup == 0) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x > 0) return;
        const Sources from{x, weights, x_rest, weights_rest};
        for (int pair = first; pair < map.num_pairs(); pair += pairs) copy_steps(ring, from, Tile(pair, map));
    } else {
        take_registers<CONSUMER_REGISTERS>();
        const int consumer = warpgroup - 1, warp = threadIdx.x % WARPGROUP / 32;
        constexpr int WARP_SUMS = 2 * BLOCK_N;
        float* const sums_of = reinterpret_cast<float*>(memory + BARRIERS_NBYTES + STAGES * STAGE_NBYTES) +
                               consumer * (WARPGROUP / 32) * WARP_SUMS;
        if (consumer == 1) pass_turn(consumer);  // the first turn
        int turn = 0;
        for (int pair = first; pair < map.num_pairs(); pair += pairs, ++turn) {
            if (turn % 2 != consumer) {
                ring.step += STEPS;
                continue;
            }
            float acc[PARTS][BLOCK_N / 2];
            take_turn(consumer);
            const u32 last = multiply(acc, ring);
            pass_turn(consumer);
            wait_for_products<0>();
            if (threadIdx.x % 32 == 0) arrive_at_all(last);

            const Tile at(pair, map);
            finish(acc, Pixels(at, map), at.n, bias, residual, out, sums_of + warp * WARP_SUMS);
            if (HAS_SUMS) {
                sync_warpgroup(consumer);
                const long long tile = (long long)at.image * PHASES * map.tiles() + at.number;
                if (at.image < batch) write_sums(sums_of, sums + tile * 2 * COUT, at.n);
                sync_warpgroup(consumer);  // before the next tile's sums
            }
        }
    }
    sync_cluster();  // the other program arrives at barriers of this one
}

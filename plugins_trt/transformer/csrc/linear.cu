// A linear layer of many rows, and what follows it, on Hopper; arguments as of `linear_kernel` in
// `plugins_trt/transformer/kernel.py`, `scratch` being for tensor maps: two of each program.
//
// Grid (an even number,): neighbouring programs compute tiles one below the other, and the same columns of
// the weights pass through both; then the next such pair of tiles.
//
// Compile-time: NAME of the kernel; BLOCK_M, BLOCK_N of a tile; GROUP_M; STAGES; EPILOGUE; HAS_LOW;
// COOPERATES, whether the two warpgroups share a tile.
#include "hopper.cuh"
#include "wgmma.h"

enum { PLAIN, GELU, RESIDUAL, SILU, GELU_ERF };  // as in kernel.py
constexpr float LOG2_E = 1.4426950408889634f;

constexpr int WORKERS = COOPERATES ? 2 : 1;    // warpgroups of a tile, each of which has some of its rows
constexpr int PARTS = BLOCK_M / WORKERS / 64;  // of a warpgroup: instructions that share the weights
constexpr int ROWS = 2 * PARTS;                // of a tile that a thread has values of, 8 and 64 apart
constexpr int CHUNK = 32;                      // columns that a thread finishes at once, for four threads
constexpr int BOX_NBYTES = DEPTH * 128;        // of weights: 64 columns, all of a stage's depth
constexpr int BOX_DEPTH = DEPTH / CLUSTER;     // of these, what one program asks for
constexpr int X_NBYTES = BLOCK_M * ROW_NBYTES;
constexpr int STAGE_NBYTES = X_NBYTES + BLOCK_N / 64 * BOX_NBYTES;
constexpr int HALVES = HAS_LOW ? 2 : 1;  // of x and weights: rounded values, and what these lack
// whether registers are left for what the next chunk needs
constexpr bool LOADS_AHEAD = EPILOGUE != RESIDUAL || PARTS * BLOCK_N <= 256;
static_assert(BLOCK_M % (WORKERS * 64) == 0 && BLOCK_N % 64 == 0);
using Stages = Ring<STAGES, STAGE_NBYTES, WORKERS>;

struct Tile {
    int m, n;  // first row and column
};

DEVICE int count_pairs(int rows, int width) {
    return (rows + CLUSTER * BLOCK_M - 1) / (CLUSTER * BLOCK_M) * ((width + BLOCK_N - 1) / BLOCK_N);
}

// This program's tile of a pair: GROUP_M pairs of row tiles take turns, so that they share weights in the
// cache.
DEVICE Tile locate(int pair, int rows, int width) {
    const int num_m = (rows + CLUSTER * BLOCK_M - 1) / (CLUSTER * BLOCK_M);
    const int num_n = (width + BLOCK_N - 1) / BLOCK_N;
    const int group = pair / (GROUP_M * num_n), within = pair % (GROUP_M * num_n);
    const int size = min(num_m - group * GROUP_M, GROUP_M);
    const int m = group * GROUP_M + within % size;
    return {(m * CLUSTER + int(rank_in_cluster())) * BLOCK_M, within / size * BLOCK_N};
}

// Asks for the tiles of all steps of a pair. With HAS_LOW, high times high, high times low, and low times
// high halves.
DEVICE void copy_steps(Stages& ring, const void* x_map, const void* w_map, Tile at, int depth) {
    const int first = BOX_DEPTH * rank_in_cluster();
    for (int k = 0; k < (HAS_LOW ? 3 : 1) * depth; k += DEPTH, ++ring.step) {
        const int x_k = HAS_LOW && k >= depth ? k - depth : k;
        const int w_k = HAS_LOW && k >= 2 * depth ? k - 2 * depth : k;
        wait(ring.empty(), ring.parity() ^ 1);
        expect(ring.full(), STAGE_NBYTES);
        copy_tile(ring.data(), x_map, ring.full(), x_k, at.m);
#pragma unroll
        for (int box = 0; box < BLOCK_N / 64; ++box)
            copy_to_both(ring.data() + X_NBYTES + box * BOX_NBYTES + first * ROW_NBYTES, w_map, ring.full(),
                         at.n + 64 * box, w_k + first);
    }
}

// Returns the barrier of the stage that is still being read.
DEVICE u32 multiply(float (&acc)[PARTS][BLOCK_N / 2], Stages& ring, int steps, int first_row) {
    u32 before = 0;
    for (int step = 0; step < steps; ++step, ++ring.step) {
        wait(ring.full(), ring.parity());
        fence_products();
        const u64 w = describe<ROW_NBYTES>(ring.data() + X_NBYTES, BOX_NBYTES, 8 * ROW_NBYTES);
#pragma unroll
        for (int k = 0; k < DEPTH; k += K)
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const u32 x = ring.data() + (first_row + part * 64) * ROW_NBYTES + 2 * k;
                wgmma<BLOCK_N, 1>(acc[part], describe<ROW_NBYTES>(x, 16, 8 * ROW_NBYTES),
                                  w + (k * ROW_NBYTES >> 4), step > 0 || k > 0);
            }
        commit_products();
        wait_for_products<1>();
        if (step > 0 && threadIdx.x % 32 == 0) arrive_at_both(before);
        before = ring.empty();
    }
    return before;
}

DEVICE float activate(float x) {
    if (EPILOGUE == GELU)  // the tanh approximation; 1 + tanh(u) is 2 / (1 + exp(-2 u))
        return __fdividef(
            x, 1.0f + exp2_approx(x * (1.0f + 0.044715f * x * x) * (-1.5957691216057308f * LOG2_E)));
    if (EPILOGUE == SILU) return __fdividef(x, 1.0f + exp2_approx(x * -LOG2_E));
    if (EPILOGUE == GELU_ERF) {  // x * (1 + erf(x / sqrt(2))) / 2, with Abramowitz and Stegun 7.1.26
        const float t = __fdividef(1.0f, 1.0f + 0.3275911f * 0.7071067811865476f * fabsf(x));
        float poly = t * (1.061405429f * t - 1.453152027f) + 1.421413741f;
        poly = t * (t * (t * poly - 0.284496736f) + 0.254829592f);
        return fmaxf(x, 0.0f) - 0.5f * fabsf(x) * poly * exp2_approx(x * x * (-0.5f * LOG2_E));
    }
    return x;
}

// Where a thread's rows are.
struct Rows {
    long long place[ROWS];  // of a row's first column of this thread, in the output
    int gate[ROWS];         // the same, of the gates of its image
    bool is_one[ROWS];

    DEVICE Rows(Tile at, int rows, int width, int length, int ada_stride, int gate_at) {
        const int first = 16 * (threadIdx.x % WARPGROUP / 32) + threadIdx.x % 32 / 4;
        const int column = at.n + 8 * (threadIdx.x % 4);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = at.m + i / 2 * 64 + i % 2 * 8 + first;
            is_one[i] = row < rows;
            place[i] = (long long)row * width + column;
            gate[i] = EPILOGUE == RESIDUAL ? row / length * ada_stride + gate_at + column : 0;
        }
    }
};

// What the rows of a chunk need beside the product and the bias; of columns that there are.
struct Operands {
    uint4 residual[ROWS], gate[ROWS];

    DEVICE void load(int i, const Rows& row, int chunk, const u16* ada, const u16* residual_of) {
        if (EPILOGUE != RESIDUAL) return;
        residual[i] = load16(residual_of + row.place[i] + chunk, row.is_one[i]);
        gate[i] = load16(ada + row.gate[i] + chunk, row.is_one[i]);
    }
};

// Stores a tile after what follows the layer.
DEVICE void finish(const float (&acc)[PARTS][BLOCK_N / 2], const Rows& row, int n, int width, const u16* ada,
                   const u16* bias, const u16* residual, u16* out) {
    Operands next;
#pragma unroll
    for (int i = 0; i < ROWS && LOADS_AHEAD; ++i) next.load(i, row, 0, ada, residual);
#pragma unroll
    for (int chunk = 0; chunk < BLOCK_N; chunk += CHUNK) {
        if (n + chunk >= width) return;
        float2 add[4];
#pragma unroll
        for (int block = 0; block < 4; ++block)
            add[block] =
                unpack(*reinterpret_cast<const u32*>(bias + n + chunk + 8 * block + 2 * (threadIdx.x % 4)));
        const bool is_last = chunk + CHUNK >= BLOCK_N || n + chunk + CHUNK >= width;
        const Operands now = next;
#pragma unroll
        for (int i = 0; i < ROWS && LOADS_AHEAD; ++i)
            if (!is_last) next.load(i, row, chunk + CHUNK, ada, residual);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            Operands of = now;
            if (!LOADS_AHEAD) of.load(i, row, chunk, ada, residual);
            u32 y[4], old[4], gate[4];
            if (EPILOGUE == RESIDUAL) spread(of.residual[i], old), spread(of.gate[i], gate);
#pragma unroll
            for (int block = 0; block < 4; ++block) {
                const float* const two = &acc[i / 2][chunk / 2 + 4 * block + i % 2 * 2];
                float2 value{activate(two[0] + add[block].x), activate(two[1] + add[block].y)};
                if (EPILOGUE == RESIDUAL) {
                    const float2 was = unpack(old[block]), by = unpack(gate[block]);
                    value = {was.x + by.x * value.x, was.y + by.y * value.y};
                }
                y[block] = pack(value.x, value.y);
            }
            store16(out + row.place[i] + chunk, y, row.is_one[i]);
        }
    }
}

// The same for logits, in float32: a bias follows.
DEVICE void finish_logits(const float (&acc)[PARTS][BLOCK_N / 2], const Rows& row, int n, int width,
                          const float* bias, float* out) {
    const int before = 6 * (threadIdx.x % 4);  // two columns of a thread come after two of the one before
#pragma unroll
    for (int column = 0; column < BLOCK_N; column += 8) {
        if (n + column >= width) return;
        const float2 add = *reinterpret_cast<const float2*>(bias + n + column + 2 * (threadIdx.x % 4));
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const float* const two = &acc[i / 2][column / 2 + i % 2 * 2];
            if (row.is_one[i])
                *reinterpret_cast<float2*>(out + row.place[i] - before + column) = {two[0] + add.x,
                                                                                    two[1] + add.y};
        }
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    NAME(const u16* x, const u16* ada, const u16* weights, const void* bias, const u16* residual, void* out,
         int rows, int length, int depth, int width, int ada_stride, int gate_at, char* scratch, char*) {
    char* const memory = align_stages(global_smem);
    Stages ring(memory);
    if (threadIdx.x == 0) ring.init();
    sync_cluster();
    wait_for_kernel_before();
    let_next_kernel_start();

    const int warpgroup = threadIdx.x / WARPGROUP, first = blockIdx.x / CLUSTER, pairs = gridDim.x / CLUSTER;
    const int num_pairs = count_pairs(rows, width);
    if (warpgroup == 0) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x >= 32) return;
        char* const x_map = scratch + 2 * MAP_NBYTES * blockIdx.x;
        char* const w_map = x_map + MAP_NBYTES;
        char* const draft = draft_of(memory);
        const u32 x_width = HALVES * depth, w_depth = HALVES * depth;
        draft_map<2>(draft, {x, {x_width, u32(rows)}, {2ull * x_width}, {DEPTH, BLOCK_M}});
        draft_map<2>(draft + MAP_NBYTES, {weights, {u32(width), w_depth}, {2ull * width}, {64, BOX_DEPTH}});
        publish_maps<2>(x_map, draft);
        if (threadIdx.x > 0) return;
        for (int pair = first; pair < num_pairs; pair += pairs)
            copy_steps(ring, x_map, w_map, locate(pair, rows, width), depth);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        const int consumer = warpgroup - 1, steps = (HAS_LOW ? 3 : 1) * depth / DEPTH;
        const int first_row = COOPERATES ? consumer * 64 * PARTS : 0;
        if (!COOPERATES && consumer == 1) pass_turn(consumer);  // the first turn
        int turn = 0;
        for (int pair = first; pair < num_pairs; pair += pairs, ++turn) {
            if (!COOPERATES && turn % 2 != consumer) {
                ring.step += steps;
                continue;
            }
            float acc[PARTS][BLOCK_N / 2];
            if (!COOPERATES) take_turn(consumer);
            const u32 last = multiply(acc, ring, steps, first_row);
            if (!COOPERATES) pass_turn(consumer);
            wait_for_products<0>();
            if (threadIdx.x % 32 == 0) arrive_at_both(last);

            Tile at = locate(pair, rows, width);
            at.m += first_row;
            const Rows row(at, rows, width, length, ada_stride, gate_at);
            if constexpr (HAS_LOW)
                finish_logits(acc, row, at.n, width, static_cast<const float*>(bias),
                              static_cast<float*>(out));
            else
                finish(acc, row, at.n, width, ada, static_cast<const u16*>(bias), residual,
                       static_cast<u16*>(out));
        }
    }
    sync_cluster();  // the other program arrives at barriers of this one
}

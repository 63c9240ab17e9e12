// A linear layer of many rows, and what follows it, on Hopper; arguments as of `linear_kernel` in
// `plugins_trt/transformer/kernel.py`, with tensor maps in place of `x` and `weights`.
//
// Grid (a multiple of CLUSTER,): neighbouring programs compute tiles one below the other, and the same
// columns of the weights pass through all; then the next such group of tiles. With SPLITS > 1, groups that
// share their tiles each add up some of `depth`; of every tile the program that arrives last adds the partial
// sums, always in the same order. `partials`: (tiles, SPLITS, BLOCK_M, BLOCK_N) float32, as the threads hold
// them; `arrivals`: (tiles, WORKERS) int32, zero before and after.
//
// Compile-time: NAME of the kernel; BLOCK_M, BLOCK_N of a tile; GROUP_M; CLUSTER, up to 3; SPLITS; SLICES,
// parts of a step's weights by depth, which the programs of a cluster ask for in turn; STAGES; EPILOGUE;
// HAS_LOW; COOPERATES, whether the two warpgroups share a tile.
#include "hopper.cuh"
#include "wgmma.h"

enum { PLAIN, GELU, RESIDUAL, SILU, GELU_ERF };  // as in kernel.py
constexpr float LOG2_E = 1.4426950408889634f;

constexpr int WORKERS = COOPERATES ? 2 : 1;    // warpgroups of a tile, each of which has some of its rows
constexpr int PARTS = BLOCK_M / WORKERS / 64;  // of a warpgroup: instructions that share the weights
constexpr int ROWS = 2 * PARTS;                // of a tile that a thread has values of, 8 and 64 apart
constexpr int CHUNK = 32;                      // columns that a thread finishes at once, for four threads
constexpr int BOXES = BLOCK_N / 64;
constexpr int BOX_NBYTES = DEPTH * 128;  // of weights: 64 columns, all of a stage's depth
constexpr int SLICE = DEPTH / SLICES;    // depth of what one copy brings of a box
constexpr int X_NBYTES = BLOCK_M * ROW_NBYTES;
constexpr int STAGE_NBYTES = X_NBYTES + BOXES * BOX_NBYTES;
// whether registers are left for what the next chunk needs
constexpr bool LOADS_AHEAD = EPILOGUE != RESIDUAL || PARTS * BLOCK_N <= 256;
static_assert(BLOCK_M % (WORKERS * 64) == 0 && BLOCK_N % 64 == 0);
static_assert(CLUSTER <= 3 && DEPTH % SLICES == 0 && SLICE % 8 == 0 && (SPLITS == 1 || !HAS_LOW));
using Stages = Ring<STAGES, STAGE_NBYTES, WORKERS>;

struct Tile {
    int m, n;  // first row and column
};

// What the programs of a cluster do in turn.
struct Work {
    int num_m, num_n;  // tiles, groups of CLUSTER counted once
    int steps;         // of all splits

    DEVICE Work(int rows, int depth, int width)
        : num_m((rows + CLUSTER * BLOCK_M - 1) / (CLUSTER * BLOCK_M)),
          num_n((width + BLOCK_N - 1) / BLOCK_N),
          steps((HAS_LOW ? 3 : 1) * depth / DEPTH) {}

    DEVICE static int first() { return blockIdx.x / CLUSTER; }
    DEVICE static int stride() { return gridDim.x / CLUSTER; }
    DEVICE int count() const { return num_m * num_n * SPLITS; }
    DEVICE int steps_of_split() const { return (steps + SPLITS - 1) / SPLITS; }
    DEVICE int first_step(int item) const { return item % SPLITS * steps_of_split(); }
    DEVICE int num_steps(int item) const { return max(0, min(steps_of_split(), steps - first_step(item))); }

    // This program's tile: GROUP_M groups of row tiles take turns, so that they share weights in the cache.
    DEVICE Tile tile(int item) const {
        item /= SPLITS;
        const int group = item / (GROUP_M * num_n), within = item % (GROUP_M * num_n);
        const int size = min(num_m - group * GROUP_M, GROUP_M);
        const int m = group * GROUP_M + within % size;
        return {(m * CLUSTER + int(rank_in_cluster())) * BLOCK_M, within / size * BLOCK_N};
    }

    // Its number among all.
    DEVICE int number(int item) const { return item / SPLITS * CLUSTER + int(rank_in_cluster()); }
};

// Asks for a step's weights, all columns of a tile. With HAS_LOW, high halves of x are multiplied with high
// and low ones of the weights, and low with high.
DEVICE void copy_weights(const Stages& ring, const TensorMap& weights, int n, int k, int depth) {
    const int w_k = HAS_LOW && k >= 2 * depth ? k - 2 * depth : k;
    expect(ring.full(), STAGE_NBYTES);
#pragma unroll
    for (int i = 0; i < BOXES * SLICES; i += CLUSTER) {
        const int piece = i + rank_in_cluster(), box = piece / SLICES, from = piece % SLICES * SLICE;
        if (box < BOXES)
            copy_to_all(ring.data() + X_NBYTES + box * BOX_NBYTES + from * ROW_NBYTES, weights, ring.full(),
                        n + 64 * box, w_k + from);
    }
}

DEVICE void copy_x(const Stages& ring, const TensorMap& x, int m, int k, int depth) {
    copy_tile(ring.data(), x, ring.full(), HAS_LOW && k >= depth ? k - depth : k, m);
}

// Asks for all that a program reads. The weights of the first steps, which no kernel writes, do not wait for
// the kernel before.
DEVICE void copy_all(Stages& ring, const TensorMap& x, const TensorMap& weights, const Work& work,
                     int depth) {
    int item = Work::first(), asked = min(STAGES, work.num_steps(item));
    Stages early = ring;
    for (; early.step < asked; ++early.step)
        copy_weights(early, weights, work.tile(item).n, (work.first_step(item) + early.step) * DEPTH, depth);
    wait_for_kernel_before();
    let_next_kernel_start();
    for (; item < work.count(); item += Work::stride(), asked = 0) {
        const Tile at = work.tile(item);
        const int first = work.first_step(item), steps = work.num_steps(item);
        for (int step = 0; step < steps; ++step, ++ring.step) {
            const int k = (first + step) * DEPTH;
            if (step >= asked) {
                wait(ring.empty(), ring.parity() ^ 1);
                copy_weights(ring, weights, at.n, k, depth);
            }
            copy_x(ring, x, at.m, k, depth);
        }
    }
}

// Returns the barrier of the stage that is still being read; 0 = there was no step.
DEVICE u32 multiply(float (&acc)[PARTS][BLOCK_N / 2], Stages& ring, int steps, int first_row) {
    u32 before = 0;
    if (SPLITS > 1 && steps == 0)
#pragma unroll
        for (int i = 0; i < PARTS * BLOCK_N / 2; ++i) acc[i / (BLOCK_N / 2)][i % (BLOCK_N / 2)] = 0.0f;
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
        if (step > 0 && threadIdx.x % 32 == 0) arrive_at_all(before);
        before = ring.empty();
    }
    return before;
}

// Leaves this program's sums of a tile; whether it is the last to do so, and then has the sums of all.
DEVICE bool add_splits(float (&acc)[PARTS][BLOCK_N / 2], float* partials, int* arrivals, const Work& work,
                       int item, int consumer, int* is_last) {
    constexpr int COUNT = PARTS * BLOCK_N / 2;  // values of a thread
    const int thread = threadIdx.x % WARPGROUP, worker = COOPERATES ? consumer : 0;
    const auto sums_of = [&](int split) {
        const long long block = ((long long)work.number(item) * SPLITS + split) * WORKERS + worker;
        return reinterpret_cast<float4*>(partials) + block * (COUNT / 4) * WARPGROUP + thread;
    };
    float4* const own = sums_of(item % SPLITS);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const float* const four = &acc[i / (BLOCK_N / 2)][i % (BLOCK_N / 2)];
        __stcg(own + i / 4 * WARPGROUP, float4{four[0], four[1], four[2], four[3]});
    }
    __threadfence();
    sync_warpgroup(consumer);
    if (thread == 0) {
        int* const arrived = arrivals + work.number(item) * WORKERS + worker;
        *is_last = atomicAdd(arrived, 1) == SPLITS - 1;
        if (*is_last) *arrived = 0;
        __threadfence();
    }
    sync_warpgroup(consumer);
    if (!*is_last) return false;
#pragma unroll
    for (int split = 0; split < SPLITS; ++split) {
        const float4* const sums = sums_of(split);
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            float* const four = &acc[i / (BLOCK_N / 2)][i % (BLOCK_N / 2)];
            const float4 more = __ldcg(sums + i / 4 * WARPGROUP);
            four[0] = split ? four[0] + more.x : more.x, four[1] = split ? four[1] + more.y : more.y;
            four[2] = split ? four[2] + more.z : more.z, four[3] = split ? four[3] + more.w : more.w;
        }
    }
    return true;
}

DEVICE float activate(float x) {
    if (EPILOGUE == GELU) {  // the tanh approximation
        const float half = 0.5f * x;
        return half + half * tanh_approx(x * (0.7978845608028654f + 0.7978845608028654f * 0.044715f * x * x));
    }
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
    NAME(const __grid_constant__ TensorMap x, const u16* ada, const __grid_constant__ TensorMap weights,
         const void* bias, const u16* residual, void* out, float* partials, int* arrivals, int rows,
         int length, int depth, int width, int ada_stride, int gate_at) {
    char* const memory = align_stages(global_smem);
    Stages ring(memory);
    if (threadIdx.x == 0) prefetch_map(weights), prefetch_map(x), ring.init();
    sync_cluster();

    const Work work(rows, depth, width);
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) copy_all(ring, x, weights, work, depth);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        wait_for_kernel_before();
        const int consumer = warpgroup - 1, first_row = COOPERATES ? consumer * 64 * PARTS : 0;
        int* const is_last = reinterpret_cast<int*>(memory + BARRIERS_NBYTES / 2) + consumer;
        if (!COOPERATES && consumer == 1) pass_turn(consumer);  // the first turn
        int turn = 0;
        for (int item = Work::first(); item < work.count(); item += Work::stride(), ++turn) {
            const int steps = work.num_steps(item);
            if (!COOPERATES && turn % 2 != consumer) {
                ring.step += steps;
                continue;
            }
            float acc[PARTS][BLOCK_N / 2];
            if (!COOPERATES) take_turn(consumer);
            const u32 last = multiply(acc, ring, steps, first_row);
            if (!COOPERATES) pass_turn(consumer);
            wait_for_products<0>();
            if (last && threadIdx.x % 32 == 0) arrive_at_all(last);
            if (SPLITS > 1 && !add_splits(acc, partials, arrivals, work, item, consumer, is_last)) continue;

            Tile at = work.tile(item);
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
    sync_cluster();  // others arrive at barriers of this one
}

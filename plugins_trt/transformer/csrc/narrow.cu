// A linear layer of few rows, and what follows it, on Hopper; arguments as of `linear_kernel` in
// `plugins_trt/transformer/kernel.py`, with tensor maps in place of `x` and `weights`.
//
// The product is transposed: weights have the 64 rows that an instruction needs, and rows of x are its
// columns, so that there are hardly more of them than of x. Weights of the first steps arrive while the
// kernel before ends, if that leaves shared memory, as norms and attention do.
//
// Grid (SPLITS * column tiles, row tiles): the SPLITS programs of a cluster each add up some of `depth`, then
// each adds up all their sums of some rows, always in the same order. `next`: what the next layer reads, the
// first `next_nbytes` of which are brought into the L2 cache meanwhile.
//
// Compile-time: NAME of the kernel; BLOCK_M rows of a tile, a multiple of 8 up to 256, and BLOCK_N columns;
// TEAMS of warpgroups, which take turns at the steps; SPLITS; STAGES; EPILOGUE; HAS_LOW; CLUSTER, 1: programs
// that share what is copied.
#include "hopper.cuh"
#include "wgmma.h"

enum { PLAIN, GELU, RESIDUAL };  // as in kernel.py
static_assert(EPILOGUE <= RESIDUAL);
constexpr float LOG2_E = 1.4426950408889634f;

constexpr int COLUMNS = 64;                                 // of a warpgroup
constexpr int ROWS = BLOCK_M, WORKERS = BLOCK_N / COLUMNS;  // warpgroups of a team
constexpr int WEIGHTS_NBYTES = DEPTH * 128;                 // of these columns, in a stage
constexpr int X_NBYTES = ROWS * ROW_NBYTES;
constexpr int STAGE_NBYTES = WORKERS * WEIGHTS_NBYTES + X_NBYTES;
constexpr int BLOCKS = ROWS / 8;                        // of eight rows
constexpr int PARTS = SPLITS * TEAMS;                   // sums of the same values
constexpr int OWN = (BLOCKS + PARTS - 1) / PARTS;       // blocks that a team finishes
constexpr bool LOADS_EARLY = OWN <= 8;                  // there are registers for what these need
constexpr int SUMS_NBYTES = WARPGROUP * 16;             // of a block: four values of each thread
constexpr int CONSUMERS = TEAMS * WORKERS * WARPGROUP;  // threads
constexpr int IN_FLIGHT = STAGES / TEAMS > 3 ? 2 : 1;   // steps of a team whose products may be going on
static_assert(ROWS % 8 == 0 && ROWS <= 256 && BLOCK_N % COLUMNS == 0 && STAGES > 2 * TEAMS);
static_assert(STAGES % TEAMS == 0, "a stage is always read by the same team, which knows its uses apart");
static_assert(TEAMS * BLOCKS * WORKERS * SUMS_NBYTES <= STAGES * STAGE_NBYTES, "sums lie where stages were");
using Stages = Ring<STAGES, STAGE_NBYTES, WORKERS>;

// What a program computes.
struct Work {
    int m, n;          // first row and column of the tile
    int first, steps;  // of the depth
    int depth;

    DEVICE explicit Work(int depth) : depth(depth) {
        const int all = (HAS_LOW ? 3 : 1) * depth / DEPTH, most = (all + SPLITS - 1) / SPLITS;
        m = blockIdx.y * ROWS;
        n = blockIdx.x / SPLITS * WORKERS * COLUMNS;
        first = split() * most;
        steps = max(0, min(most, all - first));
    }

    DEVICE static int split() { return blockIdx.x % SPLITS; }  // rank in the cluster

    // Where a step reads x and weights: with HAS_LOW, high halves of x are multiplied with high and low ones
    // of the weights, and low with high.
    DEVICE int x_at(int step) const {
        const int k = (first + step) * DEPTH;
        return HAS_LOW && k >= depth ? k - depth : k;
    }
    DEVICE int weights_at(int step) const {
        const int k = (first + step) * DEPTH;
        return HAS_LOW && k >= 2 * depth ? k - 2 * depth : k;
    }
};

DEVICE void copy_weights(const Stages& ring, const TensorMap& weights, const Work& work) {
    expect(ring.full(), STAGE_NBYTES);
#pragma unroll
    for (int i = 0; i < WORKERS; ++i)
        copy_tile(ring.data() + i * WEIGHTS_NBYTES, weights, ring.full(), work.n + i * COLUMNS,
                  work.weights_at(ring.step));
}

// This program's part of an array, which it brings into the L2 cache.
struct Prefetch {
    const char* at;
    u32 left;

    DEVICE Prefetch(const u16* array, int nbytes) {
        const int programs = gridDim.x * gridDim.y, program = blockIdx.y * gridDim.x + blockIdx.x;
        const int share = (nbytes / programs + 127) / 128 * 128, first = min(nbytes, program * share);
        at = reinterpret_cast<const char*>(array) + first;
        left = min(share, nbytes - first);
    }

    DEVICE void ask(u32 nbytes) {
        const u32 some = min(nbytes, left);
        if (some) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(some) : "memory");
        at += some, left -= some;
    }
};

// Asks for all that a program reads: the weights of the first steps, which no kernel writes, before the
// kernel before ends.
DEVICE void copy_all(Stages ring, const TensorMap& x, const TensorMap& weights, const Work& work,
                     Prefetch next) {
    const int asked = min(STAGES, work.steps);
    for (Stages early = ring; early.step < asked; ++early.step) copy_weights(early, weights, work);
    wait_for_kernel_before();
    let_next_kernel_start();
    const u32 some = (next.left / max(work.steps, 1) + 127) / 128 * 128;
    for (; ring.step < work.steps; ++ring.step) {
        if (ring.step >= asked) {
            wait(ring.empty(), ring.parity() ^ 1);
            copy_weights(ring, weights, work);
        }
        copy_tile(ring.data() + WORKERS * WEIGHTS_NBYTES, x, ring.full(), work.x_at(ring.step), work.m);
        next.ask(some);
    }
    next.ask(next.left);
}

DEVICE void multiply(float (&acc)[ROWS / 2], Stages ring, const Work& work, int team, int worker) {
    if (PARTS > 1 && work.steps <= team)
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) acc[i] = 0.0f;
    ring.step = team;
    Stages done = ring;
    for (; ring.step < work.steps; ring.step += TEAMS) {
        wait(ring.full(), ring.parity());
        fence_products();
        const u64 w =
            describe<ROW_NBYTES>(ring.data() + worker * WEIGHTS_NBYTES, WEIGHTS_NBYTES, 8 * ROW_NBYTES);
        const u64 x = describe<ROW_NBYTES>(ring.data() + WORKERS * WEIGHTS_NBYTES, 16, 8 * ROW_NBYTES);
#pragma unroll
        for (int k = 0; k < DEPTH; k += K)
            wgmma<ROWS, 0, 1>(acc, w + (k * ROW_NBYTES >> 4), x + (2 * k >> 4), ring.step > team || k > 0);
        commit_products();
        wait_for_products<IN_FLIGHT>();
        if (ring.step >= IN_FLIGHT * TEAMS + team) {
            if (threadIdx.x % 32 == 0) arrive(done.empty());
            done.step += TEAMS;
        }
    }
    wait_for_products<0>();
}

// --- sums of the same values, by teams and by programs of a cluster

DEVICE u32 place_of_sums(u32 memory, int team, int block, int worker) {
    return memory + ((team * BLOCKS + block) * WORKERS + worker) * SUMS_NBYTES + threadIdx.x % WARPGROUP * 16;
}

DEVICE void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

// Leaves the sums where all others find them.
DEVICE void leave_sums(const float (&acc)[ROWS / 2], u32 memory, int team, int worker) {
    sync_consumers();  // all have read the stages
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block)
        asm volatile(
            "st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(place_of_sums(memory, team, block, worker)),
            "f"(acc[4 * block]), "f"(acc[4 * block + 1]), "f"(acc[4 * block + 2]), "f"(acc[4 * block + 3])
            : "memory");
    if (SPLITS > 1)
        sync_cluster();
    else
        sync_consumers();
}

DEVICE void add_sums(float (&sum)[4], u32 memory, int block, int worker) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        float more[4];
        asm volatile(
            "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
            "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}"
            : "=f"(more[0]), "=f"(more[1]), "=f"(more[2]), "=f"(more[3])
            : "r"(place_of_sums(memory, part % TEAMS, block, worker)), "r"(part / TEAMS)
            : "memory");
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = part ? sum[i] + more[i] : more[i];
    }
}

// --- what follows

DEVICE float activate(float x) {
    if (EPILOGUE != GELU) return x;
    // the tanh approximation; 1 + tanh(u) is 2 / (1 + exp(-2 u))
    const float exponent = x * (1.0f + 0.044715f * x * x) * (-2.0f * 0.7978845608028654f * LOG2_E);
    return __fdividef(x, 1.0f + exp2_approx(exponent));
}

// The 8 x 8 values of a warp with rows and columns exchanged, two neighbours of a row in each thread.
DEVICE u32 exchange(u32 two) {
    u32 other;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(two));
    return other;
}

// Where a thread reads and writes: two columns, and two that are eight more, of one row in each block.
struct Place {
    int m, n;  // of the warpgroup
    int row, column;
    int rows, width;
    bool has_columns;

    DEVICE Place(int m, int n, int rows, int width)
        : m(m),
          n(n),
          row(m + threadIdx.x % 32 / 4),
          column(n + 16 * (threadIdx.x % WARPGROUP / 32) + 2 * (threadIdx.x % 4)),
          rows(rows),
          width(width),
          has_columns(n < width) {}

    // The column whose sums a thread has before they are exchanged, or the one eight more.
    DEVICE int bias_at(int half) const {
        return n + 16 * (threadIdx.x % WARPGROUP / 32) + threadIdx.x % 32 / 4 + 8 * half;
    }
    DEVICE bool is_one(int block) const { return has_columns && row + 8 * block < rows; }
    DEVICE long long at(int block) const { return (long long)(row + 8 * block) * width + column; }
};

struct Operands {
    u32 residual[2], gate[2];

    DEVICE void load(const Place& place, int block, const u16* ada, const u16* residual_of, int length,
                     int ada_stride, int gate_at) {
        if (EPILOGUE != RESIDUAL) return;
        const bool is_one = place.is_one(block);
        const int image = (place.row + 8 * block) / length;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u16* const from = residual_of + place.at(block) + 8 * half;
            const u16* const by = ada + image * ada_stride + gate_at + place.column + 8 * half;
            residual[half] = is_one ? *reinterpret_cast<const u32*>(from) : 0;
            gate[half] = is_one ? *reinterpret_cast<const u32*>(by) : 0;
        }
    }
};

// Stores a block after what follows the layer; `sum`: of two rows of the block for a column, then of the same
// for the one eight more.
DEVICE void finish(const float* sum, const float (&add)[2], const Operands& operands, const Place& place,
                   int block, u16* out) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float2 value{activate(sum[2 * half] + add[half]), activate(sum[2 * half + 1] + add[half])};
        if (EPILOGUE == RESIDUAL) {
            const float2 was = unpack(exchange(operands.residual[half])),
                         by = unpack(exchange(operands.gate[half]));
            value = {was.x + by.x * value.x, was.y + by.y * value.y};
        }
        const u32 y = exchange(pack(value.x, value.y));
        if (place.is_one(block)) *reinterpret_cast<u32*>(out + place.at(block) + 8 * half) = y;
    }
}

// The same for logits, in float32: a bias follows.
DEVICE void finish_logits(const float* sum, const float (&add)[2], const Place& place, int block,
                          float* out) {
    const int row = place.m + 8 * block + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (place.has_columns && row + i % 2 < place.rows)
            out[(long long)(row + i % 2) * place.width + place.bias_at(i / 2)] = sum[i] + add[i / 2];
}

extern "C" __global__ void __cluster_dims__(SPLITS, 1, 1) __launch_bounds__(CONSUMERS + 32, 1)
    NAME(const __grid_constant__ TensorMap x, const u16* ada, const __grid_constant__ TensorMap weights,
         const void* bias, const u16* residual, void* out, const u16* next, int rows, int length, int depth,
         int width, int ada_stride, int gate_at, int next_nbytes) {
    char* const memory = align_stages(global_smem);
    const Stages ring(memory);
    if (threadIdx.x == CONSUMERS) prefetch_map(weights), prefetch_map(x), ring.init();
    __syncthreads();

    const Work work(depth);
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS) copy_all(ring, x, weights, work, Prefetch(next, next_nbytes));
        if (SPLITS > 1) sync_cluster(), sync_cluster();  // with the others
        return;
    }

    const int warpgroup = threadIdx.x / WARPGROUP, worker = warpgroup % WORKERS, team = warpgroup / WORKERS;
    const int part = work.split() * TEAMS + team;
    const Place place(work.m, work.n + worker * COLUMNS, rows, width);
    float add[2]{};
#pragma unroll
    for (int half = 0; half < 2 && place.has_columns; ++half)
        add[half] = HAS_LOW ? static_cast<const float*>(bias)[place.bias_at(half)]
                            : unpack(static_cast<const u16*>(bias)[place.bias_at(half)]).x;
    Operands early[LOADS_EARLY ? OWN : 1];
#pragma unroll
    for (int i = 0; i < OWN && LOADS_EARLY; ++i)
        early[i].load(place, i * PARTS + part, ada, residual, length, ada_stride, gate_at);
    wait_for_kernel_before();

    float acc[ROWS / 2];
    multiply(acc, ring, work, team, worker);
    if (PARTS > 1) leave_sums(acc, ring.start, team, worker);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int block = i * PARTS + part;
        if (BLOCKS % PARTS && block >= BLOCKS) break;
        float sum[4];
        if (PARTS > 1)
            add_sums(sum, ring.start, block, worker);
        else
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[j] = acc[4 * i + j];
        if constexpr (HAS_LOW) {
            finish_logits(sum, add, place, block, static_cast<float*>(out));
            continue;
        }
        Operands operands = early[LOADS_EARLY ? i : 0];
        if (!LOADS_EARLY) operands.load(place, block, ada, residual, length, ada_stride, gate_at);
        finish(sum, add, operands, place, block, static_cast<u16*>(out));
    }
    if (SPLITS > 1) sync_cluster();  // others read this one's sums
}

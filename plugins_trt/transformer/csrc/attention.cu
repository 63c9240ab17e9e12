// Attention within each image on Hopper; arguments as of `attention_kernel` in
// `plugins_trt/transformer/kernel.py`, and the number of images, with a tensor map in place of `qkv`.
//
// Grid (query blocks, heads, images). A program computes 64 queries in each of its warpgroups, of which four
// fit a multiprocessor: while one waits for products, others take exponentials. Keys and values pass through
// a ring of stages of 64; beyond an image the copy engine reads zeros.
//
// Compile-time: NAME of the kernel; CLUSTER, 1; WORKERS, warpgroups; STAGES; HAS_NORM.
#include "hopper.cuh"
#include "wgmma.h"

constexpr float LOG2_E = 1.4426950408889634f, LOWEST = -3.0e38f;
constexpr float NORM_FLOOR = 1e-12f;      // of queries and keys, as `torch.nn.functional.normalize` has it
constexpr int HEAD_DIM = 64, BLOCK = 64;  // queries or keys
constexpr int TILE_NBYTES = BLOCK * ROW_NBYTES;
constexpr int LANES = 4;  // threads that share a row of a product
constexpr int QUERIES_AT = BARRIERS_NBYTES, KEYS_AT = QUERIES_AT + WORKERS * TILE_NBYTES;
constexpr int NORMS_AT = KEYS_AT + 2 * STAGES * TILE_NBYTES;  // of keys, for each warpgroup
static_assert(ROW_NBYTES == 2 * HEAD_DIM);

struct Stage {
    u32 keys, full, empty;
    u32 parity;

    DEVICE Stage(u32 memory, int step)
        : keys(memory + KEYS_AT + step % STAGES * 2 * TILE_NBYTES),
          full(memory + 16 + 16 * (step % STAGES)),
          empty(full + 8),
          parity(step / STAGES % 2) {}

    DEVICE u32 values() const { return keys + TILE_NBYTES; }
};

DEVICE void copy_keys(const TensorMap& qkv, u32 memory, int step, int width) {
    const Stage stage(memory, step);
    const int column = blockIdx.y * HEAD_DIM, token = step * BLOCK, image = blockIdx.z;
    expect(stage.full, 2 * TILE_NBYTES);
    copy_tile(stage.keys, qkv, stage.full, width + column, token, image);
    copy_tile(stage.values(), qkv, stage.full, 2 * width + column, token, image);
}

// Inverse norms of the rows of a tile, of which two threads read a half each; `norms` are this warpgroup's.
DEVICE void measure(u32 tile, float* norms) {
    const int row = threadIdx.x % WARPGROUP / 2, half = threadIdx.x % 2;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 chunk = (4 * half + i) ^ (row % 8);  // swizzled
        u32 v[4];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "r"(tile + row * ROW_NBYTES + 16 * chunk));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 two = unpack(v[j]);
            sum += two.x * two.x + two.y * two.y;
        }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (half == 0) norms[row] = __fdividef(1.0f, fmaxf(sqrtf(sum), NORM_FLOOR));
}

DEVICE float max_of_row(float v) {
    v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
    return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

DEVICE float sum_of_row(float v) {
    v += __shfl_xor_sync(~0u, v, 1);
    return v + __shfl_xor_sync(~0u, v, 2);
}

// What a thread has of two rows, 8 apart.
struct Softmax {
    float most[2] = {LOWEST, LOWEST}, sum[2] = {};  // the sums of this thread's columns

    // Takes logits to weights, and scales what earlier keys came to.
    DEVICE void update(float (&logits)[BLOCK / 2], float (&out)[HEAD_DIM / 2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float highest = most[i];
#pragma unroll
            for (int j = 0; j < BLOCK / 2; j += 4)
                highest = fmaxf(highest, fmaxf(logits[j + 2 * i], logits[j + 2 * i + 1]));
            highest = max_of_row(highest);
            const float shrink = exp2_approx(most[i] - highest);
            most[i] = highest;
            float added = 0.0f;
#pragma unroll
            for (int j = 0; j < BLOCK / 2; j += 4) {
                float* const two = &logits[j + 2 * i];
                two[0] = exp2_approx(two[0] - highest), two[1] = exp2_approx(two[1] - highest);
                added += two[0] + two[1];
            }
            sum[i] = sum[i] * shrink + added;
#pragma unroll
            for (int j = 0; j < HEAD_DIM / 2; j += 4) out[j + 2 * i] *= shrink, out[j + 2 * i + 1] *= shrink;
        }
    }
};

extern "C" __global__ void __launch_bounds__(WORKERS* WARPGROUP, 4 / WORKERS)
    NAME(const __grid_constant__ TensorMap qkv, const float* scale_mul, u16* out, int length, int width,
         int images) {
    char* const start = align_stages(global_smem);
    const u32 memory = shared_address(start), queries_full = memory;
    const int steps = (length + BLOCK - 1) / BLOCK, head = blockIdx.y;
    if (threadIdx.x == 0) {
        prefetch_map(qkv);
        init_barrier(queries_full, 1);
        for (int i = 0; i < STAGES; ++i)
            init_barrier(Stage(memory, i).full, 1),
                init_barrier(Stage(memory, i).empty, WORKERS * WARPGROUP / 32);
        publish_barriers();
    }
    __syncthreads();
    wait_for_kernel_before();
    let_next_kernel_start();
    if (threadIdx.x == 0) {
        expect(queries_full, WORKERS * TILE_NBYTES);
        for (int i = 0; i < WORKERS; ++i)
            copy_tile(memory + QUERIES_AT + i * TILE_NBYTES, qkv, queries_full, head * HEAD_DIM,
                      (blockIdx.x * WORKERS + i) * BLOCK, blockIdx.z);
        for (int step = 0; step < min(steps, STAGES); ++step) copy_keys(qkv, memory, step, width);
    }
    __syncwarp();

    const int worker = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, lane = threadIdx.x % 32;
    const u32 queries = memory + QUERIES_AT + worker * TILE_NBYTES;
    float* const norms = reinterpret_cast<float*>(start + NORMS_AT) + worker * BLOCK;
    const int row = thread / 32 * 16 + lane / LANES, column = 2 * (lane % LANES);
    float scale[2] = {0.125f * LOG2_E, 0.125f * LOG2_E};
    wait(queries_full, 0);
    if (HAS_NORM) {
        measure(queries, norms);
        sync_warpgroup(worker);
        const float factor = scale_mul[head] * LOG2_E;
        scale[0] = norms[row] * factor, scale[1] = norms[row + 8] * factor;
        sync_warpgroup(worker);
    }

    float acc[HEAD_DIM / 2] = {};
    Softmax softmax;
    for (int step = 0; step < steps; ++step) {
        const Stage stage(memory, step);
        if (threadIdx.x == 0 && step > 0 && step - 1 + STAGES < steps) {
            const Stage before(memory, step - 1);
            wait(before.empty, before.parity);
            copy_keys(qkv, memory, step - 1 + STAGES, width);
        }
        __syncwarp();
        wait(stage.full, stage.parity);
        float logits[BLOCK / 2];
        fence_products();
#pragma unroll
        for (int k = 0; k < HEAD_DIM; k += K)
            wgmma<BLOCK, 0>(logits, describe<ROW_NBYTES>(queries + 2 * k, 16, 8 * ROW_NBYTES),
                            describe<ROW_NBYTES>(stage.keys + 2 * k, 16, 8 * ROW_NBYTES), k > 0);
        commit_products();
        if (HAS_NORM) {
            measure(stage.keys, norms);
            sync_warpgroup(worker);
        }
        wait_for_products<0>();
#pragma unroll
        for (int j = 0; j < BLOCK / 2; j += 4) {
            float2 by{1.0f, 1.0f};
            if (HAS_NORM) by = *reinterpret_cast<const float2*>(norms + 2 * j + column);
            logits[j] *= scale[0] * by.x, logits[j + 1] *= scale[0] * by.y;
            logits[j + 2] *= scale[1] * by.x, logits[j + 3] *= scale[1] * by.y;
        }
        if (HAS_NORM) sync_warpgroup(worker);  // before the next keys' norms
        if ((step + 1) * BLOCK > length)
#pragma unroll
            for (int j = 0; j < BLOCK / 2; ++j) {
                const int key = step * BLOCK + j / 4 * 8 + column + j % 2;
                if (key >= length) logits[j] = __int_as_float(0xff800000);  // - infinity
            }
        softmax.update(logits, acc);
        u32 weights[BLOCK / 4];
#pragma unroll
        for (int j = 0; j < BLOCK / 4; ++j) weights[j] = pack(logits[2 * j], logits[2 * j + 1]);
        fence_products();
        const u64 values = describe<ROW_NBYTES>(stage.values(), 16, 8 * ROW_NBYTES);
#pragma unroll
        for (int k = 0; k < BLOCK; k += K)
            wgmma_by<HEAD_DIM, 1>(acc, &weights[k / 4], values + (k * ROW_NBYTES >> 4));
        commit_products();
        wait_for_products<0>();
        if (lane == 0) arrive(stage.empty);
    }

    const int first = (blockIdx.x * WORKERS + worker) * BLOCK + row;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float by = __fdividef(1.0f, sum_of_row(softmax.sum[i]));
        const int query = first + 8 * i;
        u16* const to = out + ((long long)blockIdx.z * length + query) * width + head * HEAD_DIM + 4 * column;
#pragma unroll
        for (int chunk = 0; chunk < HEAD_DIM; chunk += 32) {
            u32 y[4];
#pragma unroll
            for (int block = 0; block < 4; ++block) {
                const float* const two = &acc[chunk / 2 + 4 * block + 2 * i];
                y[block] = pack(two[0] * by, two[1] * by);
            }
            store16(to + chunk, y, query < length);
        }
    }
}

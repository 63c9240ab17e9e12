// What Hopper has for matrix products: copies of tiles by the copy engine (TMA), barriers in shared
// memory, and products of warpgroups. Sections of "PTX ISA" 9.0: 5.5.8 tensor maps, 9.7.13.15
// mbarrier, 9.7.9.27 bulk copies, 9.7.15 wgmma.
//
// A program of a linear layer or convolution has three warpgroups. One thread of the first asks for tiles.
// The two others take turns: while one multiplies, the other writes its results; or each computes half of a
// tile. Tiles pass through a ring of stages in shared memory, each with a barrier that its copies complete
// (full) and one that its readers do (empty).
//
// Neighbouring programs (a cluster of CLUSTER) compute tiles that share their columns: each asks for a part
// of the weights, which arrives at all. All they have to wait for is each other's readers.
//
// Compile-time: CLUSTER.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define DEVICE __device__ __forceinline__

constexpr int WARPGROUP = 128;  // threads
constexpr int THREADS = 3 * WARPGROUP;
constexpr int PRODUCER_REGISTERS = 24;  // of a thread: all 65,536 of a multiprocessor are given out
constexpr int CONSUMER_REGISTERS = 240;
constexpr int DEPTH = 64;        // float16 values of a stage's rows: 128 bytes, the swizzle's span
constexpr int K = 16;            // depth of one instruction
constexpr int ALIGNMENT = 1024;  // of a stage, in bytes: the swizzle's period
constexpr int ROW_NBYTES = DEPTH * 2;
constexpr int BARRIERS_NBYTES = ALIGNMENT;  // of what lies before the stages

extern __shared__ __align__(16) char global_smem[];

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// --- kernels that follow each other

DEVICE void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// --- barriers

DEVICE void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

DEVICE void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

DEVICE void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the same barrier of all programs of the cluster.
DEVICE void arrive_at_all(u32 barrier) {
#pragma unroll
    for (u32 rank = 0; rank < CLUSTER; ++rank)
        asm volatile(
            "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
            "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
            "r"(rank)
            : "memory");
}

DEVICE void expect(u32 barrier, u32 nbytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(nbytes)
                 : "memory");
}

DEVICE void wait(u32 barrier, u32 parity) {
    u32 is_done;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(is_done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!is_done);
}

DEVICE u32 rank_in_cluster() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster that have not ended.
DEVICE void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// The threads of one warpgroup.
DEVICE void sync_warpgroup(int number) {
    asm volatile("bar.sync %0, %1;" ::"r"(number + 1), "n"(WARPGROUP) : "memory");
}

// Turns of the two consuming warpgroups at waiting for stages. Without them one could take a stage's
// earlier use for its own: a barrier knows odd from even uses, not the second from the fourth.
DEVICE void take_turn(int consumer) {
    asm volatile("bar.sync %0, %1;" ::"r"(consumer + 3), "n"(2 * WARPGROUP) : "memory");
}

DEVICE void pass_turn(int consumer) {
    asm volatile("bar.arrive %0, %1;" ::"r"(4 - consumer), "n"(2 * WARPGROUP) : "memory");
}

template <int REGISTERS>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// --- tensor maps: how the copy engine reads an array

// A parameter of a kernel; whoever launches it makes the map, as `cuda.TensorMap` says.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

DEVICE void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

#define COPY(dimensions) \
    "cp.async.bulk.tensor." dimensions ".shared::cluster.global.mbarrier::complete_tx::bytes"

DEVICE void copy_tile(u32 to, const TensorMap& map, u32 barrier, int x, int y) {
    asm volatile(COPY("2d") " [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(&map), "r"(barrier), "r"(x), "r"(y)
                 : "memory");
}

DEVICE void copy_tile(u32 to, const TensorMap& map, u32 barrier, int x, int y, int z) {
    asm volatile(COPY("3d") " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to), "l"(&map), "r"(barrier), "r"(x),
                 "r"(y), "r"(z)
                 : "memory");
}

DEVICE void copy_tile(u32 to, const TensorMap& map, u32 barrier, int c, int x, int y, int image) {
    asm volatile(COPY("4d") " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(&map), "r"(barrier), "r"(c),
                 "r"(x), "r"(y), "r"(image)
                 : "memory");
}

// The same to the same places of all programs of the cluster.
DEVICE void copy_to_all(u32 to, const TensorMap& map, u32 barrier, int x, int y) {
    asm volatile(COPY("2d") ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(&map),
                 "r"(barrier), "r"(x), "r"(y), "h"(u16((1 << CLUSTER) - 1))
                 : "memory");
}

DEVICE void copy_to_all(u32 to, const TensorMap& map, u32 barrier, int c, int x, int y) {
    asm volatile(COPY("3d") ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to), "l"(&map),
                 "r"(barrier), "r"(c), "r"(x), "r"(y), "h"(u16((1 << CLUSTER) - 1))
                 : "memory");
}

#undef COPY

// --- the ring

// Where barriers and stages begin in shared memory.
DEVICE char* align_stages(char* memory) {
    return memory + (ALIGNMENT - shared_address(memory) % ALIGNMENT) % ALIGNMENT;
}

// READERS: warpgroups of a program that read each stage.
template <int COUNT, int NBYTES, int READERS = 1>
struct Ring {
    u32 start;     // of the stages
    u32 barriers;  // COUNT full, then COUNT empty ones
    int step = 0;  // of all steps of this program

    DEVICE explicit Ring(char* memory)
        : start(shared_address(memory) + BARRIERS_NBYTES), barriers(shared_address(memory)) {}

    DEVICE int stage() const { return step % COUNT; }
    DEVICE u32 parity() const { return step / COUNT % 2; }
    DEVICE u32 data() const { return start + stage() * NBYTES; }
    DEVICE u32 full() const { return barriers + 8 * stage(); }
    DEVICE u32 empty() const { return barriers + 8 * (COUNT + stage()); }

    DEVICE void init() const {
        for (int i = 0; i < COUNT; ++i) {
            init_barrier(barriers + 8 * i, 1);
            init_barrier(barriers + 8 * (COUNT + i), CLUSTER * READERS * WARPGROUP / 32);
        }
        publish_barriers();
    }
};

// --- products of warpgroups

// A tile in shared memory whose rows have SPAN bytes, 64 or 128, swizzled.
template <int SPAN>
DEVICE u64 describe(u32 address, u32 leading_nbytes, u32 stride_nbytes) {
    return (u64{SPAN == 128 ? 1 : 2} << 62) | (u64{stride_nbytes >> 4} << 32) |
           (u64{leading_nbytes >> 4} << 16) | ((address & 0x3FFFF) >> 4);
}

DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// --- values

DEVICE u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

DEVICE float2 unpack(u32 both) {
    float2 values;
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
        "cvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(values.x), "=f"(values.y)
        : "r"(both));
    return values;
}

DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float tanh_approx(float x) {  // relative error about 2^-11
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Exchanges rows and columns of the 4 x 4 values of four neighbouring threads. A thread holds two
// columns of each of four blocks of eight after a product, and all eight of one block after this.
DEVICE void transpose(u32 (&v)[4]) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
        const bool is_upper = threadIdx.x & distance;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & distance) continue;
            u32 &low = v[i], &high = v[i + distance];
            const u32 got = __shfl_xor_sync(~0u, is_upper ? low : high, distance);
            (is_upper ? low : high) = got;
        }
    }
}

DEVICE uint4 load16(const u16* p, bool is_there) {
    return is_there ? *reinterpret_cast<const uint4*>(p) : uint4{0, 0, 0, 0};
}

DEVICE void spread(const uint4& from, u32 (&to)[4]) {
    to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
    transpose(to);
}

DEVICE void store16(u16* p, u32 (&v)[4], bool is_there) {
    transpose(v);
    if (is_there) *reinterpret_cast<uint4*>(p) = uint4{v[0], v[1], v[2], v[3]};
}

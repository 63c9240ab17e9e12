// What Hopper has for matrix products: copies of tiles by the copy engine (TMA), barriers in shared
// memory, and products of warpgroups. Sections of "PTX ISA" 9.0: 5.5.8 tensor maps, 9.7.13.15
// mbarrier, 9.7.9.27 bulk copies, 9.7.15 wgmma.
//
// A program has three warpgroups. One thread of the first asks for tiles. The two others take turns: while
// one multiplies, the other writes its results; or each computes half of a tile. Tiles pass through a ring of
// stages in shared memory, each with a barrier that its copies complete (full) and one that its readers do
// (empty).
//
// Two neighbouring programs (a cluster) compute tiles that share their columns: each asks for half of
// the weights, which arrive at both. All they have to wait for is each other's readers.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define DEVICE __device__ __forceinline__

constexpr int WARPGROUP = 128;  // threads
constexpr int THREADS = 3 * WARPGROUP;
constexpr int CLUSTER = 2;              // programs that share weights
constexpr int PRODUCER_REGISTERS = 24;  // of a thread: all 65,536 of a multiprocessor are given out
constexpr int CONSUMER_REGISTERS = 240;
constexpr int DEPTH = 64;        // float16 values of a stage's rows: 128 bytes, the swizzle's span
constexpr int K = 16;            // depth of one instruction
constexpr int MAP_NBYTES = 128;  // of a tensor map
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

// Arrives at the same barrier of both programs.
DEVICE void arrive_at_both(u32 barrier) {
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

// All threads of both programs that have not ended.
DEVICE void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// The threads of one of the two consuming warpgroups.
DEVICE void sync_warpgroup(int consumer) {
    asm volatile("bar.sync %0, %1;" ::"r"(consumer + 1), "n"(WARPGROUP) : "memory");
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

// --- tensor maps: how the copy engine reads a float16 array of RANK dimensions

template <int RANK>
struct Array {
    const void* data;
    u32 size[RANK];        // innermost first
    u64 stride[RANK - 1];  // bytes, from the second dimension on
    u32 box[RANK];         // of one copy; its rows have 64 or 128 bytes, the swizzle's span
};

#define REPLACE(field, type) "tensormap.replace.tile." field ".shared::cta.b1024." type " [%0], "

// Dimension I of the tensor map at an address in shared memory, and those after it.
template <int I, int RANK>
DEVICE void describe_dimensions(u32 map, const Array<RANK>& array) {
    asm volatile(REPLACE("box_dim", "b32") "%1, %2;" ::"r"(map), "n"(I), "r"(array.box[I]) : "memory");
    asm volatile(REPLACE("global_dim", "b32") "%1, %2;" ::"r"(map), "n"(I), "r"(array.size[I]) : "memory");
    asm volatile(REPLACE("element_stride", "b32") "%1, %2;" ::"r"(map), "n"(I), "r"(1) : "memory");
    if constexpr (I + 1 < RANK) {
        asm volatile(REPLACE("global_stride", "b64") "%1, %2;" ::"r"(map), "n"(I), "l"(array.stride[I])
                     : "memory");
        describe_dimensions<I + 1>(map, array);
    }
}

// Drafts a tensor map in shared memory; called by a whole warp. What lies outside the array is read as zero.
template <int RANK>
DEVICE void draft_map(char* shared, const Array<RANK>& array) {
    const u32 at = shared_address(shared), lane = threadIdx.x % 32;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + 4 * lane), "r"(0) : "memory");
    __syncwarp();
    if (lane == 0) {
        asm volatile(REPLACE("global_address", "b64") "%1;" ::"r"(at), "l"(array.data) : "memory");
        asm volatile(REPLACE("rank", "b32") "%1;" ::"r"(at), "n"(RANK - 1) : "memory");
        describe_dimensions<0>(at, array);
        asm volatile(REPLACE("elemtype", "b32") "6;" ::"r"(at) : "memory");  // float16
        if (array.box[0] == DEPTH)
            asm volatile(REPLACE("swizzle_mode", "b32") "3;" ::"r"(at) : "memory");  // 128 bytes
        else
            asm volatile(REPLACE("swizzle_mode", "b32") "2;" ::"r"(at) : "memory");  // 64 bytes
    }
    __syncwarp();
}

// Copies drafts to device memory, where the copy engine may read them for this warp from then on.
template <int COUNT>
DEVICE void publish_maps(char* maps, const char* drafts) {
#pragma unroll
    for (int i = 0; i < COUNT * MAP_NBYTES; i += MAP_NBYTES)
        asm volatile(
            "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
            "[%0], [%1], 128;" ::"l"(maps + i),
            "r"(shared_address(drafts + i))
            : "memory");
#pragma unroll
    for (int i = 0; i < COUNT * MAP_NBYTES; i += MAP_NBYTES)
        asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(maps + i) : "memory");
}

#undef REPLACE

#define COPY(dimensions) \
    "cp.async.bulk.tensor." dimensions ".shared::cluster.global.mbarrier::complete_tx::bytes"

DEVICE void copy_tile(u32 to, const void* map, u32 barrier, int x, int y) {
    asm volatile(COPY("2d") " [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y)
                 : "memory");
}

DEVICE void copy_tile(u32 to, const void* map, u32 barrier, int c, int x, int y, int image) {
    asm volatile(COPY("4d") " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(c),
                 "r"(x), "r"(y), "r"(image)
                 : "memory");
}

// The same to the same places of both programs.
DEVICE void copy_to_both(u32 to, const void* map, u32 barrier, int x, int y) {
    asm volatile(COPY("2d") ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(map),
                 "r"(barrier), "r"(x), "r"(y), "h"(u16((1 << CLUSTER) - 1))
                 : "memory");
}

DEVICE void copy_to_both(u32 to, const void* map, u32 barrier, int c, int x, int y) {
    asm volatile(COPY("3d") ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to), "l"(map),
                 "r"(barrier), "r"(c), "r"(x), "r"(y), "h"(u16((1 << CLUSTER) - 1))
                 : "memory");
}

#undef COPY

// --- the ring

// Where barriers and stages begin in shared memory.
DEVICE char* align_stages(char* memory) {
    return memory + (ALIGNMENT - shared_address(memory) % ALIGNMENT) % ALIGNMENT;
}

// Memory for up to four tensor maps, behind the barriers.
DEVICE char* draft_of(char* memory) { return memory + BARRIERS_NBYTES / 2; }

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

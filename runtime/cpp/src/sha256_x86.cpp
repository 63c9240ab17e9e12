#include "sha256_x86.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

namespace hmar::core {
namespace {

constexpr unsigned kSsse3 = 1u << 9, kSse41 = 1u << 19;  // of leaf 1, ecx
constexpr unsigned kSha = 1u << 29;                      // of leaf 7, ebx

bool find_sha_instructions() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kSsse3) == 0 || (c & kSse41) == 0) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kSha) != 0;
}

__m128i load_words(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

}  // namespace

bool has_sha_instructions() {
    static const bool has = find_sha_instructions();
    return has;
}

__attribute__((target("sha,sse4.1,ssse3"))) void absorb_by_instructions(uint32_t* state,
                                                                        const uint8_t* blocks, size_t count) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    // the instructions take the words of the state as a, b, e, f and c, d, g, h
    const __m128i cdab = _mm_shuffle_epi32(load_words(state), 0xB1),
                  efgh = _mm_shuffle_epi32(load_words(state + 4), 0x1B);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
    for (; count > 0; --count, blocks += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];  // the latest 16 words of the schedule, from word 4 i on at i modulo 4
        for (int i = 0; i < 4; ++i) w[i] = _mm_shuffle_epi8(load_words(blocks + 16 * i), big_endian);
        for (int i = 0; i < 16; ++i) {
            const __m128i added = _mm_add_epi32(w[i % 4], load_words(kSha256Rounds + 4 * i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0E));
            if (i >= 12) continue;
            const __m128i latest = w[(i + 3) % 4];
            const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]),
                                              _mm_alignr_epi8(latest, w[(i + 2) % 4], 4));
            w[i % 4] = _mm_sha256msg2_epu32(sum, latest);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace hmar::core

#else

namespace hmar::core {

bool has_sha_instructions() { return false; }

void absorb_by_instructions(uint32_t*, const uint8_t*, size_t) {}

}  // namespace hmar::core

#endif

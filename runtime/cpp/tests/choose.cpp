// Chooses tokens of logits from standard input, for a comparison with runtime/sampler.py.
//
//   choose VOCAB_SIZE TOP_K TOP_P < records > choices
//
// A record is VOCAB_SIZE float32 logits and a float64 uniform number; a choice is an int32 token and the
// float32 confidence.
#include <cstdio>
#include <cstdlib>

#include "sampler.h"

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const size_t vocab_size = std::strtoul(argv[1], nullptr, 10);
    hmar::core::Sampler sampler(vocab_size, std::atoi(argv[2]), std::atof(argv[3]));
    std::vector<float> logits_V(vocab_size);
    double u;
    while (std::fread(logits_V.data(), sizeof(float), vocab_size, stdin) == vocab_size &&
           std::fread(&u, sizeof u, 1, stdin) == 1) {
        sampler.load(logits_V.data());
        const hmar::core::Choice choice = sampler.choose(u);
        std::fwrite(&choice, sizeof choice, 1, stdout);
    }
    return 0;
}

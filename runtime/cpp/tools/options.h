// The command line of hmar-generate.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

struct Options {
    std::string bundle, out, labels, library, plugins, tensorrt, tokens;
    std::string backend = "auto", schedule;
    uint64_t seed = 0, first_index = 0;
    std::optional<double> cfg, top_p, re_cfg;
    std::optional<int32_t> top_k, num_iter;
    int32_t threads = 0, max_batch = 8, columns = 0, repeat = 0;
    bool check_weights = true;
};

// Ends the program with a message where an option is unknown, missing or no number, or with help.
Options parse_options(int argc, char** argv);

#include "options.h"

#include <getopt.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace {

constexpr const char* kHelp = R"(Generate images from a bundle and write them as one PNG.

  hmar-generate --bundle DIR --labels L,L,.. --out FILE.png

  --bundle DIR         bundle folder, from scripts/export.py
  --labels L,L,..      classes: numbers, names if the bundle has them, -1 = none
  --out FILE           PNG to write
  --seed N             the same seed gives the same images on every backend (0)
  --first-index N      image i draws the random numbers of image N+i of this seed (0)
  --cfg X              guidance strength (the bundle's)
  --top-k N            keep the k largest logits, 0 = off (the bundle's)
  --top-p X            keep this probability mass, 0 = off (the bundle's)
  --schedule S         masked passes: default or none (default)
  --backend NAME       auto, ort-cpu or ort-cuda (auto)
  --onnxruntime FILE   libonnxruntime.so (the first that the dynamic linker finds)
  --threads N          CPU threads of one operator, 0 = one per core (0)
  --max-batch N        images in one pass; larger requests are split (8)
  --columns N          images in a row (a square)
  --tokens FILE        also write the tokens: int32, one row of all scales per image
  --trust-weights      do not hash the weights file
)";

enum Option {
    kBundle,
    kLabels,
    kOut,
    kSeed,
    kFirstIndex,
    kCfg,
    kTopK,
    kTopP,
    kSchedule,
    kBackend,
    kOnnxRuntime,
    kThreads,
    kMaxBatch,
    kColumns,
    kTokens,
    kTrustWeights,
    kShowHelp
};
// clang-format off
constexpr option kOptions[] = {
    {"bundle", 1, nullptr, kBundle},     {"labels", 1, nullptr, kLabels},
    {"out", 1, nullptr, kOut},           {"seed", 1, nullptr, kSeed},
    {"first-index", 1, nullptr, kFirstIndex}, {"cfg", 1, nullptr, kCfg},
    {"top-k", 1, nullptr, kTopK},        {"top-p", 1, nullptr, kTopP},
    {"schedule", 1, nullptr, kSchedule}, {"backend", 1, nullptr, kBackend},
    {"onnxruntime", 1, nullptr, kOnnxRuntime}, {"threads", 1, nullptr, kThreads},
    {"max-batch", 1, nullptr, kMaxBatch}, {"columns", 1, nullptr, kColumns},
    {"tokens", 1, nullptr, kTokens},     {"trust-weights", 0, nullptr, kTrustWeights},
    {"help", 0, nullptr, kShowHelp},     {nullptr, 0, nullptr, 0}};
// clang-format on

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "error: %s; see hmar-generate --help\n", message.c_str());
    std::exit(2);
}

template <typename Number>
Number number(const char* name, const char* text) {
    const std::string whole = text;
    Number value{};
    const auto [end, code] = std::from_chars(whole.data(), whole.data() + whole.size(), value);
    if (code != std::errc{} || end != whole.data() + whole.size()) {
        fail(std::string("--") + name + " takes a number, got '" + whole + "'");
    }
    return value;
}

}  // namespace

Options parse_options(int argc, char** argv) {
    Options options;
    int index = 0;
    for (int which; (which = getopt_long(argc, argv, "", kOptions, &index)) != -1;) {
        if (which == '?') fail("the command line was not understood");
        const char* name = kOptions[index].name;
        switch (which) {
            case kBundle:
                options.bundle = optarg;
                break;
            case kLabels:
                options.labels = optarg;
                break;
            case kOut:
                options.out = optarg;
                break;
            case kSeed:
                options.seed = number<uint64_t>(name, optarg);
                break;
            case kFirstIndex:
                options.first_index = number<uint64_t>(name, optarg);
                break;
            case kCfg:
                options.cfg = number<double>(name, optarg);
                break;
            case kTopK:
                options.top_k = number<int32_t>(name, optarg);
                break;
            case kTopP:
                options.top_p = number<double>(name, optarg);
                break;
            case kSchedule:
                options.schedule = optarg;
                break;
            case kBackend:
                options.backend = optarg;
                break;
            case kOnnxRuntime:
                options.library = optarg;
                break;
            case kThreads:
                options.threads = number<int32_t>(name, optarg);
                break;
            case kMaxBatch:
                options.max_batch = number<int32_t>(name, optarg);
                break;
            case kColumns:
                options.columns = number<int32_t>(name, optarg);
                break;
            case kTokens:
                options.tokens = optarg;
                break;
            case kTrustWeights:
                options.check_weights = false;
                break;
            case kShowHelp:
                std::fputs(kHelp, stdout);
                std::exit(0);
        }
    }
    if (optind < argc) fail(std::string("unexpected argument '") + argv[optind] + "'");
    if (options.bundle.empty() || options.labels.empty() || options.out.empty()) {
        fail("--bundle, --labels and --out are needed");
    }
    if (options.schedule != "default" && options.schedule != "none") {
        fail("--schedule must be default or none, got '" + options.schedule + "'");
    }
    return options;
}

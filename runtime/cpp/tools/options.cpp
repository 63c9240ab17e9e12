#include "options.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <type_traits>

namespace {

constexpr const char* kHelp = R"(Generate images from a bundle and write them as one picture.

  hmar-generate --bundle DIR --labels L,L,.. --out FILE.png

  --bundle DIR         bundle folder, from scripts/export.py
  --labels L,L,..      classes: numbers, names if the bundle has them, -1 = none
  --out FILE           picture to write: .ppm, or PNG where this was built with libpng
  --seed N             the same seed gives the same images on every backend (0)
  --first-index N      image i draws the random numbers of image N+i of this seed (0)
  --cfg X              guidance strength (the bundle's)
  --top-k N            HMAR: keep the k largest logits, 0 = off (the bundle's)
  --top-p X            HMAR: keep this probability mass, 0 = off (the bundle's)
  --schedule S         HMAR: masked passes, default or none (default)
  --re-cfg X           Hi-MAR: guidance strength of the pivots (the bundle's)
  --num-iter N         Hi-MAR: steps of the dense phase (the bundle's)
  --backend NAME       auto, gpu (the bundle's recordings), ort-cpu or ort-cuda (auto)
  --plugins FILE       libhmar_plugins.so, for the GPU (the first that the dynamic linker finds)
  --tensorrt FILE      libnvinfer.so or libtensorrt_rtx.so, for recordings that run its engines (likewise)
  --onnxruntime FILE   libonnxruntime.so (the first that the dynamic linker finds)
  --threads N          CPU threads of one operator, 0 = one per core (0)
  --max-batch N        images in one pass; larger requests are split (8)
  --columns N          images in a row (a square)
  --tokens FILE        also write the tokens, an image a row: HMAR's of all scales as int32,
                       Hi-MAR's dense ones as float32
  --repeat N           generate N times more and print the latency of a generation (0)
  --trust-weights      do not hash the weights file
)";

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "error: %s; see hmar-generate --help\n", message.c_str());
    std::exit(2);
}

template <typename T>
struct ValueOf {
    using type = T;
};
template <typename T>
struct ValueOf<std::optional<T>> {
    using type = T;
};

// Sets a field of the options, text or a number.
template <auto field>
void set(Options& options, const std::string& name, const std::string& value) {
    using Field = std::decay_t<decltype(options.*field)>;
    if constexpr (std::is_same_v<Field, std::string>) {
        options.*field = value;
    } else {
        typename ValueOf<Field>::type number{};
        const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), number);
        if (code != std::errc{} || end != value.data() + value.size()) {
            fail(name + " takes a number, got '" + value + "'");
        }
        options.*field = number;
    }
}

struct Entry {
    const char* name;
    void (*set)(Options&, const std::string& name, const std::string& value);
};

constexpr Entry kEntries[] = {
    {"--bundle", set<&Options::bundle>},
    {"--labels", set<&Options::labels>},
    {"--out", set<&Options::out>},
    {"--seed", set<&Options::seed>},
    {"--first-index", set<&Options::first_index>},
    {"--cfg", set<&Options::cfg>},
    {"--top-k", set<&Options::top_k>},
    {"--top-p", set<&Options::top_p>},
    {"--schedule", set<&Options::schedule>},
    {"--re-cfg", set<&Options::re_cfg>},
    {"--num-iter", set<&Options::num_iter>},
    {"--backend", set<&Options::backend>},
    {"--onnxruntime", set<&Options::library>},
    {"--plugins", set<&Options::plugins>},
    {"--tensorrt", set<&Options::tensorrt>},
    {"--repeat", set<&Options::repeat>},
    {"--threads", set<&Options::threads>},
    {"--max-batch", set<&Options::max_batch>},
    {"--columns", set<&Options::columns>},
    {"--tokens", set<&Options::tokens>},
};

}  // namespace

Options parse_options(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--help") {
            std::fputs(kHelp, stdout);
            std::exit(0);
        }
        if (name == "--trust-weights") {
            options.check_weights = false;
            continue;
        }
        const Entry* entry = std::begin(kEntries);
        while (entry != std::end(kEntries) && name != entry->name) ++entry;
        if (entry == std::end(kEntries)) fail("unknown option '" + name + "'");
        if (++i == argc) fail(name + " takes a value");
        entry->set(options, name, argv[i]);
    }
    if (options.bundle.empty() || options.labels.empty() || options.out.empty()) {
        fail("--bundle, --labels and --out are needed");
    }
    return options;
}

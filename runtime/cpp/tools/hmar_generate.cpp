// hmar-generate: images of a bundle as one picture. `hmar-generate --help` says how.
#ifdef HMAR_HAS_PNG
#include <png.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>

#include "hmar_runtime.hpp"
#include "options.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

int32_t parse_label(const std::string& text, const hmar::Bundle& bundle) {
    if (text == "-1") return HMAR_NO_CLASS;
    const int32_t num_classes = bundle.info().num_classes;
    if (!text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos) {
        return int32_t(std::stol(text));
    }
    for (int32_t label = 0; label < num_classes; ++label) {
        if (!text.empty() && bundle.class_name(label) == text) return label;
    }
    throw std::invalid_argument("label '" + text + "' is neither a number nor the name of a class");
}

std::vector<int32_t> parse_labels(const std::string& text, const hmar::Bundle& bundle) {
    std::vector<int32_t> labels;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) labels.push_back(parse_label(part, bundle));
    return labels;
}

int32_t parse_backend(const std::string& name) {
    if (name == "auto") return HMAR_BACKEND_AUTO;
    if (name == "ort-cpu") return HMAR_BACKEND_ORT_CPU;
    if (name == "ort-cuda") return HMAR_BACKEND_ORT_CUDA;
    if (name == "gpu") return HMAR_BACKEND_GPU;
    throw std::invalid_argument("--backend must be auto, gpu, ort-cpu or ort-cuda, got '" + name + "'");
}

struct Picture {
    size_t width, height;
    std::vector<uint8_t> values;  // (height, width, 3)
};

// Images (count, side, side, 3), row by row, the rest of the last row white.
Picture make_grid(const std::vector<uint8_t>& pixels, size_t side, size_t columns) {
    const size_t count = pixels.size() / (side * side * 3), row_bytes = side * 3;
    const size_t rows = (count + columns - 1) / columns, width = columns * row_bytes;
    Picture grid{columns * side, rows * side, std::vector<uint8_t>(rows * side * width, 255)};
    for (size_t i = 0; i < count; ++i) {
        for (size_t y = 0; y < side; ++y) {
            const size_t to = (i / columns * side + y) * width + i % columns * row_bytes;
            std::memcpy(&grid.values[to], &pixels[(i * side + y) * row_bytes], row_bytes);
        }
    }
    return grid;
}

void write_ppm(const Picture& picture, const std::string& path) {
    std::ofstream file(path, std::ios::binary);
    file << "P6\n" << picture.width << " " << picture.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(picture.values.data()), std::streamsize(picture.values.size()));
    if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

bool is_ppm(const std::string& path) {
    return path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0;
}

// Before the pictures are made.
void check_format(const std::string& path) {
#ifndef HMAR_HAS_PNG
    if (!is_ppm(path)) {
        throw std::invalid_argument(path + ": built without libpng, this program writes .ppm files");
    }
#endif
    (void)path;
}

void write_picture(const Picture& picture, const std::string& path) {
    if (is_ppm(path)) {
        write_ppm(picture, path);
        return;
    }
#ifdef HMAR_HAS_PNG
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = png_uint_32(picture.width), image.height = png_uint_32(picture.height);
    image.format = PNG_FORMAT_RGB;
    if (!png_image_write_to_file(&image, path.c_str(), 0, picture.values.data(), 0, nullptr)) {
        throw std::runtime_error(path + ": " + image.message);
    }
#endif
}

template <typename Token>
void write_tokens(const std::vector<Token>& tokens, const std::string& path) {
    if (path.empty()) return;
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(tokens.data()), std::streamsize(tokens.size() * sizeof(Token)));
    if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

std::vector<uint64_t> indices(const Options& options, size_t count) {
    std::vector<uint64_t> indices(count);
    std::iota(indices.begin(), indices.end(), options.first_index);
    return indices;
}

// Pixels of all images; the tokens are written.
std::vector<uint8_t> generate_hmar(const hmar::Bundle& bundle, const hmar::Session& session,
                                   const Options& options) {
    if (options.re_cfg || options.num_iter) {
        throw std::invalid_argument("--re-cfg and --num-iter are Hi-MAR's, this bundle is of HMAR");
    }
    if (!options.schedule.empty() && options.schedule != "default" && options.schedule != "none") {
        throw std::invalid_argument("--schedule must be default or none, got '" + options.schedule + "'");
    }
    hmar::Request request(bundle, parse_labels(options.labels, bundle));
    request.seed = options.seed;
    request.image_index = indices(options, request.labels.size());
    request.cfg = options.cfg.value_or(request.cfg);
    request.top_k = options.top_k.value_or(request.top_k);
    request.top_p = options.top_p.value_or(request.top_p);
    if (options.schedule == "none") request.mask_schedule.clear();
    hmar::Images images = session.generate(request);
    write_tokens(images.tokens, options.tokens);
    return std::move(images.pixels);
}

std::vector<uint8_t> generate_himar(const hmar::Bundle& bundle, const hmar::Session& session,
                                    const Options& options) {
    if (options.top_k || options.top_p || !options.schedule.empty()) {
        throw std::invalid_argument("--top-k, --top-p and --schedule are HMAR's, this bundle is of Hi-MAR");
    }
    hmar::HimarRequest request(bundle, parse_labels(options.labels, bundle));
    request.seed = options.seed;
    request.image_index = indices(options, request.labels.size());
    request.cfg = options.cfg.value_or(request.cfg);
    request.re_cfg = options.re_cfg.value_or(request.re_cfg);
    request.num_iter = options.num_iter.value_or(request.num_iter);
    hmar::HimarImages images = session.generate(request);
    write_tokens(images.dense, options.tokens);
    return std::move(images.pixels);
}

// Prints the latency of further generations.
template <typename Generate>
void repeat(int32_t count, Generate generate) {
    std::vector<double> times_ms;
    for (int32_t i = 0; i < count; ++i) {
        const auto start = Clock::now();
        generate();
        times_ms.push_back(1e3 * seconds_since(start));
    }
    std::sort(times_ms.begin(), times_ms.end());
    const auto at = [&](double share) { return times_ms[size_t(share * double(count - 1))]; };
    std::printf("%d generations: median %.3f ms, p10 %.3f ms, p90 %.3f ms\n", count, at(0.5), at(0.1),
                at(0.9));
}

void generate(const Options& options) {
    check_format(options.out);
    const auto start = Clock::now();
    const hmar::Bundle bundle(options.bundle,
                              options.check_weights ? HMAR_CHECK_ALL : HMAR_CHECK_ALL_BUT_WEIGHTS);
    hmar_session_options backend{};
    backend.backend = parse_backend(options.backend);
    backend.library = options.library.empty() ? nullptr : options.library.c_str();
    backend.plugins = options.plugins.empty() ? nullptr : options.plugins.c_str();
    backend.tensorrt = options.tensorrt.empty() ? nullptr : options.tensorrt.c_str();
    backend.threads = options.threads, backend.max_batch = options.max_batch;
    const hmar::Session session(bundle, backend);
    const double opened_s = seconds_since(start);

    const auto generating = Clock::now();
    const bool is_hmar = std::string(bundle.info().family) == "hmar";
    const auto of_family = is_hmar ? generate_hmar : generate_himar;
    const auto pixels = of_family(bundle, session, options);
    const double generated_s = seconds_since(generating);

    const auto side = size_t(bundle.info().image_side_px), count = pixels.size() / (side * side * 3);
    const auto square = size_t(std::ceil(std::sqrt(double(count))));
    write_picture(make_grid(pixels, side, options.columns > 0 ? size_t(options.columns) : square),
                  options.out);
    std::printf("%s: %zu images of %zu px, opened in %.2f s, generated in %.2f s on %s\n",
                options.out.c_str(), count, side, opened_s, generated_s, session.backend().c_str());
    Options again = options;
    again.tokens.clear();
    if (options.repeat > 0) repeat(options.repeat, [&] { of_family(bundle, session, again); });
}

}  // namespace

int main(int argc, char** argv) {
    try {
        generate(parse_options(argc, argv));
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}

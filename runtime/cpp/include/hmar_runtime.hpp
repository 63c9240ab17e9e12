/**
 * @file
 * The C interface of libhmar_runtime as C++17 classes, which own their handles and throw hmar::Error.
 *
 * Header only. Objects can be moved, not copied, and used from several threads at once.
 */
#ifndef HMAR_RUNTIME_HPP
#define HMAR_RUNTIME_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "hmar_runtime.h"

namespace hmar {

/** A call that did not return ::HMAR_OK. */
class Error : public std::runtime_error {
  public:
    Error(hmar_status status, const std::string& message) : std::runtime_error(message), status_(status) {}

    hmar_status status() const { return status_; }

  private:
    hmar_status status_;
};

/** Calls a function of the C interface with an error as its last argument. */
template <typename... Parameters, typename... Arguments>
void call(hmar_status (*function)(Parameters...), Arguments... arguments) {
    hmar_error* error = nullptr;
    const hmar_status status = function(arguments..., &error);
    if (status == HMAR_OK) return;
    const std::string message = error != nullptr ? hmar_error_message(error) : hmar_status_name(status);
    hmar_error_free(error);
    throw Error(status, message);
}

/** A handle that is closed with its owner. */
template <typename Handle, hmar_status (*close)(Handle*, hmar_error**)>
class Owner {
  public:
    Owner() = default;
    Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Owner& operator=(Owner&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Owner() {
        if (handle_ != nullptr) close(&handle_, nullptr);
    }

    Handle get() const { return handle_; }
    Handle* address() { return &handle_; }

  private:
    Handle handle_ = nullptr;
};

/** A bundle folder. */
class Bundle {
  public:
    explicit Bundle(const std::string& folder, int32_t check = HMAR_CHECK_ALL) {
        call(hmar_bundle_open, folder.c_str(), check, bundle_.address());
        call(hmar_bundle_get_info, bundle_.get(), &info_);
    }

    hmar_bundle handle() const { return bundle_.get(); }
    const hmar_bundle_info& info() const { return info_; }

    /** Name of a class; "" where the bundle has none. */
    std::string class_name(int32_t label) const {
        const char* name = nullptr;
        call(hmar_bundle_class_name, bundle_.get(), label, &name);
        return name;
    }

  private:
    Owner<hmar_bundle, hmar_bundle_close> bundle_;
    hmar_bundle_info info_{};
};

/** Ends generations from another thread. */
class Cancel {
  public:
    Cancel() { call(hmar_cancel_create, cancel_.address()); }

    hmar_cancel handle() const { return cancel_.get(); }
    void request() const { call(hmar_cancel_request, cancel_.get()); }

  private:
    Owner<hmar_cancel, hmar_cancel_close> cancel_;
};

/** Settings of one generation with HMAR; the fields mean what those of ::hmar_request do. */
struct Request {
    /** The published settings of a bundle's model. */
    Request(const Bundle& bundle, std::vector<int32_t> classes) : labels(std::move(classes)) {
        hmar_request published;
        call(hmar_request_init, bundle.handle(), &published);
        cfg = published.cfg, top_k = published.top_k, top_p = published.top_p;
        skip_guidance_below = published.skip_guidance_below;
        const int32_t* counts = published.schedule_counts;
        for (size_t k = 0; k < published.schedule_scales; ++k) {
            mask_schedule.emplace_back(counts, counts + published.schedule_lengths[k]);
            counts += published.schedule_lengths[k];
        }
    }

    std::vector<int32_t> labels;
    double cfg, top_p, skip_guidance_below;
    int32_t top_k;
    int32_t context = HMAR_CONTEXT_SCALE;
    std::vector<std::vector<int32_t>> mask_schedule; /**< one entry per scale; empty = no masked passes */
    int32_t draws = HMAR_DRAWS_SEED;
    uint64_t seed = 0;
    std::vector<uint64_t> image_index; /**< empty = 0, 1, 2, .. */
    std::vector<double> uniforms;
    std::vector<int32_t> known_tokens; /**< empty = none */
    std::vector<uint8_t> keep;         /**< as long as known_tokens */
    /** Called after every scale; false ends the generation, and so does an exception, which comes out. */
    std::function<bool(const hmar_scale_event&)> on_scale;
    const Cancel* cancel = nullptr;
};

/** Settings of one generation with Hi-MAR; the fields mean what those of ::hmar_himar_request do. */
struct HimarRequest {
    /** The published settings of a bundle's model. */
    HimarRequest(const Bundle& bundle, std::vector<int32_t> classes) : labels(std::move(classes)) {
        hmar_himar_request published;
        call(hmar_himar_request_init, bundle.handle(), &published);
        num_iter = published.num_iter, cfg = published.cfg, re_cfg = published.re_cfg;
        has_linear_cfg = published.has_linear_cfg != 0, temperature = published.temperature;
        pivot_diffusion_steps = published.pivot_diffusion_steps;
        dense_diffusion_steps = published.dense_diffusion_steps;
    }

    std::vector<int32_t> labels;
    std::vector<float> cond; /**< with no labels: vectors (B, embed_dim) */
    int32_t num_iter;
    double cfg, re_cfg, temperature;
    bool has_linear_cfg;
    std::string pivot_diffusion_steps, dense_diffusion_steps;
    uint64_t seed = 0;
    std::vector<uint64_t> image_index; /**< empty = 0, 1, 2, .. */
    /** Called after every step; false ends the generation, and so does an exception, which comes out. */
    std::function<bool(const hmar_himar_step_event&)> on_step;
    const Cancel* cancel = nullptr;
};

/** Images of one generation with HMAR. */
struct Images {
    std::vector<uint8_t> pixels; /**< (B, side, side, 3) */
    std::vector<int32_t> tokens; /**< (B, num_tokens), the scales one after the other */
    int32_t side_px = 0;
};

/** Images of one generation with Hi-MAR. */
struct HimarImages {
    std::vector<uint8_t> pixels;       /**< (B, side, side, 3) */
    std::vector<uint8_t> small_pixels; /**< (B, 64, 64, 3) */
    std::vector<float> dense;          /**< tokens (B, dense_side^2, token_channels) */
    int32_t side_px = 0;
};

/** A bundle on a backend. */
class Session {
  public:
    explicit Session(const Bundle& bundle, hmar_session_options options = {}) : info_(bundle.info()) {
        options.struct_size = sizeof options;
        call(hmar_session_open, bundle.handle(), &options, session_.address());
    }

    hmar_session handle() const { return session_.get(); }

    std::string backend() const {
        const char* name = nullptr;
        call(hmar_session_backend, session_.get(), &name);
        return name;
    }

    /** Why an automatic choice did not take a GPU's recordings; "" where it did, or had no choice. */
    std::string why_not_gpu() const {
        const char* reason = nullptr;
        call(hmar_session_why_not_gpu, session_.get(), &reason);
        return reason;
    }

    Images generate(const Request& request) const {
        Images images;
        images.side_px = info_.image_side_px;
        images.pixels.resize(request.labels.size() * image_size());
        images.tokens.resize(request.labels.size() * size_t(info_.num_tokens));
        hmar_output output{};
        output.pixels = images.pixels.data(), output.pixels_size = images.pixels.size();
        output.tokens = images.tokens.data(), output.tokens_size = images.tokens.size();
        generate(request, output);
        return images;
    }

    /** Writes only what `output` asks for. */
    void generate(const Request& request, hmar_output output) const {
        output.struct_size = sizeof output;
        std::vector<int32_t> counts, lengths;
        for (const auto& entry : request.mask_schedule) {
            counts.insert(counts.end(), entry.begin(), entry.end());
            lengths.push_back(int32_t(entry.size()));
        }
        Callback<hmar_scale_event> callback{request.on_scale, nullptr};
        hmar_request plain{};
        plain.struct_size = sizeof plain;
        plain.labels = request.labels.data(), plain.num_images = request.labels.size();
        plain.cfg = request.cfg, plain.top_k = request.top_k, plain.top_p = request.top_p;
        plain.skip_guidance_below = request.skip_guidance_below, plain.context = request.context;
        plain.schedule_counts = counts.data(), plain.schedule_scales = lengths.size();
        plain.schedule_lengths = lengths.empty() ? nullptr : lengths.data();
        plain.draws = request.draws, plain.seed = request.seed;
        plain.image_index = indices(request.image_index, plain.num_images);
        if (request.keep.size() != request.known_tokens.size()) {
            throw Error(HMAR_INVALID_ARGUMENT, "keep must have one entry per known token");
        }
        if (!request.keep.empty()) {
            plain.known_tokens = request.known_tokens.data(), plain.keep = request.keep.data();
            plain.num_known = request.keep.size();
        }
        plain.uniforms = request.uniforms.data(), plain.num_uniforms = request.uniforms.size();
        if (request.on_scale) plain.on_scale = callback.call, plain.user_data = &callback;
        if (request.cancel != nullptr) plain.cancel = request.cancel->handle();
        callback.guard([&] { hmar::call(hmar_generate, session_.get(), &plain, &output); });
    }

    HimarImages generate(const HimarRequest& request) const {
        const size_t vectors = info_.embed_dim > 0 ? request.cond.size() / size_t(info_.embed_dim) : 0;
        const size_t count = request.labels.empty() ? vectors : request.labels.size();
        const size_t small_size = HMAR_HIMAR_SMALL_SIDE_PX * HMAR_HIMAR_SMALL_SIDE_PX * 3;
        HimarImages images;
        images.side_px = info_.image_side_px;
        images.pixels.resize(count * image_size());
        images.small_pixels.resize(count * small_size);
        images.dense.resize(count * size_t(info_.dense_side * info_.dense_side * info_.token_channels));
        hmar_himar_output output{};
        output.pixels = images.pixels.data(), output.pixels_size = images.pixels.size();
        output.small_pixels = images.small_pixels.data();
        output.small_pixels_size = images.small_pixels.size();
        output.dense = images.dense.data(), output.dense_size = images.dense.size();
        generate(request, count, output);
        return images;
    }

    /** Writes only what `output` asks for. */
    void generate(const HimarRequest& request, size_t num_images, hmar_himar_output output) const {
        output.struct_size = sizeof output;
        Callback<hmar_himar_step_event> callback{request.on_step, nullptr};
        hmar_himar_request plain{};
        plain.struct_size = sizeof plain;
        plain.labels = request.labels.empty() ? nullptr : request.labels.data();
        plain.cond = request.cond.empty() ? nullptr : request.cond.data();
        plain.num_images = num_images;
        plain.num_iter = request.num_iter, plain.cfg = request.cfg, plain.re_cfg = request.re_cfg;
        plain.has_linear_cfg = request.has_linear_cfg, plain.temperature = request.temperature;
        plain.pivot_diffusion_steps = request.pivot_diffusion_steps.c_str();
        plain.dense_diffusion_steps = request.dense_diffusion_steps.c_str();
        plain.seed = request.seed, plain.image_index = indices(request.image_index, num_images);
        if (request.on_step) plain.on_step = callback.call, plain.user_data = &callback;
        if (request.cancel != nullptr) plain.cancel = request.cancel->handle();
        callback.guard([&] { hmar::call(hmar_himar_generate, session_.get(), &plain, &output); });
    }

    /** Tokens (B, num_tokens) by HMAR of pictures (B, side, side, 3). */
    std::vector<int32_t> encode(const std::vector<uint8_t>& pixels) const {
        std::vector<int32_t> tokens(pixels.size() / image_size() * size_t(info_.num_tokens));
        hmar::call(hmar_encode, session_.get(), pixels.data(), pixels.size(), tokens.data(), tokens.size());
        return tokens;
    }

    /** Dense tokens (B, dense_side^2, token_channels) by Hi-MAR of pictures (B, side, side, 3). */
    std::vector<float> encode_dense(const std::vector<uint8_t>& pixels) const {
        const auto num_dense = size_t(info_.dense_side) * size_t(info_.dense_side);
        std::vector<float> dense(pixels.size() / image_size() * num_dense * size_t(info_.token_channels));
        hmar::call(hmar_himar_encode, session_.get(), pixels.data(), pixels.size(), dense.data(),
                   dense.size());
        return dense;
    }

  private:
    // Keeps an exception of the caller's function until the library has returned.
    template <typename Event>
    struct Callback {
        const std::function<bool(const Event&)>& function;
        std::exception_ptr thrown;

        static int call(const Event* event, void* self) noexcept {
            auto& callback = *static_cast<Callback*>(self);
            try {
                return callback.function(*event) ? 0 : 1;
            } catch (...) {
                callback.thrown = std::current_exception();
                return 1;
            }
        }

        template <typename Generate>
        void guard(Generate generate) const {
            try {
                generate();
            } catch (const Error&) {
                if (thrown) std::rethrow_exception(thrown);
                throw;
            }
        }
    };

    static const uint64_t* indices(const std::vector<uint64_t>& image_index, size_t num_images) {
        if (image_index.empty()) return nullptr;
        if (image_index.size() == num_images) return image_index.data();
        throw Error(HMAR_INVALID_ARGUMENT, "image_index must have one entry per image");
    }

    size_t image_size() const { return size_t(info_.image_side_px) * size_t(info_.image_side_px) * 3; }

    Owner<hmar_session, hmar_session_close> session_;
    hmar_bundle_info info_;
};

}  // namespace hmar

#endif

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

/** Settings of one generation; the fields mean what those of ::hmar_request do. */
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

/** Images of one generation. */
struct Images {
    std::vector<uint8_t> pixels; /**< (B, side, side, 3) */
    std::vector<int32_t> tokens; /**< (B, num_tokens), the scales one after the other */
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
        Callback callback{request.on_scale, nullptr};
        hmar_request plain{};
        plain.struct_size = sizeof plain;
        plain.labels = request.labels.data(), plain.num_images = request.labels.size();
        plain.cfg = request.cfg, plain.top_k = request.top_k, plain.top_p = request.top_p;
        plain.skip_guidance_below = request.skip_guidance_below, plain.context = request.context;
        plain.schedule_counts = counts.data(), plain.schedule_scales = lengths.size();
        plain.schedule_lengths = lengths.empty() ? nullptr : lengths.data();
        plain.draws = request.draws, plain.seed = request.seed;
        if (!request.image_index.empty()) {
            if (request.image_index.size() != request.labels.size()) {
                throw Error(HMAR_INVALID_ARGUMENT, "image_index must have one entry per label");
            }
            plain.image_index = request.image_index.data();
        }
        if (request.keep.size() != request.known_tokens.size()) {
            throw Error(HMAR_INVALID_ARGUMENT, "keep must have one entry per known token");
        }
        if (!request.keep.empty()) {
            plain.known_tokens = request.known_tokens.data(), plain.keep = request.keep.data();
            plain.num_known = request.keep.size();
        }
        plain.uniforms = request.uniforms.data(), plain.num_uniforms = request.uniforms.size();
        if (request.on_scale) plain.on_scale = &Callback::call, plain.user_data = &callback;
        if (request.cancel != nullptr) plain.cancel = request.cancel->handle();
        try {
            hmar::call(hmar_generate, session_.get(), &plain, &output);
        } catch (const Error&) {
            if (callback.thrown) std::rethrow_exception(callback.thrown);
            throw;
        }
    }

    /** Tokens (B, num_tokens) of pictures (B, side, side, 3). */
    std::vector<int32_t> encode(const std::vector<uint8_t>& pixels) const {
        std::vector<int32_t> tokens(pixels.size() / image_size() * size_t(info_.num_tokens));
        hmar::call(hmar_encode, session_.get(), pixels.data(), pixels.size(), tokens.data(), tokens.size());
        return tokens;
    }

  private:
    struct Callback {
        const std::function<bool(const hmar_scale_event&)>& on_scale;
        std::exception_ptr thrown;

        static int call(const hmar_scale_event* event, void* self) noexcept {
            auto& callback = *static_cast<Callback*>(self);
            try {
                return callback.on_scale(*event) ? 0 : 1;
            } catch (...) {
                callback.thrown = std::current_exception();
                return 1;
            }
        }
    };

    size_t image_size() const { return size_t(info_.image_side_px) * size_t(info_.image_side_px) * 3; }

    Owner<hmar_session, hmar_session_close> session_;
    hmar_bundle_info info_;
};

}  // namespace hmar

#endif

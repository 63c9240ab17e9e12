// The C interface: handles, checks of arguments, and exceptions as statuses.
#include <new>

#include "arguments.h"
#include "handles.h"
#include "open_bundle.h"
#include "ort_runner.h"
#include "requests.h"
#include "session.h"

struct hmar_error {
    std::string message;
};

namespace hmar::core {
namespace {

constexpr size_t kDefaultMaxBatch = 8;  // as in runtime/config.py

// never destroyed: what a caller leaves open must not outlive ONNX Runtime's own static objects
auto& bundles = *new Handles<hmar_bundle, const OpenBundle>("bundle");
auto& sessions = *new Handles<hmar_session, Session>("session");
auto& cancels = *new Handles<hmar_cancel, std::atomic<bool>>("cancel flag");

hmar_status report(hmar_error** error, hmar_status status, const char* message) noexcept {
    if (error != nullptr) {
        try {
            *error = new hmar_error{message};
        } catch (const std::bad_alloc&) {
            *error = nullptr;  // the status says enough
        }
    }
    return status;
}

// Runs the body of a function of the interface; nothing that it throws gets out.
template <typename Body>
hmar_status guarded(hmar_error** error, Body body) noexcept {
    if (error != nullptr) *error = nullptr;
    try {
        body();
        return HMAR_OK;
    } catch (const Error& e) {
        return report(error, e.status, e.what());
    } catch (const std::bad_alloc&) {
        return report(error, HMAR_OUT_OF_MEMORY,
                      "out of memory; ask for fewer images, or use a smaller max_batch");
    } catch (const std::exception& e) {
        return report(error, HMAR_INTERNAL, e.what());
    } catch (...) {
        return report(error, HMAR_INTERNAL, "an exception of unknown type; callbacks must not throw");
    }
}

std::string or_empty(const char* text) { return text != nullptr ? text : ""; }

// A session on the backend that its options name, or that there is.
std::shared_ptr<Session> open_session(const std::shared_ptr<const Bundle>& bundle,
                                      const hmar_session_options& options) {
    const auto backend = hmar_backend(options.backend);
    const size_t max_batch = options.max_batch > 0 ? size_t(options.max_batch) : kDefaultMaxBatch;
    const OrtOptions ort{backend, or_empty(options.library), options.threads};
    const auto make_runner = [bundle, ort] { return std::make_unique<OrtRunner>(bundle, ort); };
    std::string why_not_gpu;
    if (backend == HMAR_BACKEND_GPU || backend == HMAR_BACKEND_AUTO) {
        try {
            GpuRecordings::check_any(*bundle);  // before anything is loaded
            const GpuOptions gpu_options{or_empty(options.plugins), or_empty(options.tensorrt)};
            const auto gpu = std::make_shared<GpuPrograms>(bundle, gpu_options);
            Session::MakeRunner otherwise;
            if (backend == HMAR_BACKEND_AUTO) otherwise = make_runner;
            return std::make_shared<Session>(bundle, gpu, otherwise, max_batch);
        } catch (const Error& error) {
            if (backend == HMAR_BACKEND_GPU) throw Error(error.status, text("backend gpu: ", error.what()));
            if (error.status != HMAR_BACKEND_UNAVAILABLE) throw;
            why_not_gpu = error.what();
        }
    }
    return std::make_shared<Session>(bundle, make_runner(), max_batch, why_not_gpu);
}

// As `preview` functions of both families do.
void write_preview(const void* preview, uint8_t* pixels, size_t pixels_size) {
    const auto* inner = static_cast<const Preview*>(required(preview, "preview"));
    check_array(required(pixels, "pixels"), pixels_size, inner->pixels_size, "pixels");
    inner->write(pixels);
}

}  // namespace
}  // namespace hmar::core

using namespace hmar::core;

const char* hmar_version(void) { return HMAR_VERSION; }

const char* hmar_status_name(hmar_status status) {
    static constexpr const char* kNames[] = {"HMAR_OK",
                                             "HMAR_INVALID_HANDLE",
                                             "HMAR_INVALID_ARGUMENT",
                                             "HMAR_INVALID_BUNDLE",
                                             "HMAR_CHECKSUM_MISMATCH",
                                             "HMAR_UNSUPPORTED",
                                             "HMAR_BACKEND_UNAVAILABLE",
                                             "HMAR_BACKEND_FAILED",
                                             "HMAR_CANCELLED",
                                             "HMAR_STOPPED",
                                             "HMAR_OUT_OF_MEMORY",
                                             "HMAR_INTERNAL"};
    const auto index = size_t(status);
    return index < std::size(kNames) ? kNames[index] : "unknown status";
}

const char* hmar_error_message(const hmar_error* error) {
    return error == nullptr ? "" : error->message.c_str();
}

void hmar_error_free(hmar_error* error) { delete error; }

hmar_status hmar_bundle_open(const char* folder, int32_t check, hmar_bundle* bundle, hmar_error** error) {
    return guarded(error, [&] {
        *required(bundle, "bundle") = nullptr;
        if (check < HMAR_CHECK_ALL || check > HMAR_CHECK_SIZES) {
            throw Error(HMAR_INVALID_ARGUMENT, text("check is ", check, ", expected an hmar_check"));
        }
        *bundle = bundles.add(std::make_shared<const OpenBundle>(required(folder, "folder"), check));
    });
}

hmar_status hmar_bundle_get_info(hmar_bundle bundle, hmar_bundle_info* info, hmar_error** error) {
    return guarded(error, [&] {
        const auto open = bundles.find(bundle);
        *required(info, "info") = open->info();
    });
}

hmar_status hmar_bundle_class_name(hmar_bundle bundle, int32_t label, const char** name, hmar_error** error) {
    return guarded(error, [&] {
        const auto open = bundles.find(bundle);
        const int32_t num_classes = open->bundle()->manifest().num_classes();
        if (label < 0 || label >= num_classes) {
            throw Error(HMAR_INVALID_ARGUMENT, text("label is ", label, ", expected 0..", num_classes - 1));
        }
        const auto& names = open->bundle()->class_names();
        *required(name, "name") = names.empty() ? "" : names[size_t(label)].c_str();
    });
}

hmar_status hmar_bundle_close(hmar_bundle* bundle, hmar_error** error) {
    return guarded(error, [&] {
        bundles.remove(*required(bundle, "bundle"));
        *bundle = nullptr;
    });
}

hmar_status hmar_session_open(hmar_bundle bundle, const hmar_session_options* options, hmar_session* session,
                              hmar_error** error) {
    return guarded(error, [&] {
        *required(session, "session") = nullptr;
        const auto open = bundles.find(bundle);
        hmar_session_options given{};
        if (options != nullptr) {
            check_size(options->struct_size, sizeof given, "hmar_session_options");
            given = *options;
        }
        if (given.backend < HMAR_BACKEND_AUTO || given.backend > HMAR_BACKEND_GPU) {
            throw Error(HMAR_INVALID_ARGUMENT,
                        text("backend is ", given.backend, ", expected an hmar_backend"));
        }
        if (given.threads < 0 || given.max_batch < 0) {
            throw Error(HMAR_INVALID_ARGUMENT, text("threads and max_batch must be >= 0 (0 = default), got ",
                                                    given.threads, " and ", given.max_batch));
        }
        *session = sessions.add(open_session(open->bundle(), given));
    });
}

hmar_status hmar_session_backend(hmar_session session, const char** name, hmar_error** error) {
    return guarded(error, [&] { *required(name, "name") = sessions.find(session)->backend().c_str(); });
}

hmar_status hmar_session_why_not_gpu(hmar_session session, const char** reason, hmar_error** error) {
    return guarded(error,
                   [&] { *required(reason, "reason") = sessions.find(session)->why_not_gpu().c_str(); });
}

hmar_status hmar_session_close(hmar_session* session, hmar_error** error) {
    return guarded(error, [&] {
        sessions.remove(*required(session, "session"));
        *session = nullptr;
    });
}

hmar_status hmar_request_init(hmar_bundle bundle, hmar_request* request, hmar_error** error) {
    return guarded(error, [&] { *required(request, "request") = bundles.find(bundle)->defaults(); });
}

hmar_status hmar_request_num_uniforms(hmar_session session, const hmar_request* request, size_t* count,
                                      hmar_error** error) {
    return guarded(error, [&] {
        const auto open = sessions.find(session);
        const ModelSpec& model = open->manifest().hmar();
        const Settings settings = read_settings(*required(request, "request"), model);
        *required(count, "count") =
            GivenDraws::count(model.patch_nums, settings.schedule, request->num_images);
    });
}

hmar_status hmar_generate(hmar_session session, const hmar_request* request, const hmar_output* output,
                          hmar_error** error) {
    return guarded(error, [&] {
        const auto open = sessions.find(session);
        const ModelSpec& model = open->manifest().hmar();
        HmarRequest checked = read_request(*required(request, "request"), model);
        if (request->cancel != nullptr) checked.cancelled = cancels.find(request->cancel);
        open->generate(checked, read_output(*required(output, "output"), model, request->num_images));
    });
}

hmar_status hmar_scale_event_preview(const hmar_scale_event* event, uint8_t* pixels, size_t pixels_size,
                                     hmar_error** error) {
    return guarded(error, [&] { write_preview(required(event, "event")->preview, pixels, pixels_size); });
}

hmar_status hmar_encode(hmar_session session, const uint8_t* pixels, size_t pixels_size, int32_t* tokens,
                        size_t tokens_size, hmar_error** error) {
    return guarded(error, [&] {
        const auto open = sessions.find(session);
        const ModelSpec& model = open->manifest().hmar();
        const size_t num_images = count_images(pixels, pixels_size, model.image_side_px);
        check_array(required(tokens, "tokens"), tokens_size, num_images * model.num_tokens(), "tokens");
        open->encode(pixels, num_images, tokens);
    });
}

hmar_status hmar_himar_request_init(hmar_bundle bundle, hmar_himar_request* request, hmar_error** error) {
    return guarded(error, [&] {
        const auto open = bundles.find(bundle);
        *required(request, "request") = open->himar_defaults();
    });
}

hmar_status hmar_himar_generate(hmar_session session, const hmar_himar_request* request,
                                const hmar_himar_output* output, hmar_error** error) {
    return guarded(error, [&] {
        const auto open = sessions.find(session);
        const HimarModelSpec& model = open->manifest().himar();
        HimarRequest checked = read_request(*required(request, "request"), model);
        if (request->cancel != nullptr) checked.cancelled = cancels.find(request->cancel);
        open->generate(checked, read_output(*required(output, "output"), model, request->num_images));
    });
}

hmar_status hmar_himar_encode(hmar_session session, const uint8_t* pixels, size_t pixels_size, float* dense,
                              size_t dense_size, hmar_error** error) {
    return guarded(error, [&] {
        const auto open = sessions.find(session);
        const HimarModelSpec& model = open->manifest().himar();
        const size_t num_images = count_images(pixels, pixels_size, model.image_side_px);
        const size_t size = num_images * model.num_dense() * size_t(model.token_channels);
        check_array(required(dense, "dense"), dense_size, size, "dense");
        open->encode(pixels, num_images, dense);
    });
}

hmar_status hmar_himar_step_event_preview(const hmar_himar_step_event* event, uint8_t* pixels,
                                          size_t pixels_size, hmar_error** error) {
    return guarded(error, [&] { write_preview(required(event, "event")->preview, pixels, pixels_size); });
}

hmar_status hmar_cancel_create(hmar_cancel* cancel, hmar_error** error) {
    return guarded(error, [&] {
        *required(cancel, "cancel") = nullptr;
        *cancel = cancels.add(std::make_shared<std::atomic<bool>>(false));
    });
}

hmar_status hmar_cancel_request(hmar_cancel cancel, hmar_error** error) {
    return guarded(error, [&] { cancels.find(cancel)->store(true); });
}

hmar_status hmar_cancel_close(hmar_cancel* cancel, hmar_error** error) {
    return guarded(error, [&] {
        cancels.remove(*required(cancel, "cancel"));
        *cancel = nullptr;
    });
}

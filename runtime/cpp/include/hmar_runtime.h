/**
 * @file
 * Images from a bundle without Python: the C interface of libhmar_runtime.
 *
 * What holds everywhere:
 *
 * - A function that can fail returns an ::hmar_status and takes `error` last. If that is not NULL and the
 *   function fails, it receives an ::hmar_error with a message, which the caller frees; after a success it
 *   is NULL.
 * - Handles are names, not addresses. One that is zero, closed or made up is answered with
 *   ::HMAR_INVALID_HANDLE.
 * - Every function may be called from any thread at any time, on the same handles too. What one thread
 *   closes lives until the calls of other threads that use it have returned.
 * - Memory belongs to who allocates it: the library writes into the caller's arrays and keeps no pointer
 *   after a call, and strings that it returns are its own, for as long as the function says.
 * - No exception leaves the library, and none may leave a callback.
 * - Sessions on a GPU do one generation at a time; further calls wait for their turn.
 * - A process that forks after opening a session must not use that session in the child.
 */
#ifndef HMAR_RUNTIME_H
#define HMAR_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HMAR_API __attribute__((visibility("default")))

typedef enum hmar_status {
    HMAR_OK = 0,
    HMAR_INVALID_HANDLE = 1,    /**< a handle is zero, closed or of another kind */
    HMAR_INVALID_ARGUMENT = 2,  /**< a pointer, size or setting is wrong */
    HMAR_INVALID_BUNDLE = 3,    /**< the manifest is missing, unreadable or inconsistent */
    HMAR_CHECKSUM_MISMATCH = 4, /**< a file of the bundle is missing or altered */
    HMAR_UNSUPPORTED = 5,       /**< this library does not do that, for this bundle or at all */
    HMAR_BACKEND_UNAVAILABLE =
        6, /**< the inference library is missing or too old, or the GPU or its recordings are */
    HMAR_BACKEND_FAILED = 7, /**< the inference library or CUDA failed, or computed what cannot be used */
    HMAR_CANCELLED = 8,      /**< ended by ::hmar_cancel_request */
    HMAR_STOPPED = 9,        /**< ended by a callback that did not return 0 */
    HMAR_OUT_OF_MEMORY = 10,
    HMAR_INTERNAL = 11 /**< a bug of this library */
} hmar_status;

typedef struct hmar_error hmar_error;
typedef struct hmar_bundle_handle* hmar_bundle;
typedef struct hmar_session_handle* hmar_session;
typedef struct hmar_cancel_handle* hmar_cancel;

/** Version of the library, such as "0.1.0"; lives as long as the process. */
HMAR_API const char* hmar_version(void);

/** Name of a status, such as "HMAR_CANCELLED"; lives as long as the process. */
HMAR_API const char* hmar_status_name(hmar_status status);

/** Message of an error, in UTF-8: what came, what was wanted, what to do. Lives as long as the error; "" for
 * NULL. */
HMAR_API const char* hmar_error_message(const hmar_error* error);

/** Frees an error; NULL is allowed. The only handle that is an address: free it once. */
HMAR_API void hmar_error_free(hmar_error* error);

/* --- bundles ----------------------------------------------------------------------------------------- */

/** Which files are compared with the manifest's SHA-256 when a bundle is opened. Sizes are always checked. */
typedef enum hmar_check {
    HMAR_CHECK_ALL = 0,
    HMAR_CHECK_ALL_BUT_WEIGHTS = 1, /**< hashing takes a second per GB, or some */
    HMAR_CHECK_SIZES = 2
} hmar_check;

/** What a bundle is. Pointers belong to the bundle and live until it is closed. */
typedef struct hmar_bundle_info {
    const char* family;    /**< "hmar" or "himar" */
    const char* preset;    /**< such as "hmar-d16-256"; "" where the sizes have no name */
    const char* precision; /**< "fp32", "fp16" or "bf16" */
    const char* producer;  /**< what wrote the bundle */
    int32_t num_classes;   /**< 0 = images are conditioned by vectors */
    int32_t image_side_px;
    int32_t num_tokens; /**< of all scales of an image; of both grids */

    int32_t vocab_size; /**< HMAR's, as what follows; 0 or NULL for Hi-MAR */
    int32_t num_scales;
    const int32_t* patch_nums; /**< side of every scale in tokens, coarse to fine; num_scales of them */
    int32_t has_mask_branch;   /**< 1 if masked passes are possible, else 0 */

    int32_t embed_dim; /**< Hi-MAR's, as what follows; 0 for HMAR */
    int32_t token_channels;
    int32_t pivot_side; /**< sides of both grids in tokens */
    int32_t dense_side;
} hmar_bundle_info;

/** Reads and checks the manifest of a bundle folder, and the files that `check`, an ::hmar_check, asks for.
 */
HMAR_API hmar_status hmar_bundle_open(const char* folder, int32_t check, hmar_bundle* bundle,
                                      hmar_error** error);

/** What a bundle is. */
HMAR_API hmar_status hmar_bundle_get_info(hmar_bundle bundle, hmar_bundle_info* info, hmar_error** error);

/** Name of a class; "" where the bundle has no names. Lives until the bundle is closed. */
HMAR_API hmar_status hmar_bundle_class_name(hmar_bundle bundle, int32_t label, const char** name,
                                            hmar_error** error);

/** Closes a bundle and zeroes the caller's handle. Sessions that were opened on it stay usable. */
HMAR_API hmar_status hmar_bundle_close(hmar_bundle* bundle, hmar_error** error);

/* --- sessions ---------------------------------------------------------------------------------------- */

/**
 * What runs a bundle.
 *
 * On a GPU that the bundle has recordings for, work goes as CUDA graphs, on the first CUDA device: a whole
 * generation of HMAR is one, a step of Hi-MAR two. They need no ONNX Runtime, and TensorRT only where they
 * run its engines. With a callback, known tokens, other draws than a seed's or another mask schedule than was
 * recorded, a generation of HMAR goes pass by pass. No recording serves settings under which other passes are
 * guided, or other steps of Hi-MAR; and none encodes where kernels alone were recorded.
 */
typedef enum hmar_backend {
    HMAR_BACKEND_AUTO = 0, /**< recordings where they run, with ONNX Runtime for what they do not serve; else
                                ONNX Runtime: CUDA where it offers that, else the CPU */
    HMAR_BACKEND_ORT_CPU = 1,
    HMAR_BACKEND_ORT_CUDA = 2,
    HMAR_BACKEND_GPU = 3 /**< recordings alone; what they do not serve is ::HMAR_UNSUPPORTED */
} hmar_backend;

/** Settings of a session. Zero is the default everywhere but in struct_size. */
typedef struct hmar_session_options {
    size_t struct_size;   /**< sizeof(hmar_session_options) */
    int32_t backend;      /**< an ::hmar_backend */
    const char* library;  /**< libonnxruntime.so; NULL = the first that the dynamic linker finds */
    int32_t threads;      /**< CPU threads of one operator; 0 = one per core */
    int32_t max_batch;    /**< most images in one pass, larger requests are split; 0 = 8 */
    const char* plugins;  /**< libhmar_plugins.so, whose kernels a GPU runs; NULL = as for library */
    const char* tensorrt; /**< libnvinfer.so or libtensorrt_rtx.so, for recordings that run its engines; NULL
                               = as for library, of the version that they are for */
} hmar_session_options;

/** Opens a session on a bundle; `options` may be NULL. Graphs are loaded when they are first used, weights of
 * a GPU's recordings at once. */
HMAR_API hmar_status hmar_session_open(hmar_bundle bundle, const hmar_session_options* options,
                                       hmar_session* session, hmar_error** error);

/** What runs the graphs, such as "ort-cpu (ONNX Runtime 1.31.1)" or "gpu (NVIDIA H100, sm90)". Lives until
 * the session is closed. */
HMAR_API hmar_status hmar_session_backend(hmar_session session, const char** name, hmar_error** error);

/** Why ::HMAR_BACKEND_AUTO did not take a GPU's recordings; "" where it did, or had no choice. Lives until
 * the session is closed. */
HMAR_API hmar_status hmar_session_why_not_gpu(hmar_session session, const char** reason, hmar_error** error);

/** Closes a session and zeroes the caller's handle. */
HMAR_API hmar_status hmar_session_close(hmar_session* session, hmar_error** error);

/* --- generation with HMAR ---------------------------------------------------------------------------- */

#define HMAR_NO_CLASS (-1) /**< label of an unconditional image */

/** Where the random numbers come from. */
typedef enum hmar_draws {
    HMAR_DRAWS_SEED = 0,     /**< counter-based uniforms of (seed, image index) */
    HMAR_DRAWS_UNIFORMS = 1, /**< the caller's uniforms */
    HMAR_DRAWS_ARGMAX = 2    /**< none: the most probable token everywhere */
} hmar_draws;

/** What a next-scale pass sees. */
typedef enum hmar_context {
    HMAR_CONTEXT_SCALE = 0, /**< its scale, as the model was trained */
    HMAR_CONTEXT_PREFIX = 1 /**< all earlier scales too; for benchmarks, without masked passes */
} hmar_context;

/** A scale is done. Pointers are valid during the callback. */
typedef struct hmar_scale_event {
    int32_t scale_idx;
    int32_t pn; /**< its side in tokens */
    int32_t num_scales;
    size_t first_image; /**< of the request; a split request comes in parts */
    size_t num_images;
    const int32_t* tokens; /**< (num_images, pn * pn), final */
    const void* preview;   /**< for ::hmar_scale_event_preview */
} hmar_scale_event;

/**
 * Called after every scale, on the thread that generates. What it returns if it is not 0 ends the generation
 * with ::HMAR_STOPPED. It may call any function of this library.
 */
typedef int (*hmar_on_scale)(const hmar_scale_event* event, void* user_data);

/**
 * Settings of one generation. An image depends on (label, seed, image index, settings) and on nothing else
 * of the request: not on its place in it, the batch, or the backend.
 */
typedef struct hmar_request {
    size_t struct_size; /**< sizeof(hmar_request) */

    const int32_t* labels; /**< num_images classes, 0 .. num_classes - 1 or ::HMAR_NO_CLASS */
    size_t num_images;

    double cfg;                 /**< guidance strength, >= 0 */
    int32_t top_k;              /**< keep the k largest logits; 0 = off */
    double top_p;               /**< keep this probability mass, in [0, 1]; 0 = off */
    double skip_guidance_below; /**< passes with less guidance run without the unconditional half */
    int32_t context;            /**< an ::hmar_context */

    /** Masked passes: for every scale, how many tokens each pass fixes, one scale after the other. Pass j of
     * [n0, n1, .., nm] predicts the n_j + .. + n_m least confident tokens again. */
    const int32_t* schedule_counts;
    const int32_t* schedule_lengths; /**< how many counts each scale has; NULL = no masked passes */
    size_t schedule_scales;          /**< how many scales the schedule is for, at least the model's */

    int32_t draws; /**< an ::hmar_draws */
    uint64_t seed;
    const uint64_t* image_index; /**< num_images of them; NULL = 0, 1, 2, .. */
    /** For every pass in order of running, (num_images, pn * pn) numbers in [0, 1). */
    const double* uniforms;
    size_t num_uniforms; /**< as ::hmar_request_num_uniforms says */

    /** For editing: tokens that stay in every pass, (num_images, num_tokens) as from ::hmar_encode; masked
     * passes predict the others alone. NULL = none. Where `keep` is 0, the token is not looked at. */
    const int32_t* known_tokens;
    const uint8_t* keep; /**< the same shape; not 0 = keep this token */
    size_t num_known;    /**< elements of each */

    hmar_on_scale on_scale; /**< NULL = none */
    void* user_data;        /**< for on_scale */
    hmar_cancel cancel;     /**< looked at before every pass of the transformer, on a GPU before every part of
                               max_batch images; zero = none */
} hmar_request;

/** What a generation writes. An array that is NULL is not wanted; sizes are counted in elements. */
typedef struct hmar_output {
    size_t struct_size; /**< sizeof(hmar_output) */
    uint8_t* pixels;    /**< (num_images, side, side, 3) */
    size_t pixels_size;
    float* image; /**< (num_images, 3, side, side), in [0, 1] */
    size_t image_size;
    int32_t* tokens; /**< (num_images, num_tokens), the scales one after the other */
    size_t tokens_size;
} hmar_output;

/**
 * Fills a request with the settings that the model was published with: no labels, seed 0, no callback. Its
 * schedule points into the bundle and lives until that is closed.
 */
HMAR_API hmar_status hmar_request_init(hmar_bundle bundle, hmar_request* request, hmar_error** error);

/** How many uniforms a request of ::HMAR_DRAWS_UNIFORMS takes. */
HMAR_API hmar_status hmar_request_num_uniforms(hmar_session session, const hmar_request* request,
                                               size_t* count, hmar_error** error);

/**
 * Generates images. Returns when all are done. If it fails, what the arrays of `output` hold is undefined and
 * the session stays usable.
 */
HMAR_API hmar_status hmar_generate(hmar_session session, const hmar_request* request,
                                   const hmar_output* output, hmar_error** error);

/** Decodes the reconstruction of a scale, inside a callback: (num_images, side, side, 3). */
HMAR_API hmar_status hmar_scale_event_preview(const hmar_scale_event* event, uint8_t* pixels,
                                              size_t pixels_size, hmar_error** error);

/**
 * Tokens of given pictures, with a bundle of HMAR.
 *
 * @param pixels (num_images, side, side, 3), with the model's side
 * @param tokens receives (num_images, num_tokens)
 */
HMAR_API hmar_status hmar_encode(hmar_session session, const uint8_t* pixels, size_t pixels_size,
                                 int32_t* tokens, size_t tokens_size, hmar_error** error);

/* --- generation with Hi-MAR ---------------------------------------------------------------------------- */

typedef enum hmar_himar_phase {
    HMAR_HIMAR_PIVOT = 0, /**< the tokens of the low resolution */
    HMAR_HIMAR_DENSE = 1
} hmar_himar_phase;

#define HMAR_HIMAR_SMALL_SIDE_PX 64 /**< side of low-resolution images */

/** A step is done. Pointers are valid during the callback. */
typedef struct hmar_himar_step_event {
    int32_t phase; /**< an ::hmar_himar_phase */
    int32_t step_idx;
    int32_t num_steps;  /**< of the phase */
    size_t first_image; /**< of the request; a split request comes in parts */
    size_t num_images;
    const float* tokens; /**< of the phase's grid so far, (num_images, side * side, token_channels) */
    const void* preview; /**< for ::hmar_himar_step_event_preview */
} hmar_himar_step_event;

/** As ::hmar_on_scale, after every step of both phases. */
typedef int (*hmar_himar_on_step)(const hmar_himar_step_event* event, void* user_data);

/** Noise that a generation asks its caller for. */
typedef struct hmar_himar_draw {
    int32_t phase; /**< an ::hmar_himar_phase */
    int32_t step_idx;
    int32_t draw;       /**< 0 starts the diffusion of a step, j + 1 goes into its j-th reverse step */
    size_t first_image; /**< of the request */
    size_t num_images;
    size_t num_tokens;        /**< of each image */
    const int32_t* positions; /**< of these tokens in the phase's grid, (num_images, num_tokens) */
    float* noise;             /**< to be filled, (num_images, num_tokens, token_channels) */
} hmar_himar_draw;

/** Fills a draw with standard normal numbers. As with ::hmar_on_scale, what is not 0 ends the generation. */
typedef int (*hmar_himar_noise)(const hmar_himar_draw* draw, void* user_data);

/** Settings of one generation. An image depends on (label or vector, seed, image index, settings) alone. */
typedef struct hmar_himar_request {
    size_t struct_size; /**< sizeof(hmar_himar_request) */

    const int32_t* labels; /**< num_images classes, 0 .. num_classes - 1 or ::HMAR_NO_CLASS; or NULL */
    const float* cond;     /**< instead of labels, (num_images, embed_dim) vectors; or NULL */
    size_t num_images;

    int32_t num_iter;       /**< steps of the dense phase */
    double cfg;             /**< guidance strength of the dense phase, >= 0; 1 = none, half the work */
    double re_cfg;          /**< the same of the pivot phase */
    int32_t has_linear_cfg; /**< 1 = guidance grows from 1 with the share of known tokens, 0 = it stays */
    double temperature;     /**< factor on the noise of reverse steps, >= 0 */
    const char* pivot_diffusion_steps; /**< counts per section of the 1000-step axis, such as "100" */
    const char* dense_diffusion_steps;

    uint64_t seed;
    const uint64_t* image_index; /**< num_images of them; NULL = 0, 1, 2, .. */
    /** For verification, instead of the seed: (num_images, pivot_side^2 + dense_side^2) orders of both grids'
     * positions; tokens become known from their ends. NULL = the seed's. */
    const int32_t* orders;
    hmar_himar_noise noise; /**< with `orders`, else NULL */

    hmar_himar_on_step on_step; /**< NULL = none */
    void* user_data;            /**< for on_step and noise */
    hmar_cancel cancel;         /**< looked at before every call of a graph; zero = none */
} hmar_himar_request;

/** What a generation writes. An array that is NULL is not wanted; sizes are counted in elements. */
typedef struct hmar_himar_output {
    size_t struct_size; /**< sizeof(hmar_himar_output) */
    uint8_t* pixels;    /**< (num_images, side, side, 3) */
    size_t pixels_size;
    float* image; /**< (num_images, 3, side, side); [0, 1] is black to white, more is possible */
    size_t image_size;
    uint8_t* small_pixels; /**< the low resolution, (num_images, 64, 64, 3) */
    size_t small_pixels_size;
    float* pivots; /**< (num_images, pivot_side^2, token_channels) */
    size_t pivots_size;
    float* dense; /**< (num_images, dense_side^2, token_channels) */
    size_t dense_size;
} hmar_himar_output;

/** Fills a request with the published settings: no labels, seed 0. Its strings live until the bundle is
 * closed. */
HMAR_API hmar_status hmar_himar_request_init(hmar_bundle bundle, hmar_himar_request* request,
                                             hmar_error** error);

/** As ::hmar_generate, with a bundle of Hi-MAR. */
HMAR_API hmar_status hmar_himar_generate(hmar_session session, const hmar_himar_request* request,
                                         const hmar_himar_output* output, hmar_error** error);

/**
 * Dense tokens of given pictures, the mean of what the autoencoder says, with a bundle of Hi-MAR.
 *
 * @param pixels (num_images, side, side, 3), with the model's side
 * @param dense receives (num_images, dense_side^2, token_channels)
 */
HMAR_API hmar_status hmar_himar_encode(hmar_session session, const uint8_t* pixels, size_t pixels_size,
                                       float* dense, size_t dense_size, hmar_error** error);

/** Decodes what there is of a step's grid, inside a callback: pivots to (num_images, 64, 64, 3), dense tokens
 * to (num_images, side, side, 3). */
HMAR_API hmar_status hmar_himar_step_event_preview(const hmar_himar_step_event* event, uint8_t* pixels,
                                                   size_t pixels_size, hmar_error** error);

/* --- cancelling -------------------------------------------------------------------------------------- */

/** Makes a flag for any number of requests. */
HMAR_API hmar_status hmar_cancel_create(hmar_cancel* cancel, hmar_error** error);

/** Ends every generation that was given this flag, before its next pass, and those that will be. */
HMAR_API hmar_status hmar_cancel_request(hmar_cancel cancel, hmar_error** error);

/** Closes a flag and zeroes the caller's handle; running generations go on. */
HMAR_API hmar_status hmar_cancel_close(hmar_cancel* cancel, hmar_error** error);

#ifdef __cplusplus
}
#endif

#endif

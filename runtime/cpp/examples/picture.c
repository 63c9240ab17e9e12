/* One picture from C, as a PPM file: picture BUNDLE LIBONNXRUNTIME LABEL FILE.ppm */
#include <hmar_runtime.h>
#include <stdio.h>
#include <stdlib.h>

static void check(hmar_status status, hmar_error* error) {
    if (status == HMAR_OK) return;
    fprintf(stderr, "%s: %s\n", hmar_status_name(status), hmar_error_message(error));
    hmar_error_free(error);
    exit(1);
}

int main(int argc, char** argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: picture BUNDLE LIBONNXRUNTIME LABEL FILE.ppm\n");
        return 2;
    }
    hmar_error* error;
    hmar_bundle bundle;
    check(hmar_bundle_open(argv[1], HMAR_CHECK_ALL, &bundle, &error), error);
    hmar_bundle_info info;
    check(hmar_bundle_get_info(bundle, &info, &error), error);

    hmar_session_options options = {0};
    options.struct_size = sizeof options;
    options.library = argv[2];
    hmar_session session;
    check(hmar_session_open(bundle, &options, &session, &error), error);

    const int32_t label = atoi(argv[3]);
    hmar_request request;
    check(hmar_request_init(bundle, &request, &error), error);
    request.labels = &label;
    request.num_images = 1;
    hmar_output output = {0};
    output.struct_size = sizeof output;
    output.pixels_size = (size_t)info.image_side_px * (size_t)info.image_side_px * 3;
    output.pixels = malloc(output.pixels_size);
    check(hmar_generate(session, &request, &output, &error), error);

    FILE* file = fopen(argv[4], "wb");
    if (file == NULL) {
        perror(argv[4]);
        return 1;
    }
    fprintf(file, "P6 %d %d 255\n", info.image_side_px, info.image_side_px);
    fwrite(output.pixels, 1, output.pixels_size, file);
    fclose(file);
    free(output.pixels);
    check(hmar_session_close(&session, &error), error);
    check(hmar_bundle_close(&bundle, &error), error);
    return 0;
}

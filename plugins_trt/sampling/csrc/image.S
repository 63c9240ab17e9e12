// The sampling kernels of all architectures and their table, as plugins_trt.sampling.aot made them.
    .section .rodata.hmar_sampling, "a", @progbits
    .balign 16
    .global hmar_sampling_fatbin
    .hidden hmar_sampling_fatbin
    .type hmar_sampling_fatbin, @object
hmar_sampling_fatbin:
    .incbin "sampling.fatbin"
    .size hmar_sampling_fatbin, . - hmar_sampling_fatbin

    .global hmar_sampling_json
    .hidden hmar_sampling_json
    .type hmar_sampling_json, @object
hmar_sampling_json:
    .incbin "sampling.json"
    .byte 0
    .size hmar_sampling_json, . - hmar_sampling_json

    .section .note.GNU-stack, "", @progbits

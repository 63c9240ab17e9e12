// The decoder's kernels and their table, as plugins_trt.decoder.aot made them.
    .section .rodata.hmar_decoder, "a", @progbits
    .balign 16
    .global hmar_decoder_fatbin
    .hidden hmar_decoder_fatbin
    .type hmar_decoder_fatbin, @object
hmar_decoder_fatbin:
    .incbin "decoder.fatbin"
    .size hmar_decoder_fatbin, . - hmar_decoder_fatbin

    .global hmar_decoder_json
    .hidden hmar_decoder_json
    .type hmar_decoder_json, @object
hmar_decoder_json:
    .incbin "decoder.json"
    .byte 0
    .size hmar_decoder_json, . - hmar_decoder_json

    .section .note.GNU-stack, "", @progbits

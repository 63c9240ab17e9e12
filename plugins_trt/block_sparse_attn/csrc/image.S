// The kernels of all architectures, as plugins_trt.block_sparse_attn.aot made them.
    .section .rodata.bsa_fatbin, "a", @progbits
    .balign 16
    .global bsa_fatbin
    .hidden bsa_fatbin
    .type bsa_fatbin, @object
bsa_fatbin:
    .incbin "bsa.fatbin"
    .size bsa_fatbin, . - bsa_fatbin

    .section .note.GNU-stack, "", @progbits

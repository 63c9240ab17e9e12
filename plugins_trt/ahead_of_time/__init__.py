"""Triton kernels compiled without a GPU: to PTX, to cubins, to one fatbinary."""

ARCHITECTURES = (80, 86, 89, 90, 120)

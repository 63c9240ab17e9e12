"""Kernels of the transformer passes."""

"""Kernels of the VQVAE's decoder: convolutions, group norms and what lies between."""

"""Kernels of what lies between the transformer passes: conditioning, embeddings, quantizer."""

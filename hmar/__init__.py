"""PyTorch definitions of HMAR, Hi-MAR and their autoencoders: the oracle for everything else."""

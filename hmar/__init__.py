"""PyTorch definitions of HMAR and its tokenizer: the oracle that all else is checked against."""

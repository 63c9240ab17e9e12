"""PyTorch definitions of HMAR and its tokenizer: the oracle that everything else is checked against."""

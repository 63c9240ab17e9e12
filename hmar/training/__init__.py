"""Training of a small HMAR and its tokenizer on endlessly composited pictures."""

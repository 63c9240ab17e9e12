"""The sampling rule on the GPU: guidance, truncation, draw, confidence and selection."""

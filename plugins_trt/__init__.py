"""Custom operators: contract, plain reference, PyTorch and ONNX forms."""

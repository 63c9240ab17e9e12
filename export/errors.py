"""Errors of the exporter.

ExportError            a bundle cannot be made
├── GraphError         a graph does not pass ONNX's checker
├── ParityError        a graph's results differ from the PyTorch model
└── OutputError        the bundle cannot be written where asked
"""


class ExportError(Exception):
    """A bundle cannot be made."""


class GraphError(ExportError):
    """A graph does not pass ONNX's checker."""


class ParityError(ExportError):
    """A graph's results differ from the PyTorch model.

    Attributes:
        graph: name of the graph.
        output: name of the output that differs.
        rms_ratio: RMS error relative to the RMS of the reference.
        limit: largest ratio that would have passed.
    """

    def __init__(
        self, message: str, *, graph: str, output: str, rms_ratio: float, limit: float
    ) -> None:
        super().__init__(message)
        self.graph, self.output, self.rms_ratio, self.limit = graph, output, rms_ratio, limit


class OutputError(ExportError):
    """The bundle cannot be written where asked."""

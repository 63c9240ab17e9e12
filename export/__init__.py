"""Checkpoints of HMAR and Hi-MAR to ONNX bundles. `export_bundle` is the entry."""

from export.config import ExportConfig
from export.errors import ExportError, GraphError, OutputError, ParityError
from export.writer import ExportReport, export_bundle, verify_bundle

__all__ = [
    "ExportConfig",
    "ExportError",
    "ExportReport",
    "GraphError",
    "OutputError",
    "ParityError",
    "export_bundle",
    "verify_bundle",
]

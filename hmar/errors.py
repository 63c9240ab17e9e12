"""Errors of the model package.

CheckpointError           a checkpoint file cannot be used
├── CheckpointReadError   the file is damaged, unsafe or not a checkpoint
├── CheckpointKeyError    keys are missing, unexpected or misshapen
└── CheckpointValueError  weights are not finite, or two files do not belong together
"""


class CheckpointError(Exception):
    """A checkpoint file cannot be used."""


class CheckpointReadError(CheckpointError):
    """The file is damaged, would execute code on loading, or is not a checkpoint."""


class CheckpointKeyError(CheckpointError):
    """Keys are missing, unexpected or misshapen.

    Attributes:
        missing: names that were expected and are absent.
        unexpected: names that no part of the model uses.
        misshapen: name -> (shape found, shape expected).
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.misshapen = misshapen or {}


class CheckpointValueError(CheckpointError):
    """Weights are not finite, or two files do not belong together."""

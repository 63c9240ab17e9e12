"""Errors of the training package.

TrainingError
├── StateError      files to resume from are missing or belong to something else
└── DivergedError   the loss is no longer finite
"""


class TrainingError(Exception):
    """A training stage cannot start or go on."""


class StateError(TrainingError):
    """Files to resume from are missing, incomplete or of another model."""


class DivergedError(TrainingError):
    """The loss is not finite any more.

    Attributes:
        step: where it was noticed.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step

"""Errors of the runtime.

DeployError                      anything below
├── BundleError                  a bundle cannot be used
│   ├── ManifestError            its manifest is missing, unreadable or inconsistent
│   └── ChecksumError            one of its files is missing or altered
├── BackendError                 a backend cannot run the bundle
│   ├── BackendUnavailableError  its package or device is missing
│   │   └── NoDeviceError        there is no CUDA device, or no driver for it
│   ├── DeviceMemoryError        the device has too little memory
│   ├── EngineBuildError         an engine cannot be built
│   └── EngineIncompatibleError  there is no engine that fits: another GPU, version or bundle, other
│                                batches, or a damaged file
├── PipelineUseError             a pipeline is closed, or belongs to another process
└── GenerationCancelled          a generation was ended by its caller
"""


class DeployError(Exception):
    """Base of all errors of the runtime."""


class BundleError(DeployError):
    """A bundle cannot be used."""


class ManifestError(BundleError):
    """The manifest is missing, unreadable or inconsistent."""


class ChecksumError(BundleError):
    """A file of the bundle is missing or altered."""


class BackendError(DeployError):
    """A backend cannot run the bundle."""


class BackendUnavailableError(BackendError):
    """The backend's package or device is missing."""


class NoDeviceError(BackendUnavailableError):
    """There is no CUDA device, or no driver for it."""


class DeviceMemoryError(BackendError):
    """The device has too little memory.

    Attributes:
        suggested_batch: a `max_batch` that needs less, None where none is known.
    """

    def __init__(self, message: str, suggested_batch: int | None = None) -> None:
        super().__init__(message)
        self.suggested_batch = suggested_batch


class EngineBuildError(BackendError):
    """An engine cannot be built."""


class EngineIncompatibleError(BackendError):
    """There is no engine that fits this bundle, library, GPU and batch.

    Attributes:
        reasons: what was found and what is needed, one sentence each.
    """

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class PipelineUseError(DeployError):
    """A pipeline is closed, or belongs to another process."""


class GenerationCancelled(DeployError):
    """A generation was ended by its caller; the pipeline can be used again."""

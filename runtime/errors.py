"""Errors of the runtime.

DeployError                      anything below
├── BundleError                  a bundle cannot be used
│   ├── ManifestError            its manifest is missing, unreadable or inconsistent
│   └── ChecksumError            one of its files is missing or altered
└── BackendError                 a backend cannot run the bundle
    ├── BackendUnavailableError  its package or device is missing
    │   └── NoDeviceError        there is no CUDA device, or no driver for it
    ├── EngineBuildError         an engine cannot be built
    └── EngineIncompatibleError  there is no engine that fits: another GPU, version or bundle, other
                                 batches, or a damaged file
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

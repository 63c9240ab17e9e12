"""Errors of the runtime.

DeployError                      anything below
├── BundleError                  a bundle cannot be used
│   ├── ManifestError            its manifest is missing, unreadable or inconsistent
│   └── ChecksumError            one of its files is missing or altered
└── BackendError                 a backend cannot run the bundle
    └── BackendUnavailableError  its package or device is missing
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

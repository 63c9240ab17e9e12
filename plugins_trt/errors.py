"""Errors of the plugin libraries.

PluginError                 anything below; also a library that cannot be loaded
├── PluginNotFoundError     a library has not been built, or is not where it was said to be
└── PluginVersionError      a library was built from another version of this package
"""


class PluginError(Exception):
    """Base of all errors of the plugin libraries."""


class PluginNotFoundError(PluginError):
    """A library has not been built, or is not where it was said to be."""


class PluginVersionError(PluginError):
    """A library was built from another version of this package.

    Attributes:
        found: version of the library.
        expected: version of the package.
    """

    def __init__(self, message: str, *, found: str, expected: str) -> None:
        super().__init__(message)
        self.found, self.expected = found, expected

"""The target folder: written beside it, renamed at the end, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from export.errors import OutputError
from runtime.bundle import MANIFEST_FILE

logger = logging.getLogger(__name__)


def check_target(out: Path) -> None:
    """Raises OutputError if the target cannot be written, or holds something else than a bundle."""
    if (
        out.exists()
        and not (out / MANIFEST_FILE).is_file()
        and not (out.is_dir() and not any(out.iterdir()))
    ):
        raise OutputError(f"{out}: exists and is not a bundle; choose another --out or remove it")


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A temporary folder beside the target, removed whatever happens.

    Disk errors become OutputError.
    """
    prefix = f".{out.name}.partial-"
    for stale in out.parent.glob(f"{prefix}*"):
        if not _is_alive(stale.name.removeprefix(prefix).split("-")[0]):
            logger.info("removing %s, left by an export that was killed", stale)
            shutil.rmtree(stale, ignore_errors=True)
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=out.parent))
        folder.chmod(0o755)
        yield folder
    except OSError as error:
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EACCES,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise OutputError(
                f"{out}: cannot write the bundle: {error.strerror}; nothing was changed"
            ) from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def replace_folder(folder: Path, out: Path) -> None:
    """Puts a finished folder in the target's place."""
    if out.exists():
        old = folder.with_name(f"{folder.name}-old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
    else:
        folder.rename(out)

"""Atomic writes and locks: a reader sees the old file or the new one, never a part of either."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from training.contract.errors import StorageError

_NO_WRITING = {
    errno.ENOSPC: "no space left on its disk: make room",
    errno.EDQUOT: "no space left in the disk's quota: make room",
    errno.EFBIG: "larger than a file may be here: raise the limit",
    errno.EROFS: "its file system is read-only: mount it for writing",
    errno.EACCES: "permission denied: let this user write there",
    errno.EPERM: "permission denied: let this user write there",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise :class:`StorageError` naming ``path`` where the disk, and not what is written, is at fault."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        raise StorageError(f"{path}: cannot be written: {_NO_WRITING[error.errno]}") from error


def fsync_folder(folder: Path) -> None:
    """Make the folder's names durable: a rename or a new file is on disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[Path], object], mode: int = 0o644) -> None:
    """Call ``write(temporary)``, flush what it wrote, then rename it over ``path``.

    The temporary file lies beside ``path`` (a rename across file systems is not atomic), under a
    name starting with a dot so that globs over a partition do not pick it up. Its owner alone can read
    it until it has the permissions ``mode``. Raises :class:`StorageError` where the disk does not take it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), mode)


def write_json_atomic(path: Path, value: Any) -> None:
    """JSON with sorted keys, so that equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, default=str, allow_nan=False)
    write_text_atomic(path, text + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes; not reentrant.

    Those that hold it ``shared`` exclude only one that wants it alone. Raises :class:`BlockingIOError` when
    it is held elsewhere and ``wait`` is off.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    with opened as file:  # closing the file, or dying, releases it
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when the block ends well.

    On an error nothing of ``folder`` changes. The swap is two renames: a reader that comes exactly
    between them finds no folder, never a half-written one; :func:`recover_folder` undoes a kill
    between the two.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(folder)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    old = folder.with_name(f".{folder.name}.old")
    try:
        fresh.chmod(0o755)
        yield fresh
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        fsync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back what a kill between the two renames of :func:`replaced_folder` left aside."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    for orphan in folder.parent.glob(f".{folder.name}.*.new"):
        shutil.rmtree(orphan, ignore_errors=True)


_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.(tmp|new)")  # as write_atomic and replaced_folder name them


def leftovers(root: Path, untouched: timedelta) -> list[Path]:
    """Temporary files and folders below ``root`` that nobody has written to for so long.

    A writer that is killed leaves its temporary behind, which nothing reads. One that lives is told by its
    age alone: it may run on another machine.
    """
    newest = time.time() - untouched.total_seconds()
    found = []
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            if _TEMPORARY.fullmatch(name) and _touched(path) <= newest:
                found.append(path)
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
    return sorted(found)


def _touched(path: Path) -> float:
    """When it, or anything in it, was last written; now, when it is gone by now."""
    try:
        return max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    except FileNotFoundError:
        return time.time()


def json_sha256(value: Any) -> str:
    """Hex SHA-256 of plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

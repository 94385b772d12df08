"""How does a line become durable? Appended to ``<local day>.<worker>.<sequence>.jsonl`` below one folder.

Every process writes files of its own, locked while it lives, so that no two writers share a file and
a file whose writer died can be told. A line counts when its newline is on disk: a last line without
one was never acknowledged, is ignored by readers, and is cut by the next process to start: of the same
replica of the service, for a lock need not be seen from another machine. Its name is in the worker's, before
an ``@``.
"""

import fcntl
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from training.contract.errors import MtfError
from training.contract.files import fsync_folder
from training.contract.log import file_name, worker_of

_log = structlog.get_logger("mtf.serving.decision_log")
_READ_BACK = 64 * 1024


class LogError(MtfError):
    """Something could not be made durable, so it was not acknowledged."""


def encode(line: Mapping[str, Any]) -> bytes:
    """A line's bytes, without its newline; numpy arrays become lists."""
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)


class Place(NamedTuple):
    """Where a line is: the file's name, its first byte, and how many there are without the newline."""

    file: str
    start: int
    size: int


NOWHERE = Place("", 0, 0)


@dataclass
class _Open:
    descriptor: int
    path: Path
    size: int


class DayFiles:
    """Appends lines to one file a day, a new one when it is full. :meth:`write` is for one thread.

    A day's file is opened when its first line comes, so replayed traffic may go back and forth
    between days; the least recently used of more than ``open_days`` is closed.
    """

    def __init__(
        self, folder: Path, worker: str, max_bytes: int = 256 * 1024 * 1024, open_days: int = 4
    ) -> None:
        self._folder = folder
        self._worker = f"{worker}-{secrets.token_hex(4)}"
        self._max_bytes = max_bytes
        self._open_days = open_days
        self._files: OrderedDict[str, _Open] = OrderedDict()
        self._sequence = 0
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        cut_torn_tails(folder, replica=worker.rpartition("@")[0])

    def write(self, lines: Sequence[tuple[str, bytes]]) -> list[Place]:
        """Append ``(day, line)`` pairs, each line without its newline, and flush them to disk.

        Returns where each of them is.

        Raises OSError when the disk refuses; the files then end where they ended before the call, or
        are left behind with a torn tail that no reader counts.
        """
        with self._lock:
            return self._write(lines)

    def _write(self, lines: Sequence[tuple[str, bytes]]) -> list[Place]:
        by_day: dict[str, list[int]] = {}
        for at, (day, _) in enumerate(lines):
            by_day.setdefault(day, []).append(at)
        places: list[Place] = [NOWHERE] * len(lines)
        # one day first, whole, then the next: a batch over two days that fails on the second leaves
        # lines on disk that nobody was told of, which the contract allows (a retry repeats the key)
        for day, those in by_day.items():
            name, start = self._append(day, b"\n".join([lines[at][1] for at in those]) + b"\n")
            for at in those:
                size = len(lines[at][1])
                places[at] = Place(name, start, size)
                start += size + 1
        return places

    def roll(self) -> None:
        """Close every file: the next lines begin others. For any thread."""
        with self._lock:
            for file in self._files.values():
                os.close(file.descriptor)
            self._files.clear()

    close = roll

    def _append(self, day: str, block: bytes) -> tuple[str, int]:
        """The file's name, and where in it the block begins."""
        file = self._file(day)
        start = file.size
        try:
            _write_all(file.descriptor, block)
            os.fdatasync(file.descriptor)
        except OSError:
            self._abandon(day, file)
            raise
        file.size += len(block)
        if file.size >= self._max_bytes:
            os.close(self._files.pop(day).descriptor)
        return file.path.name, start

    def _file(self, day: str) -> _Open:
        if day in self._files:
            self._files.move_to_end(day)
            return self._files[day]
        while len(self._files) >= self._open_days:
            os.close(self._files.popitem(last=False)[1].descriptor)
        path = self._folder / file_name(day, self._worker, self._sequence)
        self._sequence += 1
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fsync_folder(self._folder)
        self._files[day] = _Open(descriptor, path, 0)
        return self._files[day]

    def _abandon(self, day: str, file: _Open) -> None:
        """Take back a failed append. After a failed flush the file is not trusted: a new one follows.

        A file that got no line goes, so that a full disk does not fill with the names of empty ones.
        """
        del self._files[day]
        try:
            os.ftruncate(file.descriptor, file.size)
            if file.size == 0:
                file.path.unlink(missing_ok=True)
        except OSError as error:
            _log.error("torn tail left behind", file=file.path.name, reason=str(error))
        finally:
            os.close(file.descriptor)


def read_line(folder: Path, place: Place) -> bytes:
    """A line that was written. Raises OSError when its file is gone, or shorter."""
    descriptor = os.open(folder / place.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.pread(descriptor, place.size, place.start)
    finally:
        os.close(descriptor)
    if len(line) < place.size:
        raise OSError(f"{folder / place.file} ends before byte {place.start + place.size}")
    return line


def worker_name(replica: str, number: int) -> str:
    """Of a worker process, in the names of its files."""
    return f"{replica}@w{number}" if replica else f"w{number}"


def cut_torn_tails(folder: Path, replica: str = "") -> list[Path]:
    """Cut every file of a replica back to its last newline, except those that a living writer holds.

    Returns the files that were cut.
    """
    cut = []
    for path in sorted(folder.glob("*.jsonl")):
        if worker_of(path).rpartition("@")[0] == replica:
            found = _cut(path)
            if found is not None and found[0] < found[1]:
                cut.append(path)
    return cut


def closed_size(path: Path) -> int | None:
    """Bytes of a file that no writer holds any more, its torn tail cut; None where one does, or where
    there is no file."""
    found = _cut(path)
    return None if found is None else found[0]


def _cut(path: Path) -> tuple[int, int] | None:
    """A file's bytes up to its last newline, beyond which it is cut, and those that there were."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(descriptor).st_size
        good = _end_of_last_line(descriptor, size)
        if good < size:
            os.ftruncate(descriptor, good)
            os.fsync(descriptor)
            _log.warning("torn tail cut", file=path.name, bytes=size - good)
        return good, size
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _READ_BACK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]

"""The tensors of a split, in memory or in mapped files, filled part by part."""

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from training.contract.errors import MtfError
from training.trajectories.columns import SOURCES
from training.trajectories.keys import Keys
from training.trajectories.transitions import Transitions


class Storage:
    """Where the tensors of a set lie: in memory (``folder`` None), or in mapped files.

    The files have no name, so they are gone when the last tensor is, or the process, however it ends. Their
    pages are the kernel's to write out and to read again: the set may be larger than the memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._mappings: list[mmap.mmap] = []

    def empty(self, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
        """An array to be written to. Raises :class:`MtfError` where the disk has no room for it."""
        size = math.prod(shape) * kind.itemsize
        if self.folder is None or size == 0:
            return np.empty(shape, kind)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would end the process by a signal
            except OSError as error:
                raise MtfError(
                    f"no room for {size:,} bytes of the training set in {self.folder}: {error.strerror}. "
                    "Free some, lower learner.replay_capacity, or raise learner.map_above_bytes to use memory"
                ) from error
            self._mappings.append(mmap.mmap(file.fileno(), size))
        return np.frombuffer(self._mappings[-1], kind).reshape(shape)

    def release(self) -> None:
        """Take the pages touched so far out of this process's memory; what was written stays written."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)


class SplitColumns:
    """The columns of one split, to be filled part by part in any order."""

    def __init__(
        self,
        rows: np.ndarray,
        sessions: np.ndarray,
        arms: np.ndarray,
        keys: Keys,
        kinds: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        storage: Storage,
    ) -> None:
        """``rows`` int64[n] are places, ascending; ``kinds`` has a row's shape and dtype of every column."""
        self.rows, self.sessions, self.arms, self.arm_names = rows, sessions, arms, keys.arm_names
        self.columns = {
            name: storage.empty((len(rows), *shape), kind) for name, (shape, kind) in kinds.items()
        }
        following = np.where(keys.done[rows], -1, keys.following[rows])
        self.alone = following < 0  # nothing was served at s', or nothing that is known
        by_next = np.argsort(following, kind="stable")
        self.before = by_next[np.count_nonzero(self.alone) :]
        self.following = following[self.before]

    def fill(self, places: np.ndarray, part: Mapping[str, np.ndarray]) -> None:
        """Put the rows of a part, which lie at ascending ``places``, wherever this split has them."""
        own, source = _common(self.rows, places)
        for name, column in self.columns.items():
            if name in SOURCES:
                column[own] = part[SOURCES[name]][source]
        alone = self.alone[own]
        before, served = _common(self.following, places)
        for name in ("action", "action_mean"):
            column = self.columns[f"next_{name}s"]
            values = part[name][source[alone]]
            column[own[alone]] = np.where(part["done"][source[alone], None], 0.0, values)
            column[self.before[before]] = part[name][served]

    def transitions(self) -> Transitions:
        return Transitions(
            **{name: torch.from_numpy(column) for name, column in self.columns.items()},
            sessions=torch.from_numpy(self.sessions),
            by_session=torch.zeros(len(self.rows), dtype=torch.bool),
            arms=torch.from_numpy(self.arms),
            arm_names=self.arm_names,
        )


def _common(wanted: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into both, which are ascending, where they are equal; ``wanted`` may repeat itself."""
    low, high = np.searchsorted(wanted, [places[0], places[-1] + 1])
    at = np.searchsorted(places, wanted[low:high])
    found = np.flatnonzero(places[at] == wanted[low:high])
    return low + found, at[found]

"""Trajectories: exported transitions of the last days as tensors, split by time, for learner and judge.

The test split is the last sessions by their start, of *every* arm: the estimators need the actions of
the policies that they judge, wherever these were served. The training split follows the paper's mixed
exploration rule (equal numbers of trajectories of the random and of the noise group) and is cut to the
newest ``learner.replay_capacity`` transitions, as a FIFO replay buffer would hold.
"""

import hashlib
import math
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from training.contract.errors import DataError, MtfError
from training.contract.log import MIXED_ARMS
from training.contract.settings import Settings
from training.contract.transitions import MART, OF_EVERY_LEARNER

# columns of the export behind what only some learners read
OPTIONAL = {
    "watch_rewards": ("watch_reward",),
    "item_scores": ("item_scores", "item_rewards"),
    "item_rewards": ("item_rewards",),
}
_SOURCES = {  # columns of the export, by the field of Transitions that they fill
    "states": "state",
    "actions": "action",
    "rewards": "reward",
    "next_states": "next_state",
    "dones": "done",
    "action_means": "action_mean",
    "log_densities": "log_density",
    "steps": "step",
    "watch_rewards": "watch_reward",
    "item_scores": "item_scores",
    "item_rewards": "item_rewards",
}
_PART = 32_768  # rows that are read at once


@dataclass(frozen=True)
class Transitions:
    """N transitions, oldest first; a row of every tensor is one request.

    ``next_actions`` is what was served at s' (where the session ended: zeros, masked by ``dones``;
    where that request is not in the window: the row's own action). ``log_densities`` is NaN for an
    action that was not drawn. ``sessions`` numbers the trajectories; ``arms`` indexes ``arm_names``.
    """

    states: Tensor  # float32[N, d], as served
    actions: Tensor  # float32[N, k], in [-1, 1]
    rewards: Tensor  # float32[N], eq. (2)
    next_states: Tensor  # float32[N, d], zeros where done
    next_actions: Tensor  # float32[N, k]
    dones: Tensor  # float32[N], 1 where the session ended: masks the bootstrap
    action_means: Tensor  # float32[N, k], of the behaviour policy
    log_densities: Tensor  # float64[N], of the behaviour policy
    sessions: Tensor  # int64[N]
    steps: Tensor  # int64[N], 0 is the first request of the session
    arms: Tensor  # int64[N]
    arm_names: tuple[str, ...]
    # of the behaviour policy at s', as next_actions (always there but in tests that do without)
    next_action_means: Tensor | None = None  # float32[N, k]
    # what only some learners read, None where it was not asked for: the part of the reward that is play
    # time and integrity, and the shown items (where fewer than page were shown: score 0, reward NaN)
    watch_rewards: Tensor | None = None  # float32[N]
    item_scores: Tensor | None = None  # float32[N, page, k], the predictions of each head
    item_rewards: Tensor | None = None  # float32[N, page], terms of eq. (2)
    reward_factors: Tensor | None = None  # float32[N, 2 + signals], v_i of eq. (2), summed over the page

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, rows: Tensor) -> "Transitions":
        """The given rows, in the given order."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device) -> "Transitions":
        """The same transitions on a device; themselves where they are there."""
        if self.rewards.device == device:
            return self
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Transitions":
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return Transitions(**{n: change(c) if isinstance(c, Tensor) else c for n, c in columns.items()})

    def arm_counts(self) -> dict[str, dict[str, int]]:
        """Transitions and sessions by arm; a session counts for the arm of its first row here."""
        arms, sessions = self.arms.numpy(), self.sessions.numpy()
        _, first = np.unique(sessions, return_index=True)
        return {
            name: {"transitions": int((arms == i).sum()), "sessions": int((arms[first] == i).sum())}
            for i, name in enumerate(self.arm_names)
            if (arms == i).any()
        }


@dataclass(frozen=True)
class Trajectories:
    """Both splits, what they were made from, and how many rows were left out and why.

    ``partitions`` is ``{day: {"rows", "sha256"}}`` (of the content, not of the file's bytes);
    ``left_out`` counts rows by reason; ``warnings`` are sentences for the person who reads the report.
    """

    train: Transitions
    test: Transitions
    state_spec: str
    partitions: dict[str, dict[str, int | str]]
    left_out: dict[str, int]
    warnings: tuple[str, ...]

    def sha256(self) -> str:
        """Of what a learner sees: both splits' tensors."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for f in fields(split):
                column = getattr(split, f.name)
                digest.update(column.numpy() if isinstance(column, Tensor) else repr(column).encode())
        return digest.hexdigest()


def load(settings: Settings, day: date, needs: Collection[str] = ()) -> Trajectories:
    """Read the window of ``learner.window_days`` days that ends with ``day``.

    ``needs`` names the optional tensors of :class:`Transitions` (keys of :data:`OPTIONAL`) to read, too.
    Rows of another state specification are left out, and so are truncated ones (nothing is known of
    their s'). Raises :class:`DataError` when the day has no export, when nothing usable is left, or
    naming file and request of a row whose state or action does not fit the settings; :class:`MtfError` when
    a file is replaced meanwhile, or the disk has no room.

    The window is read twice: its keys, which say which rows go where, then everything in parts, which are
    checked and put in their places. Memory holds the keys, one part and the set; above
    ``learner.map_above_bytes`` the set is in mapped files instead, with the same values.
    """
    window = [day - timedelta(days=back) for back in range(settings.learner.window_days - 1, -1, -1)]
    paths = {d: settings.layout.mart(MART) / f"dt={d.isoformat()}" / "part-0.parquet" for d in window}
    if not paths[day].is_file():
        raise DataError(
            f"no transitions of {day}: {paths[day]} does not exist; run the transform of that day"
        )
    paths = {d: path for d, path in paths.items() if path.is_file()}
    columns = [*OF_EVERY_LEARNER, *sorted({column for name in needs for column in OPTIONAL[name]})]
    for path in paths.values():
        _refuse_missing(settings, path, columns)
    version = settings.state_spec.version
    files = {path: _file(path) for path in paths.values()}
    index = _Index(list(paths.values()), version)

    followed_by_other = (index.following >= 0) & ~index.current[index.following] & ~index.done
    ended = index.truncated & ~index.done
    left_out = {
        "other_state_spec": int((~index.current).sum()),
        "truncated": int((index.current & ended).sum()),
        "next_of_other_state_spec": int((index.current & ~ended & followed_by_other).sum()),
    }
    usable = np.flatnonzero(index.current & ~ended & ~followed_by_other)
    if not len(usable):
        raise DataError(
            f"no usable transition of state specification {version} from {window[0]} to {day} below "
            f"{settings.layout.mart(MART)} (left out: {left_out})"
        )
    # numbered by their start
    numbered = pa.array(index.sessions[usable]).dictionary_encode()
    sessions, keys = numbered.indices.to_numpy().astype(np.int64), numbered.dictionary.to_numpy()
    arms = index.arms[usable]

    in_test = _last_sessions(sessions, settings.evaluation.test_share)
    train, test, warnings = np.flatnonzero(~in_test), np.flatnonzero(in_test), []
    if settings.learner.mixed_exploration:
        mixed, warnings = _mixed_exploration(
            sessions[train],
            arms[train],
            index.arm_names,
            lambda session: index.session_name(keys[session]),
            settings.seed,
        )
        train = train[mixed]
    left_out["not_mixed_exploration"] = int((~in_test).sum()) - len(train)
    capacity = settings.learner.replay_capacity
    left_out["over_replay_capacity"] = max(0, len(train) - capacity)
    if len(train) == 0:
        raise DataError(f"all transitions from {window[0]} to {day} are in the test split: too few sessions")

    page = _largest_page(paths.values(), version) if "item_rewards" in columns else 0
    kinds = _kinds(settings, columns, page)
    kept = [rows[-capacity:] for rows in (train, test)]
    size = sum(map(len, kept)) * sum(_row_bytes(shape, kind) for shape, kind in kinds.values())
    room = Room(settings.layout.root if size > settings.learner.map_above_bytes else None)
    splits = [_Split(usable[rows], sessions[rows], arms[rows], index, kinds, room) for rows in kept]
    partitions: dict[str, dict[str, int | str]] = {}
    for (d, path), places in zip(paths.items(), index.places, strict=True):
        digest = _Digest()
        for at, table in _parts(path, columns, places):
            part = _checked(settings, path, table, columns, page)
            digest.update(part)
            for split in splits:
                split.fill(at, part)
            room.release()
        if _file(path) != files[path]:
            raise MtfError(f"{path} was written again while it was read: run this again")
        partitions[d.isoformat()] = {"rows": len(places), "sha256": digest.hexdigest()}
    return Trajectories(
        train=splits[0].transitions(),
        test=splits[1].transitions(),
        state_spec=version,
        partitions=partitions,
        left_out=left_out,
        warnings=tuple(warnings),
    )


class Room:
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


class _Index:
    """The keys of the window's R rows, in one order whatever the files' own: (event_ts, request_id).

    Its place in that order names a row: a rerun of the transform must not change the policy. ``places``
    has, for each file, the places of its rows. The other arrays are of all R rows: ``following`` is the
    place of the next request (−1 where it is not in the window), ``current`` tells rows of this state
    specification, ``sessions`` are keys for :meth:`session_name`, ``arms`` index ``arm_names``.
    """

    def __init__(self, paths: Sequence[Path], version: str) -> None:
        self._paths = paths
        stamps = self._column("event_ts", pa.timestamp("us", "UTC"))
        keys = pa.table([stamps, self._column("request_id", pa.string())], ["ts", "id"])
        self._order = pc.sort_indices(keys, [("ts", "ascending"), ("id", "ascending")]).to_numpy()
        del stamps, keys
        place = np.empty(len(self._order), dtype=np.int64)
        place[self._order] = np.arange(len(place))
        lengths = [pq.read_metadata(path).num_rows for path in paths]
        self.places = np.split(place, np.cumsum(lengths)[:-1])
        following = np.full(len(place), -1)
        following_requests = self._column("next_request_id", pa.string(), nullable=True)
        for path, places in zip(paths, self.places, strict=True):  # a table of all requests takes gigabytes
            requests = _read(path, ["request_id"])["request_id"].cast(pa.string()).combine_chunks()
            found = pc.index_in(following_requests, value_set=requests, skip_nulls=True)
            found = pc.fill_null(found, -1).to_numpy()
            following[found >= 0] = places[found[found >= 0]]
        self.following = following[self._order]
        del following_requests, requests, found

        users, self._users = self._categories("user_id", pa.int64())
        sessions, self._session_ids = self._categories("session_id", pa.string())
        self.sessions = users * len(self._session_ids) + sessions
        arms, names = self._categories("arm", pa.string())
        self.arm_names = tuple(sorted(names.to_pylist()))
        self.arms = np.array([self.arm_names.index(name) for name in names.to_pylist()], dtype=np.int64)[arms]
        specs, versions = self._categories("state_spec", pa.string())
        self.current = np.array([known == version for known in versions.to_pylist()], dtype=bool)[specs]
        self.done = self._in_order(self._column("done", pa.bool_()))
        self.truncated = self._in_order(self._column("truncated", pa.bool_()))
        del self._order
        pa.default_memory_pool().release_unused()

    def session_name(self, key: int) -> str:
        user, session = divmod(int(key), len(self._session_ids))
        return f"{self._users[user]}/{self._session_ids[session]}"

    def _column(self, name: str, kind: pa.DataType, nullable: bool = False) -> pa.ChunkedArray:
        """One column of all files, as they lie."""
        chunks = []
        for path in self._paths:
            table = _read(path, [name])
            if not nullable:
                _refuse_null(path, table, name)
            chunks += table[name].cast(kind).chunks
        return pa.chunked_array(chunks, kind)

    def _in_order(self, column: pa.ChunkedArray) -> np.ndarray:
        return column.to_numpy()[self._order]

    def _categories(self, name: str, kind: pa.DataType) -> tuple[np.ndarray, pa.Array]:
        """Codes int64[R], and what each stands for."""
        encoded = self._column(name, kind).dictionary_encode().combine_chunks()
        return encoded.indices.to_numpy().astype(np.int64)[self._order], encoded.dictionary


class _Split:
    """The columns of one split, to be filled part by part in any order."""

    def __init__(
        self,
        rows: np.ndarray,
        sessions: np.ndarray,
        arms: np.ndarray,
        index: _Index,
        kinds: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        room: Room,
    ) -> None:
        """``rows`` int64[n] are places, ascending; ``kinds`` has a row's shape and dtype of every column."""
        self.rows, self.sessions, self.arms, self.arm_names = rows, sessions, arms, index.arm_names
        self.columns = {name: room.empty((len(rows), *shape), kind) for name, (shape, kind) in kinds.items()}
        following = np.where(index.done[rows], -1, index.following[rows])
        self.alone = following < 0  # nothing was served at s', or nothing that is known
        by_next = np.argsort(following, kind="stable")
        self.before = by_next[np.count_nonzero(self.alone) :]
        self.following = following[self.before]

    def fill(self, places: np.ndarray, part: Mapping[str, np.ndarray]) -> None:
        """Put the rows of a part, which lie at ascending ``places``, wherever this split has them."""
        own, source = _common(self.rows, places)
        for name, column in self.columns.items():
            if name in _SOURCES:
                column[own] = part[_SOURCES[name]][source]
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
            arms=torch.from_numpy(self.arms),
            arm_names=self.arm_names,
        )


def _common(wanted: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into both, which are ascending, where they are equal; ``wanted`` may repeat itself."""
    low, high = np.searchsorted(wanted, [places[0], places[-1] + 1])
    at = np.searchsorted(places, wanted[low:high])
    found = np.flatnonzero(places[at] == wanted[low:high])
    return low + found, at[found]


def _kinds(
    settings: Settings, columns: Collection[str], page: int
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape of a row and dtype of every column that is read from the exports."""
    state, heads, single = (settings.state_spec.width,), (len(settings.heads),), np.dtype(np.float32)
    kinds = {
        "states": (state, single),
        "actions": (heads, single),
        "rewards": ((), single),
        "next_states": (state, single),
        "next_actions": (heads, single),
        "dones": ((), single),
        "action_means": (heads, single),
        "next_action_means": (heads, single),
        "log_densities": ((), np.dtype(np.float64)),
        "steps": ((), np.dtype(np.int64)),
        "watch_rewards": ((), single),
        "item_scores": ((page, *heads), single),
        "item_rewards": ((page,), single),
    }
    return {name: kind for name, kind in kinds.items() if _SOURCES.get(name, "action") in columns}


def _row_bytes(shape: tuple[int, ...], kind: np.dtype) -> int:
    return math.prod(shape) * kind.itemsize


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable export of {MART}: {error}") from error


def _read(path: Path, columns: list[str]) -> pa.Table:
    with _readable(path):
        # partitioning=None: the folder's dt= is also a column of the file
        return pq.read_table(path, columns=columns, partitioning=None)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    # otherwise all row groups would be read before the first batch comes
    with _readable(path), pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_PART, columns=columns):
            yield pa.Table.from_batches([batch])


def _parts(path: Path, columns: list[str], places: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """A file's rows in the order of their places, in parts: ascending places, and the rows there."""
    if (np.diff(places) > 0).all():  # as the transform writes it
        tables = _batches(path, columns)
    else:
        whole = _read(path, columns).take(np.argsort(places)).combine_chunks()
        places = np.sort(places)
        tables = (whole.slice(at, _PART) for at in range(0, len(whole), _PART))
    at = 0
    for table in tables:
        yield places[at : at + len(table)], table
        at += len(table)


def _largest_page(paths: Iterable[Path], version: str) -> int:
    """The most items that a request of the window showed, at least 1."""
    page = 1
    for path in paths:
        for table in _batches(path, ["item_rewards", "state_spec"]):
            shown = table.filter(pc.equal(table["state_spec"], version))["item_rewards"]
            page = max(page, pc.max(pc.list_value_length(shown)).as_py() or 0)
    return page


def _file(path: Path) -> tuple[int, int, int]:
    """Tells a file from one that took its place."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _refuse_missing(settings: Settings, path: Path, columns: list[str]) -> None:
    with _readable(path):
        present = pq.read_schema(path).names
    missing = next((name for name in columns if name not in present), None)
    if missing in OF_EVERY_LEARNER:
        raise DataError(f"{path} lacks the column {missing} of {MART}")
    if missing:
        raise DataError(
            f"{path} lacks the column {missing} of {MART}, which learner.algorithm "
            f"{settings.learner.algorithm} learns from: it was written by an older version; transform "
            "that day again"
        )


def _refuse_null(path: Path, table: pa.Table, name: str) -> None:
    if table[name].null_count:
        row = int(np.argmax(table[name].is_null().to_numpy()))
        requests = table if "request_id" in table.column_names else _read(path, ["request_id"])
        raise DataError(f"{path}: request {requests['request_id'][row]}: {name} is null")


def _checked(
    settings: Settings, path: Path, table: pa.Table, columns: Collection[str], page: int
) -> dict[str, np.ndarray]:
    """A part of a day's export as numpy columns, checked; those of items are ``page`` wide."""
    # rows of another specification are left out by load; their state has another width
    current = pc.equal(table["state_spec"], settings.state_spec.version)
    requests = table["request_id"].to_numpy(zero_copy_only=False)

    def vectors(name: str, width: int, needed: pa.ChunkedArray) -> np.ndarray:
        """A list column as float32[n, width], zeros where it is not needed."""
        column = table[name].combine_chunks().cast(pa.list_(pa.float32()))
        mask = needed.to_numpy(zero_copy_only=False).astype(bool)
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        wrong = mask & (lengths != width)
        if wrong.any():
            row = int(np.argmax(wrong))
            found = "null" if lengths[row] < 0 else f"{lengths[row]} entries"
            raise DataError(f"{path}: request {requests[row]}: {name} has {found}, expected {width}")
        out = np.zeros((len(column), width), dtype=np.float32)
        values = column.filter(pa.array(mask)).flatten().to_numpy(zero_copy_only=False)
        out[mask] = values.reshape(-1, width)
        bad = ~np.isfinite(out).all(axis=1)
        if bad.any():
            raise DataError(f"{path}: request {requests[np.argmax(bad)]}: {name} holds a value not a number")
        return out

    def plain(name: str, kind: type, default: object = None) -> np.ndarray:
        if default is None:
            _refuse_null(path, table, name)
        column = table[name] if default is None else pc.fill_null(table[name], default)
        return column.to_numpy(zero_copy_only=False).astype(kind)

    def pages(name: str, width: int) -> np.ndarray:
        """A list column of the items' values as float32[n, page or more, width]; NaN beyond the shown."""
        column = table[name].combine_chunks().cast(pa.list_(pa.float32()))
        column = pc.if_else(current.combine_chunks(), column, pa.scalar(None, column.type))
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if (lengths % width).any():
            row = int(np.argmax(lengths % width))
            raise DataError(
                f"{path}: request {requests[row]}: {name} has {lengths[row]} entries, expected {width} each"
            )
        shown = lengths // width
        out = np.full((len(column), max(shown.max(initial=0), page), width), np.nan, dtype=np.float32)
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        if not np.isfinite(values).all():
            row = int(np.repeat(np.arange(len(column)), shown)[np.argmin(np.isfinite(values).all(axis=1))])
            raise DataError(f"{path}: request {requests[row]}: {name} holds a value not a number")
        out[np.arange(out.shape[1]) < shown[:, None]] = values
        return out

    def items() -> dict[str, np.ndarray]:
        """The optional columns that are needed."""
        found: dict[str, np.ndarray] = {}
        if "watch_reward" in columns:
            found["watch_reward"] = plain("watch_reward", np.float64)
        if "item_rewards" in columns:
            found["item_rewards"] = pages("item_rewards", 1)[..., 0]
        if "item_scores" in columns:
            scores = pages("item_scores", len(settings.heads))
            if not np.array_equal(np.isnan(scores[..., 0]), np.isnan(found["item_rewards"])):
                raise DataError(f"{path}: item_scores and item_rewards are of different numbers of items")
            found["item_scores"] = np.nan_to_num(scores)
        return found

    has_next = pc.is_valid(table["next_state"])
    done = plain("done", bool)
    truncated = plain("truncated", bool)
    lost = ~done & ~truncated & ~has_next.to_numpy(zero_copy_only=False)
    if lost.any():
        raise DataError(
            f"{path}: request {requests[np.argmax(lost)]}: no next_state, and neither done nor truncated"
        )
    width, heads = settings.state_spec.width, len(settings.heads)
    action = vectors("action", heads, current)
    if np.abs(action).max(initial=0.0) > 1.0 + 1e-6:
        row = int(np.argmax(np.abs(action).max(axis=1)))
        raise DataError(f"{path}: request {requests[row]}: action {action[row]} lies outside [-1, 1]")
    rewards = plain("reward", np.float64)
    if not np.isfinite(rewards).all():
        raise DataError(
            f"{path}: request {requests[np.argmin(np.isfinite(rewards))]}: reward is not a number"
        )
    return {
        "request_id": requests,
        "session_id": plain("session_id", object),
        "user_id": plain("user_id", np.int64),
        "event_ts": table["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        "step": plain("step", np.int64),
        "arm": plain("arm", object),
        "state": vectors("state", width, current),
        "action": action,
        "action_mean": vectors("action_mean", heads, current),
        "log_density": plain("log_density", np.float64, float("nan")),
        "reward": rewards,
        "next_state": vectors("next_state", width, pc.and_(current, has_next)),
        "has_next": has_next.to_numpy(zero_copy_only=False).astype(bool),
        "done": done,
        "truncated": truncated,
        "next_request_id": plain("next_request_id", object, ""),
        "state_spec": plain("state_spec", object),
        **items(),
    }


class _Digest:
    """Of the content of a day's export, in the order of its rows, however it is cut into parts."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def update(self, part: Mapping[str, np.ndarray]) -> None:
        if "item_rewards" in part:  # a page is as wide as the window's widest; only what was shown counts
            shown = np.isfinite(part["item_rewards"])
            items = {name: part[name][shown] for name in ("item_scores", "item_rewards") if name in part}
            part = {**part, **items, "shown": shown.sum(axis=1)}
        for name, column in part.items():
            digest = self._columns.setdefault(name, hashlib.sha256())
            is_text = column.dtype.kind == "O"
            digest.update("".join(f"{text}\0" for text in column).encode() if is_text else column)

    def hexdigest(self) -> str:
        columns = "\n".join(f"{name} {digest.hexdigest()}" for name, digest in sorted(self._columns.items()))
        return hashlib.sha256(columns.encode()).hexdigest()


def _last_sessions(sessions: np.ndarray, share: float) -> np.ndarray:
    """bool[N]: rows of the fewest last sessions that hold at least ``share`` of the rows."""
    rows_from_end = np.cumsum(np.bincount(sessions)[::-1])
    count = int(np.searchsorted(rows_from_end, share * len(sessions))) + 1
    return sessions > sessions.max() - count


def _mixed_exploration(
    sessions: np.ndarray, arms: np.ndarray, arm_names: Sequence[str], name: Callable[[int], str], seed: int
) -> tuple[np.ndarray, list[str]]:
    """bool[N]: rows of as many random as noise trajectories (method §3), and what a person should know of it.

    ``sessions`` int64[N] and ``arms`` int64[N] are of the rows, ``name`` gives a session's. The larger group
    is thinned by a hash of the session, so that a rerun takes the same ones. With one group empty the other
    is used alone; with both empty, every arm.
    """
    numbers, first = np.unique(sessions, return_index=True)
    arm_of = np.array(arm_names)[arms[first]]
    groups = {arm: numbers[arm_of == arm] for arm in MIXED_ARMS}
    present = {arm: group for arm, group in groups.items() if len(group)}
    if not present:
        found = dict(sorted(Counter(arm_of.tolist()).items()))
        return np.ones(len(sessions), dtype=bool), [
            f"no session of the random or the noise group: all arms are trained on ({found})"
        ]
    warnings = []
    if len(present) == 1:
        (only,) = present
        (empty,) = set(MIXED_ARMS) - {only}
        warnings = [f"no session of the {empty} group: trained on the {only} group alone"]
    count = min(len(group) for group in present.values())

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{seed}/{name(number)}".encode()).digest()

    chosen = [number for group in present.values() for number in sorted(group, key=rank)[:count]]
    return np.isin(sessions, chosen), warnings

"""The window's requests, read from its exports a row group at a time: no more is in memory at once.

Consecutive days are a :class:`Share`, of :data:`LEAST` requests or more, read from its last row group to its
first (:mod:`training.trajectories.to_go`). What sessions return that go on in the next share is found first:
each share is read with nothing ahead, and says what its open sessions return and by which power of γ what
follows them counts; from the last share to the first that gives what is ahead of each. After that shares are
read in any order, by any process that sees the files.

Rows are the usable ones, as :func:`training.trajectories.load` tells them, which has also checked the files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.contract.errors import DataError, MtfError
from training.contract.settings import Settings
from training.contract.sums import AddUp, S
from training.trajectories.export import file_identity, hashed, read, readable, user_keys, window_paths
from training.trajectories.requests import Counts, Requests, Targets, Work
from training.trajectories.to_go import Ahead, Backwards

LEAST = 500_000  # requests of a share; fewer are not worth a sum of their own
_KEPT = 250_000  # requests of a window that stay in memory, about 100 MB
_KEYS = ("session_id", "user_id", "event_ts", "step", "done", "truncated", "state_spec")
_REQUEST = ["state", "action", "log_density", "exploration_unit"]
_DAY_MINUTES = 24 * 60
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Share:
    """Consecutive days of a window; after :class:`WindowLog` has looked at all, with what is ahead of it."""

    settings: Settings
    number: int
    files: tuple[tuple[Path, tuple[int, int, int]], ...]  # with their identity, ascending by day
    rows: int
    ahead: Ahead | None = None
    sessions_until: int = 0  # that begin in the log up to the end of this share

    def requests(self, of: Targets) -> Iterator[Requests]:
        """All usable ones, in parts, from the last one back. Raises :class:`MtfError` when a file is replaced
        meanwhile, :class:`DataError` where one is not as :func:`training.trajectories.load` takes it."""
        assert self.ahead is not None
        backwards, begun = Backwards(of.gamma, self.ahead, np.zeros(1 + of.parts)), self.sessions_until
        for part in self._read(of, backwards, _REQUEST):
            begun -= int(part.first.sum())
            table = part.table
            if len(part.rows) < len(table):
                table = table.select(_REQUEST).take(part.rows)
            drawn = pc.fill_null(table["log_density"].cast(pa.float64()), float("nan")).to_numpy()
            held = pc.fill_null(pc.equal(table["exploration_unit"].cast(pa.string()), "session"), False)
            yield Requests(
                _vectors(part.path, table, "state", self.settings.state_spec.width),
                _vectors(part.path, table, "action", len(self.settings.heads)),
                part.users,
                part.first,
                np.isfinite(drawn) & ~_flags(held),
                part.to_go,
                begun,
            )

    def look(self, of: Targets) -> "Looks":
        # beside the rewards a target of none, before which a return of 1 comes: the power of γ
        backwards = Backwards(of.gamma, Ahead.nothing(2 + of.parts), np.append(np.zeros(1 + of.parts), 1.0))
        counts = Counts(0, 0)
        for part in self._read(of, backwards, []):
            counts += Counts(len(part.rows), int(part.first.sum()))
        return Looks((Look(self.number, counts, backwards.ahead),))

    def _read(self, of: Targets, backwards: Backwards, more: list[str]) -> Iterator["_Part"]:
        columns = [*_KEYS, "reward", *(["watch_reward"] if of.parts else []), *more]
        for path, identity in reversed(self.files):
            limits = _UserLimit(self.settings, path)
            with readable(path), pq.ParquetFile(path, pre_buffer=False) as file:
                groups = [[i] for i in range(file.num_row_groups)]
                if not _one_after_another(file.metadata):
                    groups = [[i for (i,) in groups]]
                for group in reversed(groups):
                    # shares are read at the same time
                    table = file.read_row_groups(group, columns=columns, use_threads=False)
                    if len(table):
                        yield self._part(path, _in_order(table, file, group), backwards, limits)
            if file_identity(path) != identity:
                raise MtfError(f"{path} was written again while it was read: run this again")

    def _part(self, path: Path, table: pa.Table, backwards: Backwards, limits: "_UserLimit") -> "_Part":
        settings = self.settings
        is_current = _flags(pc.equal(table["state_spec"], settings.state_spec.version))
        users, steps = _users(settings, path, table), table["step"].to_numpy().astype(np.int64)
        done = _flags(table["done"])
        usable = is_current & (done | ~_flags(table["truncated"]))
        usable &= (steps < settings.learner.max_session_requests) & limits.within(users)
        rewards = np.zeros((len(backwards.ahead.to_go), len(table)))
        for target, name in zip(rewards, ("reward", "watch_reward"), strict=False):
            if name in table.column_names:
                target[:] = table[name].to_numpy().astype(np.float32)  # as the learners' are
        # a session's id need not be another user's
        keys = hashed(table["session_id"]) ^ (users.astype(np.uint64) * _ODD)
        try:
            kept = backwards.part(keys, steps, rewards, usable, is_current, done)
        except DataError as error:
            raise DataError(f"{path}: {error}; transform that day again") from None
        return _Part(path, table, kept.rows, users[kept.rows], steps[kept.rows] == 0, kept.to_go)


class _Part(NamedTuple):
    """A row group of a file; of its usable ``rows`` who asked, and as of :class:`Requests`."""

    path: Path
    table: pa.Table  # of all rows
    rows: np.ndarray
    users: np.ndarray
    first: np.ndarray
    to_go: np.ndarray


@dataclass(frozen=True)
class Look:
    """What a share says of itself: its counts, and the sessions that come into it, with what they return
    here and in the last of ``opening.to_go`` the power of γ that what follows counts by."""

    number: int
    counts: Counts
    opening: Ahead


@dataclass(frozen=True)
class Looks:
    of: tuple[Look, ...]

    def __add__(self, other: "Looks") -> "Looks":
        return Looks((*self.of, *other.of))


class WindowLog:
    """The log of the window of days that ends with ``day``, whose sums ``add_up`` takes.

    A window of one small share is read once, and stays in memory. Raises :class:`DataError` when the day has
    no export.
    """

    def __init__(self, settings: Settings, day: date, add_up: AddUp, least: int = LEAST) -> None:
        self._add_up, self._width = add_up, settings.state_spec.width
        self._shares = _shares(settings, window_paths(settings, day), least)
        self._of: Targets | None = None
        self._counts: Counts | None = None
        self._kept: list[Requests] | None = None

    def width(self) -> int:
        return self._width

    def counts(self, of: Targets) -> Counts:
        self._look(of)
        assert self._counts is not None
        return self._counts

    def total(self, of: Targets, work: Work[S]) -> S:
        self._look(of)
        if self._kept is not None:
            return work(self._kept)
        return self._add_up(partial(_of_share, work, of), self._shares)

    def _look(self, of: Targets) -> None:
        """Find what is ahead of each share; with another γ or other targets, again."""
        if of == self._of:
            return
        self._of = of
        if len(self._shares) == 1 and self._shares[0].rows <= _KEPT:
            whole = replace(self._shares[0], ahead=Ahead.nothing(1 + of.parts))
            kept = list(whole.requests(of))
            self._counts = Counts(
                sum(len(part.users) for part in kept), sum(int(part.first.sum()) for part in kept)
            )
            begin = self._counts.sessions  # they were counted from 0 down
            self._kept = [replace(part, sessions_before=part.sessions_before + begin) for part in kept]
            return
        first = [replace(share, ahead=None, sessions_until=0) for share in self._shares]
        looks = sorted(self._add_up(partial(_look_at, of), first).of, key=lambda look: look.number)
        ahead, shares = Ahead.nothing(1 + of.parts), []
        sessions = np.cumsum([look.counts.sessions for look in looks])
        for look, share, until in reversed(list(zip(looks, first, sessions.tolist(), strict=True))):
            shares.append(replace(share, ahead=ahead, sessions_until=until))
            ahead = _before(look.opening, ahead)
        counts = looks[0].counts
        for look in looks[1:]:
            counts += look.counts
        self._counts, self._shares = counts, shares[::-1]


def _of_share(work: Work[S], of: Targets, share: Share) -> S:
    return work(share.requests(of))


def _look_at(of: Targets, share: Share) -> Looks:
    return share.look(of)


def _before(opening: Ahead, ahead: Ahead) -> Ahead:
    """What is ahead of what lies before a share, given what is ahead of the share itself. A session without a
    request in the share is none of it: the idle gap has ended it."""
    at, goes_on = ahead.find(opening.keys)
    to_go, power = opening.to_go[:-1].copy(), opening.to_go[-1]
    to_go[:, goes_on] += power[goes_on] * ahead.to_go[:, at[goes_on]]
    return opening._replace(to_go=to_go)


def _shares(settings: Settings, paths: Mapping[date, Path], least: int) -> list[Share]:
    """One share where a row's session may tell more of it than what is ahead does: where its next request is
    of another state specification, or may be more than a day later."""
    files, rows, mixed = [], [], settings.session.gap_minutes >= _DAY_MINUTES
    for path in paths.values():
        with readable(path):
            metadata = pq.read_metadata(path)
        mixed = mixed or not _is_of(metadata, settings.state_spec.version)
        files.append((path, file_identity(path)))
        rows.append(metadata.num_rows)
    groups: list[list[int]] = [[]]
    for place in range(len(files)):
        if not mixed and sum(rows[i] for i in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(place)
    return [
        Share(settings, number, tuple(files[i] for i in group), sum(rows[i] for i in group))
        for number, group in enumerate(groups)
    ]


def _statistics(metadata: pq.FileMetaData, column: str) -> Iterator[tuple[Any, Any] | None]:
    """Of each row group the least and the largest value, where the file says so."""
    place = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group).column(place).statistics
        yield (found.min, found.max) if found is not None and found.has_min_max else None


def _is_of(metadata: pq.FileMetaData, version: str) -> bool:
    """Whether all rows are known to be of a state specification."""
    return all(found == (version, version) for found in _statistics(metadata, "state_spec"))


def _one_after_another(metadata: pq.FileMetaData) -> bool:
    """Whether each row group is known to begin when the one before has ended, as the transform writes it."""
    found = list(_statistics(metadata, "event_ts"))
    known = [both for both in found if both is not None]
    return len(known) == len(found) and all(a[1] <= b[0] for a, b in pairwise(known))


def _in_order(table: pa.Table, file: pq.ParquetFile, groups: list[int]) -> pa.Table:
    """By (event_ts, request_id)."""
    stamps = table["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    if (np.diff(stamps) > 0).all():
        return table
    keys = file.read_row_groups(groups, columns=["request_id"]).append_column("ts", pa.array(stamps))
    order = pc.sort_indices(keys, [("ts", "ascending"), ("request_id", "ascending")])
    order = order.to_numpy().astype(np.int64)  # unsigned ones have no descent
    return table if (np.diff(order) > 0).all() else table.take(order)


class _UserLimit:
    """``learner.max_user_requests`` of a day's file whose parts come from the last one back."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self._most, self._left = settings.learner.max_user_requests, dict[int, int]()
        if pq.read_metadata(path).num_rows > self._most:
            users = pa.array(_users(settings, path, read(path, ["user_id"])))
            counted = pc.value_counts(users)
            many = counted.filter(pc.greater(counted.field("counts"), self._most))
            self._left = {one["values"]: one["counts"] for one in many.to_pylist()}

    def within(self, users: np.ndarray) -> np.ndarray:
        """bool[n] of the part before the last one."""
        found = np.ones(len(users), dtype=bool)
        for user in self._left:
            own = np.flatnonzero(users == user)
            self._left[user] -= len(own)
            found[own] = self._left[user] + np.arange(len(own)) < self._most
        return found


def _flags(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(bool)


def _users(settings: Settings, path: Path, table: pa.Table) -> np.ndarray:
    if settings.ids.kept("user_id") == "string":
        return user_keys(path, table)
    return table["user_id"].to_numpy().astype(np.int64)


def _vectors(path: Path, table: pa.Table, name: str, width: int) -> np.ndarray:
    """float32[n, width]"""
    values = table[name].cast(pa.list_(pa.float32())).combine_chunks().flatten().to_numpy()
    if len(values) != len(table) * width or not np.isfinite(values.sum()):
        raise DataError(f"{path}: {name} is not {width} numbers in every row")
    return values.reshape(-1, width)

"""Read the window of days that ends with one: its keys say which rows go where, its parts fill the splits."""

import hashlib
from collections.abc import Collection, Mapping
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from training.contract.errors import DataError, MtfError
from training.contract.settings import Settings
from training.contract.transitions import MART, OF_EVERY_LEARNER
from training.trajectories.columns import OPTIONAL, row_bytes, row_kinds
from training.trajectories.export import (
    checked,
    file_identity,
    largest_page,
    parts,
    refuse_missing,
    window_paths,
)
from training.trajectories.keys import Keys
from training.trajectories.mapped import SplitColumns, Storage
from training.trajectories.split import last_sessions, mixed_exploration
from training.trajectories.transitions import Trajectories


def load(settings: Settings, day: date, needs: Collection[str] = (), *, every: bool = False) -> Trajectories:
    """Read the window of ``learner.window_days`` days that ends with ``day``.

    ``needs`` names the optional tensors of :class:`Transitions` (keys of :data:`OPTIONAL`) to read, too;
    ``every`` asks for all usable rows of all arms beside the splits, without the replay's limit.
    Rows of another state specification are left out, and so are truncated ones (nothing is known of
    their s') and what one user or session has beyond the settings' limits. Raises :class:`DataError` when
    the day has no export, when nothing usable is left, or naming file and request of a row whose state or
    action does not fit the settings; :class:`MtfError` when a file is replaced meanwhile, or the disk has no
    room.

    The window is read twice: its keys, which say which rows go where, then everything in parts, which are
    checked and put in their places. Memory holds the keys, one part and the set; above
    ``learner.map_above_bytes`` the set is in mapped files instead, with the same values.
    """
    paths = window_paths(settings, day)
    columns = [*OF_EVERY_LEARNER, *sorted({column for name in needs for column in OPTIONAL[name]})]
    for path in paths.values():
        refuse_missing(settings, path, columns)
    version = settings.state_spec.version
    files = {path: file_identity(path) for path in paths.values()}
    keys = Keys(list(paths.values()), version)

    followed_by_other = (keys.following >= 0) & ~keys.current[keys.following] & ~keys.done
    ended = keys.truncated & ~keys.done
    left_out = {
        "other_state_spec": int((~keys.current).sum()),
        "truncated": int((keys.current & ended).sum()),
        "next_of_other_state_spec": int((keys.current & ~ended & followed_by_other).sum()),
    }
    usable = np.flatnonzero(keys.current & ~ended & ~followed_by_other)
    usable, capped, warnings = _capped(settings, keys, usable)
    left_out |= capped
    if not len(usable):
        raise DataError(
            f"no usable transition of state specification {version} from {min(paths)} to {day} below "
            f"{settings.layout.mart(MART)} (left out: {left_out})"
        )
    # numbered by their start
    numbered = pa.array(keys.sessions[usable]).dictionary_encode()
    sessions, session_keys = numbered.indices.to_numpy().astype(np.int64), numbered.dictionary.to_numpy()
    arms = keys.arms[usable]

    in_test = last_sessions(sessions, settings.evaluation.test_share)
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    if settings.learner.mixed_exploration:
        mixed, more = mixed_exploration(
            sessions[train],
            arms[train],
            keys.arm_names,
            lambda session: keys.session_name(session_keys[session]),
            settings.seed,
        )
        train = train[mixed]
        warnings += more
    left_out["not_mixed_exploration"] = int((~in_test).sum()) - len(train)
    capacity = settings.learner.replay_capacity
    left_out["over_replay_capacity"] = max(0, len(train) - capacity)
    if len(train) == 0:
        raise DataError(f"all transitions from {min(paths)} to {day} are in the test split: too few sessions")

    page = largest_page(paths.values(), version) if "item_rewards" in columns else 0
    kinds = row_kinds(settings, columns, page)
    kept = [rows[-capacity:] for rows in (train, test)]
    kept += [np.arange(len(usable))] if every else []
    size = sum(map(len, kept)) * sum(row_bytes(shape, kind) for shape, kind in kinds.values())
    storage = Storage(settings.layout.root if size > settings.learner.map_above_bytes else None)
    splits = [SplitColumns(usable[rows], sessions[rows], arms[rows], keys, kinds, storage) for rows in kept]
    partitions: dict[str, dict[str, int | str]] = {}
    for (d, path), places in zip(paths.items(), keys.places, strict=True):
        digest = _Digest()
        for at, table in parts(path, columns, places):
            part = checked(settings, path, table, columns, page)
            digest.update(part)
            for split in splits:
                split.fill(at, part)
            storage.release()
        if file_identity(path) != files[path]:
            raise MtfError(f"{path} was written again while it was read: run this again")
        partitions[d.isoformat()] = {"rows": len(places), "sha256": digest.hexdigest()}
    return Trajectories(
        train=splits[0].transitions(),
        test=splits[1].transitions(),
        every=splits[2].transitions() if every else None,
        state_spec=version,
        partitions=partitions,
        left_out=left_out,
        warnings=tuple(warnings),
    )


def _capped(
    settings: Settings, keys: Keys, usable: np.ndarray
) -> tuple[np.ndarray, dict[str, int], list[str]]:
    """The rows that are within ``learner.max_session_requests`` and ``max_user_requests``; counts of the
    others, and what a person should know of them. Which they are does not depend on the window's other rows.
    """
    learner = settings.learner
    of_session = keys.steps[usable] >= learner.max_session_requests
    of_user = ~of_session & (keys.requests_before[usable] >= learner.max_user_requests)
    counts, warnings = {}, []
    for name, of_whom, over, groups in (
        ("max_session_requests", "sessions", of_session, keys.sessions),
        ("max_user_requests", "users", of_user, keys.users),
    ):
        rows = usable[over]
        counts[f"over_{name}"] = len(rows)
        if len(rows):
            warnings.append(
                f"{len(np.unique(groups[rows])):,} {of_whom} with more than learner.{name}, "
                f"{getattr(learner, name):,}: {len(rows):,} of their requests are not learnt from"
            )
    return usable[~(of_session | of_user)], counts, warnings


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

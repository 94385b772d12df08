"""A day's export: read in parts, and checked against the settings."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.settings import Settings
from training.contract.transitions import MART, OF_EVERY_LEARNER

PART_ROWS = 32_768  # rows that are read at once


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable export of {MART}: {error}") from error


def read(path: Path, columns: list[str]) -> pa.Table:
    with readable(path):
        # partitioning=None: the folder's dt= is also a column of the file
        return pq.read_table(path, columns=columns, partitioning=None)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    # otherwise all row groups would be read before the first batch comes
    with readable(path), pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(PART_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def parts(path: Path, columns: list[str], places: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """A file's rows in the order of their places, in parts: ascending places, and the rows there."""
    if (np.diff(places) > 0).all():  # as the transform writes it
        tables = _batches(path, columns)
    else:
        whole = read(path, columns).take(np.argsort(places)).combine_chunks()
        places = np.sort(places)
        tables = (whole.slice(at, PART_ROWS) for at in range(0, len(whole), PART_ROWS))
    at = 0
    for table in tables:
        yield places[at : at + len(table)], table
        at += len(table)


def window_paths(settings: Settings, day: date) -> dict[date, Path]:
    """The exports of the ``learner.window_days`` days that end with ``day``, by day: those that there are.

    Raises :class:`DataError` where ``day`` has none.
    """
    window = [day - timedelta(days=back) for back in range(settings.learner.window_days - 1, -1, -1)]
    paths = {d: settings.layout.mart(MART) / f"dt={d.isoformat()}" / "part-0.parquet" for d in window}
    if not paths[day].is_file():
        raise DataError(
            f"no transitions of {day}: {paths[day]} does not exist; run the transform of that day"
        )
    return {d: path for d, path in paths.items() if path.is_file()}


def file_identity(path: Path) -> tuple[int, int, int]:
    """Tells a file from one that took its place."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def largest_page(paths: Iterable[Path], version: str) -> int:
    """The most items that a request of the window showed, at least 1."""
    page = 1
    for path in paths:
        for table in _batches(path, ["item_rewards", "state_spec"]):
            shown = table.filter(pc.equal(table["state_spec"], version))["item_rewards"]
            page = max(page, pc.max(pc.list_value_length(shown)).as_py() or 0)
    return page


def refuse_missing(settings: Settings, path: Path, columns: list[str]) -> None:
    with readable(path):
        present = pq.read_schema(path).names
    missing = next((name for name in columns if name not in present), None)
    if missing:
        learner = f", which one of {', '.join(settings.learner.algorithms)} learns from"
        who = "" if missing in OF_EVERY_LEARNER else learner
        raise DataError(
            f"{path} lacks the column {missing} of {MART}{who}: it was written by an older version; "
            "transform that day again"
        )


def refuse_null(path: Path, table: pa.Table, name: str) -> None:
    if table[name].null_count:
        row = int(np.argmax(table[name].is_null().to_numpy()))
        requests = table if "request_id" in table.column_names else read(path, ["request_id"])
        raise DataError(f"{path}: request {requests['request_id'][row]}: {name} is null")


def checked(
    settings: Settings, path: Path, table: pa.Table, columns: Collection[str], page: int
) -> dict[str, np.ndarray]:
    """A part of a day's export as numpy columns, checked; those of items are ``page`` wide."""
    # rows of another specification are left out by load; their state has another width
    current = pc.equal(table["state_spec"], settings.state_spec.version)
    requests = table["request_id"].to_numpy(zero_copy_only=False)
    text = settings.ids.kept("user_id") == "string"

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
            refuse_null(path, table, name)
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
        "user_id": user_keys(path, table) if text else plain("user_id", np.int64),
        "event_ts": table["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        "step": plain("step", np.int64),
        "arm": plain("arm", object),
        "state": vectors("state", width, current),
        "action": action,
        "action_mean": vectors("action_mean", heads, current),
        "log_density": plain("log_density", np.float64, float("nan")),
        "exploration_unit": plain("exploration_unit", object, "") == "session",
        "reward": rewards,
        "next_state": vectors("next_state", width, pc.and_(current, has_next)),
        "has_next": has_next.to_numpy(zero_copy_only=False).astype(bool),
        "done": done,
        "truncated": truncated,
        "next_request_id": plain("next_request_id", object, ""),
        "state_spec": plain("state_spec", object),
        **items(),
    }


def user_keys(path: Path, table: pa.Table) -> np.ndarray:
    """int64[n] of users whose ids are text: the same key for the same id in any window, on any machine."""
    refuse_null(path, table, "user_id")
    return hashed(table["user_id"]).view(np.int64)


def hashed(column: pa.ChunkedArray) -> np.ndarray:
    """uint64[n], the same for the same text, on any machine."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    known = pd.util.hash_array(encoded.dictionary.to_numpy(zero_copy_only=False).astype(object))
    return known[encoded.indices.to_numpy()]

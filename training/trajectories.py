"""Trajectories: exported transitions of the last days as tensors, split by time, for learner and judge.

The test split is the last sessions by their start, of *every* arm: the estimators need the actions of
the policies that they judge, wherever these were served. The training split follows the paper's mixed
exploration rule (equal numbers of trajectories of the random and of the noise group) and is cut to the
newest ``learner.replay_capacity`` transitions, as a FIFO replay buffer would hold.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from training.contract.errors import DataError
from training.contract.settings import Settings

MART = "fct_transitions"
EXPLORATION_ARMS = ("random", "noise")
COLUMNS = (
    "request_id",
    "session_id",
    "user_id",
    "event_ts",
    "step",
    "arm",
    "state",
    "action",
    "action_mean",
    "log_density",
    "reward",
    "next_state",
    "done",
    "truncated",
    "next_request_id",
    "state_spec",
)
# columns of the export behind what only some learners read
OPTIONAL = {
    "watch_rewards": ("watch_reward",),
    "item_scores": ("item_scores", "item_rewards"),
    "item_rewards": ("item_rewards",),
}


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
                digest.update(
                    column.numpy().tobytes() if isinstance(column, Tensor) else repr(column).encode()
                )
        return digest.hexdigest()


def load(settings: Settings, day: date, needs: Collection[str] = ()) -> Trajectories:
    """Read the window of ``learner.window_days`` days that ends with ``day``.

    ``needs`` names the optional tensors of :class:`Transitions` (keys of :data:`OPTIONAL`) to read, too.
    Rows of another state specification are left out, and so are truncated ones (nothing is known of
    their s'). Raises :class:`DataError` when the day has no export, when nothing usable is left, or
    naming file and request of a row whose state or action does not fit the settings.
    """
    window = [day - timedelta(days=back) for back in range(settings.learner.window_days - 1, -1, -1)]
    paths = {d: settings.layout.mart(MART) / f"dt={d.isoformat()}" / "part-0.parquet" for d in window}
    if not paths[day].is_file():
        raise DataError(
            f"no transitions of {day}: {paths[day]} does not exist; run the transform of that day"
        )
    days = {d: _read_day(settings, path, needs) for d, path in paths.items() if path.is_file()}
    names = list(next(iter(days.values())))
    page = max(d["item_rewards"].shape[1] for d in days.values()) if "item_rewards" in names else 0
    rows = {name: np.concatenate([_widened(d, name, page) for d in days.values()]) for name in names}
    # one order whatever the files' own: a rerun of the transform must not change the policy
    order = np.lexsort((rows["request_id"], rows["event_ts"]))
    rows = {name: column[order] for name, column in rows.items()}

    version = settings.state_spec.version
    known = {r: i for i, r in enumerate(rows["request_id"])}
    following = np.array([known.get(r, -1) for r in rows["next_request_id"]], dtype=np.int64)
    current = rows["state_spec"] == version
    followed_by_other = (following >= 0) & ~current[following] & ~rows["done"]
    ended = rows["truncated"] & ~rows["has_next"] & ~rows["done"]
    left_out = {
        "other_state_spec": int((~current).sum()),
        "truncated": int((current & ended).sum()),
        "next_of_other_state_spec": int((current & ~ended & followed_by_other).sum()),
    }
    for name in ("action", "action_mean"):
        at_next = np.where((following >= 0)[:, None], rows[name][following], rows[name])
        rows[f"next_{name}"] = np.where(rows["done"][:, None], 0.0, at_next)
    keep = current & ~ended & ~followed_by_other
    rows = {name: column[keep] for name, column in rows.items()}
    if not keep.any():
        raise DataError(
            f"no usable transition of state specification {version} from {window[0]} to {day} below "
            f"{settings.layout.mart(MART)} (left out: {left_out})"
        )

    everything, session_names = _to_transitions(rows)
    test_rows = _last_sessions(everything.sessions.numpy(), settings.evaluation.test_share)
    train_rows, warnings = np.flatnonzero(~test_rows), []
    if settings.learner.mixed_exploration:
        train_rows, warnings = _mixed_exploration(everything, train_rows, session_names, settings.seed)
    left_out["not_mixed_exploration"] = int((~test_rows).sum()) - len(train_rows)
    capacity = settings.learner.replay_capacity
    left_out["over_replay_capacity"] = max(0, len(train_rows) - capacity)
    if len(train_rows) == 0:
        raise DataError(f"all transitions from {window[0]} to {day} are in the test split: too few sessions")
    return Trajectories(
        train=everything.take(torch.from_numpy(train_rows[-capacity:])),
        test=everything.take(torch.from_numpy(np.flatnonzero(test_rows)[-capacity:])),
        state_spec=version,
        partitions={d.isoformat(): _describe(columns) for d, columns in days.items()},
        left_out=left_out,
        warnings=tuple(warnings),
    )


def _widened(columns: dict[str, np.ndarray], name: str, page: int) -> np.ndarray:
    """A day's column; those of the items padded to the longest page of all days."""
    column = columns[name]
    if name not in ("item_scores", "item_rewards"):
        return column
    padding = [(0, 0), (0, page - column.shape[1])] + [(0, 0)] * (column.ndim - 2)
    return np.pad(column, padding, constant_values=np.nan if name == "item_rewards" else 0.0)


def _read_day(settings: Settings, path: Path, needs: Collection[str]) -> dict[str, np.ndarray]:
    """One day's export as numpy columns, checked, sorted by (event_ts, request_id)."""
    more = sorted({column for name in needs for column in OPTIONAL[name]})
    try:
        present = pq.read_schema(path).names
        missing = [name for name in COLUMNS if name not in present]
        if missing:
            raise DataError(f"{path} lacks the column {missing[0]} of {MART}")
        missing = [name for name in more if name not in present]
        if missing:
            raise DataError(
                f"{path} lacks the column {missing[0]} of {MART}, which learner.algorithm "
                f"{settings.learner.algorithm} learns from: it was written by an older version; transform "
                "that day again"
            )
        # partitioning=None: the folder's dt= is also a column of the file
        table = pq.read_table(path, columns=[*COLUMNS, *more], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable export of {MART}: {error}") from error
    table = table.sort_by([("event_ts", "ascending"), ("request_id", "ascending")]).combine_chunks()
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
        column = table[name] if default is None else pc.fill_null(table[name], default)
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"{path}: request {requests[row]}: {name} is null")
        return column.to_numpy(zero_copy_only=False).astype(kind)

    def pages(name: str, width: int) -> np.ndarray:
        """A list column of the shown items' values as float32[n, page, width]; NaN beyond the shown ones."""
        column = table[name].combine_chunks().cast(pa.list_(pa.float32()))
        column = pc.if_else(current.combine_chunks(), column, pa.scalar(None, column.type))
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if (lengths % width).any():
            row = int(np.argmax(lengths % width))
            raise DataError(
                f"{path}: request {requests[row]}: {name} has {lengths[row]} entries, expected {width} each"
            )
        shown = lengths // width
        out = np.full((len(column), max(shown.max(initial=0), 1), width), np.nan, dtype=np.float32)
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        if not np.isfinite(values).all():
            row = int(np.repeat(np.arange(len(column)), shown)[np.argmin(np.isfinite(values).all(axis=1))])
            raise DataError(f"{path}: request {requests[row]}: {name} holds a value not a number")
        out[np.arange(out.shape[1]) < shown[:, None]] = values
        return out

    def items() -> dict[str, np.ndarray]:
        """The optional columns that are needed."""
        found: dict[str, np.ndarray] = {}
        if "watch_reward" in more:
            found["watch_reward"] = plain("watch_reward", np.float64)
        if "item_rewards" in more:
            found["item_rewards"] = pages("item_rewards", 1)[..., 0]
        if "item_scores" in more:
            scores = pages("item_scores", len(settings.heads))
            if (np.isnan(scores[..., 0]) != np.isnan(found["item_rewards"])).any():
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
        "request_id": requests.astype(str),
        "session": np.char.add(
            np.char.add(plain("user_id", np.int64).astype(str), "/"), plain("session_id", str)
        ),
        "event_ts": table["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        "step": plain("step", np.int64),
        "arm": plain("arm", str),
        "state": vectors("state", width, current),
        "action": action,
        "action_mean": vectors("action_mean", heads, current),
        "log_density": plain("log_density", np.float64, float("nan")),
        "reward": rewards,
        "next_state": vectors("next_state", width, pc.and_(current, has_next)),
        "has_next": has_next.to_numpy(zero_copy_only=False).astype(bool),
        "done": done,
        "truncated": truncated,
        "next_request_id": plain("next_request_id", str, ""),
        "state_spec": plain("state_spec", str),
        **items(),
    }


def _describe(columns: dict[str, np.ndarray]) -> dict[str, int | str]:
    digest = hashlib.sha256()
    for name in sorted(columns):
        column = columns[name]
        digest.update(name.encode())
        digest.update("\0".join(column).encode() if column.dtype.kind == "U" else column.tobytes())
    return {"rows": len(columns["request_id"]), "sha256": digest.hexdigest()}


def _to_transitions(rows: dict[str, np.ndarray]) -> tuple[Transitions, np.ndarray]:
    """Tensors, and the name of each session by its number (sessions are numbered by their start)."""
    names, first, codes = np.unique(rows["session"], return_index=True, return_inverse=True)
    by_start = np.argsort(first, kind="stable")
    number = np.empty_like(by_start)
    number[by_start] = np.arange(len(by_start))
    arm_names, arms = np.unique(rows["arm"], return_inverse=True)

    def optional(name: str) -> Tensor | None:
        return torch.from_numpy(rows[name].astype(np.float32)) if name in rows else None

    transitions = Transitions(
        states=torch.from_numpy(rows["state"]),
        actions=torch.from_numpy(rows["action"]),
        rewards=torch.from_numpy(rows["reward"].astype(np.float32)),
        next_states=torch.from_numpy(rows["next_state"]),
        next_actions=torch.from_numpy(rows["next_action"].astype(np.float32)),
        dones=torch.from_numpy(rows["done"].astype(np.float32)),
        action_means=torch.from_numpy(rows["action_mean"]),
        log_densities=torch.from_numpy(rows["log_density"]),
        sessions=torch.from_numpy(number[codes]),
        steps=torch.from_numpy(rows["step"]),
        arms=torch.from_numpy(arms),
        arm_names=tuple(str(name) for name in arm_names),
        next_action_means=torch.from_numpy(rows["next_action_mean"].astype(np.float32)),
        watch_rewards=optional("watch_reward"),
        item_scores=optional("item_scores"),
        item_rewards=optional("item_rewards"),
    )
    return transitions, names[by_start]


def _last_sessions(sessions: np.ndarray, share: float) -> np.ndarray:
    """bool[N]: rows of the fewest last sessions that hold at least ``share`` of the rows."""
    rows_from_end = np.cumsum(np.bincount(sessions)[::-1])
    count = int(np.searchsorted(rows_from_end, share * len(sessions))) + 1
    return sessions > sessions.max() - count


def _mixed_exploration(
    data: Transitions, rows: np.ndarray, session_names: np.ndarray, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Rows of as many random as noise trajectories (method §3), and what a person should know of it.

    The larger group is thinned by a hash of the session, so that a rerun takes the same ones. With
    one group empty the other is used alone; with both empty, every arm.
    """
    sessions = data.sessions.numpy()[rows]
    arms = np.array(data.arm_names)[data.arms.numpy()[rows]]
    numbers, first = np.unique(sessions, return_index=True)
    groups = {arm: numbers[arms[first] == arm] for arm in EXPLORATION_ARMS}
    present = {arm: group for arm, group in groups.items() if len(group)}
    if not present:
        found = dict(sorted(Counter(arms[first].tolist()).items()))
        return rows, [f"no session of the random or the noise group: all arms are trained on ({found})"]
    warnings = []
    if len(present) == 1:
        (only,) = present
        (empty,) = set(EXPLORATION_ARMS) - {only}
        warnings = [f"no session of the {empty} group: trained on the {only} group alone"]
    count = min(len(group) for group in present.values())

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{seed}/{session_names[number]}".encode()).digest()

    chosen = [number for group in present.values() for number in sorted(group, key=rank)[:count]]
    return rows[np.isin(sessions, chosen)], warnings

"""The state specification: which features a state is made of, in which order, how each is scaled.

It is built from the settings, travels inside every policy file, and is the one place where raw
feature values become the float32 vector that a policy sees: the service, the parity check and the
tests all call :meth:`StateSpec.assemble`, or :meth:`StateSpec.fill` below it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.contract.arrays import Float32Array, Float64Array
from training.contract.errors import PolicyError

Transform = Literal[
    "identity", "saturating", "log1p", "ratio", "log1p_ratio", "onehot", "hour_sin", "hour_cos"
]
Source = Literal["profile", "history", "session", "context"]


@dataclass(frozen=True)
class StateFeature:
    """One named feature and how it becomes one or more entries of the state vector.

    ``inputs`` are raw columns of its ``source``: one, or numerator and denominator for the ratios.
    A null input counts as 0, and an unknown category gives all zeros, so that a user never seen
    before has a state too; ``hist_count`` tells such a user apart. ``half`` belongs to ``saturating``,
    x / (|x| + half): the value whose entry is one half.
    """

    name: str
    source: Source
    transform: Transform
    inputs: tuple[str, ...]
    categories: tuple[str, ...] = ()
    half: float | None = None

    @property
    def width(self) -> int:
        return len(self.categories) if self.transform == "onehot" else 1


_FLOAT32_MAX = float(np.finfo(np.float32).max)  # a value that a state cannot hold counts as a null


def _signed_log1p(values: Float64Array) -> Float64Array:
    return np.copysign(np.log1p(np.abs(values)), values)


def _ratio(a: Float64Array, b: Float64Array) -> Float64Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


_RADIANS_AN_HOUR = 2.0 * math.pi / 24.0
# in the order in which a state is worked out: ratios and logarithms lie side by side
_ORDER: tuple[Transform, ...] = (
    "identity",
    "saturating",
    "ratio",
    "log1p_ratio",
    "log1p",
    "hour_sin",
    "hour_cos",
)


@dataclass(frozen=True)
class _Plan:
    """How to fill a state a transform at a time: a feature at a time costs 10 µs each on one row.

    The numeric features are worked out in :data:`_ORDER`, each transform's beside each other in the rows
    that ``ends`` bounds.
    """

    first: NDArray[np.int_]  # each one's first input, as a place in StateSpec.numbers
    second: NDArray[np.int_]  # the second ones of the ratios
    half: Float64Array  # [saturating ones, 1]
    ends: list[int]  # of each transform's rows
    entries: NDArray[np.int_]  # of the state
    categories: list[tuple[str, dict[str, int]]]  # of a one-hot feature: its column, each category's entry


@dataclass(frozen=True)
class StateSpec:
    """Ordered features; two specifications are the same exactly when their versions are."""

    features: tuple[StateFeature, ...]

    @cached_property
    def version(self) -> str:
        """``s`` and ten hex digits of the content's SHA-256."""
        return "s" + hashlib.sha256(self.to_json().encode()).hexdigest()[:10]

    @cached_property
    def width(self) -> int:
        """Length of the state vector."""
        return sum(feature.width for feature in self.features)

    @property
    def entry_names(self) -> list[str]:
        """A name for each entry of the state vector; one-hot entries are ``name=category``."""
        return [
            name
            for feature in self.features
            for name in (
                [f"{feature.name}={c}" for c in feature.categories]
                if feature.transform == "onehot"
                else [feature.name]
            )
        ]

    def inputs(self, source: Source) -> list[str]:
        """Raw columns needed of one source, each once, in order of first use."""
        names = [n for f in self.features if f.source == source for n in f.inputs]
        return list(dict.fromkeys(names))

    def assemble(self, raw: Mapping[str, Sequence[Any] | np.ndarray]) -> Float32Array:
        """Raw columns by name, each [n], to states float32[n, width].

        ``raw`` must hold every column of :meth:`inputs` of every source; a missing column raises
        ``KeyError`` with its name (a null *value* is fine, see :class:`StateFeature`).
        """
        return self.fill(
            np.array([_number_column(raw[name]) for name in self.numbers]),
            {name: raw[name] for name in self.categorical},
        )

    @cached_property
    def numbers(self) -> list[str]:
        """Raw numeric columns, in the order in which :meth:`fill` takes them."""
        return list(dict.fromkeys(n for f in self.features if f.transform != "onehot" for n in f.inputs))

    @cached_property
    def categorical(self) -> list[str]:
        """Raw columns of categories."""
        return list(dict.fromkeys(f.inputs[0] for f in self.features if f.transform == "onehot"))

    def fill(
        self, numbers: Float64Array, categories: Mapping[str, Sequence[Any] | np.ndarray]
    ) -> Float32Array:
        """What :meth:`assemble` gives, of the raw columns of numbers as float64[len(self.numbers), n], NaN
        for a null, and of the others by name."""
        plan = self._plan
        rows = numbers.shape[1] if len(numbers) else len(next(iter(categories.values()), ()))
        state = np.zeros((rows, self.width), dtype=np.float32)
        if len(numbers):
            # also false for NaN and infinities; nan_to_num costs ten times as much on one row
            values = np.where(np.abs(numbers) <= _FLOAT32_MAX, numbers, 0.0)
            identity, saturating, ratio, log_ratio, log, sine, _ = plan.ends
            worked = values.take(plan.first, axis=0)
            saturated = worked[identity:saturating]
            saturated /= np.abs(saturated) + plan.half
            ratios = worked[saturating:log_ratio]
            ratios[:] = _ratio(ratios, values.take(plan.second, axis=0))
            logarithms = worked[ratio:log]
            logarithms[:] = _signed_log1p(logarithms)
            worked[log:] *= _RADIANS_AN_HOUR
            np.sin(worked[log:sine], out=worked[log:sine])
            np.cos(worked[sine:], out=worked[sine:])
            state[:, plan.entries] = worked.T
        for name, entry in plan.categories:
            named = [entry.get("" if value is None else str(value), -1) for value in categories[name]]
            hot = np.array(named, dtype=int)
            known = np.flatnonzero(hot >= 0)
            state[known, hot[known]] = 1.0
        return state

    @cached_property
    def _plan(self) -> _Plan:
        first = dict(zip(self.features, np.cumsum([0] + [f.width for f in self.features]), strict=False))
        groups = [[f for f in self.features if f.transform == transform] for transform in _ORDER]
        numeric = [f for group in groups for f in group]
        place = {name: at for at, name in enumerate(self.numbers)}
        return _Plan(
            first=np.array([place[f.inputs[0]] for f in numeric], dtype=int),
            second=np.array([place[f.inputs[1]] for f in numeric if len(f.inputs) == 2], dtype=int),
            half=np.array([[f.half] for f in numeric if f.transform == "saturating"]).reshape(-1, 1),
            ends=np.cumsum([len(group) for group in groups]).tolist(),
            entries=np.array([first[f] for f in numeric], dtype=int),
            categories=[
                (f.inputs[0], {category: int(first[f]) + at for at, category in enumerate(f.categories)})
                for f in self.features
                if f.transform == "onehot"
            ],
        )

    def to_json(self) -> str:
        """The features as JSON; ``half`` only where there is one, so that the version of a specification
        without any is what it was when none could have it."""
        features = [asdict(feature) for feature in self.features]
        return json.dumps(
            [{name: value for name, value in one.items() if value is not None} for one in features],
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> "StateSpec":
        try:
            return cls(
                tuple(
                    StateFeature(
                        name=item["name"],
                        source=item["source"],
                        transform=item["transform"],
                        inputs=tuple(item["inputs"]),
                        categories=tuple(item["categories"]),
                        half=item.get("half"),
                    )
                    for item in json.loads(text)
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PolicyError(f"unreadable state specification: {error!r}") from error


def _number_column(values: Sequence[Any] | np.ndarray) -> Float64Array:
    """float64[n], NaN for a null."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.astype(np.float64, copy=False)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def history_columns(signals: Sequence[str]) -> list[str]:
    """Columns of the ``user_history`` feature view (dbt's ``fct_user_history``)."""
    return [
        "hist_count",  # interactions in the window, at most state.history_length
        *[f"hist_{signal}_rate" for signal in signals],
        "hist_play_s",  # mean play time of an impression, seconds
        "hist_completion",  # mean of min(play / duration, 1) where the duration is known
        "hist_daily_sessions",  # sessions that the window spans, per day on which it has impressions
        "hist_session_length",  # impressions of the window per session
        "hist_days_since_last",  # whole days from the last interaction to the day it is used on
    ]


def session_columns(signals: Sequence[str], heads: Sequence[str]) -> list[str]:
    """Columns of the ``user_session`` feature view: sums over the session so far.

    They are sums and not rates so that one piece of feedback can be added to them; the state's
    ratios are taken by :class:`StateFeature`. ``last_*`` cover the latest request that got feedback,
    ``decayed_*`` all of the session, each request weighing :data:`training.contract.session.DECAY` times
    the one after it.
    """
    felt = [*[f"{signal}_count" for signal in signals], "play_s"]  # shown items with it; seconds, summed
    predicted = [f"p_{head}" for head in heads]  # the head's prediction, summed over the shown items
    return [
        "sess_requests",  # requests of this session that got feedback
        "sess_impressions",  # shown items among them
        *[f"sess_{name}" for name in felt],
        *[f"last_{name}" for name in ("impressions", *felt, *predicted)],
        *[f"decayed_{name}" for name in ("impressions", *felt, *predicted)],
    ]


def context_values(event_ts: datetime, zone: tzinfo) -> dict[str, float]:
    """Raw context columns of a request: the hour of day in ``zone``, 0 to 23."""
    return {"hour": float(event_ts.astimezone(zone).hour)}


def days_since(last_ts: datetime | None, event_ts: datetime, zone: tzinfo) -> float:
    """``hist_days_since_last`` on the day of a request: whole days before its midnight in ``zone``.

    A user's history row stays as it is while they are away, so the value that was true when the row was
    made is brought up to the day on which it is used. ``last_ts`` counts in whole seconds, as Feast
    keeps it; 0 when it is unknown.
    """
    if last_ts is None:
        return 0.0
    midnight = datetime.combine(event_ts.astimezone(zone).date(), time(), zone).astimezone(UTC)
    return float(max((midnight - last_ts.replace(microsecond=0)) // timedelta(days=1), 0))


# Where the entries of counts are one half (ours). None of them grows for long: a history is full at
# state.history_length, a session ends.
_HALF = {"hist_count": 20.0, "hist_days_since_last": 3.0, "sess_requests": 5.0}


def default_features(signals: Sequence[str], heads: Sequence[str]) -> list[StateFeature]:
    """History, session and context features for the given feedback signals and heads, in state order.

    No entry grows with the age of the log or of an account, for a policy would meet states that its log
    did not hold: counts saturate, what was felt and predicted is a mean of a page, of the session, or of
    the session decayed by requests.
    """

    def history(name: str) -> StateFeature:
        if name in _HALF:
            return StateFeature(name, "history", "saturating", (name,), half=_HALF[name])
        logarithmic = name in ("hist_play_s", "hist_daily_sessions", "hist_session_length")
        return StateFeature(name, "history", "log1p" if logarithmic else "identity", (name,))

    def means(of: str, heads: Sequence[str]) -> list[StateFeature]:
        per = f"{of}_impressions"
        return [
            *[StateFeature(f"{of}_{s}_rate", "session", "ratio", (f"{of}_{s}_count", per)) for s in signals],
            StateFeature(f"{of}_play_s", "session", "log1p_ratio", (f"{of}_play_s", per)),
            *[StateFeature(f"{of}_p_{h}", "session", "log1p_ratio", (f"{of}_p_{h}", per)) for h in heads],
        ]

    requests = "sess_requests"
    session = [
        StateFeature(requests, "session", "saturating", (requests,), half=_HALF[requests]),
        *means("sess", ()),
        *means("last", heads),
        *means("decayed", heads),
    ]
    context = [
        StateFeature("hour_sin", "context", "hour_sin", ("hour",)),
        StateFeature("hour_cos", "context", "hour_cos", ("hour",)),
    ]
    return [*map(history, history_columns(signals)), *session, *context]

"""The reward's weights, eq. (2): from each signal's relation to future dwell time, and leaning variants.

The paper takes w_i from "statistics of each signal against the user's future app dwell time" (method §1)
and says no more. Here a row is a user's day d; y is their dwell time (seconds played; a log has no app-open
events) on the ``horizon`` days after d, nothing for a day on which they did not come; x_i are that day's
totals of the terms of eq. (2). The regression is non-negative (a term whose weight in force is negative,
such as hate, enters with its sign flipped: more of it can only cost), with an intercept and the dwell time of
the ``horizon`` days *before* d as free controls, so that a weight is not merely that who is here often is
here tomorrow, too. Association, not cause: nobody drew the signals at random.
"""

import json
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.optimize import nnls

from training.contract.errors import DataError
from training.contract.layout import day_of_folder
from training.contract.settings import Settings

MART = "fct_user_days"
LEANING = 3.0  # factor of the terms that a variant leans to (ours)
Leaning = Literal["time", "integrity", "interaction"]

_LEAST_DAYS, _LEAST_USERS = 2, 100  # of days d, and of users seen on them
_REPLICATES = 500
_CONTROLS = 2  # intercept, dwell time before


def estimate(settings: Settings, day: date, *, days: int = 28, horizon: int = 3) -> dict[str, Any]:
    """Weights of eq. (2) from the days up to ``day``: the record `reward`.

    Of the last ``days`` days those count as d that have ``horizon`` exported days before and after them, so
    nothing later than ``day`` is read. ``weights`` has, by term, ``per_unit`` (seconds of future dwell time
    per unit of the term), its 95 % interval ``lower`` and ``upper`` (percentiles of a bootstrap over users),
    ``sign``, ``mean`` of the term in a user's day, ``in_force``, and ``proposed``: scaled so that the mean
    reward of a user's day stays what it is. A term that never occurred keeps its weight in force, and has no
    interval. Raises :class:`DataError` for too few days or users, or when no term has a positive relation.
    """
    first = day - timedelta(days=days - 1)
    exported = _read(settings, first, day)
    rows = _rows(settings, exported, horizon)
    used = sorted({d for d, *_ in rows})
    users = np.unique(np.concatenate([user for _, user, *_ in rows])) if rows else np.zeros(0)
    if len(used) < _LEAST_DAYS:
        raise DataError(
            f"{len(exported)} days of {MART} from {first} to {day} give {len(used)} days with {horizon} days "
            f"before and after them, and {_LEAST_DAYS} are needed: wait for {2 * horizon + _LEAST_DAYS} days "
            f"without a gap, or pass a shorter --horizon. If days were transformed before there was {MART}, "
            f"remove {settings.layout.warehouse}, and the next transform builds all days anew"
        )
    if len(users) < _LEAST_USERS:
        raise DataError(f"only {len(users)} users on these days; {_LEAST_USERS} are needed for an interval")
    names, in_force = terms(settings)
    sign = np.where(in_force < 0.0, -1.0, 1.0)
    x = np.concatenate([totals for *_, totals, _, _ in rows])
    before, after = (np.concatenate([row[place] for row in rows]) for place in (3, 4))
    scale = x.std(axis=0)
    seen = scale > 0.0
    scale = np.where(seen, scale, 1.0)
    design = np.column_stack([np.ones(len(x)), before, sign * x / scale, after])
    clusters = np.searchsorted(users, np.concatenate([user for _, user, *_ in rows]))
    grams = np.zeros((len(users), design.shape[1], design.shape[1]))
    np.add.at(grams, clusters, design[:, :, None] * design[:, None, :])

    found = np.zeros(len(names))
    found[seen] = _non_negative(grams.sum(axis=0), seen)
    rng = np.random.default_rng([settings.seed, 17])
    drawn = rng.multinomial(len(users), np.full(len(users), 1.0 / len(users)), _REPLICATES)
    resampled = np.tensordot(drawn.astype(np.float64), grams, axes=1)
    replicates = np.zeros((_REPLICATES, len(names)))
    replicates[:, seen] = [_non_negative(gram, seen) for gram in resampled]
    if not (found > 0.0).any():
        raise DataError("no term of the reward goes with more dwell time later: there is nothing to weigh by")
    per_unit = sign * found / scale
    ends = sign * np.percentile(replicates, [2.5, 97.5], axis=0) / scale
    mean = x.mean(axis=0)
    factor = float(mean[seen] @ in_force[seen]) / float(mean[seen] @ per_unit[seen])
    if not factor > 0.0:
        raise DataError(
            "the mean reward of a user's day is not positive under the weights in force or under those "
            "found: they cannot be scaled to each other"
        )
    proposed = np.where(seen, per_unit * factor, in_force)
    return {
        "day": day.isoformat(),
        "days": [d.isoformat() for d in used],
        "horizon_days": horizon,
        "users": len(users),
        "user_days": len(x),
        "future_dwell_s": float(after.mean()),
        "weights": {
            name: {
                "per_unit": float(per_unit[i]),
                "lower": float(ends[:, i].min()) if seen[i] else None,
                "upper": float(ends[:, i].max()) if seen[i] else None,
                "sign": int(sign[i]),
                "mean": float(mean[i]),
                "in_force": float(in_force[i]),
                "proposed": float(proposed[i]),
            }
            for i, name in enumerate(names)
        },
    }


def terms(settings: Settings) -> tuple[list[str], np.ndarray]:
    """Names and weights in force, float64[2 + signals], of the terms of eq. (2)."""
    reward, signals = settings.reward, settings.signals
    names = ["play_time", "integrity", *settings.signal_names]
    return names, np.array([reward.play_time_weight, reward.integrity_weight, *(s.weight for s in signals)])


def with_weights(settings: Settings, weights: Mapping[str, float]) -> Settings:
    """Settings with the weights of :func:`terms`, by name."""
    reward = settings.reward.model_copy(
        update={"play_time_weight": weights["play_time"], "integrity_weight": weights["integrity"]}
    )
    signals = tuple(s.model_copy(update={"weight": weights[s.name]}) for s in settings.signals)
    return settings.model_copy(update={"reward": reward, "signals": signals})


def leaning(settings: Settings, to: Leaning, factor: float = LEANING) -> Settings:
    """Settings whose reward weighs one kind ``factor`` times as much; the other weights stay.

    ``time`` is the play time, ``integrity`` the finish ratio, and ``interaction`` every signal marked as a
    positive interaction.
    """
    names, weights = terms(settings)
    leant = {
        "time": {"play_time"},
        "integrity": {"integrity"},
        "interaction": {signal.name for signal in settings.signals if signal.positive_interaction},
    }[to]
    return with_weights(
        settings,
        {n: float(w) * (factor if n in leant else 1.0) for n, w in zip(names, weights, strict=True)},
    )


def with_interaction(settings: Settings, factor: float) -> Settings:
    """Settings whose reward weighs all signals ``factor`` times: the whole interaction part against play time
    and integrity, as a point of the sweep does (``learner.return_regression.leanings``)."""
    names, weights = terms(settings)
    signals = set(settings.signal_names)
    return with_weights(
        settings,
        {n: float(w) * (factor if n in signals else 1.0) for n, w in zip(names, weights, strict=True)},
    )


def snippet(settings: Settings) -> str:
    """YAML of the settings' weights, for the settings file; the leaning variants are commented out."""
    parts = [sections(settings)]
    for to in get_args(Leaning):
        parts.append(f"# leaning to {to}: its terms times {LEANING:g}")
        parts.append("\n".join(f"# {line}" for line in sections(leaning(settings, to)).splitlines()))
    return "\n".join(parts) + "\n"


def sections(settings: Settings) -> str:
    """YAML of the sections ``reward`` and ``signals`` alone, numbers to six digits."""

    def rounded(weight: float) -> float:
        return float(f"{weight:.6g}")

    reward = settings.reward.model_dump(mode="json")
    signals = [s.model_dump(mode="json") | {"weight": rounded(s.weight)} for s in settings.signals]
    lines = [
        "reward:",
        *(f"  {name}: {json.dumps(rounded(value))}" for name, value in reward.items()),
        "signals:",
    ]
    lines += [
        f"  - {{{', '.join(f'{k}: {json.dumps(v)}' for k, v in signal.items())}}}" for signal in signals
    ]
    return "\n".join(lines)


def _non_negative(gram: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Non-negative least squares from a Gram matrix of [controls, terms, y]; the controls are free.

    The controls are projected out (Frisch, Waugh, Lovell): what is left is a problem of the terms alone.
    """
    kept = np.concatenate([np.flatnonzero(seen) + _CONTROLS, [gram.shape[0] - 1]])
    cross = gram[:_CONTROLS][:, kept]
    left = gram[np.ix_(kept, kept)] - cross.T @ np.linalg.pinv(gram[:_CONTROLS, :_CONTROLS]) @ cross
    inner, outer = left[:-1, :-1], left[:-1, -1]
    # |A w − b|² with AᵀA = inner and Aᵀb = outer; a term that a resample lost has no direction, and gets 0
    values, vectors = np.linalg.eigh(inner)
    good = values > 1e-10 * max(values.max(), 1e-300)
    root = np.sqrt(values[good])
    a = root[:, None] * vectors[:, good].T
    return nnls(a, (vectors[:, good].T @ outer) / root)[0]


def _rows(
    settings: Settings, exported: Mapping[date, pa.Table], horizon: int
) -> list[tuple[date, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """By day d: day, users [n], totals [n, terms], dwell seconds before and after d [n]."""
    dwell = {
        day: dict(zip(table["user_id"].to_pylist(), table["play_s"].to_pylist(), strict=True))
        for day, table in exported.items()
    }
    columns = ["capped_play_s", "integrity", *(f"{name}_count" for name in settings.signal_names)]
    out = []
    for day, table in sorted(exported.items()):
        around = {step: day + timedelta(days=step) for step in range(-horizon, horizon + 1)}
        if not all(one in exported for one in around.values()):
            continue
        users = table["user_id"].to_numpy()
        totals = np.column_stack([table[name].to_numpy().astype(np.float64) for name in columns])

        def seconds(steps: range, users: np.ndarray = users, around: dict[int, date] = around) -> np.ndarray:
            return np.array([sum(dwell[around[step]].get(user, 0.0) for step in steps) for user in users])

        out.append((day, users, totals, seconds(range(-horizon, 0)), seconds(range(1, horizon + 1))))
    return out


def _read(settings: Settings, first: date, last: date) -> dict[date, pa.Table]:
    """Exported days of the mart, none later than ``last``."""
    found = {}
    for path in sorted(settings.layout.mart(MART).glob("dt=*/part-0.parquet")):
        day = day_of_folder(path.parent)
        if first <= day <= last:
            try:
                found[day] = pq.read_table(path, partitioning=None)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} is not a readable export of {MART}: {error}") from error
            missing = [
                f"{n}_count" for n in settings.signal_names if f"{n}_count" not in found[day].column_names
            ]
            if missing:
                raise DataError(f"{path} lacks {missing[0]}: run the transform of that day again")
    return found

"""Does a policy do today what it did when it was promoted?

A policy file does not change, its states may: features that grow, a log that ages, other users. Replayed
on the states of today and on those of the day that it was trained on, its mean action should be the same.
Where it has moved by more than the exploration around it, the policy is served where its log had nothing to
say.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

import duckdb
import numpy as np
import structlog

from training.contract.layout import DECISIONS
from training.contract.policy import Policy
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.evaluation")
SAMPLE_STATES = 5_000
MIN_STATES = 100  # of either day: fewer say nothing of a mean


def steadiness(settings: Settings, day: date, champions: Mapping[date, Policy]) -> dict[str, Any]:
    """Replay champions on the served states of ``day`` and on those of the days that they are of.

    ``champions`` are by the day whose challenger they were, of the settings' state specification. Returns
    ``{"bound", "warnings", "policies": [{"version", "day", "states" (of its day, of today), "moved"
    {head: change of the mean action, in [-1, 1] a unit}, "largest", "weights" {head: [then, now]}} or, where
    a day has too few states, {"version", "day", "states", "skipped"}]}``. ``bound`` is
    ``serving.noise_std``; a warning names a policy that moved by more. Days' states are no inputs of the
    stage: what is said holds for what was landed when it was said.
    """
    now = served_states(settings, day)
    bound = settings.serving.noise_std
    record: dict[str, Any] = {"bound": bound, "warnings": [], "policies": []}
    for of, policy in sorted(champions.items()):
        then = served_states(settings, of)
        about: dict[str, Any] = {
            "version": policy.version,
            "day": of.isoformat(),
            "states": [len(then), len(now)],
        }
        record["policies"].append(about)
        if min(len(then), len(now)) < MIN_STATES:
            about["skipped"] = f"{of} has {len(then)} states and {day} {len(now)}; {MIN_STATES} are needed"
            continue
        actions = [policy.act_in_parts(states).astype(np.float64) for states in (then, now)]
        moved = actions[1].mean(axis=0) - actions[0].mean(axis=0)
        weights = [settings.fusion.to_weights(one).mean(axis=0) for one in actions]
        heads = settings.head_names
        largest = int(np.argmax(np.abs(moved)))
        about["moved"] = dict(zip(heads, map(float, moved), strict=True))
        about["largest"] = float(abs(moved[largest]))
        about["weights"] = {head: [float(w[k]) for w in weights] for k, head in enumerate(heads)}
        if about["largest"] > bound:
            before, after = about["weights"][heads[largest]]
            size = about["largest"]
            text = (
                f"policy {policy.version} of {of} does other things than on its day: its mean weight of "
                f"{heads[largest]} went from {before:.3f} to {after:.3f}, {size:.2f} of its action, where "
                f"its exploration (serving.noise_std) is {bound:g}; look for an entry of the state that moved"
            )
            record["warnings"].append(text)
            _log.warning("a fixed policy's weights moved", day=day.isoformat(), reason=text)
    return record


def served_states(settings: Settings, day: date) -> np.ndarray:
    """float32[n, d]: states of the settings' specification that were served on a day, at most
    :data:`SAMPLE_STATES`, drawn by a hash of the request id, so the same on every run."""
    path = settings.layout.partition(DECISIONS, day) / "part-0.parquet"
    spec = settings.state_spec
    if not path.exists():
        return np.zeros((0, spec.width), dtype=np.float32)
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT state FROM read_parquet(?) WHERE state_spec = ? AND len(state) = ?"
            " ORDER BY md5(request_id), request_id LIMIT ?",
            [str(path), spec.version, spec.width, SAMPLE_STATES],
        ).fetchall()
    return np.array([state for (state,) in rows], dtype=np.float32).reshape(-1, spec.width)

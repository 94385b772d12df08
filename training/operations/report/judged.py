"""What was learnt and judged in a night: estimates, the sweep, weights by segment, curves of the training."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from training.contract.errors import PolicyError
from training.contract.files import read_json
from training.contract.layout import DECISIONS
from training.contract.log import STATIC, STATIC_VERSION
from training.contract.policy import load_policy
from training.contract.settings import Settings
from training.operations.report import charts, facts

SAMPLE_STATES = 5_000


def night(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The night's challengers by what the judge says they bring over static weights, best first; and below
    them the arms of the day by what the simulated world knows of them, where there is one."""
    evaluate, train = records.get("evaluate", {}), records.get("train", {})
    pool = [
        {
            "name": name,
            "version": one["version"],
            "how": "the judge's estimate",
            "gain": (evaluate.get("pool") or {}).get(name),
            "chosen": evaluate.get("chosen") == name,
        }
        for name, one in train.get("pool", {}).items()
    ]
    pool.sort(key=lambda one: -one["gain"]["value"] if one["gain"] else 0.0)
    arms = records.get("traffic", {}).get("arms") or {}
    true = {arm: _interval(one) for arm, one in arms.items()}
    known = [
        {
            "name": arm,
            "version": "",
            "how": "true of the simulated users whom it served",
            "gain": facts.difference(one, true[STATIC]),
            "chosen": False,
        }
        for arm, one in true.items()
        if arm != STATIC and STATIC in true
    ]
    return pool + known


def _interval(truth: Mapping[str, Any]) -> dict[str, float]:
    lower, upper = truth["session_return_ci"]
    return {"value": truth["session_return_mean"], "lower": lower, "upper": upper}


def night_chart(rows: list[dict[str, Any]]) -> str | None:
    """The gains of :func:`night`, each under its name."""
    found = {
        one["name"] if one["version"] else f"{one['name']} (true, today)": (
            one["gain"]["lower"],
            one["gain"]["value"],
            one["gain"]["upper"],
        )
        for one in rows
        if one["gain"] and one["gain"]["lower"] is not None
    }
    if not found:
        return None
    about = "Session return over static weights of the night's challengers and of the day's arms"
    return charts.intervals(found, x="session return over static weights", about=about, zero=True)


def curves(settings: Settings, day: date, records: Mapping[str, Any]) -> str | None:
    pool = records.get("train", {}).get("pool", {})
    paths = [settings.layout.model(day) / name / "curves.json" for name in pool if pool[name]["steps"]]
    if not paths or not paths[0].exists():
        return None
    columns = read_json(paths[0])
    steps = columns.pop("step")
    return charts.curves({k: v for k, v in columns.items() if len(v) == len(steps)}, steps)


def estimates(records: Mapping[str, Any]) -> str | None:
    estimates = records.get("evaluate", {}).get("estimates")
    if not estimates:
        return None
    return charts.intervals(
        {name: (e["lower"], e["value"], e["upper"]) for name, e in estimates.items()},
        x="estimated session return, by the gate's estimator",
        about="Estimated session return of each policy, with its interval",
    )


def pareto(records: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the points of the day's sweep bring over static weights and over the reward in force, x1."""
    swept = records.get("evaluate", {}).get("pareto")
    if not swept:
        return None
    points = {f"{point['factor']:g}": point["over"] for point in swept["points"]}
    in_force = next(point["version"] for point in swept["points"] if point["factor"] == 1.0)
    scales = {part: 100.0 / abs(static) if static else 1.0 for part, static in swept["static"].items()}
    units = {
        part: "% of what static weights bring" if static else "as the reward weighs it"
        for part, static in swept["static"].items()
    }

    def ends(found: Mapping[str, Any], part: str) -> charts.Ends:
        lower, value, upper = (scales[part] * found[part][end] for end in ("lower", "value", "upper"))
        return lower, value, upper

    def chart(found: Mapping[str, Mapping[str, Any]], told: list[str], origin: str) -> str:
        return charts.plane(
            {name: (ends(one, "time"), ends(one, "interaction")) for name, one in found.items()},
            list(points),
            told=told,
            origin=origin,
            x=f"time, {units['time']}",
            y=f"interaction, {units['interaction']}",
            about=f"Time and interaction of each factor of the interaction part, over {origin}",
        )

    champion = {"champion": swept["champion"]} if swept["champion"] else {}
    over_static = {name: over[STATIC_VERSION] for name, over in points.items()}
    over_in_force = {name: over[in_force] for name, over in points.items()}
    return (
        chart(over_static | champion, [next(iter(points)), next(reversed(points))], "static weights"),
        chart(over_in_force, list(points), "x1, the reward in force"),
    )


def segments(settings: Settings, day: date) -> str | None:
    """The challenger's mean fusion weights by the first categorical profile column, on the day's states."""
    path = settings.layout.partition(DECISIONS, day) / "part-0.parquet"
    policy_file = settings.layout.model(day) / "policy.safetensors"
    spec = settings.state_spec
    categorical = next((f for f in spec.features if f.transform == "onehot"), None)
    if not path.exists() or not policy_file.exists() or categorical is None:
        return None
    try:
        policy = load_policy(policy_file)
        rows = pq.read_table(path, columns=["state", "state_spec"], partitioning=None).to_pylist()
        states = [r["state"] for r in rows if r["state"] and r["state_spec"] == policy.header.spec.version]
        if not states:
            return None
        matrix = np.array(states[:SAMPLE_STATES], dtype=np.float32)
        actions = policy.act(matrix)
    except PolicyError:
        return None  # the gate says what is wrong with the policy
    names = policy.header.spec.entry_names
    segments, means = ["all"], [actions.mean(axis=0)]
    for category in categorical.categories:
        chosen = matrix[:, names.index(f"{categorical.name}={category}")] > 0.5
        if chosen.sum() >= 20:
            segments.append(f"{category} ({int(chosen.sum())})")
            means.append(actions[chosen].mean(axis=0))
    fusion = policy.header.fusion
    weights = [fusion.to_weights(one).tolist() for one in means]
    return charts.heat(segments, fusion.names, [one.tolist() for one in means], weights)

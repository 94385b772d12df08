"""Reads a day's records and exports, and writes its page.

A page is made of what the stages said of themselves, so it can be made again at any time, and is made
as well for a day that stopped half-way: what is missing is named, not left out.
"""

import os
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, select_autoescape

from training.contract.errors import PolicyError
from training.contract.files import read_json, write_text_atomic
from training.contract.layout import DECISIONS
from training.contract.log import STATIC_VERSION
from training.contract.policy import load_policy
from training.contract.records import STAGES, read_record, read_records, recorded_days
from training.contract.settings import Settings
from training.operations.report import charts
from training.operations.report.outcome import outcome
from training.operations.report.standing import drifting, standing
from training.validation import quarantine

RECENT_DAYS = 14
SAMPLE_STATES = 5_000
INDEX_DAYS = 30  # of the charts on the index
VALIDATIONS = ("land", "validate_landed", "validate_transitions", "validate_training_set")

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)


def build(settings: Settings, day: date) -> Path:
    """Write ``reports/dt=<day>/index.html``; returns its path."""
    records = read_records(settings.layout, day)
    folder = settings.layout.reports / f"dt={day.isoformat()}"
    recent = [d for d in recorded_days(settings.layout) if d <= day][-RECENT_DAYS:]
    page = templates.get_template("day.html").render(
        day=day,
        records=records,
        outcome=outcome(records),
        stages=[
            (stage, records.get(stage))
            for stage in STAGES
            if stage != "drift" and (stage not in ("traffic", "reward") or stage in records)
        ],
        tables=records.get("land", {}).get("tables", {}),
        volume_chart=_volumes(settings, recent),
        validations=[
            (name, records.get(name))
            for name in VALIDATIONS
            if name != "land" or "suites" in records.get("land", {})
        ],
        reward_chart=_rewards(settings, recent),
        arms=_policy_daily(settings, day),
        curves=_curves(settings, day, records),
        train=records.get("train"),
        estimate_chart=_estimates(records),
        pareto_charts=_pareto(records),
        evaluate=records.get("evaluate"),
        segments=_segments(settings, day),
        gate=records.get("gate"),
        promote=records.get("promote"),
        traffic=records.get("traffic"),
        drift=records.get("drift", {}),
        links=_links(settings, folder, records),
    )
    path = folder / "index.html"
    write_text_atomic(path, page)
    return path


def index(settings: Settings, now: datetime | None = None) -> Path:
    """Write ``reports/index.html``: what a person asks first, and every day with what is known of it."""
    layout, days = settings.layout, recorded_days(settings.layout)
    moment = (now or datetime.now(UTC)).isoformat(timespec="minutes").replace("+00:00", "Z")
    rows = []
    for day in reversed(days):
        records = read_records(layout, day)
        page = layout.reports / f"dt={day.isoformat()}" / "index.html"
        rows.append(
            {
                "day": day,
                "page": os.path.relpath(page, layout.reports) if page.exists() else None,
                "outcome": outcome(records),
                "rows": records.get("land", {}).get("tables", {}),
                "gate": records.get("gate", {}).get("decision"),
                "validation": _validation(records),
                "drift": _worst_drift(records),
                "drifting": bool(drifting(records.get("validate_landed", {}))),
                "docs": _data_docs(settings, records),
                "difference": records.get("evaluate", {}).get("differences", {}).get("challenger - static"),
                "seconds": sum(r.get("seconds", 0.0) for r in records.values()),
            }
        )
    text = templates.get_template("index.html").render(
        moment=moment,
        answers=standing(settings, now),
        held=list(reversed(quarantine.held(settings))),
        rows=rows,
        reward_chart=_rewards(settings, days[-INDEX_DAYS:]),
        drift_chart=_drift_chart(settings, days[-INDEX_DAYS:]),
        confidence=settings.evaluation.confidence,
        docs=_existing(layout.validation / "data_docs/index.html", layout.reports),
    )
    path = layout.reports / "index.html"
    write_text_atomic(path, text)
    return path


def _validation(records: Mapping[str, Mapping[str, Any]]) -> dict[str, int] | None:
    """Expectations of the day that were judged, and those that failed, by severity; None before any."""
    suites = [s for name in VALIDATIONS for s in records.get(name, {}).get("suites", {}).values()]
    if not suites:
        return None
    failed = [fault["severity"] for suite in suites for fault in suite["failed"]]
    return {
        "evaluated": sum(suite["evaluated"] for suite in suites),
        "stops": failed.count("critical"),
        "warnings": failed.count("warning"),
    }


def _worst_drift(records: Mapping[str, Mapping[str, Any]]) -> tuple[str, float] | None:
    """The head whose scores moved most, and its stability index."""
    heads = records.get("drift", {}).get("heads", {})
    found = {name: head["psi"] for name, head in heads.items() if "psi" in head}
    return max(found.items(), key=lambda entry: entry[1]) if found else None


def _data_docs(settings: Settings, records: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Link from the index page to Data Docs of a day: the first suite that failed, else its first suite."""
    suites = [s for name in VALIDATIONS for s in records.get(name, {}).get("suites", {}).values()]
    pages = [suite["page"] for suite in sorted(suites, key=lambda s: not s["failed"]) if "page" in suite]
    return _existing(settings.layout.root / pages[0], settings.layout.reports) if pages else None


def _existing(path: Path, start: Path) -> str | None:
    """A link to a page that is still kept."""
    return os.path.relpath(path, start) if path.exists() else None


def _drift_chart(settings: Settings, days: list[date]) -> str | None:
    """Stability index of each head over the days."""
    series: dict[str, tuple[list[date], list[float]]] = {}
    for day in days:
        heads = (read_record(settings.layout, day, "drift") or {}).get("heads", {})
        for name, head in heads.items():
            if "psi" in head:
                xs, ys = series.setdefault(name.removeprefix("p_"), ([], []))
                xs.append(day)
                ys.append(head["psi"])
    if not series:
        return None
    limits = {"warns": settings.validation.warn_psi, "drift": settings.validation.max_psi}
    about = "Population stability index of each head's scores by day"
    return charts.lines(series, x="day", y="PSI", about=about, limits=limits)


def _volumes(settings: Settings, days: list[date]) -> str | None:
    found = {d: read_record(settings.layout, d, "land") for d in days}
    rows = {
        d: r["tables"]["impressions"]["rows"]
        for d, r in found.items()
        if r and "impressions" in r.get("tables", {})
    }
    if not rows:
        return None
    return charts.lines(
        {"impressions": (list(rows), list(rows.values()))},
        x="day",
        y="impressions landed",
        about="Impressions landed by day",
    )


def _policy_daily(settings: Settings, day: date) -> list[dict[str, Any]]:
    """Rows of ``fct_policy_daily`` of the day, one an arm and policy version."""
    path = settings.layout.mart("fct_policy_daily") / f"dt={day.isoformat()}" / "part-0.parquet"
    return pq.read_table(path, partitioning=None).to_pylist() if path.exists() else []


def _rewards(settings: Settings, days: list[date]) -> str | None:
    series: dict[str, tuple[list[date], list[float]]] = {}
    for day in days:
        totals: dict[str, list[tuple[float, int]]] = {}
        for row in _policy_daily(settings, day):
            if row["arm"] and row["session_return_mean"] is not None:
                totals.setdefault(row["arm"], []).append((row["session_return_mean"], row["sessions"]))
        for arm, parts in totals.items():
            weight = sum(n for _, n in parts)
            xs, ys = series.setdefault(arm, ([], []))
            xs.append(day)
            ys.append(sum(mean * n for mean, n in parts) / max(weight, 1))
    if not series:
        return None
    return charts.lines(series, x="day", y="session return", about="Mean session return by arm and day")


def _curves(settings: Settings, day: date, records: Mapping[str, Any]) -> str | None:
    pool = records.get("train", {}).get("pool", {})
    paths = [settings.layout.model(day) / name / "curves.json" for name in pool if pool[name]["steps"]]
    if not paths or not paths[0].exists():
        return None
    columns = read_json(paths[0])
    steps = columns.pop("step")
    return charts.curves({k: v for k, v in columns.items() if len(v) == len(steps)}, steps)


def _estimates(records: Mapping[str, Any]) -> str | None:
    estimates = records.get("evaluate", {}).get("estimates")
    if not estimates:
        return None
    return charts.intervals(
        {name: (e["lower"], e["value"], e["upper"]) for name, e in estimates.items()},
        x="estimated session return, by the gate's estimator",
        about="Estimated session return of each policy, with its interval",
    )


def _pareto(records: Mapping[str, Any]) -> tuple[str, str] | None:
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


def _segments(settings: Settings, day: date) -> str | None:
    """The challenger's mean action by the first categorical profile column, on the day's states."""
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
    return charts.heat(segments, policy.header.fusion.names, [[float(v) for v in m] for m in means])


def _links(settings: Settings, folder: Path, records: Mapping[str, Any]) -> list[tuple[str, str]]:
    root = settings.layout.root
    candidates = [("dbt docs", settings.layout.dbt_target / "static_index.html")]
    for name in VALIDATIONS:
        docs = records.get(name, {}).get("data_docs")
        if docs:
            candidates.insert(0, ("Data Docs", root / docs))
            break
    candidates.append(("all days", settings.layout.reports / "index.html"))
    return [
        (text, os.path.relpath(path, folder))
        for text, path in candidates
        if path.exists() or text == "all days"
    ]

"""Reads a day's records and exports, and writes its page.

A page is made of what the stages said of themselves, so it can be made again at any time, and is made
as well for a day that stopped half-way: what is missing is named, not left out.
"""

import os
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from training.contract.columns import impression_columns
from training.contract.files import write_text_atomic
from training.contract.log import MIXED_ARMS, STATIC
from training.contract.records import STAGES, read_records, recorded_days
from training.contract.settings import Settings
from training.operations.report import elsewhere, facts, judged, over_days
from training.operations.report.causes import groups
from training.operations.report.drawing import templates
from training.operations.report.outcome import outcome
from training.validation.rules import PROFILE

RECENT_DAYS = 14
UNKNOWN_ROWS = "_unknown_rows"  # of a profile's column
VALIDATIONS = ("land", "validate_landed", "validate_transitions", "validate_training_set")


def build(settings: Settings, day: date) -> Path:
    """Write ``reports/dt=<day>/index.html``; returns its path. The page of the day before, where it does not
    lead here yet, is written again."""
    days = recorded_days(settings.layout)
    earlier = [one for one in days if one < day]
    path = _write(settings, day, days)
    before = path_of(settings, earlier[-1]) if earlier else None
    if before is not None and before.exists() and f"dt={day}/" not in before.read_text(encoding="utf-8"):
        _write(settings, earlier[-1], days)
    return path


def path_of(settings: Settings, day: date) -> Path:
    return settings.layout.reports / f"dt={day.isoformat()}" / "index.html"


def _write(settings: Settings, day: date, days: list[date]) -> Path:
    records = read_records(settings.layout, day)
    path = path_of(settings, day)
    recent = [d for d in days if d <= day][-RECENT_DAYS:]
    known = over_days.known(settings, recent)
    night = judged.night(records)
    page = templates.get_template("day.html").render(
        day=day,
        previous=_neighbour(settings, [d for d in days if d < day][-1:]),
        following=_neighbour(settings, [d for d in days if d > day][:1]),
        records=records,
        outcome=outcome(records),
        broken=[(one, elsewhere.runbook(path.parent, one.cause.section)) for one in groups(records)],
        root=os.path.relpath(settings.layout.root, path.parent),
        stages=[
            (stage, records.get(stage))
            for stage in STAGES
            if stage != "drift" and (stage not in ("traffic", "reward") or stage in records)
        ],
        tables=records.get("land", {}).get("tables", {}),
        volume_chart=over_days.volumes(settings, recent),
        validations=[
            (name, records.get(name))
            for name in VALIDATIONS
            if name != "land" or "suites" in records.get("land", {})
        ],
        reward_chart=over_days.returns(known),
        facts=known.get(day),
        arms=_arms(known.get(day)),
        curves=judged.curves(settings, day, records),
        train=records.get("train"),
        night=night,
        night_chart=judged.night_chart(night),
        estimate_chart=judged.estimates(records),
        pareto_charts=judged.pareto(records),
        evaluate=records.get("evaluate"),
        segments=judged.segments(settings, day),
        weights=over_days.weights(settings, known),
        heads=settings.heads,
        signals=over_days.signals(known),
        feedback=_feedback(records, known.get(day)),
        exploration=_exploration(settings, day, records, known),
        confidence=settings.evaluation.confidence,
        gate=records.get("gate"),
        traffic=records.get("traffic"),
        drift=records.get("drift", {}),
        read=_read(records),
        unread=_unread(settings, records),
        links=_links(settings, path.parent, records),
    )
    write_text_atomic(path, page)
    return path


def _neighbour(settings: Settings, days: list[date]) -> date | None:
    return next((day for day in days if path_of(settings, day).exists()), None)


def _arms(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The day's arms, each with what it brought over static weights."""
    rows = [] if found is None else found["arms"]
    static = next((row.get("session_return") for row in rows if row["arm"] == STATIC), None)
    return [
        row
        | {
            "over_static": facts.difference(row["session_return"], static)
            if static and row.get("session_return") and row["arm"] != STATIC
            else None
        }
        for row in rows
    ]


def _feedback(records: Mapping[str, Any], found: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """(what, how much, what it means) of the feedback of a day that the service logged."""
    landed = records.get("land", {}).get("tables", {}).get("impressions", {})
    rows = landed.get("rows", 0)
    told = []
    for name, what, means in (
        ("late_feedback", "late", "came after its day; the next landing of the day takes it in"),
        ("orphan_feedback", "orphaned", "on items that were not ranked for the request: in no table"),
        ("torn_lines", "torn lines", "of a writer that was killed; left out"),
    ):
        if name in landed:
            count = landed[name]
            share = f" ({100.0 * count / (rows + count):.2f} % of the items)" if rows and count else ""
            told.append((what, f"{count:,}{share}", means))
    missing: float | None = found["without_feedback"] if found is not None else None
    if missing is not None:
        told.append(("missing", f"{100.0 * missing:.2f} % of the requests", "nothing came back for them"))
    return told


def _exploration(
    settings: Settings, day: date, records: Mapping[str, Any], known: over_days.Days
) -> list[tuple[str, str, str, bool | None]]:
    """(what, how much there is, how much is needed, enough) of what learning needs from exploring arms."""
    limits = settings.validation
    rows: list[tuple[str, str, str, bool | None]] = []
    today = known.get(day)
    if today is not None and today.get("requests"):
        told = f"{today['explored']:,} of {today['requests']:,} ({today['explored'] / today['requests']:.1%})"
        rows.append(("requests of the day with a drawn action", told, "", None))
    window = (records.get("validate_training_set") or {}).get("measures", {}).get("training_set")
    if not window:
        return rows
    total, least = window.get("current_transitions"), limits.min_transitions
    since = day - timedelta(days=settings.learner.window_days - 1)
    if total is not None:
        rows.append(
            (f"transitions since {since}", f"{total:,}", f"{least:,} (min_transitions)", total >= least)
        )
    for arm in MIXED_ARMS:
        count, needed = window.get(f"{arm}_transitions"), limits.min_exploring_share
        if count is not None and window.get("rows"):
            share = count / window["rows"]
            rows.append(
                (
                    f"of the {arm} group",
                    f"{count:,} ({share:.1%})",
                    f"{needed:.1%} (min_exploring_share)",
                    share >= needed,
                )
            )
    covered = {head.name: window.get(f"{head.name}_coverage") for head in settings.heads}
    reached = {name: share for name, share in covered.items() if share is not None}
    if reached:
        name, share = min(reached.items(), key=lambda entry: entry[1])
        needed = limits.min_action_coverage
        rows.append(
            (
                f"tenths of a weight's interval that were tried, least: {name}",
                f"{share:.0%}",
                f"{needed:.0%} (min_action_coverage)",
                share >= needed,
            )
        )
    return rows


def _read(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measures of the landed rows that are held against bands, and rows of categories that nobody named."""
    landed = records.get("validate_landed", {})
    rows = [
        {
            "table": table,
            "name": name.removeprefix(PROFILE),
            "value": band["value"],
            "low": band["low"],
            "high": band["high"],
            "outside": not band["low"] <= band["value"] <= band["high"],
        }
        for table, bands in landed.get("bands", {}).items()
        for name, band in bands.items()
    ]
    return rows + [
        {"table": "users", "name": name, "value": count, "low": None, "high": None, "outside": count > 0}
        for name, count in landed.get("measures", {}).get("users", {}).items()
        if name.endswith(UNKNOWN_ROWS)
    ]


def _unread(settings: Settings, records: Mapping[str, Any]) -> list[Any]:
    """Changes of the source's columns that are of none that the contract reads."""
    read = {column.name for column in impression_columns(settings)}
    return [
        change
        for change in records.get("drift", {}).get("schema", [])
        if change["change"] != "new" and change["column"] not in read
    ]


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

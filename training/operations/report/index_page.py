"""Writes the index: whether it is better, whether today is all right, what is to be done; then every day."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.contract.files import write_text_atomic
from training.contract.records import read_records, recorded_days
from training.contract.settings import Settings
from training.operations.report import elsewhere, over_days
from training.operations.report.drawing import templates
from training.operations.report.outcome import outcome
from training.operations.report.page import VALIDATIONS, path_of
from training.operations.report.standing import CARDS, drifting, standing, todos
from training.validation import quarantine

INDEX_DAYS = 30  # of the charts


def index(settings: Settings, now: datetime | None = None) -> Path:
    """Write ``reports/index.html``: what a person asks first, and every day with what is known of it."""
    layout, days = settings.layout, recorded_days(settings.layout)
    moment = (now or datetime.now(UTC)).isoformat(timespec="minutes").replace("+00:00", "Z")
    rows = [_row(settings, day, read_records(layout, day)) for day in reversed(days)]
    answers = standing(settings, now)
    paged = {row["day"] for row in rows if row["page"]}
    charted = days[-INDEX_DAYS:]
    known = over_days.known(settings, charted)
    text = templates.get_template("index.html").render(
        moment=moment,
        cards=sorted(
            (one for one in answers if one.question in CARDS), key=lambda one: CARDS.index(one.question)
        ),
        others=[one for one in answers if one.question not in CARDS],
        todos=[
            (one, elsewhere.runbook(layout.reports, one.section) if one.section else None)
            for one in todos(answers)
        ],
        paged=paged,
        held=list(reversed(quarantine.held(settings))),
        rows=rows,
        gain_chart=over_days.gain(known),
        reward_chart=over_days.returns(known),
        drift_chart=over_days.drift(settings, charted),
        confidence=settings.evaluation.confidence,
        places=elsewhere.places(settings, layout.reports),
    )
    path = layout.reports / "index.html"
    write_text_atomic(path, text)
    return path


def _row(settings: Settings, day: Any, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    page, reports = path_of(settings, day), settings.layout.reports
    return {
        "day": day,
        "page": os.path.relpath(page, reports) if page.exists() else None,
        "outcome": outcome(records),
        "rows": records.get("land", {}).get("tables", {}),
        "validation": _validation(records),
        "drift": _worst_drift(records),
        "drifting": bool(drifting(records.get("validate_landed", {}))),
        "docs": _data_docs(settings, records),
        "difference": records.get("evaluate", {}).get("differences", {}).get("challenger - static"),
        "seconds": sum(r.get("seconds", 0.0) for r in records.values()),
    }


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
    path = settings.layout.root / pages[0] if pages else None
    return os.path.relpath(path, settings.layout.reports) if path is not None and path.exists() else None

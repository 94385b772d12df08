"""What a validation found becomes its record: suites run, Data Docs written, bad rows kept."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from training.contract.layout import IMPRESSIONS
from training.contract.settings import Settings
from training.validation.checks import NOT_FINITE
from training.validation.refusals import LANDING
from training.validation.table import ValidatedTable

PARTS = ("files", "rows", "day")


def finish(
    settings: Settings, day: date, tables: Sequence[str], found: Sequence[ValidatedTable]
) -> dict[str, Any]:
    """The record, as :func:`training.validation.validate_landed` gives it.

    ``tables`` are all that the stage may judge, ``found`` those that were there: what an earlier run left of
    the others is dropped.
    """
    from training.validation import data_docs

    layout = settings.layout
    stale = [f"{table}_{part}" for table in tables for part in PARTS]
    if IMPRESSIONS in tables:
        stale.append(LANDING)  # what was refused before has landed since
    suites = [suite for table in found for suite in table.finished_suites()]
    subjects = {suite.name: table for table in found for suite in table.finished_suites()}
    outcomes = data_docs.run(layout.validation, day, suites, stale)
    described = {outcome.suite.name: _describe(outcome, subjects[outcome.suite.name]) for outcome in outcomes}
    for table in set(tables) - {one.rules.table for one in found}:
        (layout.quarantine(table, day) / "validation.parquet").unlink(missing_ok=True)
    kept = {table.rules.table: table.quarantine() for table in found}
    return {
        "success": all(suite["success"] for suite in described.values()),
        "suites": described,
        "quarantined": {table: rows for table, rows in kept.items() if rows},
        "not_judged": [entry for table in found for entry in table.not_judged],
        "measures": {table.rules.table: plain(table.measures) for table in found},
        "bands": {table.rules.table: table.bands for table in found if table.bands},
        "data_docs": f"{layout.validation.name}/data_docs/index.html",
    }


def _describe(outcome: Any, table: ValidatedTable) -> dict[str, Any]:
    failed = [
        {
            "expectation": one.check.expectation,
            "column": one.check.source or one.check.column,
            "field": one.check.column,
            "severity": one.check.severity,
            "observed": plain(one.observed),
            "unexpected_count": one.check.bad_rows if one.unexpected is None else one.unexpected,
            "message": _message(table, one),
        }
        for one in outcome.outcomes
        if not one.success
    ]
    return {
        "success": not any(entry["severity"] == "critical" for entry in failed),
        "evaluated": len(outcome.outcomes),
        "failed": sorted(failed, key=lambda entry: entry["severity"] != "critical"),
        "page": outcome.page,
    }


def _message(table: ValidatedTable, one: Any) -> str:
    if one.check.expectation == "ExpectColumnToExist":
        return f"{table.subject}: the column {one.check.column} is missing"
    observed = plain(one.observed)
    shown = f"{observed:.6g}" if isinstance(observed, float) else observed
    rows = "" if one.check.bad_rows is None else f", {one.check.bad_rows} of {table.rows} rows break it"
    return f"{table.subject}: expected that {one.check.text}; found {shown}{rows}"


def plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not abs(value) < 0.99 * NOT_FINITE:
        return "not a finite number"
    return value

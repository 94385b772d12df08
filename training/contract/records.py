"""What each stage of a day says of itself: one small JSON file a stage, rewritten on a rerun.

The report, ``mtf status`` and the demo's summary read these and nothing else, so whatever a person
should see of a stage has to be in its record.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from training.contract.files import read_json, write_json_atomic
from training.contract.layout import Layout, days_in

STAGES = (
    "traffic",  # the world's own account of the day (demo and experiments only)
    "land",
    "drift",  # what validate_landed found of scores and schemas beside those of recent days
    "validate_landed",
    "transform",
    "validate_transitions",
    "reward",  # of `mtf reward`, where a person asked for it
    "features",
    "parity",
    "validate_training_set",
    "train",
    "evaluate",
    "gate",
    "promote",
)


def now() -> str:
    """The instant in a record: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_record(layout: Layout, day: date, stage: str, record: Mapping[str, Any]) -> None:
    """Write ``runs/dt=<day>/<stage>.json`` atomically. ``record`` must be plain JSON values."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; one of {', '.join(STAGES)}")
    write_json_atomic(layout.run(day) / f"{stage}.json", dict(record))


def read_record(layout: Layout, day: date, stage: str) -> dict[str, Any] | None:
    """The stage's record of that day, or None when the stage has not run."""
    path = layout.run(day) / f"{stage}.json"
    return read_json(path) if path.exists() else None


def read_records(layout: Layout, day: date) -> dict[str, dict[str, Any]]:
    """Every record of the day by stage, in the order of :data:`STAGES`."""
    found = {stage: read_record(layout, day, stage) for stage in STAGES}
    return {stage: record for stage, record in found.items() if record is not None}


def recorded_days(layout: Layout) -> list[date]:
    """Days of which any stage left a record, oldest first."""
    return days_in(layout.root / "runs")

"""Metrics of the pipeline itself, as Prometheus text for node-exporter's textfile collector.

The stages are batch jobs that live for seconds, so nothing could scrape them: after each stage its newest
record goes to ``metrics/mtf.prom`` instead, replaced as a whole.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from training.contract.records import STAGES, read_record, recorded_days
from training.contract.settings import Settings

RECENT_DAYS = 7  # recorded days among which a stage's newest record is looked for
FILE = "mtf.prom"


def write(settings: Settings) -> None:
    """Write the metrics of every stage's newest record; ``OSError`` where the folder cannot be written."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"mtf_stage_{name}", words, ["stage", *labels], registry=registry)

    success = gauge("success", "1 where the stage's newest run succeeded or had nothing to do, else 0")
    skipped = gauge("skipped", "1 where it had nothing to do")
    seconds = gauge("seconds", "wall seconds that it took")
    of_day = gauge("day_timestamp_seconds", "start of the local day that it was about, unix time")
    ended = gauge("end_timestamp_seconds", "when it ended, unix time")
    rows = gauge("rows", "rows of the day that it landed, held back, wrote or learnt from", "what")
    for stage, (day, record) in _newest(settings).items():
        success.labels(stage).set(bool(record.get("success", True)))
        skipped.labels(stage).set("skipped" in record)
        of_day.labels(stage).set(settings.day_start(day).timestamp())
        ended.labels(stage).set((settings.layout.run(day) / f"{stage}.json").stat().st_mtime)
        if "seconds" in record:
            seconds.labels(stage).set(record["seconds"])
        for what, count in _rows(record):
            rows.labels(stage, what).set(count)
    settings.layout.metrics.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(settings.layout.metrics / FILE), registry)


def _newest(settings: Settings) -> dict[str, tuple[date, Mapping[str, Any]]]:
    """Stage → its newest day with a record, and the record."""
    found: dict[str, tuple[date, Mapping[str, Any]]] = {}
    for day in recorded_days(settings.layout)[-RECENT_DAYS:]:
        for stage in STAGES:
            record = read_record(settings.layout, day, stage)
            if record is not None:
                found[stage] = (day, record)
    return found


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for table, landed in record.get("tables", {}).items():
        yield table, landed["rows"]
    for table, count in record.get("quarantined", {}).items():
        yield f"{table} in quarantine", count
    for mart, exported in record.get("exported", {}).items():
        yield mart, exported["rows"]
    for view, materialised in record.get("views", {}).items():
        yield view, materialised["rows"]
    if "transitions" in record:
        yield "transitions", record["transitions"]

"""The pipeline's metrics, read by Prometheus' own parser."""

from datetime import date
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from training.contract.records import write_record
from training.contract.settings import Settings
from training.operations import metrics

DAYS = [date(2026, 1, 5), date(2026, 1, 6)]


def read(settings: Settings) -> dict[tuple[str, ...], float]:
    """(metric, stage, and what) → value."""
    text = (settings.layout.metrics / metrics.FILE).read_text()
    return {
        (sample.name.removeprefix("mtf_stage_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_stages_newest_record_is_told(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    landed = {"impressions": {"rows": 1200}, "decisions": {"rows": 200}}
    write_record(settings.layout, DAYS[0], "land", {"success": True, "seconds": 9.0, "tables": landed})
    write_record(settings.layout, DAYS[0], "train", {"success": True, "seconds": 60.5, "transitions": 180})
    metrics.write(settings)
    assert read(settings)["seconds", "land"] == 9.0

    landed["impressions"]["rows"] = 1300
    write_record(settings.layout, DAYS[1], "land", {"success": True, "seconds": 2.0, "tables": landed})
    bad = {"success": False, "seconds": 1.5, "quarantined": {"impressions": 7}}
    write_record(settings.layout, DAYS[1], "validate_landed", bad)
    write_record(settings.layout, DAYS[1], "gate", {"success": True, "skipped": "no decisions"})
    metrics.write(settings)
    found = read(settings)
    assert found["success", "land"] == 1 and found["success", "validate_landed"] == 0
    assert (found["success", "gate"], found["skipped", "gate"]) == (1, 1)
    assert found["rows", "land", "impressions"] == 1300
    assert found["rows", "validate_landed", "impressions in quarantine"] == 7
    assert found["rows", "train", "transitions"] == 180  # of the day before: today's has not run
    assert found["day_timestamp_seconds", "train"] == settings.day_start(DAYS[0]).timestamp()
    assert found["day_timestamp_seconds", "land"] == settings.day_start(DAYS[1]).timestamp()
    assert ("seconds", "gate") not in found and ("success", "promote") not in found


def test_records_without_rows_and_no_records_are_metrics_too(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    metrics.write(settings)
    assert read(settings) == {}

"""Stage records, the champion pointer, and the layout that both lie in."""

from datetime import date
from pathlib import Path

import pytest

from training.contract.errors import PolicyError
from training.contract.layout import IMPRESSIONS, Layout
from training.contract.pointer import PolicyPointer, read_pointer, write_pointer
from training.contract.records import read_record, read_records, recorded_days, write_record

DAY, NEXT = date(2026, 1, 5), date(2026, 1, 6)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


def test_records_are_read_back_in_the_order_of_stages(layout: Layout) -> None:
    assert (recorded_days(layout), read_records(layout, DAY), read_record(layout, DAY, "train")) == (
        [],
        {},
        None,
    )
    write_record(layout, NEXT, "train", {"steps": 3})
    write_record(layout, NEXT, "land", {"tables": {}})
    write_record(layout, DAY, "gate", {"decision": "keep"})
    write_record(layout, NEXT, "train", {"steps": 4})
    assert recorded_days(layout) == [DAY, NEXT]
    assert list(read_records(layout, NEXT).items()) == [("land", {"tables": {}}), ("train", {"steps": 4})]


def test_a_record_is_of_a_known_stage_and_plain_json(layout: Layout) -> None:
    with pytest.raises(ValueError, match="unknown stage 'lnad'"):
        write_record(layout, DAY, "lnad", {})
    with pytest.raises(ValueError, match="JSON"):
        write_record(layout, DAY, "train", {"loss": float("inf")})
    assert read_record(layout, DAY, "train") is None


def test_days_are_the_partitions_and_nothing_else(layout: Layout) -> None:
    assert layout.days(IMPRESSIONS) == []
    for name in ("dt=2026-01-06", "dt=2026-01-05", ".dt=2026-01-07.x.new", ".dt=2026-01-08.old"):
        (layout.table(IMPRESSIONS) / name).mkdir(parents=True)
    assert layout.days(IMPRESSIONS) == [DAY, NEXT]
    assert layout.partition(IMPRESSIONS, DAY).name == "dt=2026-01-05"


def test_the_champion_pointer(layout: Layout) -> None:
    assert read_pointer(layout.champion) is None
    first = PolicyPointer("models/a", "00", "v1", "2026-01-05", "1", "2026-01-06T00:00:00Z")
    write_pointer(layout.champion, first)
    assert read_pointer(layout.champion) == first
    for broken in ("{", "[]", '{"policy": "x"}', '{"unknown": 1}', "null"):
        layout.champion.write_text(broken)
        with pytest.raises(PolicyError, match=r"champion.json is not a pointer to a policy"):
            read_pointer(layout.champion)

"""A week over the October night in Berlin ends in the tables of one clean backfill of the same facts.

Compared, bit for bit, are the lake's partitions, the marts' files, every table of the warehouse and of the
online store, as :func:`tests.end_to_end.same_tables.final_state` names them (of the store, not when a row was
written). What is not compared differs by right: the store's sessions, which a running service pushes and a
backfill does not; the notes beside partitions and the records, which say where rows came from and how often
they changed; and Data Docs and pages, which say what was found on which night. Policies are left out: a day's
learns from what was known on its night, before late rows of the days before it came.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dags.command_line import stack
from dags.command_line.world import service_address
from serving.release.bento import free_port
from serving.release.client import Client
from tests.end_to_end import october
from tests.end_to_end.same_tables import final_state
from training import features
from training.contract.layout import IMPRESSIONS
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE, Settings
from training.ingest.landing import read_partition
from training.operations.missed import missing_days

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # two weeks of nights
COMPARED = ("lake", "mart", "bytes", "warehouse", "online")
PUSHED = "online mtf_user_session"


@dataclass(frozen=True)
class Both:
    week: october.Week
    lived: Settings
    clean: Settings


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("october")
    lived = october.write_settings(
        folder / "lived",
        logs={"source": "both", "folder": str(folder / "lived/logs")},
        serving={"port": free_port()},
    )
    clean = october.write_settings(
        folder / "clean", logs={"source": "files", "folder": str(folder / "clean/logs")}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SETTINGS_VARIABLE, str(folder / "lived/mtf.yaml"))
        features.apply(lived)
        service = next(s for s in stack.services(lived, folder / "lived/mtf.yaml") if s.name == "service")
        stack.start(lived, service)
        try:
            stack.wait_ready(lived, service)
            with Client(service_address(lived), stack.token(lived), 30.0) as client:
                week = october.Week(lived, client)
                week.live()
        finally:
            stack.stop(lived, "service")
        patch.setenv(SETTINGS_VARIABLE, str(folder / "clean/mtf.yaml"))
        october.backfill(clean, week.facts)
    yield Both(week, lived, clean)


def test_the_week_had_all_that_it_is_about(both: Both):
    lived, week = both.lived, both.week
    assert week.late_rows > 20 and week.late_feedback > 20
    assert missing_days(lived, october.DAYS[-1]) == []
    landed = read_record(lived.layout, october.MISSED, "land")["tables"][IMPRESSIONS]
    assert set(landed["rows_by_source"]) == {"files", "service"} and landed["requests_in_both"] > 20
    assert min(landed["rows_by_source"].values()) > 0.3 * landed["rows"]
    shown = read_partition(lived.layout.partition(IMPRESSIONS, october.MISSED)).to_pylist()
    wall = {row["event_ts"].astimezone(lived.calendar.zone).strftime("%H:%M%z") for row in shown}
    assert {"02:30+0200", "02:30+0100"} <= wall
    assert {row["user_id"] for row in shown} >= {"00001", "00002"}


def test_the_tables_are_those_of_one_clean_backfill(both: Both):
    lived, clean = (
        {
            name: digest
            for name, digest in final_state(one).items()
            if name.split()[0] in COMPARED and name != PUSHED
        }
        for one in (both.lived, both.clean)
    )
    differ = sorted(name for name in {*lived, *clean} if lived.get(name) != clean.get(name))
    assert differ == []
    kinds = Counter(name.split()[0] for name in clean)
    assert set(kinds) == set(COMPARED) and kinds["lake"] == 3 * len(october.DAYS)

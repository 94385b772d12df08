"""The past of the world is a log like the service's own: decisions, what they led to, and whose they are."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dags.command_line.world import as_the_service
from serving.ranking import arms
from tests.training.world.simulator.conftest import DAY, beginning
from training.contract.epochs import epoch_of_day
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings, ShareSettings
from training.world.simulator.past import land_past


@pytest.fixture(scope="module")
def past(saved: tuple[Settings, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict]:
    settings = beginning(saved, tmp_path_factory.mktemp("past"), 1_000)
    shares = ShareSettings(static=0.2, random=0.3, noise=0.3)
    serving = settings.serving.model_copy(update={"shares": shares})
    settings = settings.model_copy(update={"serving": serving})
    return settings, land_past(settings, DAY, as_the_service(settings))


def rows(settings: Settings, table: str) -> list[dict]:
    return pq.read_table(settings.layout.partition(table, DAY) / "part-0.parquet").to_pylist()


def test_every_request_has_its_decision_and_its_page(past) -> None:
    settings, notes = past
    decisions, impressions = rows(settings, DECISIONS), rows(settings, IMPRESSIONS)
    assert notes[DECISIONS]["rows"] == len(decisions) > 500
    assert len(impressions) == settings.world.page * len(decisions)
    assert {row["request_id"] for row in impressions} == {row["request_id"] for row in decisions}
    assert notes[USERS]["rows"] == settings.world.users


def test_decisions_are_those_of_the_service_without_a_champion(past) -> None:
    settings, _ = past
    static = settings.fusion.static_action
    serving = settings.serving
    epoch = epoch_of_day(DAY, serving.exploration.epoch_days)
    for row in rows(settings, DECISIONS):
        assert row["arm"] == arms.draw(serving.shares, serving.salt, epoch, row["user_id"])
        assert len(row["state"]) == settings.state_spec.width
        drawn = row["arm"] in (arms.RANDOM, arms.NOISE)
        assert (row["log_density"] is not None) == drawn
        assert (row["exploration_unit"], row["epoch"]) == ("session" if drawn else None, epoch)
        assert np.array_equal(np.float32(row["action"]), static) != drawn
        assert row["fallback"] == ("no_policy" if row["arm"] == arms.CHAMPION else None)


def test_the_same_day_again_is_the_same_log(past) -> None:
    settings, notes = past
    again = land_past(settings, DAY, as_the_service(settings))
    for table in (IMPRESSIONS, DECISIONS, USERS):
        assert not again[table]["changed"] and again[table]["sha256"] == notes[table]["sha256"]


def test_a_session_deviates_one_way(past) -> None:
    settings, _ = past
    sessions: dict[str, set[bytes]] = {}
    for row in rows(settings, DECISIONS):
        if row["exploration_unit"]:
            sessions.setdefault(row["session_id"], set()).add(np.float32(row["action"]).tobytes())
    assert {len(actions) for actions in sessions.values()} == {1}  # around a mean that does not move
    assert len(set().union(*sessions.values())) == len(sessions) > 20

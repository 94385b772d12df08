"""One calibrated world for all tests of the simulator; those that change it take a copy from its files."""

import shutil
from datetime import date
from pathlib import Path

import pytest

from training.contract.settings import Settings, WorldSettings
from training.contract.settings.days import CalendarSettings
from training.world.simulator.drivers import state_folder
from training.world.simulator.world import World

DAY = date(2026, 1, 5)


def world_settings(data: Path, **world: object) -> Settings:
    sizes = {"users": 1_500, "items": 2_000, "requests_per_day": 3_000, **world}
    calendar = CalendarSettings(timezone="Asia/Shanghai")
    return Settings(
        data=data, calendar=calendar, world=WorldSettings(**sizes), serving={"accept_event_ts": True}
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Settings and the snapshot of a new world."""
    folder = tmp_path_factory.mktemp("world")
    settings = world_settings(folder)
    World(settings).save(folder / "saved")
    return settings, folder / "saved"


@pytest.fixture(scope="session")
def calm(saved: tuple[Settings, Path]) -> World:
    """A world that no test may start a day in."""
    return World.load(*saved)


def beginning(saved: tuple[Settings, Path], data: Path, requests_per_day: int) -> Settings:
    """Settings of a data folder in which the saved world is about to begin its first day."""
    settings = world_settings(data, requests_per_day=requests_per_day)
    shutil.copytree(saved[1], state_folder(settings, DAY))
    return settings


@pytest.fixture
def world(saved: tuple[Settings, Path]) -> World:
    return World.load(*saved)

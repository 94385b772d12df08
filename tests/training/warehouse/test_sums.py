"""Sums over shares: the same bits whatever the threads; on Spark the same but for rounding."""

import os
import threading
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.training.trajectories.test_shares import DAY, made
from training.contract.errors import MtfError
from training.contract.settings import Settings, SparkSettings, WarehouseSettings
from training.returns import Features, Parts, Statistics, of_parts
from training.trajectories.shares import WindowLog, window_paths
from training.warehouse.sums import InProcess, adding_up


@dataclass(frozen=True)
class Held:
    """A sum that says how many of them there are."""

    value: float

    def __add__(self, other: "Held") -> "Held":
        return Held(self.value + other.value)


def test_the_order_of_a_sum_is_that_of_its_items_whatever_the_threads() -> None:
    items = np.random.default_rng(0).lognormal(0.0, 8.0, 50).tolist()
    wanted = sum(items[1:], items[0])
    assert {InProcess(threads)(Held, items).value for threads in (1, 2, 7, 64)} == {wanted}


def test_no_more_is_at_work_or_waits_than_there_are_threads() -> None:
    lock, waiting, most = threading.Lock(), [0], [0]

    def work(item: int) -> Held:
        with lock:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
        return Counted(item, partial(_less, waiting))

    InProcess(3)(work, range(20))
    assert most[0] <= 4  # and the sum so far


def _less(waiting: list[int]) -> None:
    waiting[0] -= 1


@dataclass(frozen=True)
class Counted:
    value: int
    gone: object

    def __add__(self, other: "Counted") -> "Counted":
        other.gone()
        return Counted(self.value + other.value, self.gone)


def statistics(settings: Settings, least: int) -> Parts:
    features = Features(settings.fusion, settings.state_spec.width)
    with adding_up(settings) as add_up:
        return of_parts(features, WindowLog(settings, DAY, add_up, least), 0.9)


def test_a_thrift_server_runs_no_python(tmp_path: Path) -> None:
    spark = SparkSettings(target="thrift")
    settings = Settings(data=tmp_path, warehouse=WarehouseSettings(engine="spark", spark=spark))
    with adding_up(settings) as add_up:
        assert isinstance(add_up, InProcess)


@pytest.mark.scale
@pytest.mark.timeout(600)
def test_spark_gives_the_sums_of_this_process_but_for_rounding(tmp_path: Path) -> None:
    """To 1e-12 of the largest of each array: the tree adds in another order."""
    assert version("pyspark").startswith("4.3."), "look again at how SparkSums ends the JVM"
    settings = made(tmp_path, 5, sessions=200)
    warehouse = WarehouseSettings(engine="spark", spark=SparkSettings(memory="1g"))
    on_spark = settings.model_copy(update={"warehouse": warehouse})
    here, there = statistics(settings, 1), statistics(on_spark, 1)
    assert here.whole.rows.sum() > 50
    for mine, other in ((here.whole, there.whole), (here.time, there.time)):
        for f in fields(Statistics):
            a, b = getattr(mine, f.name), getattr(other, f.name)
            np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-12 * np.abs(a).max())
    assert "JAVA_HOME" not in os.environ or Path(os.environ["JAVA_HOME"]).is_dir()
    mine = {own.pid for own in psutil.Process().children(recursive=True) if own.name() == "java"}
    assert not mine  # its JVM ended with the sums

    window_paths(settings, DAY)[DAY].write_bytes(b"")
    with pytest.raises(MtfError, match="is not a readable export"):
        statistics(on_spark, 1)

"""By Spark into Redis as by DuckDB into SQLite: every user's features online, every row as of an instant."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serving.state.online_state import OnlineState
from serving.state.questions import StateRequest
from tests.dbt_project.conftest import DAYS
from tests.dbt_project.test_spark import NIGHT, QUICK, Both, both
from tests.servers import redis_server
from training import features
from training.contract.errors import DataError
from training.contract.settings import (
    CalendarSettings,
    IdSettings,
    Settings,
    SparkSettings,
    StoreSettings,
    WarehouseSettings,
)
from training.features.store import open_store, state_service
from training.warehouse import transform

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]

KINDS = {
    "int64": (DAYS, {}),
    "string": (
        NIGHT,
        {
            "ids": IdSettings(users="string", items="string"),
            "calendar": CalendarSettings(timezone="Europe/Berlin"),
        },
    ),
}


@pytest.fixture(scope="module", autouse=True)
def quick_java() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", QUICK)
        yield


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Three days of one lake, materialised a day after the other.

    Of string ids each engine has made its own exports; of int64 DuckDB has made both, which is quicker.
    """
    days, sections = KINDS[request.param]
    one = both(tmp_path_factory.mktemp(request.param), days, SparkSettings(partitions=2), **sections)
    with redis_server() as port:
        store = StoreSettings(online="redis", redis_url=f"127.0.0.1:{port}")
        one = Both(one.duckdb, one.spark.model_copy(update={"store": store}), one.lake)
        one.land(*days)
        if request.param == "string":
            one.run(days[-1])
        else:
            transform.run(one.duckdb, days[-1])
            shutil.copytree(one.duckdb.layout.marts, one.spark.layout.marts)
        for settings in (one.duckdb, one.spark):
            features.apply(settings)
        for day in days:
            by_duckdb, by_spark = (features.materialise(s, day) for s in (one.duckdb, one.spark))
            assert by_spark == {name: by_duckdb[name] for name in by_spark}
        yield one


def users(settings: Settings) -> list[int | str]:
    exports = sorted(settings.layout.mart("fct_user_history").glob("dt=*/part-0.parquet"))
    return sorted(set(pd.concat([pd.read_parquet(path) for path in exports])["user_id"].tolist()))


def days_of(made: Both) -> list[date]:
    return sorted({day for _, day in made.lake.rows})


def online(settings: Settings) -> dict[str, list[object]]:
    """What Feast's SDK gives of every user, and its stamps."""
    store = open_store(settings)
    service = state_service(settings, store)
    response = store.get_online_features(service, [{"user_id": user} for user in users(settings)])
    return response.to_df(include_event_timestamps=True).to_dict("list")


def test_every_user_has_the_same_features_online(made: Both) -> None:
    one, other = online(made.duckdb), online(made.spark)
    assert repr(one) == repr(other)
    assert len(one["user_id"]) > 3 and any(value not in (None, 0.0) for value in one["hist_play_s"])
    asked = [
        StateRequest(user, "s", made.duckdb.day_start(days_of(made)[-1]) + timedelta(hours=30))
        for user in one["user_id"]
    ]
    by_duckdb, by_spark = (OnlineState(settings).read(asked) for settings in (made.duckdb, made.spark))
    np.testing.assert_array_equal(by_duckdb, by_spark)


def test_the_service_reads_without_spark(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(warehouse=WarehouseSettings(engine="spark"))
    features.apply(settings)
    code = (
        "import sys; sys.modules['pyspark'] = None; from datetime import UTC, datetime; "
        "from serving.state.online_state import OnlineState; "
        "from serving.state.questions import StateRequest, nobody; "
        "from training.contract.settings import Settings; "
        "settings = Settings.model_validate_json(sys.argv[1]); state = OnlineState(settings); "
        "print(state.read([StateRequest(nobody(settings), 's', datetime.now(UTC))]).shape)"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json()]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.strip() == f"(1, {settings.state_spec.width})"


def test_every_row_as_of_an_instant_is_the_same(made: Both) -> None:
    """All users at every third hour of the days, and at the instants of all feedback, with their requests."""
    first = made.duckdb.day_start(days_of(made)[0])
    hours = [first + timedelta(hours=3 * step) for step in range(34)]
    asked = [(user, hour, None) for user in users(made.duckdb) for hour in hours]
    for path in made.duckdb.layout.mart("fct_session_state").glob("dt=*/part-0.parquet"):
        rows = pd.read_parquet(path)
        asked += zip(rows["user_id"], rows["event_timestamp"], rows["request_id"], strict=True)
    frame = pd.DataFrame(asked, columns=["user_id", "event_timestamp", "request_id"])
    frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], utc=True)
    frame["features_until"] = frame["event_timestamp"] - pd.Timedelta(hours=20)
    one, other = (features.historical(settings, frame) for settings in (made.duckdb, made.spark))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert one["hist_count"].notna().mean() > 0.3 and one["sess_requests"].notna().sum() > 10


def test_a_mart_without_a_column_is_named(made: Both, tmp_path: Path) -> None:
    settings = made.spark.model_copy(update={"data": tmp_path})
    shutil.copytree(made.spark.layout.feast, settings.layout.feast)
    features.apply(settings)
    for path in made.spark.layout.mart("fct_user_history").glob("dt=2*/part-0.parquet"):
        to = settings.layout.mart("fct_user_history") / path.parent.name / path.name
        to.parent.mkdir(parents=True)
        pd.read_parquet(path).drop(columns="hist_count").to_parquet(to)
    features.apply(settings)
    with pytest.raises(DataError, match=r"(?s)cannot read the export of fct_user_history.*hist_count"):
        features.materialise(settings, NIGHT[0])

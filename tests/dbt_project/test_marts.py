"""Exported marts against plain Python over the same rows, and day by day against all at once."""

from datetime import timedelta

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dbt_project.conftest import DAYS, Warehouse, contents, export
from tests.dbt_project.reference import Reference, user_versions
from training.contract.settings import Settings
from training.contract.state import history_columns, session_columns
from training.warehouse.exports import MARTS


@pytest.fixture(scope="module")
def reference(warehouse: Warehouse) -> Reference:
    return Reference(warehouse.daily, warehouse.lake.all("impressions"), warehouse.lake.all("decisions"))


def close(expected: dict, within: float = 1e-9) -> dict:
    return {
        name: pytest.approx(value, rel=within, abs=within) if isinstance(value, float) else value
        for name, value in expected.items()
    }


def test_days_out_of_order_with_late_rows_give_what_all_at_once_gives(warehouse: Warehouse) -> None:
    assert contents(warehouse.daily) == contents(warehouse.at_once)
    assert versions(warehouse.daily) == versions(warehouse.at_once)
    assert warehouse.records[str(DAYS[2])]["reprocessed_days"] == [str(DAYS[0]), str(DAYS[2])]
    assert warehouse.records[str(DAYS[1])]["reprocessed_days"] == [str(d) for d in DAYS]


def test_transitions(warehouse: Warehouse, reference: Reference) -> None:
    expected = reference.transitions()
    rows = {row["request_id"]: row for row in export(warehouse.daily, "fct_transitions")}
    assert rows.keys() == expected.keys()
    for request_id, row in rows.items():
        for name in ("state", "next_state", "item_scores", "item_rewards"):
            want = expected[request_id].pop(name)
            assert row[name] == (want and pytest.approx(want, rel=1e-6, abs=1e-6))
        assert {n: row[n] for n in expected[request_id]} == close(expected[request_id])
    # the lake holds what the cases are about
    assert {(row["done"], row["truncated"]) for row in rows.values()} == {
        (False, False),
        (True, False),
        (False, True),
    }
    assert any("~" in row["session_id"] for row in rows.values())
    assert any(row["step"] and row["event_ts"].hour == 0 for row in rows.values()), "none crosses midnight"


def test_user_history_holds_the_last_impressions_up_to_the_end_of_the_day(
    warehouse: Warehouse, reference: Reference
) -> None:
    expected = reference.history()
    rows = {(row["user_id"], row["dt"]): row for row in export(warehouse.daily, "fct_user_history")}
    assert rows.keys() == expected.keys()
    for (user, day), row in rows.items():
        assert {n: row[n] for n in expected[user, day]} == close(expected[user, day])
        assert row["event_timestamp"] == warehouse.daily.day_start(day + timedelta(days=1))
    assert max(row["hist_count"] for row in rows.values()) == 9


def test_session_state_is_what_the_service_pushes(warehouse: Warehouse, reference: Reference) -> None:
    expected = reference.session_state()
    rows = {row["request_id"]: row for row in export(warehouse.daily, "fct_session_state")}
    assert rows.keys() == expected.keys()
    for request_id, row in rows.items():
        # predictions are summed to one billionth each
        assert {n: row[n] for n in expected[request_id]} == close(expected[request_id], 1e-8)
    assert max(row["sess_requests"] for row in rows.values()) > 3


def test_policy_daily(warehouse: Warehouse, reference: Reference) -> None:
    expected = reference.policy_daily()
    rows = {(row["dt"], row["arm"]): row for row in export(warehouse.daily, "fct_policy_daily")}
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        want = {n: pytest.approx(v, abs=2e-6) if v is not None else None for n, v in expected[key].items()}
        assert {n: row[n] for n in want} == want


def versions(settings: Settings) -> list[dict]:
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        found = connection.sql("select * from main.dim_user_versions order by user_id, version")
        return found.to_arrow_table().to_pylist()


def test_versions_of_profiles_are_those_of_the_landed_days(warehouse: Warehouse) -> None:
    expected = user_versions(warehouse.daily, warehouse.lake.all("users"))
    assert versions(warehouse.daily) == expected
    assert {row["version"] for row in expected} >= {1, 2}
    assert len(expected) < len(warehouse.lake.all("users")), "no day repeats a profile"


def test_a_join_in_time_takes_no_profile_from_the_future(warehouse: Warehouse) -> None:
    """What a request finds is the newest profile of the days before its own, or of its own day so far."""
    settings, users = warehouse.daily, warehouse.lake.all("users")
    columns = [feature.column for feature in settings.state.profile]
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        joined = connection.sql(
            """
            select requests.request_id, requests.user_id, requests.event_ts, requests.dt,
                versions.* exclude (user_id, dt)
            from main.int_requests as requests
            left join main.dim_user_versions as versions
                on
                    requests.user_id = versions.user_id
                    and versions.valid_from <= requests.event_ts
                    and (requests.event_ts < versions.valid_to or versions.valid_to is null)
            """
        ).to_arrow_table()
    rows = joined.to_pylist()
    assert len({row["request_id"] for row in rows}) == len(rows) == len(warehouse.lake.all("decisions"))
    known = 0
    for row in rows:
        of_user = [u for u in users if u["user_id"] == row["user_id"]]
        brought = [u for u in of_user if u["dt"] < row["dt"]]
        today = [u for u in of_user if u["dt"] == row["dt"] and u["updated_ts"] <= row["event_ts"]]
        want = max(brought + today, key=lambda u: u["dt"], default=None)
        assert {n: row[n] for n in columns} == {n: want and want[n] for n in columns}
        known += want is not None
    assert 0 < known < len(rows)


def test_users(warehouse: Warehouse) -> None:
    rows = {(row["user_id"], row["dt"]): row for row in export(warehouse.daily, "dim_users")}
    landed = {(row["user_id"], row["dt"]): row for row in warehouse.lake.all("users")}
    assert rows.keys() == landed.keys()
    for (user, day), row in rows.items():
        assert row["fans_user_num"] == landed[user, day]["fans_user_num"]
        assert warehouse.daily.day_start(day) <= row["event_timestamp"]
        assert row["event_timestamp"] < warehouse.daily.day_start(day + timedelta(days=1))


@pytest.mark.parametrize("mart", MARTS)
def test_exports_are_plain_microsecond_utc_and_sorted(warehouse: Warehouse, mart: str) -> None:
    paths = sorted(warehouse.daily.layout.mart(mart).glob("dt=*/part-0.parquet"))
    assert paths
    for path in paths:
        table = pq.ParquetFile(path).read()
        for field in table.schema:
            if pa.types.is_timestamp(field.type):
                assert field.type == pa.timestamp("us", "UTC"), field
            assert not pa.types.is_decimal(field.type), field
        rows = [tuple(row.values()) for row in table.select(MARTS[mart]).to_pylist()]
        assert rows == sorted(rows)
        assert set(map(str, table["dt"].to_pylist())) == {path.parent.name.removeprefix("dt=")}


def test_exports_have_the_columns_that_the_state_is_made_of(warehouse: Warehouse) -> None:
    signals, heads = warehouse.daily.signal_names, warehouse.daily.head_names
    history, session = (
        export(warehouse.daily, mart, DAYS[0])[0] for mart in ("fct_user_history", "fct_session_state")
    )
    assert [n for n in history if n.startswith("hist_")] == [*history_columns(signals), "hist_last_ts"]
    assert [n for n in session if n in session_columns(signals, heads)] == session_columns(signals, heads)

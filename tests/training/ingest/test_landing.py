"""Landing: atomic, idempotent, the same for every order of rows, and refusing by name."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.training.ingest.conftest import DAY, MIDNIGHT, SHANGHAI, impressions, partition_bytes, read
from training.contract.errors import DataError
from training.contract.files import read_json, replaced_folder, write_json_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.log import LAKE_VERSION
from training.contract.records import write_record
from training.contract.settings import Settings
from training.ingest import changed_days, land, landed, late_users, with_predictions
from training.ingest import landing as landing_module

ROW = st.fixed_dictionaries(
    {
        "request_id": st.sampled_from(["a", "b", "ä", ""]),
        "item_id": st.integers(0, 3),
        "position": st.integers(0, 2),
        "event_ts": st.integers(0, 86_399).map(lambda s: MIDNIGHT + timedelta(seconds=s)),
        "p_click": st.none() | st.floats(0, 1, width=32),
        "session_id": st.none() | st.sampled_from(["s", "t"]),
        "is_click": st.integers(0, 1),
    }
)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(ROW, min_size=1, max_size=12), random=st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_lands_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], random
) -> None:
    settings = Settings(data=tmp_path_factory.mktemp("lake"), calendar=SHANGHAI)
    first = land(settings, IMPRESSIONS, DAY, impressions(rows, settings), "test")
    content = partition_bytes(settings)
    again = rows + random.choices(rows, k=3)
    random.shuffle(again)
    second = land(settings, IMPRESSIONS, DAY, impressions(again, settings), "test")
    assert partition_bytes(settings) == content
    assert (second["sha256"], second["revision"], second["changed"]) == (first["sha256"], 1, False)
    assert second["duplicates_removed"] == first["duplicates_removed"] + 3
    assert first["rows"] == len({tuple(sorted(row.items(), key=str)) for row in rows})


def test_landing_writes_the_contract_and_what_it_did(settings: Settings) -> None:
    rows = impressions([{"item_id": 2, "position": 1, "extra": 1}, {"item_id": 1, "extra": 1}], settings)
    note = land(settings, IMPRESSIONS, DAY, rows, "test")
    landed_rows = read(settings)
    assert [row["item_id"] for row in landed_rows] == [1, 2]
    assert "extra" not in landed_rows[0] and landed_rows[0]["p_click"] is None
    assert landed_rows[0]["event_ts"] == MIDNIGHT
    stored = read_json(settings.layout.partition(IMPRESSIONS, DAY) / "_landed.json")
    assert stored | {"changed": False} == note
    assert note["rows"] == 2 and note["contract_version"] == LAKE_VERSION and note["source"] == "test"


def test_rows_of_one_key_that_differ_are_left_for_validation(settings: Settings) -> None:
    rows = impressions([{"is_click": 0}, {"is_click": 1}, {"is_click": 1}], settings)
    note = land(settings, IMPRESSIONS, DAY, rows, "test")
    assert (note["rows"], note["duplicates_removed"]) == (2, 1)


def test_whose_rows_changed_later_is_kept_with_how_far_the_online_store_was(settings: Settings) -> None:
    def bring(**third) -> None:
        rows = [{"user_id": 1}, {"user_id": 2, "request_id": "s"}, {"user_id": 3, "request_id": "t", **third}]
        land(settings, IMPRESSIONS, DAY, impressions(rows, settings), "test")

    def known() -> dict[int, str]:
        found = late_users(settings, (IMPRESSIONS,), before=DAY + timedelta(days=1)).to_pylist()
        assert late_users(settings, (IMPRESSIONS,), before=DAY).num_rows == 0  # the day's own are not late
        return {row["user_id"]: row["until"].isoformat() for row in found}

    bring()
    bring(is_click=1)
    assert known() == {}  # nothing was materialised: nothing can have been served without it
    first, second = "2026-01-05T16:00:00+00:00", "2026-01-06T16:00:00+00:00"
    write_json_atomic(settings.layout.materialised, {"until": first})
    bring(is_click=0, p_click=0.5)
    bring(is_click=0, p_click=0.75)  # predictions are no part of a state
    assert known() == {3: first}
    write_json_atomic(settings.layout.materialised, {"until": second})
    bring(is_click=1, p_click=0.75)
    bring(is_click=1, p_click=0.75)
    assert known() == {3: second}


def test_another_content_is_a_change_and_the_same_again_is_none(settings: Settings) -> None:
    one, two = impressions([{}], settings), impressions([{}, {"item_id": 2}], settings)
    assert land(settings, IMPRESSIONS, DAY, one, "test")["changed"] is False
    changed = land(settings, IMPRESSIONS, DAY, two, "test")
    assert (changed["changed"], changed["revision"]) == (True, 2)
    same = land(settings, IMPRESSIONS, DAY, two, "test")
    assert (same["changed"], same["revision"]) == (False, 2)


def test_a_day_is_changed_until_it_is_run_again(settings: Settings) -> None:
    land(settings, IMPRESSIONS, DAY, impressions([{}], settings), "test")
    assert changed_days(settings) == []  # never run: nothing is out of date
    write_record(settings.layout, DAY, "land", landed(settings, DAY))
    assert changed_days(settings) == []
    land(settings, IMPRESSIONS, DAY, impressions([{"item_id": 2}], settings), "test")
    assert changed_days(settings) == [DAY]
    write_record(settings.layout, DAY, "land", landed(settings, DAY))
    assert changed_days(settings) == []


def test_a_failure_while_writing_leaves_the_landed_day(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(settings, IMPRESSIONS, DAY, impressions([{}], settings), "test")
    content = partition_bytes(settings)

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(landing_module, "write_json_atomic", full)
    with pytest.raises(OSError, match="No space"):
        land(settings, IMPRESSIONS, DAY, impressions([{"item_id": 2}], settings), "test")
    monkeypatch.undo()
    assert partition_bytes(settings) == content
    table = settings.layout.table(IMPRESSIONS)
    assert [path.name for path in table.iterdir()] == [f"dt={DAY}"]


def test_a_kill_between_the_two_renames_is_undone(settings: Settings) -> None:
    land(settings, IMPRESSIONS, DAY, impressions([{}], settings), "test")
    partition = settings.layout.partition(IMPRESSIONS, DAY)
    content = partition_bytes(settings)
    partition.replace(partition.with_name(f".{partition.name}.old"))
    assert landed(settings, DAY)["tables"][IMPRESSIONS]["rows"] == 1
    assert partition_bytes(settings) == content


def test_a_partition_that_was_damaged_is_written_anew_without_being_a_change(settings: Settings) -> None:
    rows = impressions([{}, {"item_id": 2}], settings)
    land(settings, IMPRESSIONS, DAY, rows, "test")
    content = partition_bytes(settings)
    part = settings.layout.partition(IMPRESSIONS, DAY) / "part-0.parquet"
    part.write_bytes(content[:-20])
    note = land(settings, IMPRESSIONS, DAY, rows, "test")
    assert partition_bytes(settings) == content and note["changed"] is False and note["revision"] == 1
    with replaced_folder(part.parent) as fresh:  # a stray file beside the part is not part of the day
        (fresh / "part-0.parquet").write_bytes(content)
        (fresh / "part-1.parquet").write_bytes(content)
    land(settings, IMPRESSIONS, DAY, rows, "test")
    assert {path.name for path in part.parent.iterdir()} == {"part-0.parquet", "_landed.json"}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("is_click", [0, 300], r"column is_click, row 2: 300 \(int64\) is not int8"),
        ("item_id", ["1", "x"], r"column item_id, row 2: 'x' \(string\) is not int64"),
        ("position", [0.0, 1.5], r"column position, row 2: 1.5 \(double\) is not int32"),
        ("event_ts", ["2026-01-05T00:00:00Z", "soon"], r"column event_ts, row 2: 'soon'"),
        ("event_ts", [MIDNIGHT, MIDNIGHT + timedelta(days=1)], r"row 2 has the time .* not in the local day"),
        ("event_ts", [None, MIDNIGHT], r"row 1 has the time None"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    settings: Settings, column: str, values: list, message: str
) -> None:
    rows = impressions([{}, {}], settings)
    rows = rows.set_column(rows.column_names.index(column), column, pa.array(values))
    with pytest.raises(DataError, match=message):
        land(settings, IMPRESSIONS, DAY, rows, "test")
    assert not settings.layout.partition(IMPRESSIONS, DAY).exists()


def test_a_missing_column_is_named(settings: Settings) -> None:
    rows = impressions([{}], settings).drop_columns(["play_time_ms"])
    with pytest.raises(DataError, match=r"impressions of 2026-01-05 from test: missing column play_time_ms"):
        land(settings, IMPRESSIONS, DAY, rows, "test")


def test_users_land_on_the_day_they_became_known(settings: Settings) -> None:
    users = pa.table({"user_id": [2, 1], "updated_ts": [MIDNIGHT - timedelta(days=9), MIDNIGHT]})
    assert land(settings, USERS, DAY, users, "test")["rows"] == 2
    assert [row["user_id"] for row in read(settings, USERS)] == [1, 2]


def test_decisions_keep_their_lists(settings: Settings) -> None:
    rows = pa.Table.from_pylist(
        [
            {
                "request_id": request,
                "session_id": "s",
                "user_id": 1,
                "event_ts": MIDNIGHT,
                "policy_version": "p",
                "arm": "random",
                "state": state,
                "action": [0.5],
                "action_mean": [0.0],
                "state_spec": "s0",
            }
            for request, state in (("b", None), ("a", [0.25, 1.0]))
        ]
    )
    land(settings, DECISIONS, DAY, rows, "test")
    assert [(row["request_id"], row["state"]) for row in read(settings, DECISIONS)] == [
        ("a", [0.25, 1.0]),
        ("b", None),
    ]


def test_predictions_are_filled_in_and_named_when_wrong(settings: Settings) -> None:
    rows = impressions([{"item_id": 1}, {"item_id": 2, "position": 1}], settings)
    land(settings, IMPRESSIONS, DAY, rows, "test")
    keys = {"request_id": ["r"], "item_id": [2]}
    note = with_predictions(settings, DAY, pa.table({**keys, "p_click": [0.25]}))
    assert (note["changed"], note["revision"], note["rows"]) == (True, 2, 2)
    assert [row["p_click"] for row in read(settings)] == [None, np.float32(0.25)]
    assert with_predictions(settings, DAY, pa.table({**keys, "p_click": [0.25]}))["changed"] is False
    with pytest.raises(DataError, match=r"p_clack"):
        with_predictions(settings, DAY, pa.table({**keys, "p_clack": [0.25]}))
    with pytest.raises(DataError, match=r"1 rows repeat"):
        repeated = pa.table({"request_id": ["r", "r"], "item_id": [2, 2], "p_click": [0.1, 0.2]})
        with_predictions(settings, DAY, repeated)
    with pytest.raises(DataError, match="not landed"):
        with_predictions(settings, DAY + timedelta(days=1), pa.table({**keys, "p_click": [0.25]}))

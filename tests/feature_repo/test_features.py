"""Definitions registered, days materialised, and rows read back as of an instant."""

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore

from training import features
from training.contract.errors import DataError
from training.contract.settings import SignalSettings, StateSettings, load_settings
from training.contract.state import history_columns, session_columns

D1, D2, D3 = date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7)


def online(settings, user_id, *names):
    store = FeatureStore(repo_path=str(settings.layout.feast))
    found = store.get_online_features(list(names), [{"user_id": user_id}]).to_dict()
    return [found[name.split(":")[1]][0] for name in names]


def entity(*rows):
    return pd.DataFrame(
        {"user_id": [user for user, _ in rows], "event_timestamp": [pd.Timestamp(ts) for _, ts in rows]}
    )


def test_apply_registers_the_specification_and_is_idempotent(settings):
    first = features.apply(settings)
    assert features.apply(settings) == first
    store = FeatureStore(repo_path=str(settings.layout.feast))
    service = store.get_feature_service(f"state_{settings.state_spec.version}")
    assert [p.name for p in service.feature_view_projections] == [
        "user_profile",
        "user_history",
        "user_session",
    ]
    served = {f.name for p in service.feature_view_projections for f in p.features}
    spec = settings.state_spec
    assert served == {
        *spec.inputs("profile"),
        *spec.inputs("history"),
        *spec.inputs("session"),
        "hist_last_ts",
        "sess_session_id",
        "sess_last_ts",
    }
    assert [e.name for e in store.list_entities()] == ["user"]
    assert {s.name for s in store.list_data_sources()} >= {"user_session_push", "fct_session_state"}


def test_a_changed_specification_is_a_service_of_its_own(make_settings):
    old, new = make_settings(), make_settings(signals=(SignalSettings(name="click", column="is_click"),))
    assert old.data == new.data
    features.apply(old)
    features.apply(new)
    names = [s.name for s in FeatureStore(repo_path=str(new.layout.feast)).list_feature_services()]
    assert set(names) == {f"state_{old.state_spec.version}", f"state_{new.state_spec.version}"}


def test_new_columns_are_materialised_for_days_long_past(make_settings, marts, at):
    settings = make_settings(signals=(SignalSettings(name="click", column="is_click"),))
    features.apply(settings)
    rows = [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 3, "hist_like_rate": 0.5}]
    marts.write("fct_user_history", D1, rows)
    features.materialise(settings, D1)
    for later in range(1, 4):
        features.materialise(settings, D1 + timedelta(days=later))
    features.apply(marts.settings)
    features.materialise(marts.settings, D1 + timedelta(days=4))
    assert online(marts.settings, 1, "user_history:hist_like_rate") == [0.5]


def test_without_profile_columns_there_is_no_profile_view(make_settings):
    settings = make_settings(state=StateSettings(profile=()))
    assert set(features.apply(settings)["views"]) == {"user_history", "user_session"}
    assert set(features.materialise(settings, D1)["views"]) == {"user_history"}
    found = features.historical(settings, entity((1, datetime(2026, 1, 6, tzinfo=UTC))))
    assert found["hist_count"].isna().all()


def test_before_the_first_export_everything_is_unknown(settings):
    with pytest.raises(DataError, match=r"feast holds no feature store"):
        features.materialise(settings, D1)
    features.apply(settings)
    record = features.materialise(settings, D1)
    assert record["views"] == {
        "user_profile": {"rows": 0, "users": 0},
        "user_history": {"rows": 0, "users": 0},
    }
    found = features.historical(settings, entity((1, datetime(2026, 1, 6, tzinfo=UTC))))
    assert found.drop(columns=["user_id", "event_timestamp"]).isna().all(axis=None)
    assert features.parity(settings, D1)["compared"] == 0


def test_materialise_includes_the_midnight_that_ends_the_day(settings, marts, at):
    features.apply(settings)
    marts.write(
        "fct_user_history",
        D1,
        [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 7}],
    )
    marts.write(
        "dim_users",
        D1,
        [{"user_id": 1, "event_timestamp": at(D1, 12), "degree": "low", "is_author": 1, "fans": 9}],
    )
    record = features.materialise(settings, D1)
    assert record == features.materialise(settings, D1)
    assert record["until"] == at(D2).isoformat()
    note = json.loads(settings.layout.materialised.read_text())
    assert note == {"until": record["until"]}  # the service tells by it how old its features are
    assert record["views"]["user_history"] == {"rows": 1, "users": 1}
    names = ("user_history:hist_count", "user_profile:degree", "user_profile:is_author", "user_profile:fans")
    assert online(settings, 1, *names) == [7.0, "low", 1, 9.0]
    assert json.dumps(record)


def test_a_rerun_corrects_its_day_and_never_goes_backwards(settings, marts, at):
    features.apply(settings)
    for day, count in ((D1, 1), (D2, 2)):
        rows = [{"user_id": user, "event_timestamp": at(day, 24), "hist_count": count} for user in (1, 2)]
        marts.write("fct_user_history", day, rows[: 3 - count])  # user 2 was active on the first day only
        features.materialise(settings, day)
    assert online(settings, 1, "user_history:hist_count") == [2.0]
    # late rows change both users' first day, at the same timestamp
    rows = [{"user_id": user, "event_timestamp": at(D1, 24), "hist_count": 40} for user in (1, 2)]
    marts.write("fct_user_history", D1, rows)
    features.materialise(settings, D1)
    assert online(settings, 1, "user_history:hist_count") == [2.0]
    assert online(settings, 2, "user_history:hist_count") == [40.0]


def test_sessions_are_not_materialised(settings, marts, at):
    features.apply(settings)
    row = {"user_id": 1, "event_timestamp": at(D1, 3), "sess_requests": 1, "sess_session_id": "a"}
    marts.write("fct_session_state", D1, [{**row, "sess_last_ts": at(D1, 3), "request_id": "r"}])
    assert "user_session" not in features.materialise(settings, D1)["views"]
    assert online(settings, 1, "user_session:sess_session_id") == [None]


def test_historical_is_point_in_time(settings, marts, at):
    features.apply(settings)
    for day in (D1, D2):
        marts.write(
            "fct_user_history",
            day,
            [{"user_id": 1, "event_timestamp": at(day, 24), "hist_count": day.day}],
        )
    # a change at the first instant of a day is brought by that day, and served from the next one on
    marts.write("dim_users", D2, [{"user_id": 1, "event_timestamp": at(D2), "degree": "full"}])
    session = {"user_id": 1, "sess_session_id": "a"}
    times = [at(D2, 12) + timedelta(microseconds=n) for n in (0, 10)]
    marts.write(
        "fct_session_state",
        D2,
        [
            {**session, "event_timestamp": ts, "sess_last_ts": ts, "sess_requests": n + 1}
            for n, ts in enumerate(times)
        ],
    )
    asked = entity(
        (1, at(D3)),
        (1, times[1]),
        (1, times[1] - timedelta(microseconds=1)),
        (1, times[0]),
        (1, times[0] - timedelta(microseconds=1)),
        (1, at(D2) - timedelta(microseconds=1)),
        (2, at(D3, 5)),
    )
    asked["request_id"] = list("abcdefg")  # also a column of a view: the caller's is kept
    found = features.historical(settings, asked)
    assert found["request_id"].to_list() == list("abcdefg")
    none = float("nan")
    expected = pd.DataFrame(
        {
            "hist_count": [6, 5, 5, 5, 5, none, none],
            "sess_requests": [2, 2, 1, 1, none, none, none],
        }
    )
    pd.testing.assert_frame_equal(found[["hist_count", "sess_requests"]], expected, check_dtype=False)
    assert found["degree"].isna().to_list() == [False] + [True] * 6


def test_feedback_never_counts_for_its_own_request(settings, marts, at):
    features.apply(settings)
    noon = at(D2, 12)
    sums = [("r1", noon - timedelta(seconds=9), 1), ("r2", noon, 2)]
    marts.write(
        "fct_session_state",
        D2,
        [
            {"user_id": 1, "request_id": r, "event_timestamp": ts, "sess_last_ts": ts, "sess_requests": n}
            for r, ts, n in sums
        ],
    )
    asked = entity((1, noon), (1, noon), (1, noon - timedelta(seconds=9)))
    asked["request_id"] = ["r2", "r3", "r1"]
    found = features.historical(settings, asked)["sess_requests"].to_list()
    assert found[:2] == [1.0, 2.0] and pd.isna(found[2])


def test_a_profile_of_the_next_day_is_not_materialised_early(settings, marts, at):
    features.apply(settings)
    marts.write("dim_users", D1, [{"user_id": 1, "event_timestamp": at(D1), "degree": "low"}])
    marts.write("dim_users", D2, [{"user_id": 1, "event_timestamp": at(D2), "degree": "full"}])
    assert features.materialise(settings, D1)["views"]["user_profile"] == {"rows": 1, "users": 1}
    assert online(settings, 1, "user_profile:degree") == ["low"]
    features.materialise(settings, D2)
    assert online(settings, 1, "user_profile:degree") == ["full"]


def test_historical_says_what_is_wrong_with_its_rows(settings, at):
    features.apply(settings)
    with pytest.raises(DataError, match="user_id"):
        features.historical(settings, pd.DataFrame({"event_timestamp": [pd.Timestamp(at(D1))]}))
    with pytest.raises(DataError, match="time zone"):
        features.historical(settings, entity((1, datetime(2026, 1, 1))))


def test_a_truncated_export_is_named(settings, marts, at):
    features.apply(settings)
    path = marts.write("fct_user_history", D1, [{"user_id": 1, "event_timestamp": at(D2)}])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="fct_user_history"):
        features.materialise(settings, D1)
    with pytest.raises(DataError, match="fct_user_history"):
        features.historical(settings, entity((1, at(D2, 1))))


def test_a_half_written_registry_is_made_again(settings, marts, at):
    features.apply(settings)
    marts.write("fct_user_history", D1, [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 4}])
    features.materialise(settings, D1)
    registry = settings.layout.feast / "registry.db"
    registry.write_bytes(registry.read_bytes()[:-7])
    features.apply(settings)
    features.materialise(settings, D2)
    assert online(settings, 1, "user_history:hist_count") == [4.0]


@pytest.mark.slow  # a process of its own that imports feast
def test_definitions_work_from_feasts_own_command_line(tmp_path):
    repository = Path(features.__file__).parents[2] / "feature_repo"
    file = tmp_path / "mtf.yaml"
    file.write_text(yaml.safe_dump({"data": "data"}))
    settings = load_settings(file)
    features.apply(settings)
    registry = settings.layout.feast / "registry.db"
    registry.unlink()
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "feast"),
            *("-c", str(repository), "-f", str(settings.layout.feast / "feature_store.yaml"), "apply"),
        ],
        env={**os.environ, "MTF_SETTINGS": str(file)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = FeatureStore(repo_path=str(settings.layout.feast))
    assert [s.name for s in store.list_feature_services()] == [f"state_{settings.state_spec.version}"]
    assert {v.name for v in store.list_feature_views()} == {"user_profile", "user_history", "user_session"}


def test_columns_are_those_of_the_contract(settings):
    views = features.apply(settings)["views"]
    assert set(views["user_history"]) == {*history_columns(settings.signal_names), "hist_last_ts"}
    assert set(views["user_session"]) == {
        *session_columns(settings.signal_names, settings.head_names),
        "sess_session_id",
        "sess_last_ts",
        "request_id",
    }
    empty = settings.layout.mart("dim_users") / "dt=1970-01-01" / "part-0.parquet"
    assert pq.read_table(empty).num_rows == 0

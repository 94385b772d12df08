"""Served states against Feast's point in time: equal when the loop ran in order, named when not."""

import json
import random
from collections import defaultdict
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.state.online_state import OnlineState
from serving.state.questions import Feedback, StateRequest
from training import features, ingest
from training.contract.columns import impression_columns
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.session import DECAY, Shown, within_gap
from training.contract.settings import GateSettings, ServingSettings

D1, D2, D3 = date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7)


def land(settings, day, decisions):
    path = settings.layout.partition(DECISIONS, day) / "part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        {
            "request_id": pa.string(),
            "session_id": pa.string(),
            "user_id": pa.int64(),
            "event_ts": pa.timestamp("us", "UTC"),
            "state": pa.list_(pa.float32()),
            "state_spec": pa.string(),
            "features_until": pa.timestamp("us", "UTC"),
        }
    )
    pq.write_table(pa.Table.from_pylist(decisions, schema=schema), path)


def traffic(settings, day, at, seed=0):
    """A day of random requests through the online state: its decisions, and dbt's session rows."""
    rng = random.Random(seed)
    state = OnlineState(settings)
    decisions, rows = [], []
    for user in range(1, 6):
        now, sums, decayed, last_ts = at(day, 9 + user), None, None, None
        session = f"{user}-0"
        for number in range(8):
            now += timedelta(minutes=rng.choice([1, 5, 31]), microseconds=rng.randrange(10**6))
            if rng.random() < 0.2:
                session = f"{user}-{number}"
            request = f"{day}-{user}-{number}"
            decisions.append(
                {
                    "request_id": request,
                    "session_id": session,
                    "user_id": user,
                    "event_ts": now,
                    "state": state.read([StateRequest(user, session, now)])[0].tolist(),
                    "state_spec": settings.state_spec.version,
                }
            )
            if rng.random() < 0.2:
                continue
            events = [
                {
                    "is_click": rng.randrange(2),
                    "is_like": rng.randrange(2),
                    "play_time_ms": rng.randrange(9999),
                }
                for _ in range(rng.randrange(1, 5))
            ]
            feedback_ts = now + timedelta(seconds=rng.choice([0, 20]))
            told = Shown(len(events), [rng.random() for _ in settings.heads])
            state.feedback([Feedback(user, session, request, feedback_ts, events, [], told)])
            fresh = (
                sums is None
                or rows[-1]["sess_session_id"] != session
                or not within_gap(last_ts, feedback_ts, settings.session.gap)
            )
            sums, decayed = (defaultdict(float), defaultdict(float)) if fresh else (sums, decayed)
            latest = {
                "impressions": len(events),
                "click_count": sum(e["is_click"] for e in events),
                "like_count": sum(e["is_like"] for e in events),
                "play_s": sum(e["play_time_ms"] for e in events) / 1000,
            }
            sums["requests"] += 1
            for name, value in latest.items():
                sums[name] += value
            latest |= {f"p_{head}": p for head, p in zip(settings.head_names, told.predictions, strict=True)}
            for name, value in latest.items():
                decayed[name] = DECAY * decayed[name] + value
            rows.append(
                {
                    "user_id": user,
                    "event_timestamp": feedback_ts,
                    "sess_session_id": session,
                    "sess_last_ts": feedback_ts,
                    "request_id": request,
                    **{f"sess_{name}": value for name, value in sums.items()},
                    **{f"last_{name}": value for name, value in latest.items()},
                    **{f"decayed_{name}": value for name, value in decayed.items()},
                }
            )
            now = last_ts = feedback_ts
    return decisions, rows


@pytest.fixture
def settings(make_settings):
    return make_settings(
        serving=ServingSettings(state_budget_ms=2_000.0), gate=GateSettings(parity_sample=30)
    )


@pytest.fixture
def loop(settings, marts, at):
    """A day's rows materialised before the next day's traffic, which is then landed and transformed."""
    features.apply(settings)
    marts.write(
        "dim_users",
        D1,
        [
            {
                "user_id": user,
                "event_timestamp": at(D1, user),
                "degree": "full" if user % 2 else None,
                "is_author": 1,
                "fans": user * 10,
            }
            for user in range(1, 5)
        ],
    )
    marts.write(
        "fct_user_history",
        D1,
        [
            {"user_id": user, "event_timestamp": at(D2), "hist_count": user, "hist_click_rate": 1 / 3}
            | {"hist_last_ts": at(D1, -50 * user)}
            for user in range(1, 5)
        ],
    )
    features.materialise(settings, D1)
    decisions, rows = traffic(settings, D2, at)
    land(settings, D2, decisions)
    marts.write("fct_session_state", D2, rows)
    return decisions


def test_served_states_equal_feasts(settings, marts, loop, at):
    # the next night's rows, and a profile changed at noon, are not what the day was served with
    marts.write("dim_users", D2, [{"user_id": 1, "event_timestamp": at(D2), "degree": "low"}])
    rows = [{"user_id": user, "event_timestamp": at(D3), "hist_count": 99} for user in range(1, 6)]
    marts.write("fct_user_history", D2, rows)
    record = features.parity(settings, D2)
    assert record == {
        "state_spec": settings.state_spec.version,
        "compared": 30,
        "behind": 0,
        "left_out_states": 0,
        "left_out_users": 0,
        "mismatched": 0,
        "share": 0.0,
        "entries": {},
        "worst": [],
    }
    everything = features.offline_states(settings, pd.DataFrame(loop))
    served = np.array([d["state"] for d in loop], dtype=np.float32)
    np.testing.assert_allclose(served, everything, atol=1e-4)
    names = settings.state_spec.entry_names
    assert (everything[:, names.index("sess_requests")] > 0).sum() > 5
    # user 1 was last seen 50 h before D1 began, 74 h before D2: three whole days
    assert everything[0, names.index("hist_days_since_last")] == pytest.approx(3 / (3 + 3))


def test_a_difference_is_named(settings, loop):
    entry = settings.state_spec.entry_names.index("hist_click_rate")
    for decision in loop:
        decision["state"][entry] += 0.25 + decision["user_id"] / 100
    land(settings, D2, loop)
    record = features.parity(settings, D2)
    assert record["share"] == 1.0 and record["entries"] == {"hist_click_rate": 30}
    worst = record["worst"][0]
    assert worst["entry"] == "hist_click_rate" and worst["user_id"] == 5
    assert worst["served"] == pytest.approx(0.30) and worst["offline"] == 0.0
    assert len(record["worst"]) == 10 and json.dumps(record, allow_nan=False)
    assert features.parity(settings, D2) == record


def test_not_a_number_is_a_difference(settings, loop):
    loop[0]["state"][3] = float("nan")
    land(settings, D2, loop[:1])
    record = features.parity(settings, D2)
    assert record["mismatched"] == 1 and record["worst"][0]["served"] is None
    assert json.dumps(record, allow_nan=False)


def test_a_day_that_was_not_materialised_in_time_differs(settings, marts, loop, at):
    changed = [
        {"user_id": user, "event_timestamp": at(D2), "hist_count": 50, "hist_last_ts": at(D1, -50 * user)}
        for user in range(1, 5)
    ]
    marts.write("fct_user_history", D1, changed)
    record = features.parity(settings, D2)
    assert set(record["entries"]) == {"hist_count", "hist_click_rate"} and record["share"] > 0.5


def history_of_d1(at, **more):
    return [
        {"user_id": user, "event_timestamp": at(D2), "hist_count": 50, "hist_last_ts": at(D1, -50 * user)}
        | more
        for user in range(1, 5)
    ]


def test_a_late_day_is_no_difference_where_the_service_said_what_it_had(settings, marts, at):
    """Whether the late day was transformed before the day's parity, or is after it, makes none either."""
    features.apply(settings)
    decisions, rows = traffic(settings, D2, at)
    for decision in decisions:
        decision["features_until"] = at(D1)  # D1's log has not come: the store ends where D1 begins
    land(settings, D2, decisions)
    marts.write("fct_session_state", D2, rows)
    before = features.parity(settings, D2)
    assert (before["compared"], before["mismatched"], before["behind"]) == (30, 0, 30)
    marts.write("fct_user_history", D1, history_of_d1(at))
    assert features.parity(settings, D2) == before
    for decision in decisions:
        decision["features_until"] = at(D2)  # and a store that claims a day which it does not hold is caught
    land(settings, D2, decisions)
    assert features.parity(settings, D2)["share"] > 0.5


def land_impressions(settings, at, clicks):
    """D1's impressions: one of each user at noon, with these clicks."""
    columns = {column.name: [] for column in impression_columns(settings)}
    for user, click in clicks.items():
        row = {"request_id": f"r{user}", "user_id": user, "item_id": 1, "event_ts": at(D1, 12)}
        row |= {"position": 0, "play_time_ms": 1, "duration_ms": 2, "is_click": click}
        for name, values in columns.items():
            optional = name in ("session_id", "feedback_ts") or name.startswith("p_")
            values.append(row.get(name, None if optional else 0))
    return ingest.land(settings, IMPRESSIONS, D1, pa.table(columns), "test")


def test_users_with_late_rows_are_left_out_and_all_others_compared(settings, marts, loop, at):
    land_impressions(settings, at, dict.fromkeys(range(1, 6), 0))
    assert features.parity(settings, D2)["left_out_users"] == 0
    land_impressions(
        settings, at, {1: 1, 2: 1, 3: 0, 4: 0, 5: 0}
    )  # of two users, told more after D2 was served
    changed = [row | {"hist_click_rate": 1.0} for row in history_of_d1(at)[:2]]
    same = [row | {"hist_count": row["user_id"], "hist_click_rate": 1 / 3} for row in history_of_d1(at)[2:]]
    before = features.parity(settings, D2)
    marts.write("fct_user_history", D1, changed + same)
    record = features.parity(settings, D2)
    assert record == before  # the order of the two days' runs does not matter
    assert (record["left_out_users"], record["left_out_states"]) == (2, 16)
    assert (record["compared"], record["mismatched"]) == (len(loop) - 16, 0)
    # served after they had come: compared, and found to lack them
    for decision in loop:
        decision["features_until"] = at(D3)
    land(settings, D2, loop)
    record = features.parity(settings, D2)
    assert record["left_out_users"] == 0 and record["mismatched"] > 0
    # a skew of the others is no less seen
    entry = settings.state_spec.entry_names.index("hist_click_rate")
    for decision in loop:
        decision["features_until"] = at(D2)
        if decision["user_id"] > 2:
            decision["state"][entry] += 0.25
    land(settings, D2, loop)
    record = features.parity(settings, D2)
    assert record["left_out_users"] == 2 and record["share"] == 1.0


def test_only_states_of_the_current_specification_are_compared(settings, loop):
    for number, decision in enumerate(loop):
        if number % 3 == 0:
            decision["state"] = None
        elif number % 3 == 1:
            decision["state_spec"] = "s0000000000"
    land(settings, D2, loop)
    assert features.parity(settings, D2)["compared"] == len(loop[2::3])


def test_a_state_of_the_wrong_width_is_named(settings, loop):
    loop[4]["state"] = loop[4]["state"][:-1]
    land(settings, D2, loop[:5])
    with pytest.raises(DataError, match=loop[4]["request_id"]):
        features.parity(settings, D2)


DAYS = 3
micros = st.integers(0, DAYS * 86_400 * 10**6 - 1)
# a few instants around midnights and each other, where an off-by-one shows, and any other
instants = st.sampled_from([0, 1, 86_400 * 10**6 - 1, 86_400 * 10**6, 86_400 * 10**6 + 1]) | micros
written_rows = st.lists(
    # whose, when, and how many days later it was landed
    st.tuples(st.integers(1, 2), instants, st.integers(0, 2)),
    max_size=10,
)


@given(written=written_rows, asked=st.lists(st.tuples(st.integers(1, 3), instants), min_size=1, max_size=8))
@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_nothing_comes_from_the_future(settings, marts, at, written, asked):
    """Every value is its row's number: of the latest rows up to the instant, against a plain reference.

    Rows are landed with their day or days later; of rows of one instant, one is taken. dbt stamps a profile
    within the day that brings it, so a late one is stamped late; sessions and histories keep their stamps.
    """
    features.apply(settings)
    start, day_us = at(D1), 86_400 * 10**6

    def stamp(micro):
        return start + timedelta(microseconds=micro)

    profiles = [  # number, whose, when it counts from
        (number, user, max(micro, (micro // day_us + late) * day_us) if late else micro)
        for number, (user, micro, late) in enumerate(written)
    ]
    others = [(number, user, micro) for number, (user, micro, _) in enumerate(written)]
    for day in range(DAYS + 2):  # every partition anew: the last example's rows are gone

        def landed(rows, column, day=day):
            return [
                {"user_id": user, "event_timestamp": stamp(micro), column: number}
                for (number, user, micro), (_, original, late) in zip(rows, written, strict=True)
                if original // day_us + late == day
            ]

        partition = D1 + timedelta(days=day)
        marts.write("dim_users", partition, landed(profiles, "fans"))
        marts.write("fct_user_history", partition, landed(others, "hist_count"))
        marts.write("fct_session_state", partition, landed(others, "sess_requests"))
    entities = pd.DataFrame(
        {
            "user_id": [user for user, _ in asked],
            "event_timestamp": pd.to_datetime([stamp(m) for _, m in asked], utc=True),
        }
    )
    found = features.historical(settings, entities)

    def latest(rows, user, until):
        """The numbers of the user's newest rows up to an instant; more than one for a tie."""
        known = [(micro, number) for number, whose, micro in rows if whose == user and micro <= until]
        return {number for micro, number in known if micro == max(known)[0]}

    for (user, micro), row in zip(asked, found.itertuples(), strict=True):
        midnight = micro - micro % day_us
        for value, expected in (
            (row.sess_requests, latest(others, user, micro)),
            (row.hist_count, latest(others, user, midnight)),
            (row.fans, latest(profiles, user, midnight - 1)),
        ):
            assert value in expected if expected else pd.isna(value)

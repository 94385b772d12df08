"""The service's log: decisions and feedback joined, late and torn and repeated lines, bad ones named."""

import os
import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.training.ingest.conftest import (
    DAY,
    MIDNIGHT,
    SHANGHAI,
    decision,
    event,
    feedback,
    impressions,
    lake_bytes,
    read,
    write_log,
)
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.ingest import has_service_log, land, land_service_log, service_log

NEXT = DAY + timedelta(days=1)
TABLES = (IMPRESSIONS, DECISIONS)
MINUTES = 24 * 60


def told(row: dict) -> tuple:
    return row["request_id"], row["item_id"], row["is_click"], row["play_time_ms"], row["duration_ms"]


def test_decisions_and_feedback_become_impressions(settings: Settings) -> None:
    assert not has_service_log(settings, DAY)
    write_log(settings, "decisions", DAY, [decision("r1", 0, (12, 10, 11)), decision("r2", 5, (13,))])
    write_log(settings, "feedback", DAY, [feedback("r1", 1, event(10, 4_000, 9_000, is_click=1), event(12))])
    assert has_service_log(settings, DAY)
    record = land_service_log(settings, DAY)
    assert record["tables"][IMPRESSIONS]["rows"] == 4
    assert record["tables"][DECISIONS]["rows"] == 2
    rows = read(settings)
    assert [told(row) for row in rows] == [
        ("r1", 12, 0, 0, 0),
        ("r1", 10, 1, 4_000, 9_000),
        ("r1", 11, 0, 0, 0),
        ("r2", 13, 0, 0, 0),
    ]
    assert [row["position"] for row in rows] == [0, 1, 2, 0]
    assert [row["feedback_ts"] for row in rows] == [MIDNIGHT + timedelta(minutes=1)] * 2 + [None, None]
    assert (rows[0]["p_click"], rows[0]["p_play_time"], rows[0]["p_like"]) == (0.5, 12.5, None)
    served = read(settings, DECISIONS)[0]
    assert (served["arm"], served["log_density"], served["action"]) == ("noise", -1.5, [0.5, -0.25])
    assert served["state"] == pytest.approx([0.1, 2.0])


def test_what_the_service_knew_of_its_features_is_landed(settings: Settings) -> None:
    told = decision("r1", features_until="2026-01-04T16:00:00.000000Z")
    write_log(settings, "decisions", DAY, [told, decision("r2", 5)])  # and a line of an older service
    land_service_log(settings, DAY)
    found = [row["features_until"] for row in read(settings, DECISIONS)]
    assert found == [datetime(2026, 1, 4, 16, tzinfo=UTC), None]


def test_the_last_feedback_of_an_item_counts(settings: Settings) -> None:
    write_log(settings, "decisions", DAY, [decision("r1")])
    lines = [
        feedback("r1", 3, event(10, 1_000)),
        feedback("r1", 2, event(10, 9_000, is_click=1), event(11, 10)),
        feedback("r1", 3, event(10, 2_000)),
    ]
    for turn in range(3):
        write_log(settings, "feedback", DAY, lines[turn:] + lines[:turn])
        record = land_service_log(settings, DAY)
        assert [told(row)[1:4] for row in read(settings)] == [(10, 0, 2_000), (11, 0, 10)]
        assert record["tables"][IMPRESSIONS]["changed_days"] == []


def test_a_retried_request_counts_once_and_another_users_id_is_left_to_validation(settings: Settings) -> None:
    lines = [decision("r1", 0), decision("r1", 0), decision("r1", 1, (20,)), decision("r1", 0, user_id=8)]
    write_log(settings, "decisions", DAY, lines)
    record = land_service_log(settings, DAY)
    assert record["tables"][DECISIONS]["repeated_requests"] == 2
    assert sorted((row["user_id"], row["item_id"]) for row in read(settings)) == [(7, 20), (8, 10), (8, 11)]
    assert record["tables"][DECISIONS]["rows"] == 2  # one id, two users: duplicates, for validation


def test_feedback_after_midnight_changes_the_day_of_its_request(settings: Settings) -> None:
    write_log(settings, "decisions", DAY, [decision("r1", MINUTES - 1)])
    land_service_log(settings, DAY)
    write_log(settings, "decisions", NEXT, [decision("n1", MINUTES + 10)])
    late = feedback("r1", MINUTES + 1, event(10, 4_000, is_click=1))
    stray = feedback("gone", MINUTES + 1, event(10), event(11))
    write_log(settings, "feedback", NEXT, [late, stray])
    record = land_service_log(settings, NEXT)
    landed = record["tables"][IMPRESSIONS]
    assert landed["days"] == [str(DAY), str(NEXT)] and landed["changed_days"] == [str(DAY)]
    assert (landed["rows"], landed["late_feedback"], landed["orphan_feedback"]) == (2, 1, 2)
    assert [told(row)[1:3] for row in read(settings)] == [(10, 1), (11, 0)]
    lake = lake_bytes(settings)
    for day in (DAY, NEXT, DAY):  # landing either day again keeps what came late
        assert land_service_log(settings, day)["tables"][IMPRESSIONS]["changed_days"] == []
        assert lake_bytes(settings) == lake


def test_feedback_that_a_day_was_landed_with_is_not_landed_again_by_the_next(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(settings, "decisions", DAY, [decision("r1", MINUTES - 1)])
    write_log(settings, "decisions", NEXT, [decision("n1", MINUTES + 10)])
    early = feedback("r1", MINUTES + 1, event(10, 4_000, is_click=1))
    write_log(settings, "feedback", NEXT, [early])
    land_service_log(settings, DAY)
    written = []
    write = service_log.write_partition

    def seen(settings: Settings, table: str, day: date, *rest: Any) -> Any:
        written.append((table, day))
        return write(settings, table, day, *rest)

    monkeypatch.setattr(service_log, "write_partition", seen)
    landed = land_service_log(settings, NEXT)["tables"][IMPRESSIONS]
    assert written == [(IMPRESSIONS, NEXT), (DECISIONS, NEXT)]
    assert landed["days"] == [str(DAY), str(NEXT)] and landed["late_feedback"] == 1
    # more of the same item, and the first of another
    for extra in (event(10, 5_000, is_click=1), event(11, 1_000)):
        written.clear()
        write_log(settings, "feedback", NEXT, [early, feedback("r1", MINUTES + 2, extra)])
        landed = land_service_log(settings, NEXT)["tables"][IMPRESSIONS]
        assert (IMPRESSIONS, DAY) in written and landed["changed_days"] == [str(DAY)]


def items(settings: Settings, day: date = DAY) -> list[tuple[str, int]]:
    return [(row["request_id"], row["item_id"]) for row in read(settings, day=day)]


def test_impressions_are_what_was_shown(settings: Settings) -> None:
    hundred = tuple(range(100, 300))
    lines = [decision(f"r{n}", n, hundred, v=3, shown=50) for n in range(6)]
    lines.append(decision("r6", 6, hundred, v=3, shown=0))  # nothing, until feedback says it
    lines.append(decision("r7", 7, hundred))  # of an older service: all
    write_log(settings, "decisions", DAY, lines)
    told = [
        feedback("r1", 11, event(101, 5), shown=list(range(100, 110)), v=3),
        feedback("r2", 12, event(299, 5, is_click=1)),  # below what is taken as shown: it was seen
        feedback("r3", 13, shown=[], v=3),  # nothing was seen
        feedback("r4", 14, shown_top=10, v=3),
        feedback("r4", 15, shown=[111, 100], v=3),  # and further down, later
        feedback("r5", 16, event(120, 5), shown=[], v=3),
    ]
    write_log(settings, "feedback", DAY, told)
    land_service_log(settings, DAY)
    rows = read(settings)
    seen = {f"r{n}": [r["item_id"] for r in rows if r["request_id"] == f"r{n}"] for n in range(8)}
    assert seen == {
        "r0": list(range(100, 150)),
        "r1": list(range(100, 110)),
        "r2": [*range(100, 150), 299],
        "r3": [],
        "r4": [*range(100, 110), 111],
        "r5": [120],
        "r6": [],
        "r7": list(hundred),
    }
    of_item = {(row["request_id"], row["item_id"]): row for row in rows}
    assert [of_item["r2", item]["position"] for item in (100, 149, 299)] == [0, 49, 199]
    # an item that was said to be shown has the feedback that nothing was done to it
    arrived = {
        key: of_item[key]["feedback_ts"] for key in (("r0", 100), ("r1", 100), ("r4", 100), ("r4", 101))
    }
    minutes = [None if at is None else (at - MIDNIGHT) // timedelta(minutes=1) for at in arrived.values()]
    assert minutes == [None, 11, 15, 14]
    assert told_of(of_item["r1", 101]) == (0, 5)


def told_of(row: dict) -> tuple:
    return row["is_click"], row["play_time_ms"]


def test_what_is_said_to_be_shown_after_midnight_changes_the_day_of_its_request(settings: Settings) -> None:
    write_log(settings, "decisions", DAY, [decision("r1", MINUTES - 1, range(20), v=3, shown=20)])
    write_log(settings, "decisions", NEXT, [decision("n1", MINUTES + 10)])
    land_service_log(settings, DAY)
    assert len(items(settings)) == 20
    late = feedback("r1", MINUTES + 1, event(15, 9), shown=[0, 1, 2], v=3)
    write_log(settings, "feedback", NEXT, [late, feedback("r1", MINUTES + 2, event(99), v=3)])
    landed = land_service_log(settings, NEXT)["tables"][IMPRESSIONS]
    assert landed["changed_days"] == [str(DAY)] and landed["late_feedback"] == 1
    assert landed["orphan_feedback"] == 1  # of an item that was never ranked
    assert [item for _, item in items(settings)] == [0, 1, 2, 15]


def test_late_decisions_land_in_their_own_day_and_stay_there(settings: Settings) -> None:
    write_log(settings, "decisions", DAY, [decision("r1")])
    land_service_log(settings, DAY)
    write_log(settings, "decisions", NEXT, [decision("r0", 30), decision("n1", MINUTES + 1)])
    record = land_service_log(settings, NEXT)
    assert record["tables"][DECISIONS]["rows"] == 1
    assert record["tables"][DECISIONS]["changed_days"] == [str(DAY)]
    assert [row["request_id"] for row in read(settings, DECISIONS)] == ["r1", "r0"]
    assert land_service_log(settings, DAY)["tables"][DECISIONS]["changed_days"] == []
    assert [row["request_id"] for row in read(settings, DECISIONS)] == ["r1", "r0"]


def test_late_decisions_do_not_replace_a_day_of_another_source(settings: Settings) -> None:
    land(settings, IMPRESSIONS, DAY, impressions([{}], settings), "kuairand")
    write_log(settings, "decisions", NEXT, [decision("r0", 30), decision("n1", MINUTES + 1)])
    with pytest.raises(DataError, match=r"2026-01-05, which was landed from kuairand"):
        land_service_log(settings, NEXT)
    assert len(read(settings)) == 1


def test_a_torn_last_line_is_left_out_and_counted(settings: Settings) -> None:
    path = write_log(settings, "decisions", DAY, [decision("r1"), decision("r2")])
    write_log(settings, "decisions", DAY, [decision("r3", 9)], worker="w2")
    path.write_bytes(path.read_bytes()[:-30])
    record = land_service_log(settings, DAY)
    assert record["tables"][IMPRESSIONS]["torn_lines"] == 1
    assert [row["request_id"] for row in read(settings, DECISIONS)] == ["r1", "r3"]


def test_files_at_rest_and_files_still_written_to_land_the_same(settings: Settings) -> None:
    path = write_log(settings, "decisions", DAY, [decision("r1")])
    told_path = write_log(settings, "feedback", DAY, [feedback("r1", 1, event(10, 5))])
    land_service_log(settings, DAY)
    lake = lake_bytes(settings)
    for one in (path, told_path):
        os.utime(one, (0, 0))
    land_service_log(settings, DAY)
    assert lake_bytes(settings) == lake
    path.write_bytes(path.read_bytes() + b"{}\n")
    os.utime(path, (0, 0))
    with pytest.raises(DataError, match=rf"{path}, line 2: its version v is None"):
        land_service_log(settings, DAY)


def test_no_whole_line_is_no_day(settings: Settings) -> None:
    path = write_log(settings, "decisions", DAY, [decision("r1")])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="logged no decision on 2026-01-05"):
        land_service_log(settings, DAY)
    with pytest.raises(DataError, match="logged no decision on 2026-01-06"):
        land_service_log(settings, NEXT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"v":1,"req', r"not JSON"),
        (b"[1]", r"not a JSON object"),
        (b"\0\0\0", r"not JSON"),
        ({"v": 4}, r"its version v is 4, this code reads 1 to 3"),
        ({"user_id": "x"}, r"user_id is 'x', expected BIGINT"),
        ({"user_id": None}, r"user_id is missing"),
        ({"event_ts": "2026-13-05T00:00:00Z"}, r"event_ts is .* expected an ISO-8601 time"),
        ({"action": [0.5, "x"]}, r"action \[1\] is 'x', expected DOUBLE"),
        ({"action": None}, r"action is missing"),
        ({"items": [1, None]}, r"items \[1\] is missing"),
        ({"scores": {"click": [0.5]}}, r"scores.click has 1 values for 2 items"),
        ({"scores": [1]}, r"scores is \[1\]"),
    ],
)
def test_a_bad_decision_is_named_by_file_line_and_field(
    settings: Settings, line: bytes | dict, message: str
) -> None:
    path = write_log(settings, "decisions", DAY, [decision("r1")])
    if isinstance(line, bytes):
        good = path.read_bytes()
        path.write_bytes(good + line + b"\n" + good)
    else:
        write_log(settings, "decisions", DAY, [decision("r1"), decision("r2", **line), decision("r3")])
    with pytest.raises(DataError, match=rf"{path}, line 2: {message}"):
        land_service_log(settings, DAY)
    assert not settings.layout.table(DECISIONS).exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (feedback("r1", 1, {"item_id": 10, "is_click": "yes"}), r"events\[0\].is_click is 'yes'"),
        (feedback("r1", 1, event(10), {"is_click": 1}), r"events\[1\].item_id is missing"),
        (feedback("r1", 1, request_id=None), r"request_id is missing"),
        (feedback("r1", 1, events=3), r"events is 3, expected a list"),
        (feedback("r1", 1, events=["x"]), r"events\[0\] is 'x', expected an object"),
        (feedback("r1", 1, shown=["x"]), r"shown \[0\] is 'x', expected BIGINT"),
        (feedback("r1", 1, shown_top="all"), r"shown_top is 'all', expected INTEGER"),
    ],
)
def test_bad_feedback_is_named_by_file_line_and_field(settings: Settings, line: dict, message: str) -> None:
    write_log(settings, "decisions", DAY, [decision("r1")])
    path = write_log(settings, "feedback", DAY, [feedback("r1", 1, event(10)), line])
    with pytest.raises(DataError, match=rf"{path}, line 2: {message}"):
        land_service_log(settings, DAY)


@pytest.mark.parametrize(("kind", "line"), [("decisions", decision("r1")), ("feedback", feedback("r1", 1))])
def test_a_field_that_the_contract_does_not_know_is_named(settings: Settings, kind: str, line: dict) -> None:
    write_log(settings, "decisions", DAY, [decision("r1")])
    path = write_log(settings, kind, DAY, [line | {"shelf": 3}], worker="w2")
    with pytest.raises(
        DataError, match=rf"{path}, line 1: shelf is no field of a line of version 3: v, request_id"
    ):
        land_service_log(settings, DAY)
    assert not settings.layout.table(DECISIONS).exists()


def test_a_signal_beyond_its_type_is_named(settings: Settings) -> None:
    write_log(settings, "decisions", DAY, [decision("r1")])
    write_log(settings, "feedback", DAY, [feedback("r1", 1, event(10, is_like=1_000))])
    with pytest.raises(DataError, match="column is_like, row 1: 1000"):
        land_service_log(settings, DAY)


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 5),  # request
        st.integers(0, 2),  # item
        st.integers(0, 3 * MINUTES - 1),  # arrival, within two days of every request
        st.integers(0, 3),  # play
        st.integers(0, 1),  # click
        # what it says was shown: nothing of that, items, or how many of the top
        st.none() | st.lists(st.integers(0, 3), max_size=3) | st.integers(0, 3),
        st.booleans(),  # an event, too
    ),
    max_size=15,
)


def fed(request: int, item: int, minutes: int, play: int, click: int, shown: Any, acts: bool) -> dict:
    said = {"shown_top": shown} if isinstance(shown, int) else {} if shown is None else {"shown": shown}
    events = [event(item, play, is_click=click)] if acts else []
    return feedback(f"r{request // 2}{request % 2}", minutes, *events, v=3, **said)


def expected(events: list[tuple], request: int) -> list[int]:
    """Items of a request that were shown, by the rule in words."""
    of_request = [one for one in events if one[0] == request]
    acted = {item for _, item, *_, acts in of_request if acts}
    said = [shown for *_, shown, _ in of_request if shown is not None]
    named = {item for shown in said for item in (range(shown) if isinstance(shown, int) else shown)}
    return sorted(({*named} if said else {*range(1 + request % 2)}) | acted)


@hypothesis_settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=EVENTS, seed=st.integers(0, 1_000))
def test_any_order_of_lines_and_of_landings_ends_at_the_same_lake(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, ...]], seed: int
) -> None:
    """Requests of three days; feedback on any later day; the days are landed in any order, twice."""
    days = [DAY + timedelta(days=n) for n in range(3)]
    chance = random.Random(seed)
    lakes = []
    for order in (days, chance.sample(days, 3)):
        settings = Settings(data=tmp_path_factory.mktemp("data"), calendar=SHANGHAI)
        for n, day in enumerate(days):
            requests = [
                decision(f"r{n}{i}", n * MINUTES + i, (0, 1, 2, 3), v=3, shown=1 + i) for i in range(2)
            ]
            of_day = [fed(*one) for one in events if one[2] // MINUTES == n and one[0] // 2 <= n]
            write_log(settings, "decisions", day, chance.sample(requests, 2))
            write_log(settings, "feedback", day, chance.sample(of_day, len(of_day)))
        for day in (*order, *chance.sample(days, 2)):
            land_service_log(settings, day)
        lakes.append(lake_bytes(settings))
        known = [one for one in events if one[0] // 2 <= one[2] // MINUTES]
        for r in range(6):
            shown = [item for name, item in items(settings, days[r // 2]) if name == f"r{r // 2}{r % 2}"]
            assert sorted(shown) == expected(known, r)
    assert lakes[0] == lakes[1]
    assert len(lakes[0]) == 6

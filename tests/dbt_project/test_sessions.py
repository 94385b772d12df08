"""dbt's sessions against the contract's: the idle gap to the microsecond, and what decays over long sessions.

One lake, transformed a day at a time. A user of it is one pair of requests around the gap, and the last
user has a session of a hundred requests over midnight.
"""

from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random

import numpy as np
import pytest

from serving.log.index.request_index import RequestIndex
from serving.log.index.sessions import SessionRequest
from tests.dbt_project.conftest import Lake, export
from training.contract.session import DECAY, beyond_gap, within_gap
from training.contract.settings import SessionSettings, Settings
from training.contract.state import session_columns
from training.warehouse import transform

D1, D2 = date(2026, 1, 5), date(2026, 1, 6)
GAP = timedelta(minutes=10, seconds=30)
LONG = 1_000
PARTS = (0, 1, 499_999, 999_999)  # microseconds of a second, of the first request
AROUND = (-1_000_001, -1_000_000, -999_999, -1, 0, 1, 500_000, 999_999, 1_000_000, 1_000_001)
PAIRS = [(part, around, named) for part in PARTS for around in AROUND for named in (True, False)]


def pair(user: int) -> tuple[datetime, datetime, str | None]:
    """Local times of a user's two requests, and the session that they name."""
    part, around, named = PAIRS[user]
    first = datetime(2026, 1, 5, 12, 0, 0, part)
    return first, first + GAP + timedelta(microseconds=around), "S" if named else None


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    settings = Settings(
        data=tmp_path_factory.mktemp("sessions"),
        session=SessionSettings(gap_minutes=GAP.total_seconds() / 60),
    )
    lake = Lake(settings)
    for user in range(len(PAIRS)):
        for number, local in enumerate(pair(user)[:2]):
            # feedback at the request's instant: the pair is one of feedback, too
            lake.request(f"{user}-{number}", user, local.isoformat(), pair(user)[2], feedback_after_s=0.0)
    random = Random(0)
    for number in range(100):
        local = datetime(2026, 1, 5, 23, 20) + number * timedelta(minutes=1)
        items = [
            {
                "is_click": random.randrange(2),
                "play_time_ms": random.randrange(60_000),
                "p_click": float(np.float32(random.random())),
            }
            for _ in range(random.randrange(1, 4))
        ]
        lake.request(f"long-{number}", LONG, local.isoformat(), "long", items, feedback_after_s=5.0)
    for day in (D1, D2):
        lake.land(day)
        transform.run(settings, day)
    return lake


def within(lake: Lake, user: int) -> bool:
    return within_gap(
        *(lake.instant(local.isoformat()) for local in pair(user)[:2]), lake.settings.session.gap
    )


def test_the_times_are_on_both_sides_of_the_gap_within_one_second(lake: Lake) -> None:
    """Whole seconds decide: nothing a whole second longer than the gap is within, nothing shorter is not."""
    found = {(part, around): within(lake, user) for user, (part, around, _) in enumerate(PAIRS)}
    assert all(found[part, around] for part, around in found if around <= 0)
    assert not any(found[part, around] for part, around in found if around >= 1_000_000)
    assert found[0, 999_999] and not found[999_999, 1] and found[499_999, 500_000]
    assert not within_gap(datetime(2026, 1, 5), datetime(2026, 1, 5) - beyond_gap(GAP), GAP)


def test_dbt_cuts_sessions_where_the_contract_does(lake: Lake) -> None:
    requests = {row["request_id"]: row for row in export(lake.settings, "fct_transitions")}
    sums = {row["request_id"]: row for row in export(lake.settings, "fct_session_state")}
    for user in range(len(PAIRS)):
        together = within(lake, user)
        first, second = requests[f"{user}-0"], requests[f"{user}-1"]
        assert (first["session_id"] == second["session_id"]) is together, PAIRS[user]
        assert (second["step"], first["next_request_id"]) == ((1, f"{user}-1") if together else (0, None))
        assert first["done"] is not together and second["done"]
        assert sums[f"{user}-1"]["sess_requests"] == 1 + together


def test_the_service_cuts_and_names_sessions_as_dbt_does(lake: Lake, tmp_path: Path) -> None:
    index = RequestIndex(tmp_path / "requests.sqlite", lake.settings.session.gap_minutes)
    requests = {row["request_id"]: row for row in export(lake.settings, "fct_transitions")}
    for user in range(len(PAIRS)):
        served = []
        for number, local in enumerate(pair(user)[:2]):
            asked = SessionRequest(user, pair(user)[2], lake.instant(local.isoformat()))
            served.append(index.sessions.of([asked])[0].session_id)
            if pair(user)[2] is not None:  # one without a name is named by the service
                assert served[-1] == requests[f"{user}-{number}"]["session_id"]
        assert (served[0] == served[1]) is within(lake, user), PAIRS[user]
    index.close()


def test_a_log_that_ends_within_the_gap_leaves_a_session_open(lake: Lake) -> None:
    rows = {row["request_id"]: row for row in export(lake.settings, "fct_transitions")}
    last = rows["long-99"]
    assert not last["done"] and last["truncated"]


def test_decayed_sums_are_those_of_a_plain_recurrence_over_a_hundred_requests(lake: Lake) -> None:
    rows = {row["request_id"]: row for row in export(lake.settings, "fct_session_state")}
    names = [
        name.removeprefix("decayed_")
        for name in session_columns(lake.settings.signal_names, lake.settings.head_names)
        if name.startswith("decayed_")
    ]
    expected = dict.fromkeys(names, 0.0)
    for number in range(100):
        row = rows[f"long-{number}"]
        assert row["sess_requests"] == number + 1
        expected = {name: DECAY * expected[name] + row[f"last_{name}"] for name in names}
        found = {name: row[f"decayed_{name}"] for name in names}
        assert found == pytest.approx(expected, rel=1e-8)
    assert {rows["long-0"]["dt"], rows["long-99"]["dt"]} == {D1, D2}

"""Online states against real stores: what feedback moves, what a session's end forgets, what fails."""

import multiprocessing
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.state.missing import StoreError
from serving.state.online_state import OnlineState
from serving.state.questions import Feedback, StateRequest
from tests.servers import Redis, redis_server
from training import features
from training.contract.session import DECAY, Shown
from training.contract.settings import (
    DEFAULT_HEADS,
    ProfileFeature,
    ServingSettings,
    Settings,
    SignalSettings,
    StateSettings,
    StoreSettings,
)
from training.contract.state import context_values, days_since

T0 = datetime(2026, 1, 6, 10, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def make_settings(data: Path, **sections: object) -> Settings:
    sections.setdefault("serving", ServingSettings(state_budget_ms=2_000.0))
    return Settings(
        data=data,
        signals=(
            SignalSettings(name="click", column="is_click"),
            SignalSettings(name="like", column="is_like"),
        ),
        state=StateSettings(
            profile=(ProfileFeature(column="degree", kind="categorical", categories=("full", "low")),)
        ),
        **sections,
    )


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    """A real redis-server; every test has users of its own."""
    with redis_server() as port:
        yield port


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def profile(request, tmp_path_factory) -> Settings:
    """Settings of each profile, its definitions applied."""
    store = StoreSettings()
    if request.param == "redis":
        store = StoreSettings(online="redis", redis_url=f"127.0.0.1:{request.getfixturevalue('redis_port')}")
    settings = make_settings(tmp_path_factory.mktemp(request.param), store=store)
    features.apply(settings)
    return settings


@pytest.fixture(scope="module")
def state(profile: Settings) -> OnlineState:
    return OnlineState(profile)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "data")


USERS = iter(range(1_000, 1_000_000))


@pytest.fixture
def user() -> int:
    return next(USERS)


def read(state: OnlineState, user: int, session: str, at: datetime) -> np.ndarray:
    return state.read([StateRequest(user, session, at)])[0]


def feedback(
    state: OnlineState, user: int, session: str, request: str, at: datetime, events: list[dict[str, int]]
) -> None:
    state.feedback([Feedback(user, session, request, at, events)])


def named(settings: Settings, vector: np.ndarray) -> dict[str, float]:
    return dict(zip(settings.state_spec.entry_names, vector.tolist(), strict=True))


def of_requests(count: int) -> float:
    """The state's entry of so many requests."""
    return count / (count + 5)


def page(items: int, *predictions: float) -> Shown:
    """Shown items whose predictions sum to these, of the first heads."""
    return Shown(items, [*predictions, *[0.0] * (len(DEFAULT_HEADS) - len(predictions))])


def shown(click: int = 0, like: int = 0, play_ms: int = 0) -> dict[str, int]:
    return {"item_id": 1, "is_click": click, "is_like": like, "play_time_ms": play_ms, "duration_ms": 1}


def test_an_unknown_user_has_a_state_of_zeros_and_the_hour(profile, state, user):
    vector = read(state, user, "s", T0)
    assert vector.dtype == np.float32 and vector.shape == (profile.state_spec.width,)
    entries = named(profile, vector)
    assert entries.pop("hour_sin") == pytest.approx(np.sin(2 * np.pi * 10 / 24), abs=1e-6)
    assert entries.pop("hour_cos") == pytest.approx(np.cos(2 * np.pi * 10 / 24), abs=1e-6)
    assert set(entries.values()) == {0.0}


def test_feedback_moves_the_next_state(profile, state, user):
    feedback(state, user, "s", "r1", T0, [shown(1, 0, 3_000), shown(0, 0, 1_000)])
    entries = named(profile, read(state, user, "s", T0))
    assert entries["sess_requests"] == pytest.approx(of_requests(1))
    assert entries["sess_click_rate"] == entries["last_click_rate"] == 0.5
    assert entries["sess_play_s"] == pytest.approx(np.log1p(2.0))
    feedback(state, user, "s", "r2", T0 + MINUTE, [shown(1, 1), shown(1, 0)])
    entries = named(profile, read(state, user, "s", T0 + 2 * MINUTE))
    assert entries["sess_requests"] == pytest.approx(of_requests(2))
    assert entries["sess_click_rate"] == 0.75 and entries["last_click_rate"] == 1.0
    assert entries["sess_like_rate"] == 0.25 and entries["last_play_s"] == 0.0


@pytest.mark.parametrize("times", [1, 3])
def test_more_feedback_of_one_request_adds_what_is_new_of_it(profile, state, user, times):
    feedback(state, user, "s", "r0", T0, [shown(1)])
    feedback(state, user, "s", "r1", T0, [shown(1)])
    before, now = [shown(1)], [shown(1), shown(0)]
    for _ in range(times):  # the same instant too
        state.feedback([Feedback(user, "s", "r1", T0, now, before)])
        before = now
    entries = named(profile, read(state, user, "s", T0))
    assert entries["sess_requests"] == pytest.approx(of_requests(2))
    assert entries["sess_click_rate"] == pytest.approx(2 / 3)
    assert entries["last_click_rate"] == 0.5


def test_feedback_sent_again_for_an_earlier_request_counts_no_request(profile, state, user):
    feedback(state, user, "s", "r1", T0, [shown(1)])
    feedback(state, user, "s", "r2", T0 + MINUTE, [shown(0)])
    state.feedback([Feedback(user, "s", "r1", T0 + 2 * MINUTE, [shown(1)], [shown(1)])])
    entries = named(profile, read(state, user, "s", T0 + 2 * MINUTE))
    assert entries["sess_requests"] == pytest.approx(of_requests(2))
    assert entries["sess_click_rate"] == 0.5 and entries["last_click_rate"] == 1.0


def test_feedback_sent_again_after_the_session_was_forgotten_counts_whole(profile, state, user):
    feedback(state, user, "s", "r1", T0, [shown(1)])
    late = T0 + timedelta(minutes=profile.session.gap_minutes) + MINUTE
    state.feedback([Feedback(user, "s", "r1", late, [shown(1)], [shown(1)])])
    entries = named(profile, read(state, user, "s", late))
    assert entries["sess_requests"] == pytest.approx(of_requests(1)) and entries["sess_click_rate"] == 1.0


def test_another_session_or_a_long_pause_forgets(profile, state, user):
    feedback(state, user, "s", "r1", T0, [shown(1)])
    nothing = read(state, user, "other", T0)
    assert named(profile, nothing)["sess_requests"] == 0.0
    gap = timedelta(minutes=profile.session.gap_minutes)
    assert named(profile, read(state, user, "s", T0 + gap))["sess_requests"] > 0.0
    assert named(profile, read(state, user, "s", T0 + gap + MINUTE))["sess_requests"] == 0.0
    feedback(state, user, "s", "r2", T0 + gap + MINUTE, [shown(0)])  # starts from zero
    assert named(profile, read(state, user, "s", T0 + gap + MINUTE))["sess_click_rate"] == 0.0


def test_feedback_of_an_older_session_changes_nothing(profile, state, user):
    feedback(state, user, "new", "r2", T0, [shown(1)])
    before = read(state, user, "new", T0)
    feedback(state, user, "old", "r1", T0 - 5 * MINUTE, [shown(0, 1)])
    np.testing.assert_array_equal(read(state, user, "new", T0), before)


def test_late_feedback_of_the_same_session_is_counted_but_is_not_the_latest(profile, state, user):
    feedback(state, user, "s", "r2", T0, [shown(1)])
    feedback(state, user, "s", "r1", T0 - MINUTE, [shown(0)])
    entries = named(profile, read(state, user, "s", T0))
    assert entries["sess_click_rate"] == 0.5 and entries["last_click_rate"] == 1.0


def test_the_last_request_weighs_most_in_what_is_decayed(profile, state, user):
    """Felt and predicted: pages of two items, of which the first, the second and the third are clicked."""
    for number, clicks in enumerate(((1, 1), (1, 0), (0, 0))):
        events = [shown(click, 0, 1_000 * number) for click in clicks]
        at = T0 + number * MINUTE
        told = page(2, 2 * 0.1 * number, 2.0 * number)
        state.feedback([Feedback(user, "s", f"r{number}", at, events, [], told)])
    entries = named(profile, read(state, user, "s", T0 + 2 * MINUTE))
    weights = 1 + DECAY + DECAY**2
    assert entries["decayed_click_rate"] == pytest.approx((DECAY**2 + 0.5 * DECAY) / weights)
    assert entries["sess_click_rate"] == 0.5 and entries["last_click_rate"] == 0.0
    assert entries["decayed_play_s"] == pytest.approx(np.log1p((2 + DECAY) / weights))
    assert entries["last_p_click"] == pytest.approx(np.log1p(0.2))
    assert entries["decayed_p_click"] == pytest.approx(np.log1p((0.2 + 0.1 * DECAY) / weights))
    assert entries["decayed_p_long_view"] == pytest.approx(np.log1p((2 + DECAY) / weights))


def test_what_a_request_showed_counts_once_and_without_waiting_for_every_item(profile, state, user):
    before: list[dict[str, int]] = []
    for now in ([shown(1)], [shown(1), shown(1)], [shown(1), shown(1)]):
        state.feedback([Feedback(user, "s", "r", T0, now, before, page(4, 2.0))])
        before = now
    entries = named(profile, read(state, user, "s", T0))
    assert {entries[f"{of}_click_rate"] for of in ("sess", "last", "decayed")} == {0.5}
    assert entries["last_p_click"] == entries["decayed_p_click"] == pytest.approx(np.log1p(0.5))


def test_late_feedback_weighs_as_the_request_before_the_latest(profile, state, user):
    other = next(USERS)
    for who, order in ((user, (0, 1, 2)), (other, (0, 2, 1))):
        for number in order:
            events = [shown(number != 1, 0, 1_000 * number)]
            at, told = T0 + number * MINUTE, page(1, 0.1 * number)
            state.feedback([Feedback(who, "s", f"r{number}", at, events, [], told)])
    at = T0 + 3 * MINUTE
    np.testing.assert_allclose(read(state, other, "s", at), read(state, user, "s", at), rtol=1e-6)


@pytest.mark.parametrize(
    ("hours_before_midnight", "days"), [(-1, 0), (0, 0), (0.5, 0), (23.9, 0), (24, 1), (47, 1), (240, 10)]
)
def test_days_since_the_last_visit_are_counted_on_the_day_of_use(hours_before_midnight, days):
    midnight = T0.replace(hour=0, minute=0)
    last = midnight - timedelta(hours=hours_before_midnight)
    assert days_since(last, T0, UTC) == days
    assert days_since(None, T0, UTC) == 0.0


def test_users_do_not_mix(profile, state):
    one, two = next(USERS), next(USERS)
    feedback(state, one, "s", "r", T0, [shown(1)])
    assert named(profile, read(state, two, "s", T0))["sess_requests"] == 0.0


def test_a_batch_is_as_good_as_one_after_another(profile, state):
    """Several users, and one of them twice: the second feedback of a user adds to the first."""
    one, two, unknown = next(USERS), next(USERS), next(USERS)
    items = [
        Feedback(one, "s", "r1", T0, [shown(1)]),
        Feedback(two, "t", "r2", T0, [shown(0, 1)]),
        Feedback(one, "s", "r3", T0 + MINUTE, [shown(0)]),
    ]
    state.feedback(items)
    asked = [
        StateRequest(user, session, T0 + MINUTE) for user, session in ((two, "t"), (unknown, "u"), (one, "s"))
    ]
    together = state.read(asked)
    np.testing.assert_array_equal(together, [state.read([request])[0] for request in asked])
    entries = [named(profile, vector) for vector in together]
    assert [e["sess_requests"] for e in entries] == pytest.approx([of_requests(1), 0.0, of_requests(2)])
    assert [e["sess_click_rate"] for e in entries] == [0.0, 0.0, 0.5]
    assert entries[0]["last_like_rate"] == 1.0


requests = st.lists(
    st.tuples(
        st.floats(0.0, 45.0),  # minutes since the one before
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 90_000)), max_size=4),
        st.booleans(),  # a new session id
    ),
    min_size=1,
    max_size=6,
)


def decayed(pages: list[list[tuple[int, int, int]]]) -> dict[str, list[float]]:
    weights = [DECAY**back for back in reversed(range(len(pages)))]

    def total(of: Callable[[list[tuple[int, int, int]]], float]) -> list[float]:
        return [sum(weight * of(page) for weight, page in zip(weights, pages, strict=True))]

    return {
        "decayed_impressions": total(len),
        "decayed_click_count": total(lambda page: sum(item[0] for item in page)),
        "decayed_like_count": total(lambda page: sum(item[1] for item in page)),
        "decayed_play_s": total(lambda page: sum(item[2] for item in page) / 1000),
    }


@given(requests)
@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_sums_equal_a_plain_recomputation(profile, state, sequence):
    """Each read equals the state assembled from all feedback of the session so far, summed anew."""
    user, now, session = next(USERS), T0, "s0"
    gap, last, so_far = timedelta(minutes=profile.session.gap_minutes), None, []
    for number, (minutes, events, new_session) in enumerate(sequence):
        now = now + timedelta(minutes=round(minutes))
        session = f"s{number}" if new_session else session
        if new_session or last is None or now - last > gap:
            so_far = []
        raw = {name: [0.0] for name in profile.state_spec.inputs("history")} | {"degree": [None]}
        raw |= {name: [value] for name, value in context_values(now, UTC).items()}
        for prefix, requests_ in (("sess", so_far), ("last", so_far[-1:])):
            items = [item for request in requests_ for item in request]
            raw[f"{prefix}_impressions"] = [len(items)]
            raw[f"{prefix}_click_count"] = [sum(item[0] for item in items)]
            raw[f"{prefix}_like_count"] = [sum(item[1] for item in items)]
            raw[f"{prefix}_play_s"] = [sum(item[2] for item in items) / 1000]
        raw |= decayed(so_far)
        raw |= {name: [0.0] for name in profile.state_spec.inputs("session") if "_p_" in name}
        raw["sess_requests"] = [len(so_far)]
        expected = profile.state_spec.assemble(raw)[0]
        np.testing.assert_allclose(read(state, user, session, now), expected, rtol=1e-6, atol=1e-6)
        feedback(state, user, session, f"r{number}", now, [shown(*event) for event in events])
        last = now
        so_far.append(events)


def test_threads_lose_no_feedback(profile, state, user):
    def work(thread: int) -> None:
        for number in range(10):
            feedback(state, user, "s", f"{thread}-{number}", T0, [shown(1), shown(0)])
            assert read(state, user, "s", T0).shape == (profile.state_spec.width,)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert named(profile, read(state, user, "s", T0))["sess_requests"] == pytest.approx(of_requests(40))


def _worker(settings: Settings, user: int, name: str) -> None:
    state = OnlineState(settings)
    for number in range(25):
        feedback(state, user, "s", f"{name}-{number}", T0, [shown(1)])


def test_processes_lose_no_feedback(profile, user):
    fork = multiprocessing.get_context("fork")  # feast is imported already
    workers = [fork.Process(target=_worker, args=(profile, user, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    entries = named(profile, read(OnlineState(profile), user, "s", T0))
    assert entries["sess_requests"] == pytest.approx(of_requests(50))


def test_a_missing_store_is_named_and_found_once_it_is_there(settings):
    state = OnlineState(settings)
    with pytest.raises(StoreError, match=r"feature_store\.yaml"):
        read(state, 1, "s", T0)
    with pytest.raises(StoreError, match=r"feature_store\.yaml"):
        feedback(state, 1, "s", "r", T0, [shown(1)])
    features.apply(settings)
    registry = settings.layout.feast / "registry.db"
    kept = registry.read_bytes()
    registry.unlink()
    with pytest.raises(StoreError, match=r"registry\.db"):
        read(state, 1, "s", T0)
    assert not registry.exists()
    registry.write_bytes(b"")  # a registry that is being written
    with pytest.raises(StoreError, match=settings.state_spec.version):
        read(state, 1, "s", T0)
    registry.write_bytes(kept)
    assert read(state, 1, "s", T0).shape == (settings.state_spec.width,)
    feedback(state, 1, "s", "r", T0, [shown(1)])


def test_a_running_service_does_not_depend_on_the_registry_file(settings):
    features.apply(settings)
    state = OnlineState(settings)
    read(state, 1, "s", T0)
    (settings.layout.feast / "registry.db").write_bytes(b"")
    read(state, 1, "s", T0)


def test_a_broken_database_is_a_store_error(settings):
    features.apply(settings)
    for file in settings.layout.feast.glob("online.db*"):
        file.unlink()
    (settings.layout.feast / "online.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="database"):
        read(OnlineState(settings), 1, "s", T0)


def test_a_writer_does_not_hold_up_readers(settings):
    """While a day is materialised, states are read as they were."""
    features.apply(settings)
    state = OnlineState(settings)
    feedback(state, 1, "s", "r", T0, [shown(1)])
    writer = sqlite3.connect(settings.layout.feast / "online.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE mtf_user_session SET sess_requests = 'many'")
    started = time.monotonic()
    assert named(settings, read(state, 1, "s", T0))["sess_click_rate"] == 1.0
    assert time.monotonic() - started < 2.0
    writer.execute("ROLLBACK")
    writer.close()


def test_a_store_of_another_kind_than_the_settings_is_refused(settings):
    features.apply(settings)
    other = settings.model_copy(update={"store": StoreSettings(online="redis")})
    with pytest.raises(StoreError, match="Sqlite"):
        read(OnlineState(other), 1, "s", T0)


def test_redis_that_hangs_or_is_gone_costs_the_budget_and_no_more(tmp_path):
    server = Redis()
    server.start()
    settings = make_settings(
        tmp_path,
        store=StoreSettings(online="redis", redis_url=f"127.0.0.1:{server.port}"),
        serving=ServingSettings(state_budget_ms=300.0),
    )
    try:
        features.apply(settings)
        state = OnlineState(settings)
        feedback(state, 1, "s", "r", T0, [shown(1)])
        for stop, go_on in ((signal.SIGSTOP, signal.SIGCONT), (signal.SIGKILL, None)):
            server.send(stop)
            started = time.monotonic()
            with pytest.raises(StoreError):
                read(state, 1, "s", T0)
            assert time.monotonic() - started < 1.5
            if go_on is not None:
                server.send(go_on)
                assert named(settings, read(state, 1, "s", T0))["sess_requests"] > 0.0
        server.stop()  # long gone
        server.start()
        assert named(settings, read(state, 1, "s", T0))["sess_requests"] == 0.0  # empty, and answering
    finally:
        server.stop(signal.SIGKILL)

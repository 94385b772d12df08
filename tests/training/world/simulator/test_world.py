"""Days of the world: traffic, clocks, identity of reruns, snapshots, the truth ledger."""

import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.world.simulator.conftest import DAY, beginning, world_settings
from training.contract.columns import user_columns
from training.contract.errors import DataError, SettingsError
from training.contract.fusion import top
from training.contract.settings import HeadSettings, SessionSettings, Settings, SignalSettings
from training.world.simulator import drivers
from training.world.simulator.constants import CONSTANTS, HOUR_SHARE
from training.world.simulator.sessions import ABSENT, ALIVE, FAILED, LEFT, LIMIT, MIDNIGHT, Requests
from training.world.simulator.world import World

# KuaiRand-Pure: share of days from one visit to the next, for gaps of 1, 2, 3 … days
TARGET_RETURN_GAPS = (0.617, 0.165, 0.079, 0.047, 0.031, 0.021, 0.014)


def static_page(world: World, requests: Requests) -> np.ndarray:
    fusion, page = world.settings.fusion, world.settings.world.page
    scores = fusion.score(requests.predictions, fusion.to_weights(fusion.static_action))
    return np.take_along_axis(requests.item_ids, top(scores, page), axis=1)


def play(world: World, day: date = DAY) -> list[tuple]:
    """A day under static weights; every request with its outcome."""
    world.start_day(day)
    seen = []
    while len(world.live):
        requests = world.requests()
        outcome = world.respond(requests, static_page(world, requests), ["static"] * len(requests))
        seen.append((requests, outcome))
    return seen


def test_requests_are_within_the_contract(world: World) -> None:
    world.start_day(DAY)
    requests = world.requests()
    settings = world.settings
    shape = (len(requests), settings.world.candidates)
    assert requests.item_ids.shape == shape and len(requests) > 100
    assert requests.predictions.shape == (*shape, len(settings.heads))
    for row in requests.item_ids:
        assert len(set(row)) == shape[1]
    for place, head in enumerate(settings.heads):
        column = requests.predictions[..., place]
        assert (column > 0).all() and (column < head.maximum).all()
        settings.fusion.matrix({head.name: column[0].tolist()}, shape[1])  # what the service checks
    assert len(set(requests.user_id)) == len(requests)
    assert len(set(requests.request_id)) == len(requests)
    assert requests.event_ts.dtype == "datetime64[us]"


def test_clocks_stay_in_the_day_and_keep_the_session_gap(world: World) -> None:
    times: dict[str, list] = {}
    users: dict[str, int] = {}
    for requests, outcome in play(world):
        local = requests.event_ts + np.timedelta64(8, "h")
        assert (local.astype("datetime64[D]") == np.datetime64(DAY)).all()
        viewed = outcome.play_time_ms.sum(axis=1)
        watched = (outcome.feedback_ts - requests.event_ts).astype(int) / 1000.0
        assert (watched >= viewed).all() and (watched <= viewed + 1000).all()
        for row, name in enumerate(requests.session_id):
            times.setdefault(name, []).append((requests.event_ts[row], outcome.feedback_ts[row]))
            users[name] = requests.user_id[row]
    gap = np.timedelta64(30, "m")
    ends: dict[int, np.datetime64] = {}
    repeated = 0
    for name in sorted(times, key=lambda n: times[n][0][0]):
        for (_, answered), (asked, _) in zip(times[name], times[name][1:], strict=False):
            assert answered < asked
        starts = [asked for asked, _ in times[name]]
        assert all(b - a < gap for a, b in itertools.pairwise(starts))
        user = users[name]
        if user in ends:
            repeated += 1
            assert starts[0] - ends[user] > gap
        ends[user] = times[name][-1][1]
    assert repeated > 20
    ended = set(world.sessions.ended)
    assert ALIVE not in ended and ended <= {LEFT, LIMIT, MIDNIGHT, ABSENT}
    assert np.mean(world.sessions.ended == LEFT) > 0.9


def test_traffic_follows_the_setting_and_the_hours(saved: tuple[Settings, Path], tmp_path: Path) -> None:
    for wished in (1_500, 6_000):
        settings = saved[0].model_copy(
            update={"data": tmp_path, "world": saved[0].world.model_copy(update={"requests_per_day": wished})}
        )
        world = World.load(settings, saved[1])
        record = sum(len(requests) for requests, _ in play(world))
        assert 0.65 * wished < record < 1.35 * wished
    hours = (world.sessions.start_us - world.scene.day_start_us) // 3_600_000_000
    share = np.bincount(hours, minlength=24) / len(hours)
    evening, night = share[19:24].sum(), share[1:6].sum()
    assert abs(evening - sum(HOUR_SHARE[19:24])) < 0.08
    assert abs(night - sum(HOUR_SHARE[1:6])) < 0.05


def test_visit_gaps_are_kuairands() -> None:
    """With nobody pleased or annoyed: P(gap = k) = E[p² (1 - p)^(k-1)] / E[p] over the activity p."""
    p = np.random.default_rng(0).beta(*CONSTANTS.activity, 1_000_000)
    for gap, target in enumerate(TARGET_RETURN_GAPS[:3], start=1):
        assert abs((p**2 * (1 - p) ** (gap - 1)).mean() / p.mean() - target) < 0.04


def test_answers_in_another_order_change_nothing(saved: tuple[Settings, Path]) -> None:
    one, two = World.load(*saved), World.load(*saved)
    one.start_day(DAY)
    two.start_day(DAY)
    a, b = one.requests(), two.requests()
    half = np.arange(len(b)) < len(b) // 2
    whole = one.respond(a, static_page(one, a), ["x"] * len(a))
    parts = [b.part(~half), b.part(half)]
    outcomes = [two.respond(part, static_page(two, part), ["x"] * len(part)) for part in parts]
    np.testing.assert_array_equal(whole.play_time_ms[~half], outcomes[0].play_time_ms)
    np.testing.assert_array_equal(whole.events[half], outcomes[1].events)
    np.testing.assert_array_equal(one.live, two.live)
    np.testing.assert_array_equal(one.requests().item_ids, two.requests().item_ids)


def test_failures_end_their_session_as_truncated(world: World) -> None:
    world.start_day(DAY)
    requests = world.requests()
    failed = np.arange(len(requests)) % 2 == 0
    shown = static_page(world, requests)
    shown[failed] = 0  # not looked at
    world.respond(requests, shown, ["static"] * len(requests), failed)
    assert (world.sessions.ended[requests.session[failed]] == FAILED).all()
    rest = world.requests()
    outcome = world.respond(rest, static_page(world, rest), ["static"] * len(rest))
    world.fail(rest)  # their feedback was lost
    assert (world.sessions.ended[rest.session[outcome.ended == ALIVE]] == FAILED).all()
    while len(world.live):
        more = world.requests()
        world.respond(more, static_page(world, more), ["static"] * len(more))
    ledger = world.end_day().to_pandas()
    assert ledger.loc[ledger["ended"] == FAILED, "truncated"].all()
    assert (ledger["requests"] > 0).all()


def test_an_item_that_was_no_candidate_is_refused(world: World) -> None:
    world.start_day(DAY)
    requests = world.requests()
    shown = static_page(world, requests)
    shown[3, 2] = 987_654_321
    with pytest.raises(DataError, match="987654321 was no candidate"):
        world.respond(requests, shown, ["static"] * len(requests))


def test_a_day_run_twice_is_the_same_and_goes_on(saved: tuple[Settings, Path], tmp_path: Path) -> None:
    settings = beginning(saved, tmp_path, 500)
    static = settings.fusion.static_action

    def choose(states: np.ndarray, requests: Requests) -> np.ndarray:
        assert states.shape == (len(requests), settings.state_spec.width)
        return np.repeat(static[None], len(states), axis=0)

    first = drivers.run_day_inprocess(settings, DAY, choose)
    truth = drivers.truth_path(settings, DAY).read_bytes()
    second_day = DAY + timedelta(days=1)
    second = drivers.run_day_inprocess(settings, second_day, choose)
    assert drivers.run_day_inprocess(settings, DAY, choose) == first
    assert drivers.truth_path(settings, DAY).read_bytes() == truth
    assert drivers.run_day_inprocess(settings, second_day, choose) == second
    assert first["requests"] == first["feedbacks"] > 200 and first["failures"] == 0
    # a day left out does not stop the world, a day before it does
    later = drivers.run_day_inprocess(settings, DAY + timedelta(days=9), choose)
    assert later["requests"] > 100
    with pytest.raises(DataError, match="begins on 2026-01-05"):
        drivers.open_world(settings, DAY - timedelta(days=1))

    ledger = pq.read_table(drivers.truth_path(settings, DAY)).to_pandas()
    arm = first["arms"]["policy"]
    assert arm["sessions"] == len(ledger)
    assert arm["session_return_mean"] == pytest.approx(ledger["session_return"].mean())
    low, high = arm["session_return_ci"]
    assert low < arm["session_return_mean"] < high
    assert (ledger["discounted_return"] <= ledger["session_return"] + 1e-9).mean() > 0.9
    came = set(pq.read_table(drivers.truth_path(settings, second_day))["user_id"].to_pylist())
    told = ledger.groupby("user_id")["returned_next_day"].first()
    assert {user for user, back in told.items() if back} == came & set(told.index)


def test_users_are_told_whole_once_and_then_as_they_change(
    saved: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings = beginning(saved, tmp_path, 3_000)
    static = settings.fusion.static_action
    drivers.run_day_inprocess(settings, DAY, lambda s, _: np.repeat(static[None], len(s), axis=0))
    table = drivers.users_of(settings, DAY)
    assert table.num_rows == 1_500
    assert [field.name for field in table.schema] == [column.name for column in user_columns(settings)]
    assert table.schema.field("updated_ts").type == pa.timestamp("us", tz="UTC")
    assert table["updated_ts"][0].as_py() == datetime(2026, 1, 4, 16, tzinfo=UTC)
    assert all(column.null_count == 0 for column in table.columns)
    world = drivers.open_world(settings, DAY + timedelta(days=1))
    changed = world.users_table(DAY + timedelta(days=1))
    before = dict(zip(table["user_id"].to_pylist(), table["follow_user_num"].to_pylist(), strict=True))
    after = dict(zip(changed["user_id"].to_pylist(), changed["follow_user_num"].to_pylist(), strict=True))
    assert 0 < len(after) < 100
    assert all(count > before[user] for user, count in after.items())


def test_snapshots_that_cannot_be_used_are_refused(saved: tuple[Settings, Path], tmp_path: Path) -> None:
    settings, folder = saved
    other = settings.model_copy(update={"world": settings.world.model_copy(update={"users": 99})})
    with pytest.raises(DataError, match="other settings"):
        World.load(other, folder)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "world.json").write_text((folder / "world.json").read_text())
    (broken / "state.npz").write_bytes((folder / "state.npz").read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot read the world's snapshot"):
        World.load(settings, broken)


def test_a_new_world_is_saved_before_its_first_day(tmp_path: Path) -> None:
    settings = world_settings(tmp_path, users=200, items=200)
    made = drivers.open_world(settings, DAY)
    again = drivers.open_world(settings, DAY)
    np.testing.assert_array_equal(made.calibration.intercept, again.calibration.intercept)
    np.testing.assert_array_equal(made.calibration.expectation, again.calibration.expectation)
    assert again.users_table(DAY).num_rows == 200


def test_settings_that_make_no_world_are_refused(tmp_path: Path) -> None:
    heads = (HeadSettings(name="finish", static=0.5),)
    with pytest.raises(SettingsError, match="not 'finish'"):
        World(Settings(data=tmp_path, heads=heads))
    signals = (SignalSettings(name="share", column="is_share"),)
    with pytest.raises(SettingsError, match="not 'is_share'"):
        World(Settings(data=tmp_path, signals=signals))
    with pytest.raises(SettingsError, match="only 20 items"):
        World(world_settings(tmp_path, items=20))
    with pytest.raises(SettingsError, match=r"more than world\.candidates"):
        World(world_settings(tmp_path, page=41))
    with pytest.raises(SettingsError, match="gap_minutes"):
        World(world_settings(tmp_path).model_copy(update={"session": SessionSettings(gap_minutes=1.0)}))

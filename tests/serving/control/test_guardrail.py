"""The guardrail over a real index, real pointers and policy files; time is told to it."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from serving.control.guardrail import Guardrail, judge
from serving.log.index.counts import ArmCounts
from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.shared import SharedIndex
from serving.policy.follower import InServiceSource, PolicyFollower
from tests.serving.conftest import settings_file
from training.contract import in_service, rollout
from training.contract.errors import PolicyError
from training.contract.files import read_json
from training.contract.settings import GuardrailSettings, load_settings

RULES = GuardrailSettings(min_requests=100)


@pytest.mark.parametrize(
    ("arm", "static", "rule"),
    [
        (ArmCounts(100, failed=3), ArmCounts(), "failed"),
        (ArmCounts(99, failed=99), ArmCounts(), None),
        (ArmCounts(100, slow=20), ArmCounts(50, slow=1), "slow"),
        (ArmCounts(100, slow=20), ArmCounts(50, slow=10), None),  # everybody is slow
        (ArmCounts(100, slow=100), ArmCounts(5), None),  # nothing to compare with
        (ArmCounts(100, bounded=500, entries=800), ArmCounts(), "bound"),
        (ArmCounts(100, bounded=300, entries=800), ArmCounts(), None),
    ],
)
def test_requests_are_judged_by_shares(arm, static, rule):
    verdict = judge(RULES, arm, static)
    assert (verdict and verdict.rule) == rule


class Watch:
    """A guardrail with what it looks at, and a clock that the test moves; its replicas' are in ``server``."""

    def __init__(self, folder, server: redis.Redis | None = None, **serving) -> None:
        folder.mkdir(exist_ok=True)
        self.settings = load_settings(settings_file(folder, **serving))
        layout = self.settings.layout
        layout.serving.mkdir(parents=True, exist_ok=True)
        self.now = 0.0
        how = {
            "gap_minutes": 30,
            "reward": lambda e: e["reward"],
            "negative": lambda e: bool(e.get("hate")),
            "clock": self.clock,
        }
        self.index = (
            RequestIndex(layout.serving / "requests.sqlite", **how)
            if server is None
            else SharedIndex(server, layout.serving / "guardrail.sqlite", **how)
        )
        self.awake = threading.Event()
        self.awake.set()
        self.champion = PolicyFollower(self.settings)
        self.challenger = PolicyFollower(
            self.settings, [InServiceSource(self.settings, "challenger")], on_vanished=lambda: None
        )
        self.rolled: list[tuple[str, str]] = []
        self.steps: list[int] = []
        self.held: list[bool] = []
        self.guardrail = Guardrail(
            self.settings,
            self.index,
            self.champion,
            self.challenger,
            lambda arm, rule: self.rolled.append((arm, rule)),
            on_step=self._at,
            clock=self._awake_clock,
        )

    def _at(self, step: int, held: bool) -> None:
        self.steps.append(step)
        self.held.append(held)

    def clock(self) -> float:
        return time.time() + self.now

    def _awake_clock(self) -> float:
        self.awake.wait(30)
        return self.clock()

    def close(self) -> None:
        self.guardrail.close()
        self.index.close()

    def look(self) -> None:
        self.champion.look()
        self.challenger.look()
        self.guardrail.check()

    def serve(self, arm: str, policy: str, rewards, users=None, hate: int = 0, **counts) -> None:
        """A session each; of a user each, unless ``users`` says of whom. The first ``hate`` are hated."""
        name = f"{arm}-{time.time_ns()}"
        rewards = [float(reward) for reward in rewards]
        users = range(len(rewards)) if users is None else users
        self.index.add(
            [
                ServedRequest(f"{name}-{i}", int(user), f"{name}-{i}", 0.0, arm, policy, **counts)
                for i, user in enumerate(users)
            ]
        )
        self.index.events.add(
            [
                RequestEvents(f"{name}-{i}", f"{name}-{i}", {1: {"reward": r, "hate": int(i < hate)}})
                for i, r in enumerate(rewards)
            ]
        )


STEPS = [{"share": 0.1, "minutes": 10, "requests": 5}, {"share": 0.5, "minutes": 20, "requests": 5}]
GUARDRAIL = {"min_requests": 20, "min_sessions": 30, "idle_minutes": 0, "window_seconds": 3600}
GUARDRAIL |= {"check_seconds": 0.2}  # of which a lease lasts three


@pytest.fixture(params=["files", "redis"])
def make_watch(request, tmp_path, monkeypatch):
    """Called with the folder of a replica; what is in service is in files, or in a row that they share."""
    made, server = [], None
    if request.param == "redis":
        server = emptied(request.getfixturevalue("redis_port"), monkeypatch)

    def make(folder=tmp_path, **serving):
        made.append(Watch(folder, server, **{"canary": STEPS, "guardrail": GUARDRAIL, **serving}))
        return made[-1]

    yield make
    for watch in made:
        watch.close()


def emptied(port, monkeypatch) -> redis.Redis:
    """A Redis without anything, which settings name from here on."""
    for name, value in (("STORE__ONLINE", "redis"), ("STORE__REDIS_URL", f"127.0.0.1:{port}")):
        monkeypatch.setenv(f"MTF__{name}", value)
    monkeypatch.setenv("MTF__SERVING__INDEX", "redis")
    server = redis.Redis(port=port, protocol=2)
    server.flushall()
    return server


@pytest.fixture
def watch(make_watch):
    return make_watch()


@pytest.fixture
def rollout_of_two(watch, constant):
    """A champion v1 and a challenger v2 in its canary's first step."""
    return begin(watch, constant)


def begin(watch, constant):
    one = constant(watch.settings, "v1", 0.1)
    two = replace(constant(watch.settings, "v2", 0.2), day="2026-01-06")
    with in_service.changing(watch.settings) as row:
        rollout.make_champion(row, rollout.following(one, None), "the first", {})
        rollout.begin_canary(row, rollout.following(two, one), "passed the gate")
    watch.look()
    return one, two


def now(watch) -> in_service.InService:
    return in_service.read(watch.settings)


def share(watch) -> float:
    return now(watch).shares.challenger


def events(watch, *actions: str) -> list[dict]:
    return [e for e in now(watch).history if e["action"] in actions]


def come(watch, one, two, gain: float = 0.0, own: int = 200, hate: int = 0, champions_hate: int = 0) -> None:
    """Users of both sides, as many as the shares say, a session each."""
    generator = np.random.default_rng(len(watch.steps))
    others = round(own * (1.0 - share(watch) - 0.09) / share(watch))
    rewards = generator.normal(10.0, 1.0, others), generator.normal(10.0 + gain, 1.0, own)
    watch.serve("champion", one.sha256, rewards[0], hate=champions_hate)
    watch.serve("challenger", two.sha256, rewards[1], range(others, others + own), hate=hate)


def climb(watch, one, two, **how) -> None:
    """Both sides come in each step that is left, and one looks when its time is over."""
    while True:
        step = watch.steps[-1]
        come(watch, one, two, **how)
        watch.now += 21 * 60.0
        watch.look()
        if watch.steps[-1] in (step, 0):
            return


def test_a_canary_climbs_step_by_step_and_its_gain_makes_it_champion(watch, rollout_of_two):
    one, two = rollout_of_two
    assert share(watch) == 0.1
    watch.now = 11 * 60.0
    watch.look()
    assert share(watch) == 0.1  # long enough, but nobody came
    climb(watch, one, two, gain=1.0)
    assert share(watch) == 0.0 and now(watch).challenger is None
    champion = now(watch).champion
    assert (champion.version, champion.previous["version"]) == ("v2", "v1")
    assert watch.steps == [1, 1, 2, 0] and watch.rolled == [] and not any(watch.held)
    told = now(watch).history
    assert [e["action"] for e in told] == ["promote", "canary", "shares", "shares", "promote", "shares"]
    assert "step 2 of 2 of v2's canary" in told[3]["reason"]
    assert "bring more than the champion's" in told[4]["reason"]
    assert told[4]["evidence"]["by"] == "canary" and 0.0 < told[4]["evidence"]["lower"] < 1.0


def test_without_a_gain_a_canary_stays_at_its_last_step_and_ends_with_its_days(watch, rollout_of_two):
    one, two = rollout_of_two
    climb(watch, one, two, gain=0.0)
    assert share(watch) == 0.5
    watch.now += 7 * 86_400.0
    watch.look()
    assert share(watch) == 0.0 and now(watch).champion.version == "v1"
    [event] = events(watch, "end")
    assert event["from"] == two.sha256 and "no gain shown in 7.0 days" in event["reason"]
    assert watch.rolled == []  # it did nothing wrong


def test_a_canary_ends_with_its_sessions(make_watch, constant):
    watch = make_watch(canary_sessions=300)
    one, two = begin(watch, constant)
    climb(watch, one, two, gain=0.0)
    [event] = events(watch, "end")
    assert "400 against 1784 sessions" in event["reason"]


def test_a_negative_signal_holds_a_canary_until_a_person_lets_it_go_on(watch, rollout_of_two):
    one, two = rollout_of_two
    climb(watch, one, two, gain=1.0, hate=100)
    assert share(watch) == 0.1 and watch.held[-1]
    [event] = events(watch, "pause")
    assert "feedback of negative weight" in event["reason"] and event["version"] == "v2"
    with in_service.changing(watch.settings) as row:
        assert rollout.lift_pause(row, "the item was ours") == "negative"
    climb(watch, one, two, gain=1.0, hate=100)
    assert now(watch).champion.version == "v2" and not watch.held[-1]
    assert "the item was ours" in events(watch, "resume")[0]["reason"]


def test_what_holds_a_canary_can_pass_by_itself(watch, rollout_of_two):
    one, two = rollout_of_two
    climb(watch, one, two, gain=0.5, hate=60)
    assert watch.held[-1]
    for _ in range(4):
        come(watch, one, two, gain=0.5, champions_hate=160)
    watch.look()
    assert not watch.held[-1] and len(events(watch, "pause", "resume")) == 2


def test_arms_that_are_not_of_their_shares_hold_a_canary(watch, rollout_of_two):
    one, two = rollout_of_two
    watch.serve("champion", one.sha256, [10.0] * 900)
    watch.serve("challenger", two.sha256, [10.0] * 400, range(900, 1300))  # an eighth to .8: too many
    watch.now += 11 * 60.0
    watch.look()
    [event] = events(watch, "pause")
    assert "mismatch: 400 against 900 users came" in event["reason"] and share(watch) == 0.1


def test_without_a_champion_a_challenger_is_held_against_static_weights(watch, constant):
    two = constant(watch.settings, "v2", 0.2)
    with in_service.changing(watch.settings) as row:
        rollout.begin_canary(row, rollout.following(two, None), "passed the gate")
    watch.look()
    generator = np.random.default_rng(3)
    watch.serve("champion", "", generator.normal(10.0, 1.0, 100))
    watch.serve("static", "", generator.normal(10.0, 1.0, 100), range(100, 200))
    watch.serve("challenger", two.sha256, generator.normal(9.0, 1.0, 100), range(200, 300))
    watch.look()
    assert watch.rolled == [("challenger", "reward")]
    assert "100 against 200 sessions" in events(watch, "rollback")[0]["reason"]


def test_the_first_champion_comes_of_a_canary_too_and_is_then_held_against_static_weights(watch, constant):
    two = constant(watch.settings, "v2", 0.2)
    with in_service.changing(watch.settings) as row:
        rollout.begin_canary(row, rollout.following(two, None), "passed the gate")
    watch.look()
    generator = np.random.default_rng(3)
    for others, own in ((690, 80), (460, 500)):  # static and champion arm .86, then .46
        watch.serve("champion", "", generator.normal(10.0, 1.0, others))
        watch.serve("challenger", two.sha256, generator.normal(11.0, 1.0, own), range(others, others + own))
        watch.now += 21 * 60.0
        watch.look()
    assert now(watch).champion.version == "v2"
    watch.look()
    seen = read_json(watch.settings.layout.guardrail)["arms"]
    assert seen["champion"]["version"] == "v2" and seen["champion"]["verdict"] is None


def test_how_long_it_takes_is_said_before(watch, constant):
    one = constant(watch.settings, "v1", 0.1)
    two = replace(constant(watch.settings, "v2", 0.2), day="2026-01-06")
    with in_service.changing(watch.settings) as row:
        rollout.make_champion(row, rollout.following(one, None), "the first", {})
    watch.champion.look()
    watch.serve("champion", one.sha256, np.random.default_rng(0).normal(10.0, 2.0, 500))
    watch.now = 3600.0
    with in_service.changing(watch.settings) as row:
        rollout.begin_canary(row, rollout.following(two, one), "passed the gate")
    watch.look()
    plan = now(watch).canary["plan"]
    # √(2/n) · 2 · (3.1 + .84) = .2 at n = 3,100; 500 sessions an hour, half of them the challenger's
    assert 2_500 < plan["sessions_an_arm"] < 4_000
    assert plan["days"] == pytest.approx(plan["sessions_an_arm"] / (500 * 24 * 0.5), rel=0.01)
    [event] = [e for e in events(watch, "shares") if "step 1 of 2" in e["reason"]]
    assert f"{plan['sessions_an_arm']:,} sessions an arm for 2 %: " in event["reason"]
    assert "days at this traffic" in event["reason"]


def test_a_canary_survives_a_restart_of_the_service(make_watch, watch, rollout_of_two):
    _, two = rollout_of_two
    watch.serve("challenger", two.sha256, [1.0] * 5)
    watch.close()
    time.sleep(0.7)  # its lease in Redis
    again = make_watch()
    again.look()
    assert share(again) == 0.1
    again.now = 11 * 60.0
    again.look()
    assert share(again) == 0.5
    again.guardrail.close()


@pytest.mark.parametrize(
    ("counts", "rule"),
    [({"failed": True}, "failed"), ({"bounded": 8, "entries": 8}, "bound"), ({"slow": True}, "slow")],
)
def test_a_bad_challenger_is_taken_out_and_the_champion_stays(watch, rollout_of_two, counts, rule):
    _, two = rollout_of_two
    watch.serve("static", "", [1.0] * 30)
    watch.serve("challenger", two.sha256, [1.0] * 30, **counts)
    watch.look()
    assert watch.rolled == [("challenger", rule)]
    assert now(watch).challenger is None and share(watch) == 0.0
    assert now(watch).champion.version == "v1"
    [event] = [e for e in now(watch).history if e["action"] == "rollback"]
    assert event["from"] == two.sha256 and f"guardrail, {rule}" in event["reason"]
    watch.look()
    assert watch.rolled == [("challenger", rule)]  # once


def test_requests_of_before_the_clock_was_set_back_are_not_of_the_window(watch, rollout_of_two):
    _, two = rollout_of_two
    watch.now = 2 * 3600.0
    watch.serve("challenger", two.sha256, [1.0] * 30, failed=True)
    watch.now = 0.0
    watch.serve("challenger", two.sha256, [1.0] * 30)
    watch.look()
    assert watch.rolled == []
    seen = read_json(watch.settings.layout.guardrail)["arms"]["challenger"]["window"]
    assert (seen["requests"], seen["failed"]) == (30, 0)


def test_policies_of_before_the_clock_was_set_back_are_still_judged(watch, constant):
    one = constant(watch.settings, "v1", 0.1)
    two = replace(constant(watch.settings, "v2", 0.2), day="2026-01-06")
    with in_service.changing(watch.settings) as row:
        first = replace(rollout.following(one, None), promoted_ts="2100-01-01T00:00:00+00:00")
        rollout.make_champion(row, first, "the first", {})
        rollout.begin_canary(row, rollout.following(two, first), "passed the gate")
    watch.now = 2 * 3600.0
    watch.look()
    assert share(watch) == 0.1
    watch.now = 0.0
    watch.serve("challenger", two.sha256, [1.0] * 30, failed=True)
    watch.serve("champion", one.sha256, [1.0] * 30, failed=True)
    watch.look()
    assert watch.rolled == [("challenger", "failed"), ("champion", "failed")]


def test_a_canarys_step_begins_anew_when_the_clock_was_set_back(watch, constant):
    two = constant(watch.settings, "v2", 0.2)
    watch.now = 2 * 3600.0
    with in_service.changing(watch.settings) as row:
        rollout.begin_canary(row, rollout.following(two, None), "passed the gate")
    watch.look()
    watch.now = 0.0
    watch.look()
    watch.serve("challenger", two.sha256, [1.0] * 5)
    watch.now = 9 * 60.0
    watch.look()
    assert share(watch) == 0.1
    watch.now = 11 * 60.0
    watch.look()
    assert share(watch) == 0.5


def test_a_challenger_worse_than_the_champion_is_taken_out(watch, rollout_of_two):
    one, two = rollout_of_two
    generator = np.random.default_rng(0)
    watch.serve("champion", one.sha256, generator.normal(2.0, 0.5, 100))
    watch.serve("challenger", two.sha256, generator.normal(1.0, 0.5, 20), range(100, 120))
    watch.look()
    assert watch.rolled == []  # too few sessions
    watch.serve("challenger", two.sha256, generator.normal(1.0, 0.5, 80), range(120, 200))
    watch.look()
    assert watch.rolled == [("challenger", "reward")]
    assert "bring less than the champion's" in events(watch, "rollback")[0]["reason"]


def test_a_champion_worse_than_static_weights_is_taken_out(watch, constant):
    one = constant(watch.settings, "v1", 0.1)
    with in_service.changing(watch.settings) as row:
        rollout.make_champion(row, rollout.following(one, None), "the first", {})
    generator = np.random.default_rng(0)
    watch.now = 5.0  # pointers carry whole seconds
    watch.serve("static", "", generator.normal(2.0, 0.5, 100))
    watch.serve("champion", one.sha256, generator.normal(1.0, 0.5, 100), range(100, 200))
    watch.look()
    assert watch.rolled == [("champion", "reward")]
    assert "less than static weights'" in events(watch, "rollback")[0]["reason"]


def test_a_challenger_that_cannot_be_loaded_is_taken_out(watch, constant):
    pointer = constant(watch.settings, "v9", 0.9)
    path = watch.settings.data / pointer.policy
    path.write_bytes(path.read_bytes()[:-1])
    with in_service.changing(watch.settings) as row:
        row.challenger = pointer
    watch.look()
    assert watch.rolled == [("challenger", "refused")] and share(watch) == 0.0


def test_a_bad_champion_gives_way_to_the_one_before_and_then_to_static_weights(watch, constant):
    one = constant(watch.settings, "v1", 0.1)
    two = replace(constant(watch.settings, "v2", 0.2), day="2026-01-06")
    with in_service.changing(watch.settings) as row:
        first = rollout.following(one, None)
        rollout.make_champion(row, first, "the first", {})
        rollout.make_champion(row, rollout.following(two, first), "the second", {})
    time.sleep(1.1)  # pointers carry whole seconds
    for pointer, expected in ((two, "v1"), (one, "static")):
        watch.serve("champion", pointer.sha256, [0.0] * 30, failed=True)
        watch.look()
        assert now(watch).champion.version == expected
    watch.champion.look()
    action = watch.champion.current.policy.act(np.zeros((1, watch.settings.state_spec.width)))[0]
    assert np.allclose(action, watch.settings.fusion.static_action)
    watch.look()  # nothing is left to go back to, and nothing happens
    assert watch.rolled == [("champion", "failed")] * 2


def test_a_champion_without_a_way_back_keeps_no_bad_challenger_in(watch, rollout_of_two, constant):
    one, two = rollout_of_two
    rest = replace(constant(watch.settings, "v0", 0.3), day="2026-01-04")
    with in_service.changing(watch.settings) as row:
        rollout.make_champion(row, rollout.following(one, rest), "a test", {})
    watch.look()
    (watch.settings.data / rest.policy).unlink()
    time.sleep(1.1)  # pointers carry whole seconds
    watch.serve("challenger", two.sha256, [0.0] * 30, failed=True)
    watch.serve("champion", one.sha256, [0.0] * 30, failed=True)
    with pytest.raises(PolicyError):
        watch.look()
    assert watch.rolled == [("challenger", "failed")] and now(watch).challenger is None
    assert now(watch).champion.version == "v1"


def test_one_worker_of_a_machine_watches(make_watch, watch, rollout_of_two):
    other = make_watch()
    seen = watch.settings.layout.guardrail.read_text()
    time.sleep(1.1)
    other.look()
    assert watch.settings.layout.guardrail.read_text() == seen
    watch.guardrail.close()
    time.sleep(0.7)  # its lease in Redis
    other.look()
    assert watch.settings.layout.guardrail.read_text() != seen


def test_a_guardrail_that_lost_its_lease_while_it_looked_changes_nothing(
    tmp_path, monkeypatch, redis_port, constant
):
    server = emptied(redis_port, monkeypatch)
    how = {"canary": STEPS, "guardrail": GUARDRAIL}
    first, other = (Watch(tmp_path / name, server, **how) for name in "ab")
    for pointer in begin(first, constant):  # on the other one's disk, too
        two = constant(other.settings, pointer.version, float(pointer.version[1:]) / 10)
    before = now(first).version
    first.serve("challenger", two.sha256, [1.0] * 30, failed=True)
    first.awake.clear()
    look = threading.Thread(target=first.guardrail.check)
    with capture_logs() as logs:
        look.start()
        deadline = time.monotonic() + 30
        while not other.index.lead(60.0):  # the first one's is over
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.awake.set()
        look.join(30)
    [told] = [entry for entry in logs if entry["event"] == "guardrail refused"]
    assert "the guardrail's lease is another replica's by now" in told["reason"]
    assert first.rolled == [] and now(first).challenger.version == "v2" and now(first).version == before
    other.look()
    assert other.rolled == [("challenger", "failed")] and now(first).challenger is None
    first.close(), other.close()

"""The guardrail over a real index, real pointers and policy files; time is told to it."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from serving.control.guardrail import Guardrail, interval, judge
from serving.log.index.counts import ArmCounts
from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.returns import ArmReturns
from serving.policy.champion import ChampionFollower, Source
from tests.serving.conftest import settings_file
from training.contract import history, rollout
from training.contract.files import read_json
from training.contract.pointer import read_champion, write_champion
from training.contract.settings import GuardrailSettings, load_settings
from training.contract.shares import read_shares

ERROR = 0.025
RULES = GuardrailSettings(min_requests=100, min_sessions=50)
NOTHING = interval(ArmReturns(), ERROR, 50)


def returns(values: np.ndarray) -> ArmReturns:
    return ArmReturns(len(values), float(values.sum()), float((values**2).sum()))


def test_the_interval_is_the_theorems():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    found = interval(returns(values), 0.05, 200)
    rho2 = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 200
    half = values.std(ddof=1) * math.sqrt(
        2 * (400 * rho2 + 1) / (400**2 * rho2) * math.log(math.sqrt(400 * rho2 + 1) / 0.05)
    )
    assert (found.mean, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )
    assert half > 1.96 * values.std() / 20  # the price of looking at any time


def test_equal_arms_are_seldom_told_apart_however_often_one_looks():
    """1,000 A/A comparisons of skewed session rewards, each looked at 40 times: at most 5 % may err."""
    generator = np.random.default_rng(1)
    looks = np.unique(np.geomspace(50, 2_000, 40).astype(int))
    errors = 0
    for _ in range(1_000):
        one, two = generator.exponential(2.0, (2, 2_000))
        sums = [(np.cumsum(x), np.cumsum(x**2)) for x in (one, two)]
        for t in looks:
            a, b = (interval(ArmReturns(int(t), s[t - 1], q[t - 1]), ERROR, 200) for s, q in sums)
            if a.high < b.low:
                errors += 1
                break
    assert errors <= 25  # one-sided: half of 5 %


def test_a_worse_arm_is_found_and_a_better_one_left():
    generator = np.random.default_rng(2)
    worse, same = returns(generator.normal(1.0, 1.0, 500)), returns(generator.normal(1.5, 1.0, 500))
    low, high = (interval(r, ERROR, 200) for r in (worse, same))
    nothing = ArmCounts()
    verdict = judge(RULES, nothing, nothing, low, high)
    assert verdict is not None and verdict.rule == "reward" and "below static's" in verdict.reason
    assert judge(RULES, nothing, nothing, high, low) is None
    few = GuardrailSettings(min_sessions=501)
    assert judge(few, nothing, nothing, low, high) is None


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
    verdict = judge(RULES, arm, static, NOTHING, NOTHING)
    assert (verdict and verdict.rule) == rule


class Watch:
    """A guardrail with what it looks at, and a clock that the test moves."""

    def __init__(self, folder, **serving) -> None:
        self.settings = load_settings(settings_file(folder, **serving))
        layout = self.settings.layout
        self.now = 0.0
        self.index = RequestIndex(
            layout.serving / "requests.sqlite", 30, reward=lambda e: e["reward"], clock=self.clock
        )
        self.champion = ChampionFollower(self.settings)
        self.challenger = ChampionFollower(
            self.settings, [Source(layout.challenger, self.settings.data)], on_vanished=lambda: None
        )
        self.rolled: list[tuple[str, str]] = []
        self.steps: list[int] = []
        self.guardrail = Guardrail(
            self.settings,
            self.index,
            self.champion,
            self.challenger,
            lambda arm, rule: self.rolled.append((arm, rule)),
            on_step=self.steps.append,
            clock=self.clock,
        )

    def clock(self) -> float:
        return time.time() + self.now

    def look(self) -> None:
        self.champion.look()
        self.challenger.look()
        self.guardrail.check()

    def serve(self, arm: str, policy: str, rewards, **counts) -> None:
        name = f"{arm}-{time.time_ns()}"
        rewards = [float(reward) for reward in rewards]
        self.index.add(
            [
                ServedRequest(f"{name}-{i}", i, f"{name}-{i}", 0.0, arm, policy, **counts)
                for i in range(len(rewards))
            ]
        )
        self.index.events.add(
            [RequestEvents(f"{name}-{i}", f"{name}-{i}", {1: {"reward": r}}) for i, r in enumerate(rewards)]
        )


STEPS = [{"share": 0.1, "minutes": 10, "requests": 5}, {"share": 0.5, "minutes": 20, "requests": 5}]
GUARDRAIL = {"min_requests": 20, "min_sessions": 30, "idle_minutes": 0, "window_seconds": 3600}


@pytest.fixture
def watch(tmp_path):
    watch = Watch(tmp_path, canary=STEPS, guardrail=GUARDRAIL)
    yield watch
    watch.guardrail.close()
    watch.index.close()


@pytest.fixture
def rollout_of_two(watch, constant):
    """A champion v1 and a challenger v2 in its canary's first step."""
    one = constant(watch.settings, "v1", 0.1)
    two = replace(constant(watch.settings, "v2", 0.2), day="2026-01-06")
    with history.changing(watch.settings.layout):
        rollout.make_champion(watch.settings, rollout.following(one, None), "the first")
        rollout.begin_canary(watch.settings, rollout.following(two, one), "passed the gate")
    watch.look()
    return one, two


def share(watch) -> float:
    return read_shares(watch.settings).challenger


def test_a_canary_goes_step_by_step_and_ends_as_champion(watch, rollout_of_two):
    _, two = rollout_of_two
    assert share(watch) == 0.1
    watch.now = 11 * 60.0
    watch.look()
    assert share(watch) == 0.1  # long enough, but nobody came
    watch.serve("challenger", two.sha256, [1.0] * 5)
    watch.look()
    assert share(watch) == 0.5
    watch.now += 19 * 60.0
    watch.look()
    assert share(watch) == 0.5  # not yet long enough
    watch.serve("challenger", two.sha256, [1.0] * 5)
    watch.now += 2 * 60.0
    watch.look()
    assert share(watch) == 0.0 and not watch.settings.layout.challenger.exists()
    champion = read_champion(watch.settings.layout.champion)
    assert (champion.version, champion.previous["version"]) == ("v2", "v1")
    assert watch.steps == [1, 1, 2, 2, 0] and watch.rolled == []
    told = [(e["action"], e["reason"]) for e in history.read(watch.settings.layout)]
    assert [action for action, _ in told] == ["promote", "canary", "shares", "shares", "promote", "shares"]
    assert "step 2 of 2 of v2's canary" in told[3][1]


def test_a_canary_survives_a_restart_of_the_service(watch, rollout_of_two, tmp_path):
    _, two = rollout_of_two
    watch.serve("challenger", two.sha256, [1.0] * 5)
    watch.guardrail.close()
    again = Watch(tmp_path, canary=STEPS, guardrail=GUARDRAIL)
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
    assert not watch.settings.layout.challenger.exists() and share(watch) == 0.0
    assert read_champion(watch.settings.layout.champion).version == "v1"
    [event] = [e for e in history.read(watch.settings.layout) if e["action"] == "rollback"]
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
    with history.changing(watch.settings.layout):
        first = replace(rollout.following(one, None), promoted_ts="2100-01-01T00:00:00+00:00")
        rollout.make_champion(watch.settings, first, "the first")
        rollout.begin_canary(watch.settings, rollout.following(two, first), "passed the gate")
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
    with history.changing(watch.settings.layout):
        rollout.begin_canary(watch.settings, rollout.following(two, None), "passed the gate")
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


def test_a_challenger_below_statics_interval_is_taken_out(watch, rollout_of_two):
    _, two = rollout_of_two
    generator = np.random.default_rng(0)
    watch.serve("static", "", generator.normal(2.0, 0.5, 100))
    watch.serve("challenger", two.sha256, generator.normal(1.0, 0.5, 20))
    watch.look()
    assert watch.rolled == []  # too few sessions
    watch.serve("challenger", two.sha256, generator.normal(1.0, 0.5, 80))
    watch.look()
    assert watch.rolled == [("challenger", "reward")]


def test_a_challenger_that_cannot_be_loaded_is_taken_out(watch, constant):
    pointer = constant(watch.settings, "v9", 0.9)
    path = watch.settings.data / pointer.policy
    path.write_bytes(path.read_bytes()[:-1])
    write_champion(watch.settings.layout.challenger, pointer)
    watch.look()
    assert watch.rolled == [("challenger", "refused")] and share(watch) == 0.0


def test_a_bad_champion_gives_way_to_the_one_before_and_then_to_static_weights(watch, constant):
    one = constant(watch.settings, "v1", 0.1)
    two = replace(constant(watch.settings, "v2", 0.2), day="2026-01-06")
    with history.changing(watch.settings.layout):
        first = rollout.following(one, None)
        rollout.make_champion(watch.settings, first, "the first")
        rollout.make_champion(watch.settings, rollout.following(two, first), "the second")
    time.sleep(1.1)  # pointers carry whole seconds
    for pointer, expected in ((two, "v1"), (one, "static")):
        watch.serve("champion", pointer.sha256, [0.0] * 30, failed=True)
        watch.look()
        assert read_champion(watch.settings.layout.champion).version == expected
    watch.champion.look()
    action = watch.champion.current.policy.act(np.zeros((1, watch.settings.state_spec.width)))[0]
    assert np.allclose(action, watch.settings.fusion.static_action)
    watch.look()  # nothing is left to go back to, and nothing happens
    assert watch.rolled == [("champion", "failed")] * 2


def test_one_worker_of_a_machine_watches(watch, rollout_of_two, tmp_path):
    other = Watch(tmp_path, canary=STEPS, guardrail=GUARDRAIL)
    seen = watch.settings.layout.guardrail.read_text()
    time.sleep(1.1)
    other.look()
    assert watch.settings.layout.guardrail.read_text() == seen
    watch.guardrail.close()
    other.look()
    assert watch.settings.layout.guardrail.read_text() != seen
    other.guardrail.close()
    other.index.close()

"""What becomes of a challenger, by its evidence alone."""

import pytest

from serving.control.canary import Tried, decide, loss, plan, tell
from serving.control.evidence import Difference, Evidence
from serving.log.index.returns import ArmReturns
from training.contract.settings import GuardrailSettings, ServingSettings

SERVING = ServingSettings(guardrail=GuardrailSettings(min_sessions=100), canary_sessions=1_000, canary_days=3)
EVEN = Difference(0.0, -0.1, 0.1, 1.0)
CLIMBED = Tried(1.0, True, 0.5)


def found(low: float, high: float, sessions: int = 500, negative: Difference = EVEN, users=(300, 300)):
    return Evidence(
        (sessions, sessions),
        600,
        10.0,
        sessions / 2,
        Difference((low + high) / 2, low, high, 5.0),
        negative,
        (0.0, *users),
    )


WORSE = Difference(0.2, 0.1, 0.3, 1.0)


@pytest.mark.parametrize(
    ("evidence", "tried", "what", "rule"),
    [
        (found(0.1, 1.0), CLIMBED, "promote", "gain"),
        (found(0.1, 1.0), Tried(1.0, False, 0.5), "stay", ""),  # its steps are not over
        (found(-1.0, 1.0), CLIMBED, "stay", ""),
        (found(-1.0, -0.1), Tried(1.0, False, 0.5), "out", "reward"),
        (found(0.1, 1.0, sessions=99), CLIMBED, "stay", ""),
        (found(-1.0, -0.1, sessions=99), CLIMBED, "stay", ""),
        (found(-1.0, 1.0), Tried(3.0, True, 0.5), "end", "no gain"),
        (found(-1.0, 1.0, sessions=1_000), CLIMBED, "end", "no gain"),
        (found(0.1, 1.0), Tried(3.0, True, 0.5), "promote", "gain"),  # in its last hour
        (found(0.1, 1.0, negative=WORSE), CLIMBED, "pause", "negative"),
        (found(0.1, 1.0, negative=WORSE), Tried(1.0, True, 0.5, ["negative"]), "promote", "gain"),
        (found(0.1, 1.0, negative=WORSE), Tried(3.0, True, 0.5), "end", "no gain"),
        (found(-1.0, -0.1, negative=WORSE), CLIMBED, "out", "reward"),
        (found(0.1, 1.0, users=(100, 500)), CLIMBED, "pause", "mismatch"),
        (found(0.1, 1.0, users=(100, 500)), Tried(1.0, True, None), "promote", "gain"),
    ],
)
def test_the_move_follows_from_the_evidence(evidence, tried, what, rule):
    move = decide(SERVING, evidence, tried)
    assert (move.what, move.rule) == (what, rule) and move.reason


def test_signals_that_nobody_watches_hold_nothing():
    rules = SERVING.guardrail.model_copy(update={"pause_on": ()})
    blind = SERVING.model_copy(update={"guardrail": rules})
    assert decide(blind, found(0.1, 1.0, negative=WORSE, users=(100, 500)), CLIMBED).what == "promote"


def test_a_loss_is_told_with_its_sequence():
    told = loss(SERVING.guardrail, found(-1.0, -0.5), "the champion's")
    assert told == (
        "its sessions bring less than the champion's: -0.75 (-1 to -0.5) a session of 10, "
        "500 against 500 sessions of 600 users"
    )
    assert loss(SERVING.guardrail, found(-1.0, 0.5), "the champion's") is None
    nothing = Evidence((0, 3), 3, 1.0, 0.0, None, None, (0.0, 0, 3))
    assert tell(nothing) == "not known yet, 0 against 3 sessions of 3 users"
    assert decide(SERVING, nothing, CLIMBED).what == "stay"


def test_a_canary_that_is_too_short_says_so():
    before = ArmReturns(1_000, 20_000.0, 20_000.0 * 20 + 1_000 * 100.0)  # mean 20, deviation 10
    told = plan(SERVING, None, before, a_day=20_000.0, share=0.45)
    assert told["sd"] == pytest.approx(10.0, rel=0.01) and told["sessions_an_arm"] > 15_000
    assert told["days"] == pytest.approx(told["sessions_an_arm"] / 9_000)
    assert (
        "sessions an arm for 2 %" in told["reason"] and "more than serving.canary_sessions" in told["reason"]
    )
    assert plan(SERVING, found(-1.0, 1.0), before, 20_000.0, 0.45)["sd"] == 5.0  # as users come
    assert "too few sessions" in plan(SERVING, None, ArmReturns(), 0.0, 0.45)["reason"]

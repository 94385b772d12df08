"""The judge on a log with known values."""

import copy
import json
from datetime import date

import numpy as np
import pytest
import torch

from training import trajectories
from training.contract.errors import DataError
from training.contract.policy import Policy, PolicyHeader, constant_policy
from training.contract.settings import EvaluationSettings
from training.evaluation import acting, conservative_ope, evaluate
from training.evaluation.acting import Actions
from training.evaluation.fitted_q import FittedQ
from training.evaluation.intervals import resample
from training.evaluation.judge import _alarms

DAY = date(2026, 1, 7)
GAMMA = 0.95


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


FITTED = {"estimators": ("fqe", "conservative_ope")}  # the closed forms have tests of their own


def fitted(make, *where, **sections):
    """A world that is judged by fits alone."""
    evaluation = FITTED | sections.pop("evaluation", {})
    return make(*where, evaluation=evaluation, **{"gate": {"estimator": "fqe"}} | sections)


def constant(settings, *action: float) -> Policy:
    return constant_policy(settings.state_spec, settings.fusion, np.array(action), f"constant {action}")


def true_value(world, policy: Policy) -> float:
    return world.value(lambda states, rng: policy.act(states), GAMMA, sessions=400)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, request):
    """One judgement of three constants by a log of uniform actions; shared, for it takes seconds."""
    make = request.getfixturevalue("make_toy")
    world = fitted(
        make,
        tmp_path_factory.mktemp("judged"),
        evaluation={
            "test_share": 0.6,
            "steps": 400,
            "lr": 2e-3,
            "replicates": 4,
            "batch_size": 256,
            "hidden": (64,),
        },
    )
    world.log(1_000)
    policies = {
        "challenger": constant(world.settings, -0.4, 0.0),
        "champion": constant(world.settings, 0.4, 0.0),
        "far": constant(world.settings, 1.0, 1.0),
    }
    return world, policies, evaluate(world.settings, DAY, policies)


def test_the_record_is_plain_and_complete(judged):
    _, policies, record = judged
    json.dumps(record, allow_nan=False)
    assert set(record["estimates"]) == set(policies)
    for name, one in record["estimates"].items():
        assert one["lower"] < one["value"] < one["upper"]
        assert set(one["action_quantiles"]) == {"click", "like"}
        assert one["version"] == policies[name].version
    assert set(record["differences"]) == {f"{a} - {b}" for a in policies for b in policies if a != b}
    assert record["jump"]["challenger vs champion"] == pytest.approx(0.4)
    assert record["estimates"]["far"]["bound_share"] == 1.0
    assert record["estimates"]["champion"]["bound_share"] == 0.0
    assert record["estimates"]["champion"]["action_quantiles"]["click"] == pytest.approx([0.4] * 5)


@pytest.mark.parametrize("name", ["challenger", "champion"])
def test_the_interval_of_a_constant_covers_its_true_value(judged, name):
    world, policies, record = judged
    truth, found = true_value(world, policies[name]), record["estimates"][name]
    assert found["lower"] <= truth <= found["upper"], (truth, found)
    assert abs(found["value"] - truth) < 1.2  # values of constants here go from −9 to 6
    assert not found["alarm"]


def test_the_paired_difference_ranks_the_policies(judged):
    world, policies, record = judged
    truth = true_value(world, policies["challenger"]) - true_value(world, policies["champion"])
    found = record["differences"]["challenger - champion"]
    assert 0.0 < found["lower"] <= truth <= found["upper"]
    back = record["differences"]["champion - challenger"]
    assert back["value"] == -found["value"] and back["lower"] == pytest.approx(-found["upper"])


def test_the_estimate_of_the_logging_policy_is_near_its_observed_return(judged):
    world, _, record = judged
    calibration = record["calibration"]
    observed = trajectories.whole_sessions(trajectories.load(world.settings, DAY).test, GAMMA)
    assert calibration["observed"]["value"] == pytest.approx(observed.mean())
    assert calibration["sessions"] == len(observed) == record["test"]["sessions"]
    assert calibration["bias"]["lower"] <= 0.0 <= calibration["bias"]["upper"]
    assert abs(calibration["bias"]["value"]) < 0.5


def test_judging_twice_gives_the_same_record_and_equal_policies_no_difference(toy):
    world = fitted(toy, evaluation={"steps": 20, "test_share": 0.5})
    world.log(30)
    one = constant(world.settings, 0.2, 0.1)
    policies = {"a": one, "b": constant(world.settings, 0.2, 0.1), "c": constant(world.settings, 0.9, 0.1)}
    record = evaluate(world.settings, DAY, policies)
    assert evaluate(world.settings, DAY, policies) == record
    same = record["differences"]["a - b"]
    assert same["value"] == pytest.approx(0.0, abs=1e-5) and same["upper"] == pytest.approx(0.0, abs=1e-4)
    assert record["jump"]["a vs b"] == 0.0


def narrow(states, rng):
    return np.clip(rng.normal(0.0, 0.1, (len(states), 2)), -1, 1).astype(np.float32)


def test_a_policy_outside_the_data_raises_the_alarm_apart_from_its_value(toy):
    world = fitted(toy, evaluation={"steps": 20, "test_share": 0.5})
    world.log(60, {"random": narrow, "noise": narrow})
    record = evaluate(
        world.settings,
        DAY,
        {"near": constant(world.settings, 0.05, 0.0), "far": constant(world.settings, 1.0, -1.0)},
    )
    near, far = record["estimates"]["near"], record["estimates"]["far"]
    assert not near["alarm"] and near["alarm_reasons"] == []
    assert far["alarm"] and "nearest logged one" in far["alarm_reasons"][0]
    assert np.isfinite(far["value"])
    assert far["mean_distance_to_logged"] > record["test"]["distance_threshold"]


def test_a_value_that_the_rewards_make_impossible_raises_the_alarm(toy):
    world = fitted(toy, evaluation={"test_share": 0.5})
    world.log(30)
    test = trajectories.load(world.settings, DAY).test
    assert _alarms(1e4, 0.0, test, 1.0, GAMMA)[0].startswith("value 10000.000 is impossible")
    assert _alarms(-648.162, 0.0, test, 1.0, GAMMA)
    assert _alarms(float(test.rewards.mean()), 0.0, test, 1.0, GAMMA) == []


def test_states_are_acted_on_once_each_and_in_place(toy):
    """A policy that answers with its state's taste: every row must get its own."""
    world = fitted(toy, evaluation={"test_share": 0.5, "steps": 5})
    world.log(20)
    calls = []

    def taste(states):
        calls.append(len(states))
        return np.stack([states[:, 0], states[:, 1]], axis=1)

    header = PolicyHeader("constant", "taste", world.settings.state_spec, world.settings.fusion)
    test = trajectories.load(world.settings, DAY).test
    actions = acting.act(test, {"taste": Policy(header, "", taste)})["taste"]
    assert torch.equal(actions.here, test.states[:, :2])
    assert torch.equal(actions.next, test.next_states[:, :2])
    assert sum(calls) < 2 * len(test)


def test_one_step_of_the_estimator_is_the_papers(toy, monkeypatch):
    """Eq. (10) by hand for the fit on the data: the whole change of one step of Adam."""
    world = fitted(toy, evaluation={"test_share": 0.5})
    world.log(15)
    test = trajectories.load(world.settings, DAY).test
    settings = EvaluationSettings(steps=1, hidden=(8,), replicates=2, batch_size=32, cql_weight=0.3, lr=1e-2)
    policy = Actions(torch.full_like(test.actions, 0.3), torch.full_like(test.actions, 0.3))
    seen = {}
    whole = torch.optim.Adam

    class Recorded(whole):
        def __init__(self, parameters, lr, fused):
            parameters = list(parameters)
            seen["start"] = [p.detach().clone() for p in parameters]
            seen["end"] = parameters
            super().__init__(parameters, lr, fused=fused)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Recorded)
        conservative_ope.estimate(test, {"p": policy}, settings, GAMMA, seed=5)

    g = torch.Generator().manual_seed(5)
    resample(test.sessions, 2, g)
    i = (torch.rand(3, 32, generator=g)[0] * len(test)).long()
    mean, scale = test.states.double().mean(0), test.states.double().std(0, unbiased=False)
    scale = torch.where(scale < 1e-6, torch.ones_like(scale), scale.clamp(min=1e-2))

    def standard(x):
        return ((x - mean) / scale).float()

    weights = [p[0].clone().requires_grad_(True) for p in seen["start"]]

    def q(s, a):
        h = torch.cat([standard(s), a], 1) @ weights[0] + weights[2]
        return torch.relu(h) @ weights[1] + weights[3]

    s, a, next_s = test.states[i], test.actions[i], test.next_states[i]
    y = test.rewards[i, None] + GAMMA * (1 - test.dones[i, None]) * q(next_s, policy.next[i]).detach()
    loss = 0.3 * (q(s, policy.here[i]) - q(s, a)).mean() + 0.5 * (q(s, a) - y).square().mean()
    loss.backward()
    whole(weights, lr=1e-2).step()
    for ours, theirs in zip(seen["end"], weights, strict=True):
        torch.testing.assert_close(ours[0], theirs, atol=2e-4, rtol=1e-3)


def test_fqe_covers_the_true_value_and_ranks(judged):
    world, policies, record = judged
    for name in ("challenger", "champion"):
        truth, found = true_value(world, policies[name]), record["estimators"]["fqe"][name]
        assert found["lower"] <= truth <= found["upper"], (name, truth, found)
        assert found["warnings"] == []
    assert record["estimator_differences"]["fqe"]["challenger - champion"]["lower"] > 0.0
    assert abs(record["calibrations"]["fqe"]["bias"]["value"]) < 0.5


def test_one_step_of_fqe_moves_the_targets_by_their_rate(toy):
    """The second step's y comes from θ' = θ_0 + η (θ_1 − θ_0): by hand, with linear Q."""
    world = fitted(toy, evaluation={"test_share": 0.5})
    world.log(15)
    test = trajectories.load(world.settings, DAY).test
    settings = EvaluationSettings(steps=2, hidden=(), replicates=2, batch_size=64, lr=1e-2)
    iterates, targets = [], []

    def loss(q, s, a, pi, y):
        iterates.append(copy.deepcopy(q))
        targets.append(y)
        return 0.5 * (q(s, a)[0] - y).square().mean(dim=(1, 2))

    second = FittedQ(test, {"p": acting.logged(test)}, settings, GAMMA, 5, loss, target_rate=0.25)
    target, first = iterates
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), first.parameters(), strict=True):
            slow.lerp_(fast, 0.25)
    generator = torch.Generator().manual_seed(5)
    resample(test.sessions, 2, generator)
    i = [torch.rand(3, 64, generator=generator)[0] for _ in range(2)][1]
    i = (i * len(test)).long()
    with torch.no_grad():
        s = second.standardised(test.next_states[i]).expand(3, -1, -1)
        (q,) = target(s, test.next_actions[i].expand(3, -1, -1))
    expected = test.rewards[i, None] + GAMMA * (1 - test.dones[i, None]) * q[0]
    torch.testing.assert_close(targets[1][0], expected, atol=1e-5, rtol=1e-5)


def test_without_densities_the_weighted_estimators_are_left_out_and_said_so(judged):
    _, _, record = judged
    assert set(record["estimators"]) == {"conservative_ope", "fqe"}
    assert record["unavailable"].startswith("0 sessions have a density for every action")
    assert record["overlap"] == {}


def test_a_gate_whose_estimator_cannot_be_had_is_an_error(toy):
    evaluation = {"steps": 5, "test_share": 0.5, "estimators": ("fqe", "dr")}
    world = fitted(toy, evaluation=evaluation, gate={"estimator": "dr"})
    world.log(12)
    with pytest.raises(DataError, match=r"gate.estimator dr cannot be had: 0 sessions"):
        evaluate(world.settings, DAY, {"a": constant(world.settings, 0.0, 0.0)})


def test_too_little_to_judge_is_an_error(toy):
    world = fitted(toy, evaluation={"test_share": 0.01})
    world.log(12)
    with pytest.raises(DataError, match="test split"):
        evaluate(world.settings, DAY, {"a": constant(world.settings, 0.0, 0.0)})

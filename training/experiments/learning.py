"""How a learner of a table comes to its policy: from the fixed log, or in rounds that explore around it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from training.contract.policy import Policy, PolicyHeader, constant_policy, make_actor
from training.contract.settings import Settings
from training.evaluation import pool
from training.evaluation.estimators import closed_forms
from training.experiments.ground import Ground, concatenated
from training.experiments.table import Method
from training.policies import return_regression
from training.policies.learner import Learner
from training.policies.retrain import ALGORITHMS
from training.policies.unified_rl import UnifiedRL
from training.policies.xmtf import XMTF, Modulation, scores
from training.trajectories import Transitions
from training.warehouse.reward_weights import leaning
from training.world.simulator.collect import Arm
from training.world.simulator.references import Bench, Choose, Evaluation
from training.world.simulator.sessions import Requests

Progress = Callable[[float, str], None]  # share of the work, and what is being done
_REPORT = 50  # steps between reports of progress


@dataclass(frozen=True)
class Learnt:
    """What a method came to. ``policy`` is None for a ranker whose actions are no fusion weights."""

    evaluate: Callable[[Bench], Evaluation]
    policy: Policy | None
    curve: list[dict[str, float]] = field(default_factory=list)
    transitions: int = 0


def train(ground: Ground, method: Method, settings: Settings, progress: Progress) -> Learnt:
    """All rounds of a method; each takes its share of the steps."""
    how, judge = settings.learner, ground.table.judge
    if {*how.algorithms} <= {*return_regression.ALGORITHMS}:
        return _regression(ground, method, settings)
    (algorithm,) = how.algorithms  # the table is refused otherwise
    curve_bench, curve = ground.curve(), []
    marks = {how.steps * (place + 1) // judge.checkpoints for place in range(judge.checkpoints)}
    rounds = Rounds(ground, method, settings)
    for part in range(method.rounds):
        learner = rounds.begin(part)
        while learner.step_count < how.steps * (part + 1) // method.rounds:
            losses = learner.step()
            done = learner.step_count
            if done % _REPORT == 0:
                progress(done / how.steps, f"{algorithm} step {done} of {how.steps}")
            if done in marks:
                truth = rounds.learnt().evaluate(curve_bench)
                point = dict(zip(learner.curves, losses.tolist(), strict=True))
                curve.append({"step": done, "session_return": float(truth.session_return.mean()), **point})
    return replace(rounds.learnt(), curve=curve, transitions=len(learner.data))


def _regression(ground: Ground, method: Method, settings: Settings) -> Learnt:
    """The closed forms: of the fixed log, or in rounds, each after the first around what was learnt; of
    several the judge's choice."""
    log, how = ground.table.logs[method.log], settings.learner.return_regression
    data: Transitions | None = None
    policy: Policy | None = None
    for part in range(method.rounds):
        if method.rounds == 1:
            data = ground.log(method.log)
        else:
            arms = ground.mixed(log, _around(ground, policy))
            fresh = ground.collect(arms, log.sessions // method.rounds, part + 1)
            data = fresh if data is None else concatenated([data, fresh])
        seed = 1_000 * part + ground.seed
        proposed = {
            name: policy_of(settings, name, one.kind, dict(one.tensors), dict(one.options))
            for name, one in return_regression.propose(settings.fusion, how, data, seed).items()
            if name in settings.learner.algorithms
        }
        policy = _judged(settings, data, proposed, seed)
    assert policy is not None and data is not None  # there is a round
    return replace(acting(policy), transitions=len(data))


def _judged(settings: Settings, data: Transitions, proposed: dict[str, Policy], seed: int) -> Policy:
    """The one that a night's judge would have chosen."""
    if len(proposed) == 1:
        return next(iter(proposed.values()))
    static = constant_policy(settings.state_spec, settings.fusion, settings.fusion.static_action, pool.RIVAL)
    found, _ = closed_forms(data, proposed | {pool.RIVAL: static}, settings, seed)
    return proposed[pool.choose(found["session_return"], proposed)["chosen"]]


def _around(ground: Ground, policy: Policy | None) -> Choose:
    if policy is None:
        return ground.static
    return lambda states, requests: policy.act_in_parts(states)


class Rounds:
    """The log of every round and its learner, which goes on from the round before.

    Logs add up, each explored around the policy learnt so far. But ``explore: cells`` ranks every round by
    the cells of the one before, so that its actions mean another change each time: a round then learns from
    its own log alone, and its outer stage begins anew.
    """

    def __init__(self, ground: Ground, method: Method, settings: Settings) -> None:
        self.ground, self.method, self.settings = ground, method, settings
        self.data: Transitions | None = None
        self.learner: Learner | None = None

    def begin(self, part: int) -> Learner:
        """Collect round ``part`` and make its learner, with the steps and weights of the round before."""
        how, method, before = self.settings.learner, self.method, self.learner
        log = self.ground.table.logs[method.log]
        outer = self._outer() if method.explore == "cells" and part else None
        present = self._present()  # of before this round
        if method.rounds == 1:
            self.data = self.ground.log(method.log)
        else:
            fresh = self.ground.collect(self._arms(present, outer), log.sessions // method.rounds, part + 1)
            kept = [] if self.data is None or outer is not None else [self.data]
            self.data = concatenated([*kept, fresh])
        learnt_from, _ = self.ground.split(self.data)
        learnt_from = rewarded(learnt_from, self.settings, method, self.ground.table.reward_leaning)
        algorithm, more = ALGORITHMS[how.algorithms[0]], dict[str, Any]()
        if outer is not None:
            more["outer"] = outer
        if issubclass(algorithm, UnifiedRL):
            more["behaviour"] = present
        seed = 1_000 * part + self.ground.seed
        self.learner = algorithm(how, learnt_from, seed, self.settings.fusion, **more)
        if before is not None:
            if outer is None:
                self.learner.load_weights(before.state())
            self.learner.step_count = before.step_count
        return self.learner

    def learnt(self) -> Learnt:
        """What the learner has come to."""
        assert self.learner is not None  # a round has begun
        if isinstance(self.learner, XMTF) and self.learner.outer is not None:
            return _ranking(self.learner)
        return acting(self._policy())

    def _policy(self) -> Policy:
        assert self.learner is not None
        return policy_of(self.settings, self.method.name, self.learner.actor, *self.learner.export())

    def _present(self) -> Callable[[np.ndarray], np.ndarray]:
        """What is explored around: raw states [n, d] to actions [n, k]."""
        if self.learner is None or self.method.explore == "cells":
            return lambda states: self.ground.static(states, None)
        return self._policy().act_in_parts

    def _outer(self) -> Modulation:
        assert isinstance(self.learner, XMTF)  # the table is refused otherwise
        return Modulation.of(self.learner.cells, self.learner.data)

    def _arms(self, present: Callable[[np.ndarray], np.ndarray], outer: Modulation | None) -> list[Arm]:
        def mean(states: np.ndarray, requests: Requests) -> np.ndarray:
            return present(states) if outer is None else np.zeros((len(states), len(self.settings.heads)))

        if self.method.explore == "box":
            how = self.settings.serving
            return [Arm("box", mean, box=how.box_width, unit=how.exploration.unit)]
        arms = self.ground.mixed(self.ground.table.logs[self.method.log], mean)
        if outer is None:
            return arms
        return [replace(a, rank=lambda r, s, actions: scores(outer, r.predictions, s, actions)) for a in arms]


def rewarded(data: Transitions, settings: Settings, method: Method, factor: float) -> Transitions:
    """The log with the reward that the method is trained with; the truth is always the standard one."""
    if method.reward is None:
        return data
    lean = leaning(settings, method.reward, factor)
    weights = [lean.reward.play_time_weight, lean.reward.integrity_weight, *(s.weight for s in lean.signals)]
    assert data.reward_factors is not None
    watching = data.reward_factors[:, :2] @ torch.tensor(weights[:2])
    return replace(
        data, rewards=data.reward_factors @ torch.tensor(weights), watch_rewards=watching, item_rewards=None
    )


def acting(policy: Policy) -> Learnt:
    """A policy ranks by its own order where it has one, else by the fusion formula."""

    def play(states: np.ndarray, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        actions = policy.act_in_parts(states)
        return actions, policy.scores(requests.predictions, states, actions)

    return Learnt(lambda bench: bench.play(play), policy)


def _ranking(learner: XMTF) -> Learnt:
    """By the cells alone, in a round whose actions are no fusion weights."""

    def play(states: np.ndarray, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        none = np.zeros((len(states), requests.predictions.shape[-1]))
        return none, scores(learner.cells, requests.predictions, states)

    return Learnt(lambda bench: bench.play(play), None)


def policy_of(
    settings: Settings, version: str, kind: str, tensors: dict[str, np.ndarray], options: dict[str, Any]
) -> Policy:
    """A policy that lives in memory only."""
    tensors = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    header = PolicyHeader(kind, version, settings.state_spec, settings.fusion, options)
    return Policy(header, "", make_actor(kind, tensors, options))

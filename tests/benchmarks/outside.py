"""Outside: does the pool's choice hold on a public environment that this project did not make?

RecSim's users (:mod:`tests.benchmarks.recsim`), a fusion weight vector as action. For each seed, with users
of its own: a log of exploration; from it the night's pool, of which the night's judge chooses, and d3rlpy's
BCQ; and the best of 30 constants by their true returns on sessions of their own. All of them then serve the
same fresh sessions.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import recsim
from tests.benchmarks.outside_page import BCQ_NAME, BEST, CHOICE, tables
from tests.benchmarks.publish import is_kept, kept
from tests.benchmarks.recsim import ROOT, WORLDS, Act, Sessions, collect
from tests.peers.wire import Peer
from training.contract import code_sources
from training.contract.files import json_sha256, sha256
from training.contract.policy import Policy, constant_policy
from training.contract.settings import Settings
from training.evaluation import pool
from training.evaluation.estimators import closed_forms
from training.experiments.learning import policy_of
from training.policies import return_regression
from training.policies.ensemble import BatchRLMTFEnsemble
from training.policies.retrain import reproducible
from training.trajectories import Transitions
from training.trajectories.split import last_sessions

__all__ = ["add_arguments", "run", "tables"]  # of a benchmark

SEEDS, SIZES, CONSTANTS = 10, (2_000, 10_000), 30
SEARCH, JUDGE = 200, 600  # sessions for each constant, and for everyone in the end
STEPS, WIDTHS = 2_000, (64, 64)  # of BatchRL-MTF's and of BCQ's learning
LEARNER = {
    "steps": STEPS,
    "critic_lr": 1e-3,
    "critic_hidden": WIDTHS,
    "batchrl_mtf": {"generator_hidden": WIDTHS, "perturbation_hidden": WIDTHS, "perturbation_lr": 1e-3},
}
# BCQConfig's defaults but for what is set as ours is, so that both cost about the same
BCQ = {"batch_size": 256, "n_action_samples": 10}
_A_SEED = 1_000_000  # numbers of sessions
LOG, SEARCHED, JUDGED = 0, 400_000, 800_000  # where each purpose's begin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="sessions of a log")
    parser.add_argument("--steps", type=int, default=STEPS, help="gradient steps of BatchRL-MTF and of BCQ")
    parser.add_argument("--search", type=int, default=SEARCH, help="sessions that each constant is tried on")
    parser.add_argument("--kept", action="store_true", help="of the seeds that are finished alone")
    parser.add_argument("--judge", type=int, default=JUDGE, help="sessions that all serve in the end")


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    made_from = sources_of_all()  # before an editor is at them
    asked = {name: getattr(options, name) for name in ("sizes", "steps", "search", "judge")}
    found: dict[str, Any] = {name: [] for name in options.worlds}
    for seed in range(options.seeds):  # outermost, so that what was stopped early is of all worlds
        for name in options.worlds:
            path = options.out / "outside" / f"{name}-{seed}.json"
            its = json_sha256({"asked": asked, "world": repr(WORLDS[name]), "sources": made_from})
            if not options.kept or is_kept(path, its):
                found[name].append(kept(path, its, partial(one_seed, name, seed, options)))
    return asked | {"constants": CONSTANTS, "worlds": found}


def sources_of_all() -> str:
    """Of what a seed's results depend on; one that was kept holds while this does."""
    ours = code_sources.sha256_of("training.experiments.learning", "training.evaluation.estimators")
    peers = ROOT / "tests/peers"
    files = [Path(__file__), Path(recsim.__file__), *sorted(peers.glob("*.lock"))]
    files += [peers / name for name in ("wire.py", "recsim_sessions.py", "d3rlpy_bcq.py")]
    return json_sha256([ours, *(sha256(file) for file in files)])


def one_seed(world: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    with Sessions(WORLDS[world]) as sessions:
        found = compared(sessions, seed, options)
    print(f"{world}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    return found


def compared(sessions: Sessions, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The true mean returns of everything, on the same sessions, by the size of the log."""

    def numbers(purpose: int, count: int) -> np.ndarray:
        return seed * _A_SEED + purpose + np.arange(count)

    k = len(sessions.settings.heads)
    judged = numbers(JUDGED, options.judge)
    tried = np.random.default_rng([seed, 30]).uniform(-1.0, 1.0, (CONSTANTS, k))
    searched = numbers(SEARCHED, options.search)
    true = [sessions.constant(searched, action).returns.mean() for action in tried]
    best = tried[int(np.argmax(true))]
    returns = {
        "static": sessions.constant(judged, sessions.settings.fusion.static_action).returns,
        BEST: sessions.constant(judged, best).returns,
    }
    log = collect(sessions, numbers(LOG, max(options.sizes)), seed)
    found: dict[str, Any] = {"best constant": best.tolist(), "sizes": {}}
    settings = sessions.world.settings(learner=LEARNER | {"steps": options.steps})
    for size in options.sizes:
        part = log.take(torch.nonzero(log.sessions < size).squeeze(1))
        policies = night(settings, part, seed)
        verdict = judged_by(settings, part, policies, seed)
        by_name = returns | {
            name: sessions.play(judged, lambda states, places, p=policy: p.act_in_parts(states)).returns
            for name, policy in policies.items()
        }
        by_name[CHOICE] = by_name[verdict["chosen"]]
        with bcq(part, seed, options.steps) as act:
            by_name[BCQ_NAME] = sessions.play(judged, act).returns
        found["sizes"][str(size)] = {
            **verdict,
            "logged": float(np.bincount(part.sessions, weights=part.rewards).mean()),
            "returns": {name: float(own.mean()) for name, own in by_name.items()},
        }
    return found


def night(settings: Settings, log: Transitions, seed: int) -> dict[str, Policy]:
    """The default pool, trained as a night would."""
    how = settings.learner
    proposed = return_regression.propose(settings.fusion, how.return_regression, log, seed)
    policies = {
        name: policy_of(settings, name, one.kind, dict(one.tensors), dict(one.options))
        for name, one in proposed.items()
    }
    early = torch.from_numpy(~last_sessions(log.sessions.numpy(), settings.evaluation.test_share))
    rows = torch.nonzero(early).squeeze(1)[-how.replay_capacity :]
    with reproducible(1):
        learner = BatchRLMTFEnsemble(how, log.take(rows), seed, settings.fusion)
        while learner.step_count < how.steps:
            learner.step()
    policies[learner.kind] = policy_of(settings, learner.kind, learner.actor, *learner.export())
    return policies


def judged_by(
    settings: Settings, log: Transitions, policies: Mapping[str, Policy], seed: int
) -> dict[str, Any]:
    """What the judge has ``chosen``, by member its interval (``judge``), and whether it is ``trusted``."""
    fusion = settings.fusion
    static = constant_policy(settings.state_spec, fusion, fusion.static_action, pool.RIVAL)
    found, session = closed_forms(log, {**policies, pool.RIVAL: static}, settings, seed)
    picked = pool.choose(found[settings.gate.estimator], policies)
    assert session is not None  # the gate rests on it
    return {"chosen": picked["chosen"], "judge": picked["pool"], "trusted": session.trusted}


@contextmanager
def bcq(log: Transitions, seed: int, steps: int) -> Iterator[Act]:
    """d3rlpy's BCQ, learnt from the log."""
    about = {"seed": seed, "steps": steps, "hidden": WIDTHS, "config": BCQ}
    sessions, ended = log.sessions.numpy(), log.dones.numpy()
    last = np.append(sessions[1:] != sessions[:-1], True)
    with Peer(ROOT / "build/peers/d3rlpy", ROOT / "tests/peers/d3rlpy_bcq.py", about) as peer:
        peer.ask(
            observations=log.states.numpy(),
            actions=log.actions.numpy(),
            rewards=log.rewards.numpy(),
            terminals=ended,
            timeouts=(last & (ended == 0.0)).astype(np.float32),
        )
        yield lambda states, places: peer.ask(observations=states)["actions"]

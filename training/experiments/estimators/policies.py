"""The policies that are judged: constants, networks never trained, learners after some steps."""

import math
from pathlib import Path

import cma
import numpy as np

from training.contract.policy import PolicyHeader, save_policy
from training.contract.settings import LearnerSettings, Settings
from training.experiments.estimators.bench import (
    CHAMPION,
    SEARCH,
    STATIC,
    TRAIN,
    Sizes,
    around,
    bench_of,
    constant,
)
from training.policies.learner import Learner
from training.policies.retrain import ALGORITHMS, reproducible
from training.world.simulator.collect import Arm, collect, random_arm
from training.world.simulator.references import Bench, best_constants


def make_constants(settings_json: str, sizes: Sizes, folder: Path) -> list[str]:
    """Static weights and others around and far from them; the best by return and by immediate reward."""
    bench = bench_of(settings_json, sizes.search_sessions, SEARCH)
    settings = bench.settings
    rng = np.random.default_rng(settings.seed)
    static, heads = settings.fusion.static_action.astype(float), len(settings.heads)
    best = best_constants(bench)
    actions = {STATIC: static, "best": best, "myopic": best_myopic(bench)}
    for i in range(sizes.random_constants):
        actions[f"random_{i}"] = rng.uniform(-1.0, 1.0, heads)
    for i, (name, centre) in enumerate((("static", static), ("best", best))):
        for j, std in enumerate((0.2, 0.5)):
            noise = np.random.default_rng([settings.seed, i, j]).normal(0.0, std, heads)
            actions[f"{name}_perturbed_{j}"] = np.clip(centre + noise, -1.0, 1.0)
    actions["opposite_of_best"] = -best
    for name, action in actions.items():
        header = PolicyHeader("constant", name, settings.state_spec, settings.fusion)
        save_policy(folder / f"{name}.safetensors", header, {"action": action})
    return list(actions)


def best_myopic(bench: Bench, generations: int = 12, seed: int = 2) -> np.ndarray:
    """Constant action float[k] with the highest reward *a request*: γ = 0, sessions may end as they like."""

    def reward_a_request(action: np.ndarray) -> float:
        result = bench.evaluate_constant(action)
        return float(result.session_return.sum() / result.requests.sum())

    start = np.clip(bench.settings.fusion.static_action.astype(float), -0.95, 0.95)
    options = {"bounds": [-1.0, 1.0], "popsize": 14, "seed": seed, "verbose": -9}
    search = cma.CMAEvolutionStrategy(start, 0.5, options)
    for _ in range(generations):
        asked = search.ask()
        search.tell(asked, [-reward_a_request(action) for action in asked])
    return np.clip(search.result.xfavorite, -1.0, 1.0)


def make_random_networks(settings_json: str, sizes: Sizes, folder: Path) -> list[str]:
    """Networks that were never trained."""
    settings = Settings.model_validate_json(settings_json)
    names = []
    for i in range(sizes.random_networks):
        name = f"untrained_{i}"
        save_policy(folder / f"{name}.safetensors", *untrained(settings, name, seed=i))
        names.append(name)
    return names


def untrained(settings: Settings, version: str, seed: int) -> tuple[PolicyHeader, dict[str, np.ndarray]]:
    """Header and tensors of π(s) = tanh(MLP(s)) with random weights, wide enough to use its bounds."""
    rng, hidden = np.random.default_rng([settings.seed, seed]), 64
    d, k = settings.state_spec.width, len(settings.heads)
    tensors = {
        "state_mean": np.zeros(d),
        "state_scale": np.ones(d),
        "actor.0.weight": rng.normal(size=(hidden, d)) / math.sqrt(d),
        "actor.0.bias": rng.normal(size=hidden),
        "actor.1.weight": rng.normal(size=(k, hidden)) / math.sqrt(hidden / 2),
        "actor.1.bias": np.zeros(k),
    }
    return PolicyHeader("deterministic", version, settings.state_spec, settings.fusion), tensors


def make_learnt(settings_json: str, sizes: Sizes, folder: Path, algorithm: str, seed: int) -> list[str]:
    """A learner on random and static-with-noise sessions, exported after each of ``learner_steps``."""
    bench = bench_of(settings_json, sizes.train_sessions, TRAIN)
    settings = bench.settings
    static = around(constant(settings, settings.fusion.static_action, STATIC))
    how = settings.serving
    random = random_arm(len(settings.heads), how.random_std, 0.5, how.exploration.unit)
    noise = Arm("noise", static, how.noise_std, share=0.5, unit=how.exploration.unit)
    data = collect(bench, [random, noise], seed=TRAIN)
    learner_settings = LearnerSettings(
        **settings.learner.model_dump() | {"algorithms": [algorithm], "threads": 1, "device": "cpu"}
    )
    names = []
    with reproducible(1):
        learner = ALGORITHMS[algorithm](learner_settings, data, settings.seed + seed)
        for steps in sizes.learner_steps:
            while learner.step_count < steps:
                learner.step()
            name = f"{algorithm}_{steps}_seed{seed}"
            _export(settings, learner, name, folder)
            names.append(name)
        if algorithm == "batchrl_mtf" and seed == 0:
            _export(settings, learner, CHAMPION, folder)  # of the logs, and not judged
    return names


def _export(settings: Settings, learner: Learner, name: str, folder: Path) -> None:
    tensors, options = learner.export()
    header = PolicyHeader(learner.actor, name, settings.state_spec, settings.fusion, options)
    save_policy(folder / f"{name}.safetensors", header, tensors)

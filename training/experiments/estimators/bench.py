"""What the study costs, its benches, one a purpose, and a day's log as it is served."""

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from training.contract.policy import Policy, constant_policy, load_policy
from training.contract.settings import Settings
from training.trajectories import Transitions
from training.world.simulator.collect import Arm, collect, random_arm
from training.world.simulator.references import Bench, Choose
from training.world.simulator.world import World

# benches of their own for each purpose: no session is used for two
TRAIN, SEARCH, LOG, TRUTH, DRAWS, WHOLE = 101, 102, 103, 104, 1_000, 5_000
STATIC, CHAMPION = "static", "champion"


@dataclass(frozen=True)
class Sizes:
    """What the study costs."""

    train_sessions: int = 3_000
    learner_steps: tuple[int, ...] = (200, 1_000, 3_000)
    learner_seeds: int = 2
    random_constants: int = 6
    random_networks: int = 3
    search_sessions: int = 800
    log_sessions: int = 3_000
    truth_sessions: int = 8_000
    draws: int = 60
    draw_sessions: int = 1_000
    logs: int = 20  # that the estimators in closed form judge all policies on
    judge_sessions: int = 10_000  # of each
    batch: int = 6  # policies judged at once


@lru_cache(maxsize=1)
def world_of(settings_json: str) -> World:
    torch.set_num_threads(1)
    return World(Settings.model_validate_json(settings_json))


def bench_of(settings_json: str, sessions: int, seed: int) -> Bench:
    world = world_of(settings_json)
    return Bench(world, date.fromisoformat(world.settings.world.start_day), sessions, seed)


def around(policy: Policy) -> Choose:
    return lambda states, requests: policy.act_in_parts(states)


def constant(settings: Settings, action: np.ndarray, name: str) -> Policy:
    return constant_policy(settings.state_spec, settings.fusion, np.asarray(action), name)


def served_log(settings_json: str, folder: Path, sessions: int, seed: int) -> Transitions:
    """A day as it is served: exploration, the control, and a champion with noise around it."""
    bench = bench_of(settings_json, sessions, seed)
    static = around(constant(bench.settings, bench.settings.fusion.static_action, STATIC))
    champion = around(load_policy(folder / f"{CHAMPION}.safetensors"))
    how = bench.settings.serving
    arms = [
        random_arm(len(bench.settings.heads), how.random_std, 0.3, how.exploration.unit),
        Arm("noise", champion, how.noise_std, share=0.3, unit=how.exploration.unit),
        Arm("champion", champion, share=0.2),
        Arm("static", static, share=0.2),
    ]
    return collect(bench, arms, seed)

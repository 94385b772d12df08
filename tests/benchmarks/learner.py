"""Milliseconds of a training step of BatchRL-MTF, in both forms, beside d3rlpy's BCQ.

`make bench` runs all sides in turn in one run: ours in this environment, d3rlpy 2.8.1 in its own
(`make peers`), each in a process of its own with the same threads, batch, networks, n and data sizes,
sampling included; once with all of the processor's instructions, and once as on a processor without AVX-512.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.publish import table
from training.contract.policy import make_actor
from training.contract.settings import LearnerSettings
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.fast import library
from training.policies.products import product
from training.policies.retrain import reproducible
from training.trajectories import Transitions

ROOT = Path(__file__).parents[2]
PEER = ROOT / "build/peers/d3rlpy/bin/python"
STATE, ACTION, BATCH, CANDIDATES = 64, 12, 256, 10
WIDTHS = {
    "all nets 256-256": {"generator": (256, 256), "others": (256, 256)},
    "BCQ reference: VAE 750-750, others 400-300": {"generator": (750, 750), "others": (400, 300)},
}
FORMS: dict[str, dict[str, Any]] = {  # of BatchRL-MTF's settings
    "page": {"precision": "float32"},
    "fast": {"precision": "int8"},  # the default, where it runs
    "fast, bfloat16": {"precision": "bfloat16"},
    "fast, frozen generator": {"precision": "int8", "freeze_generator_after": 1},
}
INSTRUCTIONS: dict[
    str, dict[str, str]
] = {  # environment of all sides: of oneDNN and the fast form, PyTorch, MKL
    "all": {},
    "without AVX-512": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
PAPER_STEPS = 300_000
_BEFORE = 200  # steps of ours: oneDNN makes a kernel for each number of rows that do not end a session


def transitions(count: int, seed: int = 0) -> Transitions:
    """Random transitions: what a step costs does not depend on their values."""
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        states=torch.randn(count, STATE, generator=g),
        actions=torch.rand(count, ACTION, generator=g) * 2.0 - 1.0,
        rewards=torch.randn(count, generator=g),
        next_states=torch.randn(count, STATE, generator=g),
        next_actions=torch.zeros(count, ACTION),
        dones=(torch.rand(count, generator=g) < 0.1).float(),
        action_means=torch.zeros(count, ACTION),
        log_densities=torch.zeros(count, dtype=torch.float64),
        sessions=torch.arange(count),
        users=torch.arange(count),
        steps=torch.zeros(count, dtype=torch.int64),
        by_session=torch.zeros(count, dtype=torch.bool),
        arms=torch.zeros(count, dtype=torch.int64),
        arm_names=("random",),
    )


def learner_settings(
    widths: dict[str, tuple[int, ...]], own: dict[str, Any] | None = None, **more: Any
) -> LearnerSettings:
    """``own`` are of BatchRL-MTF's section."""
    return LearnerSettings(
        batch_size=BATCH,
        target_steps=1,
        critic_hidden=widths["others"],
        device="cpu",
        batchrl_mtf={
            "candidates": CANDIDATES,
            "generator_hidden": widths["generator"],
            "perturbation_hidden": widths["others"],
        }
        | (own or {}),
        **more,
    )


def products(widths: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one step's products; a tenth of the transitions end a session and need no candidates.

    A gradient costs twice its forward product; the perturbation's runs back through one critic without
    that critic's weights.
    """

    def net(inputs: int, hidden: tuple[int, ...], out: int) -> int:
        sizes = [inputs, *hidden, out]
        return sum(a * b for a, b in pairwise(sizes))

    z, g, o = 2 * ACTION, widths["generator"], widths["others"]
    encoder, decoder = net(STATE + ACTION, g, 2 * z), net(STATE + z, g, ACTION)
    other, critic = net(STATE + ACTION, o, ACTION), net(STATE + ACTION, o, 1)
    target = round(0.9 * BATCH * CANDIDATES) * (decoder + other + 2 * critic)
    gradients = BATCH * (3 * (encoder + decoder) + 3 * 2 * critic + decoder + 3 * other + 2 * critic)
    return target + gradients


@torch.no_grad()
def matmul_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Multiply-adds a second of the step's largest product, 2,560 x 256 x 256, the best of many."""
    a, b = torch.randn(BATCH * CANDIDATES, 256).to(dtype), torch.randn(256, 256).to(dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        product(a, b)
        best = min(best, time.perf_counter() - started)
    return BATCH * CANDIDATES * 256 * 256 / best


def best_seconds(step: Callable[[], object], steps: int, rounds: int = 5, before: int = 5) -> float:
    """Seconds a step, after some: the best round of several, as others can only add time."""
    for _ in range(before):
        step()
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(steps):
            step()
        best = min(best, (time.perf_counter() - started) / steps)
    return best


def ours(widths: str, threads: int, count: int, form: str) -> dict[str, float]:
    """In this process; run it in a child to leave the threads of others alone."""
    settings = learner_settings(WIDTHS[widths], FORMS[form])
    with reproducible(threads):
        learner = BatchRLMTF(settings, transitions(count), seed=0)
        seconds = best_seconds(learner.step, 20, before=_BEFORE)
        rate = matmul_rate(torch.float32 if learner.fast is None else torch.bfloat16)
    result = {"ms_a_step": seconds * 1e3, "matmul_gflops": 2e-9 * rate}
    if not learner.frozen(learner.step_count):  # whose steps have fewer products
        floor = products(WIDTHS[widths]) / rate
        result |= {"floor_ms": floor * 1e3, "share_of_matmul_rate": floor / seconds}
    return result


def forms() -> list[str]:
    """Those that run here."""
    return [name for name in FORMS if name == "page" or library.LIBRARY is not None]


def child(module: str, function: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A function of a module in a process of its own, with more of an environment; its JSON answer."""
    code = (
        "import importlib, json, sys; m, f, a = json.loads(sys.argv[1]); "
        "print(json.dumps(getattr(importlib.import_module(m), f)(*a)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([module, function, arguments])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | (environment or {}),
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peer(widths: str, threads: int, count: int, environment: Mapping[str, str]) -> dict[str, float]:
    """d3rlpy's BCQ, by its own Python."""
    about = {
        "threads": threads,
        "count": count,
        "state": STATE,
        "action": ACTION,
        "batch": BATCH,
        "candidates": CANDIDATES,
        **{name: list(values) for name, values in WIDTHS[widths].items()},
    }
    done = subprocess.run(
        [str(PEER), str(ROOT / "tests" / "peers" / "bcq_rate.py"), json.dumps(about)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def inference(threads: int) -> list[dict[str, float]]:
    """Milliseconds of the exported numpy actor and of torch, for 1, 64 and 4,096 states."""
    settings = learner_settings(WIDTHS["all nets 256-256"])
    with reproducible(threads):
        learner = BatchRLMTF(settings, transitions(1_000), seed=0)
        actor = make_actor(learner.actor, *learner.export())
        latents = torch.from_numpy(learner.export()[0]["latents"])
        out = []
        for count in (1, 64, 4_096):
            states = np.random.default_rng(0).normal(size=(count, STATE)).astype(np.float32)
            parts = [states[at : at + 256] for at in range(0, count, 256)]
            repeats = 50 if count == 1 else 5 if count == 64 else 1
            numpy_s = best_seconds(lambda parts=parts: [actor(part) for part in parts], repeats, 3)
            torch_s = best_seconds(
                lambda parts=parts: [learner.act(torch.from_numpy(part), latents) for part in parts],
                repeats,
                3,
            )
            out.append({"states": count, "exported_ms": numpy_s * 1e3, "torch_ms": torch_s * 1e3})
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="turns of ours and the peer, pair by pair")
    parser.add_argument("--count", type=int, default=100_000, help="transitions of the comparison")


def compared(widths: str, threads: int, arguments: argparse.Namespace, instructions: str) -> dict[str, Any]:
    """Ours in each form and the peer, in turns, and the medians of all turns."""
    environment, turns = INSTRUCTIONS[instructions], []
    names = child(__name__, "forms", environment=environment)
    for turn in range(arguments.rounds):
        timed = {
            form: child(__name__, "ours", widths, threads, arguments.count, form, environment=environment)
            for form in names
        }
        theirs = peer(widths, threads, arguments.count, environment)
        turns.append(
            {
                "ours": timed,
                "d3rlpy_ms": theirs["ms_a_step"],
                "d3rlpy_sampling_ms": theirs["sampling_ms"],
                "ratio": {form: theirs["ms_a_step"] / own["ms_a_step"] for form, own in timed.items()},
            }
        )
        print(f"{widths}, {instructions}, turn {turn + 1}: {json.dumps(turns[-1])}", flush=True)
    middle: dict[str, Any] = {"d3rlpy_ms": float(np.median([turn["d3rlpy_ms"] for turn in turns]))}
    for form in names:
        own = [turn["ours"][form] for turn in turns]
        middle[form] = {key: float(np.median([one[key] for one in own])) for key in own[0]}
        middle[form]["ratio"] = float(np.median([turn["ratio"][form] for turn in turns]))
        middle[form]["paper_retrain_hours"] = PAPER_STEPS * middle[form]["ms_a_step"] / 3.6e6
    return {"turns": turns, "median": middle}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if not PEER.is_file():
        raise SystemExit(f"{PEER} does not exist: run `make peers` first")
    threads = os.cpu_count() or 1
    training = {
        widths: {"multiply_adds_a_step": products(sizes)}
        | {name: compared(widths, threads, arguments, name) for name in INSTRUCTIONS}
        for widths, sizes in WIDTHS.items()
    }
    acting = child(__name__, "inference", threads)
    print(json.dumps({"inference": acting}, indent=1))
    return {
        "threads": threads,
        "state": STATE,
        "action": ACTION,
        "batch": BATCH,
        "candidates": CANDIDATES,
        "training": training,
        "inference": acting,
    }


def tables(results: dict[str, Any]) -> str:
    """A step of each side, then acting."""
    training = results["training"]
    sides: list[tuple[str, str]] = [
        (instructions, side)
        for instructions in INSTRUCTIONS
        for side in next(iter(training.values()))[instructions]["median"]
    ]
    steps = table(
        ("ms a step (times as fast as d3rlpy beside it; least to most of the turns)", *training),
        [
            [
                f"{side.removesuffix('_ms')}{'' if instructions == 'all' else ', ' + instructions}",
                *(_of_side(one[instructions], side) for one in training.values()),
            ]
            for instructions, side in sides
        ],
    )
    acting = table(
        ("states", "exported policy, ms", "PyTorch, ms"),
        ([one["states"], one["exported_ms"], one["torch_ms"]] for one in results["inference"]),
    )
    turns = len(next(iter(training.values()))["all"]["turns"])
    about = (
        f"State {results['state']}, action {results['action']}, batch {results['batch']}, n = "
        f"{results['candidates']}, sampling included, {results['threads']} threads. Medians of {turns} turns."
    )
    return f"{about}\n\n{steps}\n\nActing with the default's candidates:\n\n{acting}"


def _of_side(compared: dict[str, Any], side: str) -> str:
    if side == "d3rlpy_ms":
        return f"{compared['median'][side]:.1f}"
    ratios = sorted(turn["ratio"][side] for turn in compared["turns"])
    own = compared["median"][side]
    return f"{own['ms_a_step']:.1f} ({own['ratio']:.1f}; {ratios[0]:.1f} to {ratios[-1]:.1f})"

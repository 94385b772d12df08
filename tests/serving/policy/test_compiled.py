"""The compiled graph of a policy gives the numpy actor's actions, whatever its kind and shape."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.policy.compiled import compiled
from training.contract.policy import Policy, PolicyHeader, constant_policy, load_policy, save_policy
from training.contract.settings import Settings

REPOSITORY = Path(__file__).parents[3]
SETTINGS = Settings()
D, K = SETTINGS.state_spec.width, len(SETTINGS.heads)


def networks(rng: np.random.Generator, **sizes: list[int]) -> dict[str, np.ndarray]:
    tensors = {"state_mean": rng.normal(size=D), "state_scale": rng.uniform(0.5, 2.0, size=D)}
    for name, widths in sizes.items():
        for layer, (a, b) in enumerate(itertools.pairwise(widths)):
            tensors[f"{name}.{layer}.weight"] = rng.normal(size=(b, a)) / np.sqrt(a)
            tensors[f"{name}.{layer}.bias"] = 0.1 * rng.normal(size=b)
    return tensors


def policy(folder: Path, kind: str, hidden: list[int], clip: dict[str, float], seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    latent = 2 * K
    if kind == "deterministic":
        tensors = networks(rng, actor=[D, *hidden, K])
    else:
        tensors = networks(
            rng,
            decoder=[D + latent, *hidden, K],
            perturbation=[D + K, *hidden, K],
            critic=[D + K, *hidden, 1],
            **({"cells": [D, *hidden, K * 7]} if kind == "xmtf" else {}),
        )
        tensors["latents"] = rng.normal(size=(20, latent))
    if kind == "ensemble":
        seeds = [policy(folder, "batchrl_mtf", hidden, clip, seed + place).actor for place in (100, 200, 300)]
        tensors = {
            f"{place}.{name}": tensor
            for place, one in enumerate(seeds)
            for name, tensor in one.tensors.items()
            if not name.startswith("state_")
        } | {name: tensors[name] for name in ("state_mean", "state_scale")}
    if kind == "xmtf":
        tensors |= {"beta": SETTINGS.fusion.beta, "sign": np.ones(K)}
        tensors |= {"x_mean": np.zeros(K), "x_scale": np.ones(K)}
    options = {"rho": 0.3, "units": 2, **clip} | ({"members": 3} if kind == "ensemble" else {})
    header = PolicyHeader(
        kind.replace("ensemble", "batchrl_mtf"), "v1", SETTINGS.state_spec, SETTINGS.fusion, options
    )
    save_policy(folder / "policy.safetensors", header, tensors)
    return load_policy(folder / "policy.safetensors")


@pytest.mark.parametrize("kind", ["batchrl_mtf", "ensemble", "deterministic", "xmtf"])
@pytest.mark.parametrize(("hidden", "clip"), [([64, 48], {"state_clip": 2.0}), ([32], {}), ([], {})])
def test_actions_are_those_of_the_numpy_actor(tmp_path, kind, hidden, clip):
    """For one state and for many, states beyond the clip among them; a value's tie may go either way."""
    plain = policy(tmp_path, kind, hidden, clip, seed=len(hidden))
    made = compiled(plain)
    assert (made.version, made.sha256, made.ranks) == (plain.version, plain.sha256, plain.ranks)
    states = np.random.default_rng(0).standard_normal((1_000, D)).astype(np.float32) * 3.0
    expected = plain.act_in_parts(states)
    assert np.ptp(expected, axis=0).min() > 0.1  # the states matter
    together = made.act(states)
    alone = np.concatenate([made.act(state[None]) for state in states[:100]])
    for actions, wanted in ((together, expected), (alone, expected[:100])):
        same = np.isclose(actions, wanted, rtol=0.0, atol=1e-5).all(axis=1)
        assert same.mean() >= 0.999
    assert same.all() or kind != "deterministic"


def test_a_policy_that_ranks_still_does(tmp_path):
    plain = policy(tmp_path, "xmtf", [16], {}, seed=0)
    made, rng = compiled(plain), np.random.default_rng(1)
    predictions, state = rng.uniform(size=(9, K)), rng.standard_normal(D)
    action = made.act(state[None])[0]
    assert np.array_equal(made.scores(predictions, state, action), plain.scores(predictions, state, action))


def test_a_constant_needs_no_graph():
    constant = constant_policy(SETTINGS.state_spec, SETTINGS.fusion, np.full(K, 0.5), "v1")
    assert compiled(constant) is constant


def test_nothing_is_reported_to_the_makers_of_the_runtime(tmp_path):
    """It would keep an identifier and a queue in the home folder, and send from the service."""
    policy(tmp_path, "deterministic", [8], {"state_clip": 10.0}, 0)
    home = tmp_path / "home"
    home.mkdir()
    hushed = (
        "ORT_",
        "XDG_",
        "CI",
        "GITHUB_",
        "BUILD",
        "TF_BUILD",
        "PYTEST",
    )  # by which it may keep quiet anyhow
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hushed)}
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from serving.policy.compiled import compiled\n"
        "from training.contract.policy import load_policy\n"
        "policy = compiled(load_policy(Path(sys.argv[1])))\n"
        f"print(policy.act(np.zeros((1, {D}), dtype=np.float32)).shape)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "policy.safetensors")],
        cwd=REPOSITORY,
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == f"(1, {K})"
    assert [path.name for path in home.rglob("*")] == []

"""Settings, policy files and a real server for the service's tests."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml

from serving.release import bento
from serving.release.client import Client
from training.contract import in_service
from training.contract.pointer import PolicyPointer
from training.contract.policy import PolicyHeader, save_policy
from training.contract.settings import Settings, load_settings

# an example's time says something about the machine, not about the parser
hypothesis.settings.register_profile("serving", deadline=None, max_examples=60)
hypothesis.settings.load_profile("serving")

TOKEN = "a-token-of-the-tests"  # noqa: S105
EPOCH_DAYS = 100_000  # no epoch ends while tests run, whatever times they send
REPOSITORY = Path(__file__).parents[2]

MakePolicy = Callable[..., PolicyPointer]


def settings_file(folder: Path, **serving: object) -> Path:
    """Default settings with a data folder below ``folder``."""
    path = folder / "mtf.yaml"
    path.write_text(yaml.safe_dump({"data": str(folder / "data"), "serving": serving}))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(settings_file(tmp_path))


def constant(settings: Settings, version: str, value: float, **changes: object) -> PolicyPointer:
    """A policy file with the same action entry for every head, and a pointer to it (not written)."""
    action = np.full(len(settings.heads), value)
    header = PolicyHeader(
        **{
            "kind": "constant",
            "version": version,
            "spec": settings.state_spec,
            "fusion": settings.fusion,
            **changes,
        }
    )
    path = settings.layout.models / f"{version}.safetensors"
    digest = save_policy(path, header, {"action": action[: len(header.fusion.heads)]})
    return PolicyPointer(
        policy=str(path.relative_to(settings.data)),
        sha256=digest,
        version=version,
        day="2026-01-05",
        model_version="1",
        promoted_ts=datetime(2026, 1, 6, tzinfo=UTC).isoformat(),
    )


def cells(settings: Settings, version: str, seed: int = 0) -> PolicyPointer:
    """An xMTF policy with random weights, and a pointer to it (not written)."""
    rng = np.random.default_rng(seed)
    d, k = settings.state_spec.width, len(settings.heads)
    sizes = {"decoder": (d + 4, k), "perturbation": (d + k, k), "critic": (d + k, 1), "cells": (d, k * 7)}
    tensors = {
        "state_mean": np.zeros(d),
        "state_scale": np.ones(d),
        "latents": rng.normal(size=(5, 4)),
        "beta": settings.fusion.beta,
        "sign": np.where(settings.fusion.high <= 0.0, -1.0, 1.0),
        "x_mean": np.full(k, -1.0),
        "x_scale": np.ones(k),
    }
    for name, (inputs, outputs) in sizes.items():
        tensors[f"{name}.0.weight"] = rng.normal(size=(outputs, inputs)) / np.sqrt(inputs)
        tensors[f"{name}.0.bias"] = rng.normal(size=outputs)
    options = {"rho": 0.15, "state_clip": 10.0, "units": 2}
    header = PolicyHeader("xmtf", version, settings.state_spec, settings.fusion, options)
    path = settings.layout.models / f"{version}.safetensors"
    digest = save_policy(path, header, tensors)
    where = str(path.relative_to(settings.data))
    return PolicyPointer(where, digest, version, "2026-01-05", "1", "2026-01-06T00:00:00+00:00")


@pytest.fixture(scope="session", name="cells")
def cells_fixture() -> MakePolicy:
    return cells


@pytest.fixture(scope="session", name="constant")
def constant_fixture() -> MakePolicy:
    return constant


class Server:
    """``bentoml serve`` on one data folder over all its lives."""

    def __init__(self, folder: Path, **serving: object) -> None:
        self.port = bento.free_port()
        self.token = TOKEN
        self.folder = folder
        self.path = settings_file(folder, follow_seconds=0.1, **serving)
        self.settings = load_settings(self.path)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        self.environment: dict[str, str] = {}  # of its process, beside ours
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 240.0) -> None:
        """Returns when it is ready; a server that ends before fails with what it wrote."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *[sys.executable, "-m", "bentoml", "serve", "serving.service:RankService"],
                    *["--host", "127.0.0.1", "--port", str(self.port)],
                ],
                cwd=REPOSITORY,
                env=os.environ
                | {
                    "MTF_SETTINGS": str(self.path),
                    "MTF_TOKEN": TOKEN,
                    "BENTOML_HOME": str(self.folder / "bentoml"),
                }
                | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while not client.ready():
                written = self.log.read_bytes()[before:].decode(errors="replace")[-4000:]
                assert self._process.poll() is None, f"ended with {self._process.returncode}:\n{written}"
                assert time.monotonic() < deadline, f"not ready within {seconds:g} s:\n{written}"
                time.sleep(0.1)

    def client(self, timeout: float = 20.0) -> Client:
        return Client(self.url, TOKEN, timeout)

    def kill(self) -> None:
        """SIGKILL to the supervisor and all its workers at once."""
        assert self._process is not None
        bento.kill_tree(self._process)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def promote(self, pointer: PolicyPointer, seconds: float = 10.0) -> None:
        """Point at a policy and wait until it serves."""
        with in_service.changing(self.settings) as row:
            row.champion = pointer
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while (client.status()["champion"] or {}).get("sha256") != pointer.sha256:
                assert time.monotonic() < deadline, client.status()
                time.sleep(0.05)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from training import features

    server = Server(
        tmp_path_factory.mktemp("service"),
        accept_event_ts=True,
        max_candidates=200,
        max_body_bytes=64 * 1024,
        # the tests' own machine may be busy: a slow read must not become a fallback here
        state_budget_ms=2_000.0,
        policy_budget_ms=2_000.0,
        guardrail={"slow_ms": 5_000.0},
        shares={"static": 0.1, "random": 0.1, "noise": 0.1, "box": 0.1},
        max_exploration=0.4,
        exploration={"epoch_days": EPOCH_DAYS},
    )
    features.apply(server.settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()

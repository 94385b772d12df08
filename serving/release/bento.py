"""Builds a Bento per promotion, and tries one out before it takes traffic.

A Bento holds the service, the contract, the online store's driver, the resolved settings and the policy
file: nothing of the training code. Both steps run BentoML in a process of its own, from the staged copy, so
that what is tried is what was packed and not the source tree of the caller.
"""

import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from serving.ranking import arms
from serving.release.client import Client, Ranking, ServiceError
from training.contract.errors import MtfError, PolicyError
from training.contract.files import sha256
from training.contract.in_service import policies
from training.contract.log import Id
from training.contract.pointer import PolicyPointer, write_pointer
from training.contract.settings import ENV_PREFIX, SETTINGS_VARIABLE, IdKind, Settings, ShareSettings

NAME = "mtf_rank"
START_SECONDS = 240.0
SMOKE_REQUESTS = 30
SMOKE_CANDIDATES = 40
_SERVER_PORTS = range(10_000, 32_768)  # Linux gives from 32,768 on, other systems from 49,152
_choice = random.SystemRandom()  # two processes with one seed must not choose the same
_SOURCE = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "bentoml",
    "feast",
    "httpx",
    "msgspec",
    "numpy",
    "onnx",
    "onnxruntime",
    "orjson",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "pysimdjson",
    "pyyaml",
    "safetensors",
    "structlog",
)


class BentoError(MtfError):
    """A Bento could not be built."""


def build(settings: Settings, pointer: PolicyPointer) -> str:
    """Build the Bento of a policy into ``layout.bentos``; returns its tag, ``mtf_rank:<version>``.

    The version is made of the policy's hash and of everything packed beside it, so building the same
    again returns the Bento that is there. Raises :class:`PolicyError` when the policy file is not what
    the pointer names, :class:`BentoError` with BentoML's output when the build fails.
    """
    policy = policies.file_of(settings, pointer)
    if not policy.is_file() or sha256(policy) != pointer.sha256:
        raise PolicyError(f"{policy} is missing, or is not the file of the pointer ({pointer.sha256})")
    with tempfile.TemporaryDirectory(prefix="mtf-bento-") as folder:
        stage = Path(folder)
        _stage(stage, settings, pointer, policy)
        version = f"{pointer.sha256[:12]}-{_digest(stage)[:12]}"
        tag = f"{NAME}:{version}"
        if _built(settings, version).exists():
            return tag
        settings.layout.bentos.mkdir(parents=True, exist_ok=True)
        command = ["build", str(stage), "--name", NAME, "--version", version, "--output", "tag"]
        result = subprocess.run(
            [sys.executable, "-m", "bentoml", *command],
            cwd=stage,
            env=_environment(settings),
            capture_output=True,
            text=True,
            check=False,
        )
        # another process may have built the same in the meantime, which BentoML calls an error
        if not _built(settings, version).exists():
            told = (result.stderr or result.stdout)[-4000:].splitlines()
            raise BentoError(f"bentoml build of {tag} failed:", *told)
    return tag


def smoke(settings: Settings, tag: str) -> dict[str, Any]:
    """Serve a Bento on a free port with a data folder of its own, and rank with it.

    Returns ``{"ok", "reason", "tag", "policy_version", "fallback", "requests", "p50_ms", "p99_ms"}``.
    States come from the real online store, only read. Nothing of the real logs is touched.
    """
    record: dict[str, Any] = {"ok": False, "tag": tag, "requests": 0}
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mtf-smoke-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        has_store = settings.layout.feast.exists()
        if has_store:
            (data / "feast").symlink_to(settings.layout.feast.resolve())
        environment = _environment(settings) | {
            # of its own: BentoML empties the metrics folder in there at every start
            "BENTOML_HOME": folder,
            "MTF_TOKEN": secrets.token_hex(16),
            f"{ENV_PREFIX}DATA": str(data),
            f"{ENV_PREFIX}SERVING__WORKERS": "1",
            f"{ENV_PREFIX}SERVING__INDEX": "file",
            # of a day long past too, and on a machine that is busy training: whether the policy serves is
            # asked here, not how old the features are or how fast it is, which the gate measures itself
            f"{ENV_PREFIX}SERVING__MAX_FEATURES_AGE_HOURS": "1e6",
            f"{ENV_PREFIX}SERVING__POLICY_BUDGET_MS": "10000",
            # every user meets the policy
            f"{ENV_PREFIX}SERVING__SHARES": json.dumps(dict.fromkeys(ShareSettings.model_fields, 0.0)),
        }
        built = _built(settings, tag.removeprefix(f"{NAME}:")).parent
        address = ["--host", "127.0.0.1", "--port", str(port)]
        served = [sys.executable, "-m", "bentoml", "serve", str(built.resolve()), *address]
        command = [sys.executable, "-m", "serving.running.ending", *served]  # this task may be killed
        log = Path(folder) / "serve.log"
        try:
            with (
                _served(command, environment, log, Path(folder)) as server,
                Client(f"http://127.0.0.1:{port}") as client,
            ):
                _wait(client, server, has_store)
                record |= _try(settings, client)
        except ServiceError as error:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            return record | {"reason": f"{error}\n{tail}".strip()}
    return record


def _stage(stage: Path, settings: Settings, pointer: PolicyPointer, policy: Path) -> None:
    """Lay out what goes into the Bento."""
    # the definitions too: the online store that feature_store.yaml names is theirs
    for package in ("serving", "training/contract", "feature_repo"):
        shutil.copytree(
            _SOURCE / package, stage / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    shutil.copy(_SOURCE / "training" / "__init__.py", stage / "training" / "__init__.py")
    packed = stage / "packed"
    packed.mkdir()
    resolved = settings.model_copy(update={"data": settings.data.resolve()}).model_dump(mode="json")
    (packed / "settings.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    shutil.copy(policy, packed / "policy.safetensors")
    own = PolicyPointer(
        policy="policy.safetensors",
        sha256=pointer.sha256,
        version=pointer.version,
        day=pointer.day,
        model_version=pointer.model_version,
        promoted_ts=pointer.promoted_ts,
    )
    write_pointer(packed / "champion.json", own)
    definition = {
        "service": "serving.service:RankService",
        "description": f"Multi-task fusion ranking, policy {pointer.version} of {pointer.day}",
        "labels": {"policy": pointer.version, "day": pointer.day},
        "include": ["serving/**/*.py", "training/**/*.py", "feature_repo/*.py", "packed/*"],
        "python": {
            # pinned to what the policy was tried with; not resolved again at every promotion
            "packages": [f"{package}=={installed(package)}" for package in _PACKAGES],
            "lock_packages": False,
        },
        "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
    }
    (stage / "bentofile.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))


def _digest(stage: Path) -> str:
    """Of every staged file's name and content, whenever and by whom it was promoted."""
    digest = hashlib.sha256()
    for path in sorted(path for path in stage.rglob("*") if path.is_file()):
        if path.name != "champion.json":
            digest.update(f"{path.relative_to(stage)}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def _built(settings: Settings, version: str) -> Path:
    return settings.layout.bentos / "bentos" / NAME / version / "bento.yaml"


def _environment(settings: Settings) -> dict[str, str]:
    """The caller's, without its settings: a Bento has its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != SETTINGS_VARIABLE and not name.startswith((ENV_PREFIX, "PROMETHEUS_MULTIPROC"))
    }
    return kept | {
        "BENTOML_HOME": str(settings.layout.bentos.resolve()),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextlib.contextmanager
def _served(
    command: list[str], environment: dict[str, str], log: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A running server, gone with all its workers when the block ends."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
                try:
                    server.wait(20)
                except subprocess.TimeoutExpired:
                    kill_tree(server)


def _wait(client: Client, server: subprocess.Popen[bytes], has_store: bool) -> None:
    """Until it answers, and until its store does where there is one."""
    deadline = time.monotonic() + START_SECONDS
    while not (client.ready() if has_store else client.live()):
        if server.poll() is not None:
            raise ServiceError(f"bentoml serve ended with status {server.returncode}")
        if time.monotonic() > deadline:
            raise ServiceError(f"not ready within {START_SECONDS:g} s")
        time.sleep(0.2)


def _try(settings: Settings, client: Client) -> dict[str, Any]:
    generator = np.random.default_rng(settings.seed)
    items: list[Id] = [_id(settings.ids.items, n) for n in range(1, SMOKE_CANDIDATES + 1)]
    k = min(settings.serving.default_k, SMOKE_CANDIDATES)
    seconds = []
    for user in range(SMOKE_REQUESTS):
        scores = {
            head.name: generator.uniform(0.0, min(head.maximum, 100.0), SMOKE_CANDIDATES)
            for head in settings.heads
        }
        started = time.perf_counter()
        ranking = client.rank(_id(settings.ids.users, user), items, scores)
        seconds.append(time.perf_counter() - started)
        fault = _fault(settings, ranking, items, scores, k)
        if fault:
            return {"requests": len(seconds), "reason": f"request {len(seconds)}: {fault}"}
    p50, p99 = np.quantile(np.array(seconds[1:]) * 1000.0, [0.5, 0.99])
    return {
        "ok": True,
        "reason": f"{len(seconds)} requests ranked by {ranking.policy_version}, p99 {p99:.1f} ms",
        "policy_version": ranking.policy_version,
        "fallback": ranking.fallback,
        "requests": len(seconds),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
    }


def _id(kind: IdKind, number: int) -> Id:
    return str(number) if kind == "string" else number


def _fault(
    settings: Settings, ranking: Ranking, items: list[Id], scores: dict[str, np.ndarray], k: int
) -> str | None:
    """What is wrong with an answer: it is held against eq. (1) with the weights that it names."""
    if ranking.arm != arms.CHAMPION:
        return f"served by the arm {ranking.arm}"
    if ranking.fallback not in (None, "store"):
        return f"static weights were served: {ranking.fallback}"
    fusion = settings.fusion
    weights = np.array([ranking.weights[name] for name in fusion.names])
    if not ((weights >= fusion.low - 1e-6) & (weights <= fusion.high + 1e-6)).all():
        return f"weights {ranking.weights} leave their intervals"
    expected = fusion.score(fusion.matrix(scores, len(items)), weights)
    best = np.sort(expected)[::-1][:k]
    if len(set(ranking.items)) != k or not np.allclose(ranking.scores, best, rtol=1e-9, atol=1e-9):
        return f"items {ranking.items} with scores {ranking.scores} are not the best {k}"
    return None


def kill_tree(server: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a server and its workers: each of them leads a process group of its own."""
    supervisor = psutil.Process(server.pid)
    supervisor.suspend()  # or it would start a worker for each that dies
    for process in [*supervisor.children(recursive=True), supervisor]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child may have ended by itself
            process.kill()
    server.wait()


def free_port() -> int:
    """A TCP port that nothing on this machine listens to, for a server that is yet to be started.

    Not one of those that the system itself gives to whoever asks for any (``bind`` to 0, an outgoing
    connection): seconds pass until the server binds it, and again when it is started anew, in which such
    a port may be gone. Raises :class:`OSError` when none is found.
    """
    for _ in range(200):
        port = _choice.choice(_SERVER_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError(f"no free port found from {_SERVER_PORTS.start} to {_SERVER_PORTS.stop - 1}")

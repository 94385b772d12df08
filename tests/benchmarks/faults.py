"""Faults under load: what was acknowledged is counted in the log afterwards, and every failure explained.

Two workers and a Redis store of this run's own, clients that rank and send feedback all the time, and in
turn: workers killed (SIGKILL), the store stopped and started, champions swapped, broken artefacts, a disk
that takes nothing (RLIMIT_FSIZE of the running workers set to 0: no privilege is needed, and every write
fails as on a full disk, with EFBIG for ENOSPC), and the wall clock moved an hour on, an hour back, and
right again (``moved_clock.c``, preloaded into the service: no privilege either; needs a C compiler).
"""

import argparse
import json
import os
import resource
import signal
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from serving.release.client import ServiceError
from tests.benchmarks.publish import nested, table
from tests.servers import Redis
from tests.serving.conftest import Server, constant
from training.contract.pointer import write_pointer

USERS = 200
CANDIDATES = 100
HOUR_S = 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=20, help="workers killed")
    parser.add_argument("--outages", type=int, default=10, help="times that the store is stopped")
    parser.add_argument("--swaps", type=int, default=10, help="champions")
    parser.add_argument("--broken", type=int, default=5, help="broken artefacts")
    parser.add_argument("--clock-moves", type=int, default=4, help="of the service's wall clock")
    parser.add_argument("--clients", type=int, default=4)


class Load:
    """Clients that rank and send feedback until told to stop; every answer is kept."""

    def __init__(self, server: Server, clients: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self.ranked: list[str] = []
        self.answered: dict[str, float] = {}  # epoch seconds by this process's clock
        self.fed: list[str] = []
        self.not_moved = 0  # feedback that was logged but did not move the state
        self.fallbacks: Counter[str] = Counter()
        self.failures: list[tuple[float, str]] = []  # when, and what
        self.phase = "start"
        self.by_phase: dict[str, Counter[str]] = {}
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        generator = np.random.default_rng(number)
        scores = {head.name: generator.random(CANDIDATES) for head in self._server.settings.heads}
        with self._server.client(timeout=10.0) as client:
            for count in range(10**9):
                if self._stop.is_set():
                    return
                request_id = f"fault-{number}-{count}"
                phase = self.by_phase.setdefault(self.phase, Counter())
                try:
                    user = int(generator.integers(USERS))
                    ranking = client.rank(user, range(CANDIDATES), scores, request_id=request_id)
                    self.answered[request_id] = time.time()
                    self.ranked.append(request_id)
                    self.fallbacks[str(ranking.fallback)] += 1
                    phase["ranked"] += 1
                    phase[f"fallback {ranking.fallback}"] += ranking.fallback is not None
                    event = {"item_id": ranking.items[0], "is_click": 1, "play_time_ms": 1000}
                    self.not_moved += not client.feedback(request_id, [event])
                    self.fed.append(request_id)
                    phase["fed"] += 1
                except ServiceError as error:
                    what = "connection" if error.status is None else str(error.status)
                    phase[f"failed {what}"] += 1
                    self.failures.append((time.monotonic(), what))
                    time.sleep(0.05)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mtf-faults-") as folder, _redis() as (port, restart):
        server = _server(Path(folder), port)
        try:
            return _run(server, arguments, restart, _movable_clock(server))
        finally:
            server.stop()


def _run(
    server: Server,
    arguments: argparse.Namespace,
    restart: "Callable[[bool], None]",
    move_clock: "Callable[[int], None]",
) -> dict[str, Any]:
    server.start()
    pointers = [constant(server.settings, f"fault-{i}", i / 20) for i in range(arguments.swaps + 1)]
    server.promote(pointers[0], 60.0)
    load = Load(server, arguments.clients)
    load.start()
    results: dict[str, Any] = {}
    kills: list[tuple[float, float]] = []
    try:
        load.phase = "quiet"
        time.sleep(2.0)
        load.phase = "worker killed"
        for _ in range(arguments.kills):
            began = time.monotonic()
            _kill_worker(server)
            kills.append((began, time.monotonic()))
            time.sleep(0.5)
        load.phase = "store stopped"
        results["store"] = [_outage(load, restart) for _ in range(arguments.outages)]
        load.phase = "champion swapped"
        for pointer in pointers[1:]:
            server.promote(pointer, 60.0)
        load.phase = "artefact broken"
        refused_before = _metric(server, "mtf_refused_total", 'what="champion"')
        results["broken_served"] = sum(_broken(server, i) for i in range(arguments.broken))
        results["broken_refused"] = _metric(server, "mtf_refused_total", 'what="champion"') - refused_before
        load.phase = "disk full"
        results["disk"] = _full_disk(server, load)
        load.phase = "clock moved"
        moves = [HOUR_S, 0, -HOUR_S, 0]
        results["clock"] = [
            _moved_clock(server, load, move_clock, moves[i % len(moves)])
            for i in range(arguments.clock_moves)
        ]
        load.phase = "quiet again"
        time.sleep(2.0)
    finally:
        load.stop()
    server.stop()
    log = server.settings.layout.serving_log
    results["decisions"] = _compare(log / "decisions", load.ranked)
    results["feedback"] = _compare(log / "feedback", load.fed)
    results["fallbacks"] = dict(load.fallbacks)
    results["phases"] = {phase: dict(+counts) for phase, counts in load.by_phase.items()}
    full = results["disk"]["window"]
    results["unexplained_failures"] = Counter(
        what
        for at, what in load.failures
        if not (what == "connection" and any(began <= at <= ended + 1.0 for began, ended in kills))
        and not (what == "503" and full[0] <= at <= full[1] + 1.0)
    )
    results["kills"] = len(kills)
    del results["disk"]["window"]
    print(json.dumps(results, indent=2))
    return results


def _server(folder: Path, redis_port: int) -> Server:
    from training import features

    server = Server(
        folder,
        workers=2,
        shares={"static": 0.1, "random": 0.05, "noise": 0.05},
        state_budget_ms=1_000.0,
        policy_budget_ms=1_000.0,
        guardrail={"slow_ms": 60_000.0, "min_sessions": 10**9},
    )
    content = server.path.read_text()
    server.path.write_text(content + f"store: {{online: redis, redis_url: '127.0.0.1:{redis_port}'}}\n")
    from training.contract.settings import load_settings

    server.settings = load_settings(server.path)
    features.apply(server.settings)
    return server


@contextmanager
def _redis() -> Iterator[tuple[int, "Callable[[bool], None]"]]:
    """A Redis of our own: its port, and a function that stops (False) or starts (True) it."""
    server = Redis()

    def turn(on: bool) -> None:
        if on:
            server.start()
        else:
            server.stop(signal.SIGKILL)

    turn(True)
    try:
        yield server.port, turn
    finally:
        server.stop()


def _workers(server: Server) -> list[psutil.Process]:
    """The processes that answer requests, as they name themselves in /status."""
    pids: set[int] = set()
    deadline = time.monotonic() + 300
    while len(pids) < server.settings.serving.workers:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only workers {pids} answer: see {server.log}")
        try:
            with httpx.Client(base_url=server.url, timeout=10.0) as client:  # a connection of its own
                pids.add(client.get("/status").json()["pid"])
        except httpx.HTTPError:
            time.sleep(0.05)
        pids = {pid for pid in pids if psutil.pid_exists(pid)}
    return [psutil.Process(pid) for pid in sorted(pids)]


def _kill_worker(server: Server) -> None:
    """SIGKILL to one worker; back when as many answer again."""
    before = _workers(server)
    os.kill(before[0].pid, signal.SIGKILL)
    before[0].wait(10)
    _workers(server)


def _outage(load: Load, restart: "Callable[[bool], None]") -> dict[str, float]:
    """Stop the store, wait until static weights serve, start it, wait until states come again."""
    seen = load.fallbacks["store"]
    restart(False)
    began = time.monotonic()
    _until(lambda: load.fallbacks["store"] > seen + 5)
    noticed = time.monotonic()
    restart(True)
    started = time.monotonic()
    served = load.fallbacks["None"]
    _until(lambda: load.fallbacks["None"] > served + 5)
    return {"static_after_s": noticed - began, "recovered_after_s": time.monotonic() - started}


def _broken(server: Server, number: int) -> bool:
    """Point at a truncated, altered or foreign file; whether it was served."""
    pointer = constant(server.settings, f"broken-{number}", 0.9)
    path = server.settings.data / pointer.policy
    content = path.read_bytes()
    spoilt = (
        content[:-3],
        content[:-3] + b"abc",
        b"",
        b"no safetensors at all",
        content[: len(content) // 2],
    )
    path.write_bytes(spoilt[number % len(spoilt)])
    write_pointer(server.settings.layout.champion, pointer)
    time.sleep(1.0)  # ten looks of every worker
    with server.client() as client:
        return bool((client.status()["champion"] or {}).get("sha256") == pointer.sha256)


def _full_disk(server: Server, load: Load) -> dict[str, Any]:
    """No worker can write for two seconds; then they can again."""
    workers = _workers(server)
    limits = {worker.pid: resource.prlimit(worker.pid, resource.RLIMIT_FSIZE) for worker in workers}
    began = time.monotonic()
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    time.sleep(2.0)
    refused = sum(what == "503" and at > began for at, what in load.failures)
    for pid, limit in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    ended = time.monotonic()
    served = len(load.ranked)
    _until(lambda: len(load.ranked) > served + 20)
    return {
        "refused": refused,
        "recovered_after_s": time.monotonic() - ended,
        "restarts": len({w.pid for w in workers} - {w.pid for w in _workers(server)}),
        "log_errors": _metric(server, "mtf_log_errors_total", ""),
        "window": (began, ended),
    }


def _movable_clock(server: Server) -> "Callable[[int], None]":
    """Let the server be started with a clock of its own; the function moves it to so many seconds off."""
    library, offset = server.folder / "moved_clock.so", server.folder / "moved_clock"
    source = Path(__file__).with_name("moved_clock.c")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
        check=True,
    )

    def move(seconds: int) -> None:
        with offset.open("r+b") as file:  # in place: the file is mapped
            file.write(struct.pack("=q", seconds))

    offset.write_bytes(bytes(8))
    server.environment = {"LD_PRELOAD": str(library), "MTF_MOVED_CLOCK": str(offset)}
    return move


def _moved_clock(server: Server, load: Load, move: "Callable[[int], None]", seconds: int) -> dict[str, float]:
    """Move the wall clock under load; what came of it within two seconds."""
    failures, served, not_moved = len(load.failures), len(load.ranked), load.not_moved
    restarted = {worker.pid for worker in _workers(server)}
    move(seconds)
    time.sleep(2.0)
    ranked = load.ranked[served:]
    logged = _logged_times(server)
    off = [logged[one] - load.answered[one] for one in ranked if one in logged]
    return {
        "set_to_s": seconds,
        "ranked": len(ranked),
        "failed": len(load.failures) - failures,
        "feedback_not_in_state": load.not_moved - not_moved,
        "restarts": len({worker.pid for worker in _workers(server)} - restarted),
        "logged_off_s": round(statistics.median(off), 1),
    }


def _logged_times(server: Server) -> dict[str, float]:
    """Epoch seconds of the decisions on disk, by request."""
    folder = server.settings.layout.serving_log / "decisions"
    times = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            decision = json.loads(line)
            times[decision["request_id"]] = datetime.fromisoformat(decision["event_ts"]).timestamp()
    return times


def _metric(server: Server, name: str, label: str) -> float:
    with httpx.Client(base_url=server.url, timeout=10.0) as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and label in line)


def _until(condition: "Callable[[], bool]", seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not happen within {seconds:g} s")
        time.sleep(0.01)


def _compare(folder: Path, acknowledged: list[str]) -> dict[str, int]:
    """What was acknowledged against what is on disk, where a last line without its newline is torn."""
    counts: Counter[str] = Counter()
    torn = 0
    for path in sorted(folder.glob("*.jsonl")):
        *lines, rest = path.read_bytes().split(b"\n")
        torn += rest != b""
        counts.update(json.loads(line)["request_id"] for line in lines)
    return {
        "acknowledged": len(acknowledged),
        "missing": sum(counts[request_id] == 0 for request_id in acknowledged),
        "doubled": sum(count > 1 for count in counts.values()),
        "on_disk": counts.total(),
        "torn_files": torn,
    }


def tables(results: dict[str, Any]) -> str:
    unexplained = results["unexplained_failures"]
    text = f"Failures that neither a kill nor the full disk explains: {sum(unexplained.values())}.\n\n"
    text += "What clients saw while each fault was made, again and again:\n\n"
    rows = []
    for phase, seen in results["phases"].items():
        others = [f"{what}: {count}" for what, count in seen.items() if what not in ("ranked", "fed")]
        rows.append([phase, seen.get("ranked", 0), seen.get("fed", 0), ", ".join(others) or "none"])
    text += table(("phase", "ranked", "feedback taken", "failures and answers by static weights"), rows)
    text += "What was acknowledged, against what is on disk:\n\n"
    logs = {name: results[name] for name in ("decisions", "feedback")}
    text += table(("", *logs["decisions"]), ([name, *log.values()] for name, log in logs.items()))
    text += f"Workers killed: {results['kills']}. Broken artefacts served: {results['broken_served']}; "
    text += f"refusals counted, by worker: {results['broken_refused']:.0f}.\n\n"
    return text + "".join(nested(results[name], name) for name in ("store", "disk", "clock"))

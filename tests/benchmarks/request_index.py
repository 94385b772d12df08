"""What the index of requests costs: in a file of one machine, and in Redis, for all replicas.

python -m tests.benchmarks request_index                # half a minute; the calls of a batch, in turns
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.sessions import SessionRequest
from serving.log.index.shared import SharedIndex
from tests.benchmarks.publish import prose, table
from tests.servers import redis_server

USERS, SHOWN, ROUNDS, CALLS = 2_000, 6, 15, 40
Call = Callable[[], object]


def calls(index: RequestIndex) -> dict[str, Call]:
    """The calls that requests and feedback make, of one and of 16 together."""
    numbers = itertools.count()

    def sessions(count: int) -> None:
        now = datetime.now(UTC)
        index.sessions.of([SessionRequest(next(numbers) % USERS, None, now) for _ in range(count)])

    def log(count: int) -> None:
        ids = [next(numbers) for _ in range(count)]
        index.add([ServedRequest(f"r{n}", n % USERS, f"s{n % USERS}", time.time(), "champion") for n in ids])

    def feedback(count: int) -> None:
        ids = [next(numbers) for _ in range(count)]
        events = {item: {"item_id": item, "is_click": 1} for item in range(SHOWN)}
        index.events.add([RequestEvents(f"r{n}", f"s{n % USERS}", events) for n in ids])

    return {
        f"{name}, {count} together" if count > 1 else f"{name}, one alone": lambda do=do, n=count: do(n)
        for name, do in (("sessions", sessions), ("log", log), ("feedback", feedback))
        for count in (1, 16)
    } | {"request of a feedback": lambda: index.requests.find(f"r{next(numbers)}")}


@contextmanager
def indexes() -> Iterator[dict[str, RequestIndex]]:
    with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder, redis_server() as port:
        made: dict[str, RequestIndex] = {"file": RequestIndex(Path(folder) / "requests.sqlite", 30.0)}
        server = redis.Redis(port=port, protocol=2)
        made["redis"] = SharedIndex(server, Path(folder) / "copy.sqlite", 30.0)
        yield made
        for index in made.values():
            index.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the best of which counts")


def run(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    with indexes() as made:
        every = {name: calls(index) for name, index in made.items()}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for call in every["file"]:
            best = {name: {"wall_ms": float("inf"), "cpu_ms": float("inf")} for name in every}
            for _ in range(arguments.rounds):
                for name, own in every.items():  # in turns: what else the machine does is of both
                    wall, cpu = time.perf_counter(), time.thread_time()
                    for _ in range(CALLS):
                        own[call]()
                    spent = {"wall_ms": time.perf_counter() - wall, "cpu_ms": time.thread_time() - cpu}
                    best[name] = {key: min(best[name][key], 1e3 * s / CALLS) for key, s in spent.items()}
            found[call] = best
    return found


def tables(results: dict[str, Any]) -> str:
    text = prose(
        "Milliseconds of a call to the index of requests, and of the calling thread's processor time: in the "
        "file of one machine, and in a Redis on the same machine. What Redis itself takes comes on top. Of "
        "sessions, each begins one until all users have theirs."
    )
    rows = [
        [call, *(f"{one[key]:.3f}" for one in (best["file"], best["redis"]) for key in ("wall_ms", "cpu_ms"))]
        for call, best in results.items()
    ]
    return text + table(("call", "file", "of CPU", "Redis", "of CPU"), rows)

"""What the index of requests costs: in a file of one machine, and in Redis, for all replicas.

python -m tests.benchmarks.index                             # half a minute; the calls of a batch, in turns
"""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.sessions import SessionRequest
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
        made = {"file": RequestIndex(Path(folder) / "requests.sqlite", 30.0)}
        try:
            import redis

            from serving.log.index.shared import SharedIndex

            made["redis"] = SharedIndex(
                redis.Redis(port=port, protocol=2), Path(folder) / "copy.sqlite", 30.0
            )
        except ImportError:
            pass
        yield made
        for index in made.values():
            index.close()


def main() -> None:
    with indexes() as made:
        tables = {name: calls(index) for name, index in made.items()}
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for call in tables["file"]:
            best = {name: (float("inf"), float("inf")) for name in tables}
            for _ in range(ROUNDS):
                for name, table in tables.items():  # in turns: what else the machine does is of both
                    wall, cpu = time.perf_counter(), time.thread_time()
                    for _ in range(CALLS):
                        table[call]()
                    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
                    best[name] = min(best[name][0], 1e3 * wall / CALLS), min(best[name][1], 1e3 * cpu / CALLS)
            found[call] = best
            told = ", ".join(f"{name} {wall:.3f} ms ({cpu:.3f} of CPU)" for name, (wall, cpu) in best.items())
            print(f"{call:24s} {told}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

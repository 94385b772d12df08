"""Load on one endpoint, from a process of its own: closed loop (n clients) or open loop (a rate).

``python -m tests.benchmarks.load`` reads a :class:`Plan` as JSON on standard input and writes a
:class:`Result` as JSON on standard output. aiohttp on uvloop: a compiled HTTP parser and event loop.
"""

import asyncio
import json
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

import aiohttp
import numpy as np
import orjson
import uvloop

from serving.http.binary_bodies import encode_rank_binary
from serving.http.requests import BINARY, JSON

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Plan:
    """``rate`` requests a second at random instants, over at most ``clients`` connections; 0 closes the
    loop: each client sends its next request when it has its answer."""

    url: str
    heads: dict[str, float]  # name: largest score
    users: int
    candidates: int
    k: int
    clients: int
    seconds: float
    rate: float = 0.0
    media_type: str = JSON
    seed: int = 0
    by_second: bool = False


@dataclass(frozen=True)
class Result:
    """Latencies in ms; in the open loop they count from the instant a request was due.

    ``client_cpu`` is the share of one core that this process used: near 1 the client, and not the
    server, sets the pace. ``late_ms`` is the p99 of how late the open loop sent its requests, ``fallbacks``
    the answers that name a fallback, where an answer does. ``by_second``, where the plan asks for it: of
    each second in which requests were due, its number, their number, and their p50, p99 and slowest.
    """

    requests: int
    fallbacks: int
    failed: dict[str, int]
    per_second: float
    p50: float
    p90: float
    p99: float
    slowest: float
    client_cpu: float
    late_ms: float
    by_second: list[tuple[int, int, float, float, float]]


def bodies(plan: Plan, count: int = 64) -> list[bytes]:
    """Different users and candidates; scores are float32, as a model's are, at their shortest text."""
    generator = np.random.default_rng(plan.seed)
    made = []
    for _ in range(count):
        items = generator.choice(2**40, plan.candidates, replace=False)
        scores = {
            name: (generator.random(plan.candidates) ** 3 * min(maximum, 100.0)).astype(np.float32)
            for name, maximum in plan.heads.items()
        }
        user = int(generator.integers(plan.users))
        made.append(encode(plan, user, items, scores))
    return made


def encode(plan: Plan, user: int, items: np.ndarray, scores: dict[str, np.ndarray]) -> bytes:
    if plan.media_type == BINARY:
        return encode_rank_binary({"user_id": user, "k": plan.k}, items, scores)
    body = {"user_id": user, "k": plan.k, "candidates": {"item_id": items, "scores": scores}}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


async def run(plan: Plan) -> Result:
    sent = bodies(plan)
    latencies: list[float] = []
    instants: list[float] = []  # at which those requests were due
    late: list[float] = []
    failed: Counter[str] = Counter()
    fallbacks = 0
    headers = {"content-type": plan.media_type, "accept": JSON}
    connector = aiohttp.TCPConnector(limit=plan.clients)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    generator = np.random.default_rng(plan.seed + 1)

    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

        async def one(number: int, due: float) -> None:
            nonlocal fallbacks
            try:
                async with session.post(plan.url, data=sent[number % len(sent)]) as answer:
                    content = await answer.read()
                    if answer.status != 200:
                        failed[f"status {answer.status}"] += 1
                        return
                    ranking = orjson.loads(content)
                    if len(ranking["items"]) != plan.k:
                        failed["not k items"] += 1
                        return
                    latencies.append(time.perf_counter() - due)
                    instants.append(due)
                    fallbacks += "policy" in ranking and ranking["policy"]["fallback"] is not None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failed[type(error).__name__] += 1

        async def closed(client: int, end: float) -> None:
            number = client * 7
            while (now := time.perf_counter()) < end:
                await one(number, now)
                number += 1

        async def open_loop(start: float) -> None:
            due = np.cumsum(generator.exponential(1.0 / plan.rate, int(plan.rate * plan.seconds)))
            # only those that run: with a task a request the collector would stop this process for seconds
            tasks: set[asyncio.Task] = set()
            for number, at in enumerate(start + due):
                if (wait := at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                late.append(time.perf_counter() - at)
                tasks.add(task := asyncio.create_task(one(number, float(at))))
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

        started, busy = time.perf_counter(), _cpu()
        if plan.rate:
            await open_loop(started)
        else:
            end = started + plan.seconds
            await asyncio.gather(*(closed(client, end) for client in range(plan.clients)))
        seconds = time.perf_counter() - started
        busy = _cpu() - busy
    quantiles = np.quantile(np.array(latencies or [np.nan]) * 1000.0, [0.5, 0.9, 0.99, 1.0])
    p50, p90, p99, slowest = (round(float(value), 3) for value in quantiles)
    seconds_seen = _by_second(np.array(instants) - started, np.array(latencies)) if plan.by_second else []
    return Result(
        requests=len(latencies),
        fallbacks=fallbacks,
        failed=dict(failed),
        per_second=round(len(latencies) / seconds, 1),
        p50=p50,
        p90=p90,
        p99=p99,
        slowest=slowest,
        client_cpu=round(busy / seconds, 3),
        late_ms=round(float(np.quantile(late, 0.99)) * 1000.0, 3) if late else 0.0,
        by_second=seconds_seen,
    )


def _by_second(due: np.ndarray, latencies: np.ndarray) -> list[tuple[int, int, float, float, float]]:
    whole = due.astype(int)
    rows = []
    for second in np.unique(whole):
        own = latencies[whole == second] * 1000.0
        p50, p99, slowest = (round(float(value), 1) for value in np.quantile(own, [0.5, 0.99, 1.0]))
        rows.append((int(second), len(own), p50, p99, slowest))
    return rows


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    result = uvloop.run(run(Plan(**json.load(sys.stdin))))
    json.dump(asdict(result), sys.stdout)

"""Days of the world, run against the service over HTTP or against a policy in this process.

Both write the same: the truth ledger ``world/truth/dt=<day>.parquet`` (a row a session) and the snapshot
``world/state/dt=<next day>`` that the next day starts from.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from statistics import NormalDist
from typing import Any

import aiohttp
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.files import recover_folder, write_atomic
from training.contract.fusion import top
from training.contract.layout import days_in
from training.contract.settings import Settings
from training.world.simulator.constants import EVENT_COLUMNS
from training.world.simulator.sessions import FAILED, Outcome, Requests
from training.world.simulator.world import World

Progress = Callable[[int, int], None]
Choose = Callable[[np.ndarray, Requests], np.ndarray]
Observe = Callable[[Requests, np.ndarray, np.ndarray, Outcome], None]

REQUEST_TIMEOUT_S = 30.0


def truth_path(settings: Settings, day: date) -> Path:
    return settings.layout.world / "truth" / f"dt={day.isoformat()}.parquet"


def state_folder(settings: Settings, day: date) -> Path:
    """Snapshot that ``day`` starts from."""
    return settings.layout.world / "state" / f"dt={day.isoformat()}"


def open_world(settings: Settings, day: date) -> World:
    """The world as ``day`` finds it: its snapshot, else the latest earlier one, else a new world.

    A new world is saved at once, so that a rerun of its first day starts from the same. Raises
    :class:`DataError` for a day before the world's first.
    """
    folder = state_folder(settings, day)
    recover_folder(folder)
    days = days_in(folder.parent)
    earlier = [d for d in days if d <= day]
    if earlier:
        return World.load(settings, state_folder(settings, earlier[-1]))
    if days:
        raise DataError(f"the world in {folder.parent} begins on {days[0]}, so {day} cannot be simulated")
    world = World(settings)
    world.first_day = day
    world.save(folder)
    return world


def users_of(settings: Settings, day: date) -> pa.Table:
    """Users whose profile is new or changed on ``day``: see :meth:`World.users_table`."""
    return open_world(settings, day).users_table(day)


def run_day_inprocess(
    settings: Settings,
    day: date,
    choose: Choose,
    *,
    arms: Callable[[Requests], Sequence[str]] = lambda requests: ["policy"] * len(requests),
    observe: Observe | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A day of users ranked in this process: ``choose(states float32[b, d], requests)`` → actions [b, k].

    ``arms(requests)``, asked after ``choose``, names the arm of each for the ledger;
    ``observe(requests, states, actions, outcome)`` sees every batch. Returns the record of
    :func:`run_day_http` without latencies.
    """
    world = open_world(settings, day)
    world.start_day(day)
    count = 0
    while len(world.live):
        requests = world.requests()
        states = world.states_of(requests)
        actions = np.asarray(choose(states, requests), dtype=np.float32)
        scores = settings.fusion.score(requests.predictions, settings.fusion.to_weights(actions))
        shown = np.take_along_axis(requests.item_ids, top(scores, settings.world.page), axis=1)
        outcome = world.respond(requests, shown, arms(requests))
        count += len(requests)
        if observe is not None:
            observe(requests, states, actions, outcome)
        if progress is not None:
            progress(count, settings.world.requests_per_day)
    return {"requests": count, "feedbacks": count, "failures": 0, **_close(settings, world)}


def run_day_http(
    settings: Settings, day: date, base_url: str, token: str, progress: Progress | None = None
) -> dict[str, Any]:
    """A day of users against the running service; ``world.concurrency`` requests are in flight.

    A user's feedback is acknowledged before their next request is sent. A request or feedback that fails
    is counted, not repeated, and ends its session as truncated. Returns ``requests``, ``feedbacks``,
    ``failures``, ``failure_reasons``, ``latency_ms`` (p50 and p99 of ``/rank``), ``sessions`` and
    ``arms``: per arm sessions, session_return_mean with its 95 % interval (users as clusters), and more.
    """
    world = open_world(settings, day)
    world.start_day(day)
    traffic = asyncio.run(_Traffic(settings, base_url, token, progress).run(world))
    return {**traffic, **_close(settings, world)}


class _Traffic:
    def __init__(self, settings: Settings, base_url: str, token: str, progress: Progress | None) -> None:
        self.settings, self.base_url, self.token, self.progress = settings, base_url, token, progress
        self.latencies: list[float] = []
        self.requests = self.feedbacks = 0
        self.reasons: dict[str, int] = {}
        # the world's own are numbers
        ids = settings.ids
        self._user = str if ids.users == "string" else int
        self._item = str if ids.items == "string" else int
        self.signals = [(EVENT_COLUMNS.index(signal.column), signal.column) for signal in settings.signals]

    async def run(self, world: World) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(limit=self.settings.world.concurrency)
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(
            self.base_url, headers=headers, connector=connector, timeout=timeout
        ) as self.http:
            while len(world.live):
                await self._wave(world)
        spread = np.percentile(self.latencies, [50, 99]) if self.latencies else (0.0, 0.0)
        return {
            "requests": self.requests,
            "feedbacks": self.feedbacks,
            "failures": sum(self.reasons.values()),
            "failure_reasons": self.reasons,
            "latency_ms": {"p50": round(float(spread[0]), 3), "p99": round(float(spread[1]), 3)},
        }

    async def _wave(self, world: World) -> None:
        """One request of every user in a session, then all their feedback."""
        requests = world.requests()
        shown = np.zeros((len(requests), self.settings.world.page), dtype=np.int64)
        arms = [""] * len(requests)
        failed = np.zeros(len(requests), dtype=bool)
        bodies = self._rank_bodies(requests)

        async def rank(row: int) -> None:
            started = time.perf_counter()
            answer = await self._post("/rank", bodies[row])
            self.latencies.append((time.perf_counter() - started) * 1000.0)
            self.requests += 1
            if answer is None:
                failed[row] = True
                return
            try:
                items, arm = answer["items"], answer["policy"]["arm"]
                items = [int(item) for item in items]
                if len(items) != shown.shape[1] or not set(items) <= set(requests.item_ids[row].tolist()):
                    raise ValueError("the answer's items are not the page that was asked for")
                shown[row], arms[row] = items, arm
            except (KeyError, TypeError, ValueError) as error:
                failed[row] = True
                self._count(f"/rank: {error!r}")

        await self._all(rank, len(requests))
        outcome = world.respond(requests, shown, arms, failed)
        served = requests.part(~failed)
        messages = self._feedback_bodies(served, outcome)
        lost = np.zeros(len(served), dtype=bool)

        async def feedback(row: int) -> None:
            lost[row] = await self._post("/feedback", messages[row]) is None
            self.feedbacks += not lost[row]

        await self._all(feedback, len(served))
        if lost.any():
            world.fail(served.part(lost))
        if self.progress is not None:
            self.progress(self.requests, self.settings.world.requests_per_day)

    async def _all(self, send: Callable[[int], Any], count: int) -> None:
        rows = iter(range(count))

        async def worker() -> None:
            for row in rows:
                await send(row)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.settings.world.concurrency, count)):
                group.create_task(worker())

    async def _post(self, path: str, body: bytes) -> dict[str, Any] | None:
        """The answer's object; None, counted with its reason, when there is none."""
        try:
            async with self.http.post(path, data=body) as response:
                text = await response.read()
                if response.status != 200:
                    self._count(f"{path}: HTTP {response.status}")
                    return None
                return orjson.loads(text) if text else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._count(f"{path}: {type(error).__name__}")
            return None

    def _count(self, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def _rank_bodies(self, requests: Requests) -> list[bytes]:
        names = self.settings.fusion.names
        # six decimals: what an upstream model would send, and half the bytes
        scores = np.round(requests.predictions.astype(np.float64), 6).transpose(0, 2, 1)
        times = np.datetime_as_string(requests.event_ts, unit="us")
        return [
            orjson.dumps(
                {
                    "request_id": requests.request_id[row],
                    "user_id": self._user(requests.user_id[row]),
                    "session_id": requests.session_id[row],
                    "k": self.settings.world.page,
                    "event_ts": f"{times[row]}Z",
                    "candidates": {
                        "item_id": [self._item(item) for item in requests.item_ids[row].tolist()],
                        "scores": dict(zip(names, scores[row].tolist(), strict=True)),
                    },
                }
            )
            for row in range(len(requests))
        ]

    def _feedback_bodies(self, requests: Requests, outcome: Outcome) -> list[bytes]:
        times = np.datetime_as_string(outcome.feedback_ts, unit="us")
        return [
            orjson.dumps(
                {
                    "request_id": requests.request_id[row],
                    "user_id": self._user(requests.user_id[row]),
                    "session_id": requests.session_id[row],
                    "event_ts": f"{times[row]}Z",
                    "shown": outcome.item_id.shape[1],
                    "events": [
                        {
                            "item_id": self._item(int(outcome.item_id[row, place])),
                            **{name: int(outcome.events[row, place, at]) for at, name in self.signals},
                            "play_time_ms": int(outcome.play_time_ms[row, place]),
                            "duration_ms": int(outcome.duration_ms[row, place]),
                        }
                        for place in range(outcome.item_id.shape[1])
                    ],
                }
            )
            for row in range(len(requests))
        ]


def _close(settings: Settings, world: World) -> dict[str, Any]:
    """End the day: ledger and next snapshot on disk, and what they say by arm."""
    ledger = world.end_day()
    write_atomic(truth_path(settings, world.day), lambda path: pq.write_table(ledger, path))
    world.save(state_folder(settings, world.day + timedelta(days=1)))
    return summarise(ledger)


def summarise(ledger: pa.Table) -> dict[str, Any]:
    """Sessions and true results by arm; sessions that a failure cut are left out of the arms."""
    frame = ledger.to_pandas()
    kept = frame[frame["ended"] != FAILED]
    arms = {}
    for arm, group in kept.groupby("arm"):
        mean, low, high = clustered_mean(group["session_return"].to_numpy(), group["user_id"].to_numpy())
        arms[str(arm)] = {
            "sessions": len(group),
            "users": int(group["user_id"].nunique()),
            "session_return_mean": mean,
            "session_return_ci": [low, high],
            "discounted_return_mean": float(group["discounted_return"].mean()),
            "requests_per_session": float(group["requests"].mean()),
            "adtime_s": float(group.groupby("user_id")["adtime_s"].sum().mean()),
            "satisfaction": float(group["satisfaction"].mean()),
            "return_rate": float(group.groupby("user_id")["returned_next_day"].first().mean()),
        }
    return {"sessions": len(frame), "arms": arms}


def clustered_mean(
    values: Sequence[float] | np.ndarray, clusters: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean and its normal interval when values of one cluster (a user's sessions) hang together."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    groups, place = np.unique(clusters, return_inverse=True)
    if len(groups) < 2:
        return mean, mean, mean
    residual = np.bincount(place, weights=values - mean)
    variance = len(groups) / (len(groups) - 1) * (residual**2).sum() / len(values) ** 2
    half = NormalDist().inv_cdf(0.5 + confidence / 2.0) * float(np.sqrt(variance))
    return mean, mean - half, mean + half

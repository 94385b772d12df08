"""What a canary decides: of a policy like the champion, of one 5 % worse, and of one 5 % better.

In the simulated world two constants are searched whose session return is so far from static weights', the
champion here. From one evening on every user then lives some days under each of the three, with luck of
their own. A canary draws half of the users, assigns them by shares, takes each one's sessions of their arm as
they come, and asks the service's own index and decision (:mod:`serving.control.canary`) at every look. What
the policies truly differ by is the mean over the sessions of all users.
"""

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from serving.control import canary
from serving.control.evidence import evidence, sessions_needed
from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.tallies import Comparison
from tests.benchmarks.publish import prose, table
from training.contract.fusion import top
from training.contract.settings import Settings, WorldSettings
from training.world.simulator.references import Bench
from training.world.simulator.world import World

CANARIES = 200
PAST_DAYS, DAYS, TRIAL_DAYS = 3, 5, 2
USERS, REQUESTS_A_DAY = 40_000, 130_000
MOST = 20_000  # sessions of both sides
LOOK = 250  # sessions between two looks
STEPS = ((0.1, 2_000), (0.5, MOST))  # the challenger's share of both sides, until so many sessions
EFFECTS = {"like the champion": 0.0, "5 % worse": -0.05, "5 % better": 0.05}
# directions found with CMA-ES (tests/training/promotion/test_refusals.py says what they are)
BETTER = np.array([0.41, 0.83, -0.75, -0.52, -0.92, -0.51, -0.03, -0.99])
WORSE = np.array([0.98, -0.13, -0.6, -0.82, -0.41, 0.28, 0.28, 0.58])


@dataclass(frozen=True)
class Lived:
    """Sessions in the order in which they came, of users under one policy: arrays by session."""

    user: np.ndarray
    day: np.ndarray
    reward: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--canaries", type=int, default=CANARIES, help="drawn for each of the three policies")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--processes", type=int, default=2)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    requests = REQUESTS_A_DAY * arguments.users // USERS
    settings = Settings(world=WorldSettings(users=arguments.users, requests_per_day=requests))
    started = time.monotonic()
    past, lived = live(settings)
    print(f"lived in {time.monotonic() - started:.0f} s", flush=True)
    champion = lived["like the champion"]
    mean = float(champion.reward.mean())
    results: dict[str, Any] = {
        "world": {
            "users": len(np.unique(champion.user)),
            "sessions of each policy": len(champion.reward),
            "session return of the champion": mean,
            "its deviation": float(champion.reward.std()),
            "sessions": MOST,
        },
        "policies": {},
    }
    for name, challenger in lived.items():
        with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(one_canary, settings, past, champion, challenger, seed)
                for seed in range(arguments.canaries)
            ]
            found = [job.result() for job in jobs]
        results["policies"][name] = summary(found, float(challenger.reward.mean()), mean)
        print(name, results["policies"][name], flush=True)
    return results


def live(settings: Settings) -> tuple[Lived, dict[str, Lived]]:
    """The users' past under static weights, and their days under each policy."""
    world = World(settings)
    day = date.fromisoformat(settings.world.start_day)
    static = settings.fusion.static_action.astype(float)
    past = under(world, static, day, PAST_DAYS)
    evening = day + timedelta(days=PAST_DAYS)
    bench = Bench(world, evening, sessions=8_000, seed=1)
    lived = {}
    with tempfile.TemporaryDirectory() as folder:
        world.save(Path(folder) / "evening")

        def life(action: np.ndarray, days: int) -> Lived:
            return under(World.load(settings, Path(folder) / "evening"), action, evening, days)

        for name, effect in EFFECTS.items():
            action = static if effect == 0.0 else so_far(bench, static, effect)
            if effect != 0.0:  # the bench has one session a user: what days of them do is put right once
                first = lived["like the champion"]
                days = first.reward[first.day < TRIAL_DAYS].mean()
                seen = life(action, TRIAL_DAYS).reward.mean() / days - 1.0
                action = static + (action - static) * effect / seen
            lived[name] = life(action, DAYS)
    return past, lived


def so_far(bench: Bench, static: np.ndarray, effect: float) -> np.ndarray:
    """The point between static weights and a known end whose session return is off by ``effect``."""
    end = BETTER if effect > 0.0 else WORSE
    goal = bench.evaluate_constant(static).session_return.mean() * (1.0 + effect)
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2.0
        value = bench.evaluate_constant(static + middle * (end - static)).session_return.mean()
        low, high = (middle, high) if (value < goal) == (effect > 0.0) else (low, middle)
    return np.asarray(static + high * (end - static))


def under(world: World, action: np.ndarray, day: date, days: int) -> Lived:
    """``days`` of the world under constant weights, the world then being at their end."""
    fusion, page = world.settings.fusion, world.settings.world.page
    weights = fusion.to_weights(action)
    parts = []
    for number in range(days):
        world.start_day(day + timedelta(days=number))
        starts = world.sessions.start_us.copy()
        while len(world.live):
            requests = world.requests()
            places = top(fusion.score(requests.predictions, weights), page)
            shown = np.take_along_axis(requests.item_ids, places, axis=1)
            world.respond(requests, shown, [""] * len(requests))
        ran = world.sessions.step > 0
        order = np.argsort(np.maximum(starts, world.sessions.start_us)[ran], kind="stable")
        parts.append(
            (
                world.sessions.user_row[ran][order],
                np.full(ran.sum(), number),
                world.sessions.reward[ran][order],
            )
        )
        world.end_day()
    return Lived(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def one_canary(
    settings: Settings, past: Lived, champion: Lived, challenger: Lived, seed: int
) -> dict[str, Any]:
    """How it ended (``what``), after how many sessions of both sides, whether it was ever held, and the
    deviation of a session as it was estimated at the end."""
    rng = np.random.default_rng([seed, 19])
    users = max(int(part.user.max()) for part in (past, champion, challenger)) + 1
    drawn, place = rng.random(users) < 0.5, rng.random(users)
    serving = settings.serving.model_copy(update={"canary_sessions": MOST})
    now = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        index = RequestIndex(
            Path(folder) / "index.sqlite", 30.0, reward=lambda event: event["reward"], clock=lambda: now[0]
        )
        numbers = iter(range(10**9))

        def serve(lived: Lived, chosen: np.ndarray, arm: str, policy: str) -> None:
            if not len(chosen):
                return
            names = [f"{arm}-{next(numbers)}" for _ in chosen]
            index.add(
                [
                    ServedRequest(name, int(lived.user[i]), name, now[0], arm, policy)
                    for name, i in zip(names, chosen, strict=True)
                ]
            )
            index.events.add(
                [
                    RequestEvents(name, name, {1: {"reward": float(lived.reward[i])}})  # type: ignore[dict-item]
                    for name, i in zip(names, chosen, strict=True)
                ]
            )

        serve(past, np.flatnonzero(drawn[past.user]), "champion", "before")
        while index.tallies.add([], now[0], now[0]):
            pass
        now[0] = 1.0
        compared = Comparison("challenger", "one", 1.0, [("challenger", "new")], [("champion", "old")])
        index.tallies.add([compared], 0.0, now[0])
        # each user's sessions under either, in the order of the days; those of the other arm never were
        sides = [
            (number, side, np.flatnonzero(drawn[side.user]))
            for number, side in enumerate((champion, challenger))
        ]
        order = np.argsort(np.concatenate([_moment(side)[own] for _, side, own in sides]), kind="stable")
        treated = np.concatenate([np.full(len(own), number) for number, _, own in sides])[order]
        user = np.concatenate([side.user[own] for _, side, own in sides])[order]
        at = np.concatenate([own for _, _, own in sides])[order]
        served = position = 0
        move, step, held = canary.Move("stay", "", ""), 0, False
        while served < MOST and position < len(user):
            share = STEPS[step][0]
            stratum = index.tallies.shares(str(share), now[0])
            now[0] += 1.0
            reach = slice(position, position + 2 * LOOK)
            position += 2 * LOOK
            own = (place[user[reach]] < share) == (treated[reach] == 1)
            serve(champion, at[reach][own & (treated[reach] == 0)], "champion", "old")
            serve(challenger, at[reach][own & (treated[reach] == 1)], "challenger", "new")
            served += int(own.sum())
            index.tallies.add([compared], now[0], now[0])
            found = evidence(
                index.tallies, "challenger", 1.0 - serving.guardrail.confidence, canary.tuned_to(serving)
            )
            expected = share if found.newest[0] == stratum else None
            move = canary.decide(serving, found, canary.Tried(0.0, step == len(STEPS) - 1, expected))
            held |= move.what == "pause"
            if move.what in ("promote", "out", "end"):
                break
            if served >= STEPS[step][1] and step + 1 < len(STEPS):
                step += 1
        index.close()
    sd = None if found.reward is None else found.reward.sd
    return {"what": move.what, "sessions": served, "held": held, "sd": sd}


def _moment(lived: Lived) -> np.ndarray:
    """float[sessions]: the day, and the share of its sessions that came before."""
    sizes = np.bincount(lived.day)
    return np.concatenate([day + np.arange(size) / size for day, size in enumerate(sizes)])


def summary(found: list[dict[str, Any]], mean: float, champion: float) -> dict[str, Any]:
    """Shares of canaries by their end, with 95 % intervals (Clopper & Pearson 1934)."""
    shares = {}
    for what in ("promote", "out"):
        count = sum(one["what"] == what for one in found)
        low = beta.ppf(0.025, count, len(found) - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, len(found) - count) if count < len(found) else 1.0
        shares[what] = {"share": count / len(found), "lower": float(low), "upper": float(high)}
    ended = [one["sessions"] for one in found if one["what"] in shares]
    sd = float(np.median([one["sd"] for one in found if one["sd"] is not None]))
    return {
        "true difference": (mean - champion) / champion,
        "canaries": len(found),
        **shares,
        "ever held": sum(one["held"] for one in found),
        "median sessions to a decision": float(np.median(ended)) if len(ended) > len(found) / 2 else None,
        "nine in ten decided by": float(np.quantile(ended, 0.9)) if len(ended) > len(found) / 2 else None,
        "deviation of a session as users come, adjusted": sd,
        "sessions an arm for 5 %": sessions_needed(sd, 0.05 * champion, 0.95, canary.POWER),
        "sessions an arm for 2 %": sessions_needed(sd, 0.02 * champion, 0.95, canary.POWER),
    }


BARS = {
    "like the champion": ("promote", "at most 5 % promoted"),
    "5 % worse": ("out", "at least 95 % out"),
    "5 % better": ("promote", "at least 80 % promoted"),
}


def tables(results: dict[str, Any]) -> str:
    world = results["world"]
    (first, until), (last, _) = STEPS
    text = prose(
        f"{world['users']:,} users of the simulated world, {world['sessions of each policy']:,} sessions "
        f"under each policy; the champion is static weights, "
        f"{world['session return of the champion']:.2f} a session (deviation {world['its deviation']:.1f}). "
        f"A canary has {MOST:,} sessions of both sides at most, of half of the users drawn anew; the "
        f"challenger's share of them is {first:.0%} for {until:,} sessions and then {last:.0%}; one looks "
        f"after every {LOOK} or so. Intervals are of 95 % (Clopper & Pearson); *held*: canaries that a "
        "signal held at some look."
    )
    columns = (
        "challenger",
        "truly",
        "canaries",
        "promoted",
        "out",
        "median sessions",
        "nine in ten by",
        "held",
        "bar",
    )
    rows = [
        (
            name,
            f"{one['true difference']:+.2%}",
            one["canaries"],
            _share(one["promote"]),
            _share(one["out"]),
            one["median sessions to a decision"],
            one["nine in ten decided by"],
            one["ever held"],
            BARS[name][1],
        )
        for name, one in results["policies"].items()
    ]
    text += table(columns, rows)
    alike = results["policies"]["like the champion"]
    return text + prose(
        f"A session's deviation as users come, adjusted by their past, is "
        f"{alike['deviation of a session as users come, adjusted']:.1f}: by the sequence that is used, 80 % "
        f"power takes {alike['sessions an arm for 5 %']:,} sessions an arm for 5 % and "
        f"{alike['sessions an arm for 2 %']:,} for 2 %."
    )


def _share(one: dict[str, float]) -> str:
    return f"{one['share']:.1%} ({one['lower']:.1%} to {one['upper']:.1%})"

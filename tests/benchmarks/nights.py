"""No harm: what serves in the end, over many nights of many worlds, decided by the product's own code.

A world is drawn: users, sessions a day, the share of them that is explored on. Its days pass in process:
sessions are assigned to arms by :func:`serving.ranking.arms.draw` and ranked by static weights, exploration,
champion and challenger. Every night the pool in closed form is trained on the last days, judged, and the gate
decides; what passes begins its canary, which the service's guardrail carries on, looking several times a day
over the service's own index of sessions: promoted, out, ended, and a champion that loses to static weights is
taken out. What every policy is truly worth is the mean over the same sessions of their own.

What is left out: HTTP, lake, dbt and Feast, whose states are the simulator's; the registry; the members of
the pool that learn by gradients; and the world stands still, so that a truth is one for all nights.
"""

import argparse
import shutil
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.control.guardrail import Guardrail
from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.policy.follower import InServiceSource, PolicyFollower
from serving.ranking import arms
from tests.benchmarks.canary import under
from tests.benchmarks.nights_page import tables
from tests.benchmarks.publish import kept
from training.contract import code_sources, in_service, rollout
from training.contract.epochs import epoch_of_day
from training.contract.files import json_sha256, sha256
from training.contract.pointer import PolicyPointer
from training.contract.policy import Policy, PolicyHeader, constant_policy, load_policy, save_policy
from training.contract.records import write_record
from training.contract.settings import Settings
from training.evaluation import assess
from training.experiments.ground import concatenated
from training.policies import return_regression
from training.promotion import gate
from training.trajectories import Transitions
from training.trajectories.split import last_sessions
from training.world.simulator.collect import Arm, collect, random_arm
from training.world.simulator.references import Bench
from training.world.simulator.world import World

__all__ = ["add_arguments", "run", "tables"]  # of a benchmark

WORLDS, NIGHTS = 10, 20
USERS = 4_000
PAST_DAYS = 2  # lived under static weights before all, for the users' histories
LOOKS = 4  # of the guardrail, a day
TRUTH = 4_000  # sessions that every policy is truly valued on
_DAY_S = 86_400.0
_NAMES = (arms.STATIC, arms.RANDOM, arms.NOISE, arms.CHAMPION, arms.CHALLENGER)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--nights", type=int, default=NIGHTS, help="of each world")
    parser.add_argument("--truth", type=int, default=TRUTH, help="sessions that a policy is truly valued on")
    parser.add_argument("--most", type=int, default=6_000, help="sessions a day of a world, at most")


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    about = {name: getattr(options, name) for name in ("nights", "truth", "most")}
    made_from = json_sha256(
        [
            about,
            sha256(Path(__file__)),
            code_sources.sha256_of("serving.control.guardrail", "training.promotion.gate"),
            code_sources.sha256_of("training.evaluation.judge", "training.world.simulator.collect"),
        ]
    )

    def one(seed: int) -> dict[str, Any]:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mtf-nights-") as folder:
            found = drawn_world(seed, Path(folder), options)
        print(f"world {seed}: {time.monotonic() - started:.0f} s", flush=True)
        return found

    folder = options.out / "nights"
    return about | {
        "users": USERS,
        "worlds": [
            kept(folder / f"{seed}.json", made_from, lambda seed=seed: one(seed))
            for seed in range(options.worlds)
        ],
    }


def drawn_world(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The nights of one world; what was drawn, and each night's truths and events."""
    rng = np.random.default_rng([seed, 200])
    sessions = int(rng.uniform(options.most / 3, options.most))
    explored = float(np.exp(rng.uniform(np.log(0.04), np.log(0.3))))
    settings = Settings(
        data=folder,
        seed=seed,
        world={"users": USERS},
        learner={"algorithms": return_regression.ALGORITHMS},
        evaluation={"estimators": ("session_return",)},
        # the machine may be busy: latency has tests and a benchmark of its own
        gate={"max_latency_ms": 10_000.0},
        serving={
            "shares": {"random": explored / 2, "noise": explored / 2},
            "max_exploration": 0.3,
            "policy_budget_ms": 10_000.0,
            "guardrail": {"idle_minutes": 0},
        },
    )
    days = Days(settings, sessions, options.truth)
    for _ in range(settings.learner.window_days):
        days.pass_day()
    nights = []
    for _ in range(options.nights):
        nights.append(days.night())
        days.pass_day()
    days.close()
    return {"sessions_a_day": sessions, "explored": explored, "static": days.worth(None), "nights": nights}


class Days:
    """A world, its log, and the service's and the loop's parts that decide what serves."""

    def __init__(self, settings: Settings, sessions: int, truth: int) -> None:
        self.settings, self.sessions = settings, sessions
        layout = settings.layout
        self.world = World(settings)
        first = date.fromisoformat(settings.world.start_day)
        under(self.world, settings.fusion.static_action.astype(float), first, PAST_DAYS)
        self.evening = self.day = first + timedelta(days=PAST_DAYS)
        self.truth = Bench(self.world, self.evening, truth, seed=10**6)
        self.worths: dict[str | None, np.ndarray] = {}
        self.log: list[Transitions] = []
        self.began, self.passed, self.chunks, self.told = time.time(), 0.0, 0, 0
        layout.serving.mkdir(parents=True)
        self.index = RequestIndex(
            layout.serving / "requests.sqlite", 30.0, reward=lambda event: event["reward"], clock=self.clock
        )
        self.champion = PolicyFollower(settings)
        self.challenger = PolicyFollower(
            settings, [InServiceSource(settings, "challenger")], on_vanished=lambda: None
        )
        self.guardrail = Guardrail(settings, self.index, self.champion, self.challenger, clock=self.clock)

    def clock(self) -> float:
        return self.began + self.passed

    def close(self) -> None:
        self.guardrail.close()
        self.index.close()

    # what serves

    def pass_day(self) -> None:
        """A day's sessions, with the guardrail's looks between them."""
        parts = []
        for _ in range(LOOKS):
            parts.append(self._pass(self.sessions // LOOKS))
            self.passed += _DAY_S / LOOKS
            self._look()
        self.log = [*self.log, concatenated(parts)][-self.settings.learner.window_days :]
        self.day += timedelta(days=1)

    def _pass(self, count: int) -> Transitions:
        settings, how, k = self.settings, self.settings.serving, len(self.settings.heads)
        champion, challenger = self._policy(self.champion), self._policy(self.challenger)
        bench = Bench(self.world, self.evening, count, seed=self.chunks)
        users = self.world.population.user_id[bench.user_row]
        shares, epoch = in_service.read(settings).shares, epoch_of_day(self.day, how.exploration.epoch_days)
        tried = None if challenger is None else challenger.sha256
        arm_of = np.array(
            [_NAMES.index(arms.draw(shares, how.salt, epoch, int(user), tried)) for user in users]
        )

        def mean(policy: Policy | None) -> Any:
            if policy is None:
                return lambda states, requests: np.repeat(
                    settings.fusion.static_action[None], len(states), axis=0
                )
            return lambda states, requests: policy.act_in_parts(states)

        data = collect(
            bench,
            [
                Arm(arms.STATIC, mean(None)),
                random_arm(k, how.random_std, unit=how.exploration.unit),
                Arm(arms.NOISE, mean(champion), how.noise_std, unit=how.exploration.unit),
                Arm(arms.CHAMPION, mean(champion)),
                Arm(arms.CHALLENGER, mean(challenger)),
            ],
            self.settings.seed,
            arm_of,
        )
        digests = {arms.CHAMPION: "" if champion is None else champion.sha256, arms.CHALLENGER: tried or ""}
        self._tell(data, digests)
        self.chunks += 1
        return data

    def _tell(self, data: Transitions, digests: dict[str, str]) -> None:
        """What the service's index holds of these requests and their feedback."""
        now, served, felt = self.clock(), [], []
        columns = (data.arms, data.sessions, data.steps, data.users, data.rewards)
        for arm, session, step, user, reward in zip(*(c.tolist() for c in columns), strict=True):
            name = _NAMES[arm]
            if name in arms.EXPLORING:  # no comparison reads them
                continue
            session_id = f"{self.chunks}-{session}"
            request_id = f"{session_id}-{step}"
            served.append(ServedRequest(request_id, user, session_id, now, name, digests.get(name, "")))
            felt.append(RequestEvents(request_id, session_id, {1: {"reward": reward}}))
        self.index.add(served)
        self.index.events.add(felt)

    def _look(self) -> None:
        self.champion.look()
        self.challenger.look()
        self.guardrail.check()
        self.champion.look()
        self.challenger.look()

    @staticmethod
    def _policy(follower: PolicyFollower) -> Policy | None:
        return None if follower.current is None else follower.current.policy

    # what learns

    def night(self) -> dict[str, Any]:
        """Train, judge and gate; what passes begins its canary unless another is in its own."""
        settings, day, layout = self.settings, self.day - timedelta(days=1), self.settings.layout
        log = concatenated(self.log)
        proposed = return_regression.propose(
            settings.fusion, settings.learner.return_regression, log, self.chunks
        )
        pool = {name: self._saved(day, name, one) for name, one in proposed.items()}
        champion = self._policy(self.champion)
        static = constant_policy(
            settings.state_spec, settings.fusion, settings.fusion.static_action, "static"
        )
        rivals = {"static": static} | ({} if champion is None else {"champion": champion})
        late = torch.from_numpy(last_sessions(log.sessions.numpy(), settings.evaluation.test_share))
        train, test = log.take(~late), log.take(late)
        judged = assess(settings, train, test, {**pool, **rivals}, self.chunks, every=log, pool=list(pool))
        chosen = pool[judged["chosen"]]
        source = layout.model(day) / judged["chosen"] / "policy.safetensors"
        shutil.copyfile(source, layout.model(day) / "policy.safetensors")
        valid = {"success": True, "suites": {}}
        for stage, record in {
            "validate_landed": valid,
            "validate_transitions": valid,
            "validate_training_set": valid,
            "parity": {"compared": 500, "mismatched": 0, "share": 0.0, "worst": []},
            "train": {},
            "evaluate": judged
            | {
                "policy": (layout.model(day) / "policy.safetensors").relative_to(layout.root).as_posix(),
                "sha256": chosen.sha256,
                "version": chosen.version,
            },
        }.items():
            write_record(layout, day, stage, record)
        decision = gate(settings, day)
        if decision["decision"] == "promote" and not layout.canary.exists():
            self._begin(day, chosen, decision)
        self._look()
        events = [event["action"] for event in in_service.read(settings).history[self.told :]]
        self.told += len(events)
        return {
            "day": day.isoformat(),
            "gate": decision["decision"],
            "chosen": judged["chosen"],
            "trusted": judged["trusted"],
            "promised": judged["differences"]["challenger - static"],
            "challenger": self.worth(chosen),
            "champion_is": "static" if champion is None else champion.version,
            "champion": self.worth(champion),
            "constant": self.worth(pool["constant"]),
            "below_best": self._below([None, pool["constant"]], champion),
            "below_static": self._below([None], champion),
            "events": [action for action in events if action != "shares"],
        }

    def _saved(self, day: date, name: str, one: return_regression.Proposal) -> Policy:
        rows = {f"{day - timedelta(days=back)}": len(part) for back, part in enumerate(reversed(self.log))}
        lineage = {"algorithm": name, "partitions": {past: {"rows": count} for past, count in rows.items()}}
        settings = self.settings
        header = PolicyHeader(
            one.kind, f"{name}-{day}", settings.state_spec, settings.fusion, one.options, lineage
        )
        path = settings.layout.model(day) / name / "policy.safetensors"
        tensors = {tensor: np.asarray(values, dtype=np.float32) for tensor, values in one.tensors.items()}
        return load_policy(path, save_policy(path, header, tensors))

    def _begin(self, day: date, policy: Policy, decision: dict[str, Any]) -> None:
        layout = self.settings.layout
        path = layout.serving / "policies" / f"{policy.sha256}.safetensors"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(layout.model(day) / "policy.safetensors", path)
        pointer = PolicyPointer(
            path.relative_to(layout.root).as_posix(), policy.sha256, policy.version, day.isoformat(), "", ""
        )
        with in_service.changing(self.settings) as row:
            reason = "; ".join(decision["reasons"])
            rollout.begin_canary(row, rollout.following(pointer, row.champion), reason)

    # what is true

    def returns(self, policy: Policy | None) -> np.ndarray:
        """True returns of the same sessions under a policy, or static weights."""
        key = None if policy is None else policy.sha256
        if key not in self.worths:
            static = self.settings.fusion.static_action
            found = (
                self.truth.evaluate_constant(static) if policy is None else self.truth.evaluate_policy(policy)
            )
            self.worths[key] = found.session_return
        return self.worths[key]

    def worth(self, policy: Policy | None) -> float:
        return float(self.returns(policy).mean())

    def _below(self, rivals: list[Policy | None], champion: Policy | None) -> dict[str, float]:
        """How far the champion is below the best of the rivals, as a share of it, with its 95 % interval."""
        best = max((self.returns(rival) for rival in rivals), key=lambda own: own.mean())
        difference = (best - self.returns(champion)) / best.mean()
        half = 1.96 * float(difference.std() / len(difference) ** 0.5)
        value = float(difference.mean())
        return {"lower": value - half, "value": value, "upper": value + half}

"""One worker of the service, without HTTP: bodies in, answers out, nothing lost in between."""

import asyncio
import itertools
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import orjson
import structlog

from serving import arms, metrics, ranker
from serving.batches import Batches
from serving.champion import Champion, ChampionFollower, Source
from serving.decision_log import DayFiles, LogError
from serving.exploration import replay_generator
from serving.features_age import FeaturesAge
from serving.following import Following
from serving.guardrail import Guardrail
from serving.messages import JSON, Parser, RequestError, encode_answer, local_day, timestamp
from serving.request_index import Entry, Fed, Known, RequestIndex, Session
from serving.shadow import Ranked, Shadow
from serving.state_store import Feedback, StateRequest, StateStore
from training.contract.files import read_json
from training.contract.reward import item_reward
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.engine")
LINE_VERSION = 1
_PULSE_S = 1.0
_POLICY_ARMS = (arms.CHAMPION, arms.CHALLENGER)
_AT_BOUND = 0.99  # an action entry beyond it is at a bound
_STAGES = ("parse", "state", "policy", "fuse", "log", "respond")
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class _Decided(NamedTuple):
    """A decision on its way to the disk."""

    day: str
    line: bytes
    entry: Entry
    action: np.ndarray


class Engine:
    """Answers requests of one worker process. ``worker`` names its log files.

    :meth:`rank` and :meth:`feedback` take a body and give the answer's. They raise
    :class:`RequestError` for what the caller did wrong and :class:`LogError` when the answer could not
    be made durable; whatever they return is on disk.
    """

    def __init__(self, settings: Settings, worker: str, sources: list[Source] | None = None) -> None:
        self._settings = settings
        self._serving = settings.serving
        self._fusion = settings.fusion
        self._spec_version = settings.state_spec.version
        self._slow = settings.serving.guardrail.slow_ms / 1000.0
        self._offset = settings.calendar.utc_offset_hours
        self._parser = Parser(settings)
        self._generator = np.random.default_rng()
        self._index = RequestIndex(
            settings.layout.serving / "requests.sqlite",
            settings.session.gap_minutes,
            reward=partial(item_reward, settings),
        )
        self._decision_files = DayFiles(settings.layout.serving_log / "decisions", worker)
        self._feedback_files = DayFiles(settings.layout.serving_log / "feedback", worker)
        self._decisions: Batches[_Decided, None] = Batches("decision log", self._commit, LogError)
        self._feedback: Batches[tuple[str, bytes, Fed], Known] = Batches(
            "feedback log", self._commit_feedback, LogError
        )
        self._champion = ChampionFollower(settings, sources, _taken(arms.CHAMPION), _refused(arms.CHAMPION))
        self._challenger = ChampionFollower(
            settings,
            [Source(settings.layout.challenger, settings.data)],
            _taken(arms.CHALLENGER),
            _refused(arms.CHALLENGER),
            on_vanished=lambda: metrics.policy_gone(arms.CHALLENGER),
        )
        self._assignment = arms.Assignment(settings, _refused("shares"))
        self._features = FeaturesAge(settings)
        self._look()
        self._following = Following(self._serving.follow_seconds, [self._look])
        self._following.start()
        self._guardrail = Guardrail(
            settings,
            self._index,
            self._champion,
            self._challenger,
            metrics.rolled_back,
            metrics.reward_seen,
            metrics.canary_step.set,
        )
        self._watching = Following(self._serving.guardrail.check_seconds, [self._guardrail.check])
        self._watching.start()
        self._shadow = Shadow(DayFiles(settings.layout.serving_log / "shadow", worker), _shadowed)
        self._store = StateStore(settings, _store_failed)
        self._stages = [metrics.stage_seconds.labels(stage) for stage in _STAGES]
        self._actions: dict[str, list[metrics.Gathered]] = {}
        self._closed = threading.Event()
        self._pulse = threading.Thread(target=self._measure, name="pulse", daemon=True)
        self._pulse.start()

    def close(self) -> None:
        """Write what waits, then stop every thread."""
        self._closed.set()
        self._pulse.join()
        self._following.stop()
        self._watching.stop()
        self._guardrail.close()
        self._store.close()
        self._shadow.close()
        self._decisions.close()
        self._feedback.close()
        self._decision_files.close()
        self._feedback_files.close()
        self._index.close()
        metrics.write()

    async def rank(self, body: bytes, media_type: str = JSON, accept: str = JSON) -> bytes:
        """``media_type`` of the body and ``accept`` of the answer: ``messages.JSON`` or ``BINARY``."""
        started = time.perf_counter()
        request = self._parser.rank(body, media_type)
        event_ts = request.event_ts or datetime.now(UTC)
        request_id = request.request_id or uuid.uuid4().hex
        parsed = time.perf_counter()

        session_id, held = self._session(request.user_id, request.session_id, event_ts)
        features_until = self._features.until  # before the read: the state is at least as new
        state = await self._store.read(StateRequest(request.user_id, session_id, event_ts))
        read = time.perf_counter()

        challenger = self._challenger.current
        arm = self._assignment.arm(request.user_id, held, state, challenger is not None)
        self._index.hold(request.user_id, session_id, arm)
        serving = challenger if arm == arms.CHALLENGER else self._champion.current
        decision = ranker.decide(
            arm,
            serving.timed if serving else None,
            state,
            self._fusion,
            self._serving,
            self._generator_for(arm, request_id),
            stale=self._features.stale(event_ts),
        )
        decided = time.perf_counter()

        decision, scores = ranker.score(
            decision, serving.policy if serving else None, state, request.scores, self._fusion
        )
        weights = self._fusion.to_weights(decision.action)
        shown = ranker.top(scores, request.k)
        items = request.items[shown]
        predictions = request.scores[shown].T.tolist()
        line = orjson.dumps(
            {
                "v": LINE_VERSION,
                "request_id": request_id,
                "session_id": session_id,
                "user_id": request.user_id,
                "event_ts": timestamp(event_ts),
                "policy_version": decision.policy_version,
                "arm": arm,
                "state": state,
                "action": decision.action,
                "action_mean": decision.mean,
                "log_density": decision.log_density,
                "fallback": decision.fallback,
                "state_spec": self._spec_version,
                "features_until": None if features_until is None else timestamp(features_until),
                "items": items,
                "scores": {
                    name: column
                    for name, column in zip(self._fusion.names, predictions, strict=True)
                    if name in request.given
                },
            },
            option=_NUMPY,
        )
        fused = time.perf_counter()
        entry = Entry(
            request_id,
            request.user_id,
            session_id,
            event_ts.timestamp(),
            arm,
            policy=serving.policy.sha256 if serving is not None and arm != arms.STATIC else "",
            failed=decision.fallback in ranker.POLICY_FAILURES,
            slow=fused - started > self._slow,
            bounded=int((np.abs(decision.action) > _AT_BOUND).sum()),
            entries=len(decision.action),
        )
        day = local_day(event_ts, self._offset)
        await self._decisions.add(_Decided(day, line, entry, decision.action))
        logged = time.perf_counter()
        if challenger is not None and state is not None and self._assignment.shadowed(request.user_id):
            self._shadow.add(
                Ranked(
                    day,
                    timestamp(event_ts),
                    request_id,
                    challenger.policy,
                    state,
                    request.items,
                    request.scores,
                    decision.action,
                    items,
                )
            )

        answer = encode_answer(
            {
                "request_id": request_id,
                "session_id": session_id,
                "items": items,
                "scores": scores[shown],
                "weights": dict(zip(self._fusion.names, weights.tolist(), strict=True)),
                "policy": {"version": decision.policy_version, "arm": arm, "fallback": decision.fallback},
            },
            accept,
        )
        metrics.ranked.labels(arm, decision.fallback or "none").inc()
        ends = (started, parsed, read, decided, fused, logged, time.perf_counter())
        for stage, (begun, ended) in zip(self._stages, itertools.pairwise(ends), strict=True):
            stage.observe(ended - begun)
        return answer

    async def feedback(self, body: bytes) -> bytes:
        """Log first, then move the state: a state that did not move is named in the answer."""
        request = self._parser.feedback(body)
        event_ts = request.event_ts or datetime.now(UTC)
        try:
            served = self._index.find(request.request_id)
        except sqlite3.Error as error:
            raise LogError(f"cannot read the request index: {error}") from error
        if served is not None:
            user_id, session_id = served
            if request.user_id not in (None, user_id):
                raise RequestError(f"request {request.request_id!r} was not made for user {request.user_id}")
        elif request.user_id is not None:
            user_id = request.user_id
            session_id, _ = self._session(user_id, request.session_id, event_ts)
        else:
            raise RequestError(
                f"request {request.request_id!r} is not known here: it was not ranked in the last two days, "
                "or by another machine. Send user_id and session_id with the feedback.",
                status=404,
            )
        line = orjson.dumps(
            {
                "v": LINE_VERSION,
                "request_id": request.request_id,
                "user_id": user_id,
                "event_ts": timestamp(event_ts),
                "events": request.events,
            }
        )
        events = {event["item_id"]: event for event in request.events}
        known = await self._feedback.add(
            (local_day(event_ts, self._offset), line, Fed(request.request_id, session_id, events))
        )
        assert known is not None
        moved = await self._store.feedback(
            Feedback(user_id, session_id, request.request_id, event_ts, known.now, known.before)
        )
        if not moved:
            await self._not_moved(request.request_id, list(events))
        metrics.feedback_events.inc(len(request.events))
        return orjson.dumps(
            {
                "request_id": request.request_id,
                "session_id": session_id,
                "events": len(request.events),
                "state_moved": moved,
            }
        )

    @property
    def ready(self) -> bool:
        """Fit to take traffic: policy or static weights to serve with, and a store once reached.

        A store that fails later does not make a worker unready: static weights serve until it is back.
        """
        return self._store.reached

    def status(self) -> dict[str, Any]:
        """What this worker serves, for people and ``mtf status``."""
        shares = self._assignment.shares
        return {
            "state_spec": self._spec_version,
            "heads": list(self._fusion.names),
            "champion": _described(self._champion.current),
            "challenger": _described(self._challenger.current),
            "refused": self._champion.refused,
            "challenger_refused": self._challenger.refused,
            "shares": {arm: arms.share_of(shares, arm) for arm in arms.ARMS},
            "shadow": shares.shadow,
            "shares_refused": self._assignment.refused,
            "guardrail": self._guardrail_seen(),
            "store": {
                "reached": self._store.reached,
                "healthy": self._store.healthy,
                "features_until": None if self._features.until is None else timestamp(self._features.until),
            },
            "log": {"decisions_waiting": self._decisions.queue, "feedback_waiting": self._feedback.queue},
            "pid": os.getpid(),
        }

    def _guardrail_seen(self) -> Any:
        try:
            return read_json(self._settings.layout.guardrail)
        except (OSError, ValueError):
            return None

    def _measure(self) -> None:
        """Keep the gauges up to date: a scrape reaches one worker and reads the files of all."""
        while not self._closed.wait(_PULSE_S):
            for arm in arms.ARMS:
                metrics.arm_share.labels(arm).set(arms.share_of(self._assignment.shares, arm))
            if self._features.until is not None:
                metrics.features_until.set(self._features.until.timestamp())
            metrics.store_up.set(float(self._store.healthy))
            for name, log in (("decision", self._decisions), ("feedback", self._feedback)):
                metrics.log_queue.labels(name).set(log.queue)
                metrics.log_lag.labels(name).set(log.lag)
            metrics.write()

    def _look(self) -> None:
        """Take what changed: shares last, because a canary's first step needs its policy."""
        self._champion.look()
        self._challenger.look()
        self._assignment.look()
        self._features.look()

    def _session(self, user_id: int, session_id: str | None, event_ts: datetime) -> Session:
        try:
            return self._index.session(user_id, session_id, event_ts)
        except sqlite3.Error as error:
            raise LogError(f"cannot read the request index: {error}") from error

    def _generator_for(self, arm: str, request_id: str) -> np.random.Generator:
        """Replayed traffic draws the same action for the same request; real traffic never repeats."""
        if not self._serving.accept_event_ts or arm not in arms.EXPLORING:
            return self._generator
        return replay_generator(self._settings.seed, request_id)

    async def _not_moved(self, request_id: str, items: list[int]) -> None:
        try:
            await asyncio.to_thread(self._index.not_moved, request_id, items)
        except sqlite3.Error as error:
            _log.warning("feedback sent again will not move the state", reason=str(error))

    def _commit_feedback(self, batch: list[tuple[str, bytes, Fed]]) -> list[Known]:
        self._feedback_files.write([(day, line) for day, line, _ in batch])
        return self._index.feed([fed for _, _, fed in batch])

    def _commit(self, batch: list[_Decided]) -> None:
        self._decision_files.write([(one.day, one.line) for one in batch])
        self._index.add([one.entry for one in batch])
        for one in batch:  # here, because no request waits for this thread alone
            if one.entry.arm in _POLICY_ARMS:
                for entry, value in zip(self._action(one.entry.arm), one.action.tolist(), strict=True):
                    entry.observe(value)

    def _action(self, arm: str) -> list[metrics.Gathered]:
        """The histograms of the arm's action entries, made with its first one."""
        if arm not in self._actions:
            self._actions[arm] = [metrics.action.labels(arm, name) for name in self._fusion.names]
        return self._actions[arm]


def _described(champion: Champion | None) -> dict[str, Any] | None:
    if champion is None:
        return None
    return {
        "version": champion.policy.version,
        "sha256": champion.policy.sha256,
        "kind": champion.policy.header.kind,
        "day": champion.pointer.day,
        "loaded_ts": timestamp(datetime.fromtimestamp(champion.loaded, UTC)),
    }


def _taken(arm: str) -> Callable[[Champion], None]:
    def taken(champion: Champion) -> None:
        metrics.policy_serves(
            arm,
            champion.policy.version,
            champion.policy.sha256,
            champion.loaded,
            champion.promoted,
        )

    return taken


def _refused(what: str) -> Callable[[str], None]:
    return lambda reason: metrics.refused.labels(what).inc()


def _shadowed(outcome: str, overlap: float | None) -> None:
    metrics.shadow.labels(outcome).inc()
    if overlap is not None:
        metrics.shadow_overlap.observe(overlap)


def _store_failed(operation: str) -> None:
    metrics.store_errors.labels(operation).inc()

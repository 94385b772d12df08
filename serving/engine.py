"""One worker of the service, without HTTP: bodies in, answers out, nothing lost in between."""

import asyncio
import os
import sqlite3
import threading
import time
from collections import Counter as Multiset
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import orjson
import structlog

from serving.control import metrics
from serving.control.guardrail import Guardrail
from serving.http.messages import (
    JSON,
    Parser,
    RankRequest,
    RequestError,
    encode_answer,
    local_day,
    new_id,
    timestamp,
)
from serving.log.decisions import DayFiles, LogError, encode
from serving.log.request_index import Entry, Fed, Known, RequestIndex, Session
from serving.policy.champion import Champion, ChampionFollower, Source
from serving.ranking import arms, ranker
from serving.ranking.ranker import Decision
from serving.ranking.shadow import Ranked, Shadow
from serving.running.batches import Batches, Worked
from serving.running.following import Following
from serving.state.features_age import FeaturesAge
from serving.state.store import Feedback, StateRequest, StateStore
from training.contract.exploration import replay_generator
from training.contract.files import read_json
from training.contract.log import LATE_DAYS, POLICY_FAILURES, STALE, STORE, decision_line, feedback_line
from training.contract.reward import item_reward
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.engine")
_PULSE_S = 1.0
_TOGETHER = 16  # requests ranked at once: what a batch takes is what its first request waits
_POLICY_ARMS = (arms.CHAMPION, arms.CHALLENGER)
_AT_BOUND = 0.99  # an action entry beyond it is at a bound
# of a request; "wait" is for its turn to be ranked, "queue" for the thread that writes
_STAGES = ("parse", "wait", "state", "policy", "fuse", "queue", "log")


class _Asked(NamedTuple):
    """A request on its way to be ranked; ``started`` and ``parsed`` are readings of ``perf_counter``."""

    request: RankRequest
    request_id: str
    event_ts: datetime
    accept: str
    started: float
    parsed: float


class _Decided(NamedTuple):
    """An order on its way to the disk, and what is to be done once it is there."""

    day: str
    line: bytes
    entry: Entry
    decision: Decision
    shadowed: Ranked | None
    answer: bytes
    times: list[float]  # of ``perf_counter``: when each stage of _STAGES up to the log began


class _Found(NamedTuple):
    """What is known of a request's user and session, on its way to be ranked."""

    session: Session
    state: np.ndarray | None
    until: datetime | None  # up to when its features are materialised
    begun: float  # of ``perf_counter``: when the reading began and ended
    read: float


class _Served(NamedTuple):
    """What a request is served by."""

    arm: str
    session_id: str
    serving: Champion | None  # the challenger for its arm, the champion for the others
    state: np.ndarray | None
    until: datetime | None  # up to when its features are materialised
    missing: str | None  # why there is no state to act by
    challenger: Champion | None  # for the shadow
    times: list[float]  # as in _Decided, up to the order


class Engine:
    """Answers requests of one worker process. ``worker`` names its log files.

    What needs the interpreter or the processor is done on the event loop, actions for all requests that
    came meanwhile. What waits for something is done on threads, likewise for all: the disk on one, a store
    behind a network on another (one in a local file takes less to read than a thread to wake). With more
    threads each would spend its time on the interpreter's lock, which it has to take again after every call
    that gave it up; a machine's other cores are for other workers.

    :meth:`rank` and :meth:`feedback` take a body and give the answer's. They raise
    :class:`RequestError` for what the caller did wrong and :class:`LogError` when the answer could not
    be made durable; whatever they return is on disk.
    """

    def __init__(self, settings: Settings, worker: str, sources: list[Source] | None = None) -> None:
        self._settings = settings
        self._serving = settings.serving
        self._fusion = settings.fusion
        self._spec_version = settings.state_spec.version
        self._patience = settings.serving.queue_budget_ms / 1000.0
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
        self._decisions: Batches[_Decided, bytes] = Batches("decision log", self._commit, LogError)
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
        self._ranking: Batches[_Asked, _Found] = Batches(
            "ranking",
            self._find,
            LogError,
            largest=_TOGETHER,
            then=self._rank,
            on_loop=self._store.local,
        )
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
        self._ranking.close()
        self._decisions.close()
        self._store.close()
        self._shadow.close()
        self._feedback.close()
        self._decision_files.close()
        self._feedback_files.close()
        self._index.close()
        metrics.write()

    def admit(self) -> None:
        """Raises :class:`RequestError` when a request that comes now would wait for too long: a caller who is
        refused at once can do something else meanwhile."""
        for reason, lane in ((metrics.SHED_RANKING, self._ranking), (metrics.SHED_LOG, self._decisions)):
            if lane.wait > self._patience:
                raise self._too_late(reason)

    def _too_late(self, reason: str) -> RequestError:
        metrics.shed.labels(reason).inc()
        return RequestError(
            f"more is asked than can be answered within serving.queue_budget_ms, "
            f"{self._serving.queue_budget_ms:g} ms ({reason})",
            503,
            {"retry-after": "1"},
        )

    async def rank(self, body: bytes, media_type: str = JSON, accept: str = JSON) -> bytes:
        """``media_type`` of the body and ``accept`` of the answer: ``messages.JSON`` or ``BINARY``."""
        started = time.perf_counter()
        request = self._parser.rank(body, media_type)
        event_ts = request.event_ts or datetime.now(UTC)
        request_id = request.request_id or new_id()
        asked = _Asked(request, request_id, event_ts, accept, started, time.perf_counter())
        return await self._ranking.add(asked)

    def _find(self, batch: list[_Asked]) -> list[_Found | RequestError]:
        """Sessions and states; a request that has waited too long is refused."""
        begun = time.perf_counter()
        late = [begun - one.started > self._patience for one in batch]
        in_time = [one for one, is_late in zip(batch, late, strict=True) if not is_late]
        found = iter(self._read(in_time, begun) if in_time else ())
        return [self._too_late(metrics.SHED_WAITED) if is_late else next(found) for is_late in late]

    def _read(self, batch: list[_Asked], begun: float) -> list[_Found]:
        sessions = self._sessions(
            [(one.request.user_id, one.request.session_id, one.event_ts) for one in batch]
        )
        until = self._features.until  # before the read: the states are at least as new
        states = self._store.read(
            [
                StateRequest(one.request.user_id, session_id, one.event_ts)
                for one, (session_id, _) in zip(batch, sessions, strict=True)
            ]
        )
        read = time.perf_counter()
        return [
            _Found(session, state, until, begun, read)
            for session, state in zip(sessions, states, strict=True)
        ]

    def _rank(self, batch: list[Worked]) -> None:
        """On the event loop: actions for the whole batch, and each one's order, which goes to the disk."""
        found, waiters = [], []
        for asked, answer, waiter in batch:
            if waiter[1].done():  # its request was cancelled
                continue
            if isinstance(answer, Exception):
                waiter[1].set_exception(answer)
            else:
                found.append((asked, answer))
                waiters.append(waiter)
        decided = []
        for (asked, _), (served, acted), waiter in zip(found, self._serve(found), waiters, strict=True):
            try:
                decided.append((self._order(asked, served, acted), waiter))
            except Exception as error:  # a fault of the code: the others are answered all the same
                waiter[1].set_exception(error)
        self._decisions.hand_on(decided)

    def _serve(self, batch: list[tuple[_Asked, _Found]]) -> list[tuple[_Served, ranker.Acted | None]]:
        challenger, champion = self._challenger.current, self._champion.current
        served, acted = [], []
        waiting: dict[str, list[int]] = {}  # places in the batch, by the arm whose policy they ask
        for place, (one, (session, state, until, begun, read)) in enumerate(batch):
            user_id = one.request.user_id
            arm = self._assignment.arm(user_id, session.arm, state, challenger is not None)
            self._index.hold(user_id, session.session_id, arm)
            serving = challenger if arm == arms.CHALLENGER else champion
            missing = STORE if state is None else STALE if self._features.stale(one.event_ts) else None
            times = [one.started, one.parsed, begun, read]
            served.append(_Served(arm, session.session_id, serving, state, until, missing, challenger, times))
            acted.append(None if serving is None else ranker.Acted(serving.policy.version))
            if serving is not None and missing is None and ranker.asks(arm):
                waiting.setdefault(serving.policy.sha256, []).append(place)
        for places in waiting.values():
            policy = served[places[0]].serving.timed
            answers = ranker.act(policy, np.array([served[place].state for place in places]))
            for place, answer in zip(places, answers, strict=True):
                acted[place] = answer
        decided = time.perf_counter()
        for one in served:
            one.times.append(decided)
        return list(zip(served, acted, strict=True))

    def _order(self, asked: _Asked, served: _Served, acted: ranker.Acted | None) -> _Decided:
        """The order of one request's candidates, as it is logged and answered."""
        request, request_id, arm = asked.request, asked.request_id, served.arm
        event_ts, session_id, serving, state = asked.event_ts, served.session_id, served.serving, served.state
        challenger = served.challenger
        decision = ranker.decide(
            arm,
            acted,
            served.missing,
            self._fusion,
            self._serving,
            self._generator_for(arm, request_id),
        )
        decision, weights, scores = ranker.score(
            decision, serving.policy if serving else None, state, request.scores, self._fusion
        )
        shown = ranker.top(scores, request.k)
        items = request.items[shown]
        predictions = request.scores[shown].T.tolist()
        written = timestamp(event_ts)
        line = encode(
            decision_line(
                request_id=request_id,
                session_id=session_id,
                user_id=request.user_id,
                event_ts=written,
                policy_version=decision.policy_version,
                arm=arm,
                state=state,
                action=decision.action,
                action_mean=decision.mean,
                log_density=decision.log_density,
                fallback=decision.fallback,
                state_spec=self._spec_version,
                features_until=None if served.until is None else timestamp(served.until),
                items=items,
                scores={
                    name: column
                    for name, column in zip(self._fusion.names, predictions, strict=True)
                    if name in request.given
                },
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
            asked.accept,
        )
        now = time.perf_counter()
        entry = Entry(
            request_id,
            request.user_id,
            session_id,
            event_ts.timestamp(),
            arm,
            policy=serving.policy.sha256 if serving is not None and arm != arms.STATIC else "",
            failed=decision.fallback in POLICY_FAILURES,
            slow=now - asked.started > self._slow,
            bounded=int(np.count_nonzero(np.abs(decision.action) > _AT_BOUND)),
            entries=len(decision.action),
        )
        day = local_day(event_ts, self._offset)
        shadowed = None
        if challenger is not None and state is not None and self._assignment.shadowed(request.user_id):
            shadowed = Ranked(
                day,
                written,
                request_id,
                challenger.policy,
                state,
                request.items,
                request.scores,
                decision.action,
                items,
            )
        return _Decided(day, line, entry, decision, shadowed, answer, [*served.times, now])

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
            ((session_id, _),) = self._sessions([(user_id, request.session_id, event_ts)])
        else:
            raise RequestError(
                f"request {request.request_id!r} is not known here: it was not ranked in the last "
                f"{LATE_DAYS} days, or by another machine. Send user_id and session_id with the feedback.",
                status=404,
            )
        line = encode(
            feedback_line(
                request_id=request.request_id,
                user_id=user_id,
                event_ts=timestamp(event_ts),
                events=request.events,
            )
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

    def wait_for_store(self, seconds: float) -> None:
        """Return once the store was reached or has refused, or after ``seconds``: until then, as long as its
        SDK takes to import, every answer would be by static weights."""
        self._store.wait_tried(seconds)

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

    def _sessions(self, requests: list[tuple[int, str | None, datetime]]) -> list[Session]:
        try:
            return self._index.sessions(requests)
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

    def _commit(self, batch: list[_Decided]) -> list[bytes]:
        begun = time.perf_counter()
        self._decision_files.write([(one.day, one.line) for one in batch])
        self._index.add([one.entry for one in batch])
        logged = time.perf_counter()
        for (arm, fallback), count in Multiset(
            (one.decision.arm, one.decision.fallback or "none") for one in batch
        ).items():
            metrics.ranked.labels(arm, fallback).inc(count)
        for arm in _POLICY_ARMS:
            actions = [one.decision.action for one in batch if one.entry.arm == arm]
            if actions:
                for entry, values in zip(self._action(arm), np.array(actions).T.tolist(), strict=True):
                    entry.observe_all(values)
        stages = np.diff([(*one.times, begun, logged) for one in batch])
        for stage, values in zip(self._stages, stages.T.tolist(), strict=True):
            stage.observe_all(values)
        for one in batch:
            if one.shadowed is not None:
                self._shadow.add(one.shadowed)
        return [one.answer for one in batch]

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

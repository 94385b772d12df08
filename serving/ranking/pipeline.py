"""Which way does a request for a ranking go?

    Parsed → WithState → Assigned → Chosen → Ordered → Encoded → on disk → answered

A type is named for the stage that a request of it has reached (:mod:`serving.ranking.reached`). The methods
of :class:`Pipeline` are the steps from one to the next, in this order. Requests that come at once go together
where that is cheaper: to the store, to a policy, and to the disk.

What needs the interpreter or the processor is done on the event loop, actions for all requests that
came meanwhile. What waits for something is done on threads, likewise for all: the disk on one, a store
behind a network on another (one in a local file takes less to read than a thread to wake). With more
threads each would spend its time on the interpreter's lock, which it has to take again after every call
that gave it up; a machine's other cores are for other workers.
"""

import time
from datetime import UTC, datetime

import numpy as np

from serving.control import metrics
from serving.http.answers import encode_answer
from serving.http.ids import answered, logged
from serving.http.parser import Parser
from serving.http.requests import RequestError, new_id
from serving.log.day_files import DayFiles, LogError, encode
from serving.log.index.file import FAILURES
from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.sessions import Session, SessionRequest
from serving.log.times import local_day, timestamp
from serving.policy.follower import PolicyFollower, ServedPolicy
from serving.policy.timed import TimedPolicy
from serving.ranking import arms, ranker
from serving.ranking.deviations import Deviations
from serving.ranking.measured import Measured
from serving.ranking.ranker import PolicyAnswer
from serving.ranking.reached import Assigned, Chosen, Encoded, Ordered, Parsed, WithState
from serving.ranking.shadow import Ranked, Shadow
from serving.running.batches import LoopBatches, ThreadBatches, ThreadThenLoopBatches
from serving.running.waiting import Waiter, Worked
from serving.state.features_age import FeaturesAge
from serving.state.questions import StateRequest
from serving.state.store import StateStore
from training.contract.epochs import epoch_of
from training.contract.fusion import AT_BOUND, Fusion, top
from training.contract.log import POLICY_FAILURES, STALE, STORE, decision_line
from training.contract.settings import Settings

_TOGETHER = 16  # requests ranked at once: what a batch takes is what its first request waits


class Pipeline:
    """Takes a request the whole way. :meth:`rank` belongs to the event loop.

    It raises :class:`RequestError` for what the caller did wrong and :class:`LogError` when the answer could
    not be made durable; whatever it returns is on disk. ``log`` is what waits for that.
    """

    def __init__(
        self,
        settings: Settings,
        parser: Parser,
        index: RequestIndex,
        store: StateStore,
        features: FeaturesAge,
        champion: PolicyFollower,
        challenger: PolicyFollower,
        assignment: arms.Assignment,
        files: DayFiles,
        shadow: Shadow,
    ) -> None:
        self._serving, self._fusion = settings.serving, settings.fusion
        self._spec_version, self._zone = settings.state_spec.version, settings.calendar.zone
        self._patience = settings.serving.queue_budget_ms / 1000.0
        self._slow = settings.serving.guardrail.slow_ms / 1000.0
        self._parser, self._index, self._store, self._features = parser, index, store, features
        self._champion, self._challenger, self._assignment = champion, challenger, assignment
        self._files, self._shadow = files, shadow
        self._epoch_days = settings.serving.exploration.epoch_days
        # replayed traffic carries its own time
        self._deviations = Deviations(settings, replayed=settings.serving.accept_event_ts)
        self._measured = Measured(self._fusion)
        ranking = LoopBatches if store.local and index.local else ThreadThenLoopBatches
        self._ranking = ranking("ranking", self._read_states, self._rank_batch, LogError, largest=_TOGETHER)
        self.log: ThreadBatches[Encoded, bytes] = ThreadBatches("decision log", self._write, LogError)

    def admit(self) -> None:
        """Raises :class:`RequestError` when a request that comes now would wait for too long: a caller who is
        refused at once can do something else meanwhile."""
        for reason, batches in ((metrics.SHED_RANKING, self._ranking), (metrics.SHED_LOG, self.log)):
            if batches.line.wait > self._patience:
                raise self._too_late(reason)

    async def rank(self, body: bytes, media_type: str, accept: str) -> bytes:
        """``media_type`` of the body and ``accept`` of the answer: ``JSON`` or ``BINARY``."""
        answer: bytes = await self._ranking.add(self._parse(body, media_type, accept))
        return answer

    def _parse(self, body: bytes, media_type: str, accept: str) -> Parsed:
        started = time.perf_counter()
        request = self._parser.rank(body, media_type)
        event_ts = request.event_ts or datetime.now(UTC)
        request_id = request.request_id or new_id()
        return Parsed(request, request_id, event_ts, accept, [started, time.perf_counter()])

    def _read_states(self, batch: list[Parsed]) -> list[WithState | RequestError]:
        """Of a batch, together; a request that has waited too long is refused."""
        begun = time.perf_counter()
        late = [begun - one.times[0] > self._patience for one in batch]
        in_time = [one for one, is_late in zip(batch, late, strict=True) if not is_late]
        read = iter(self._read(in_time, begun) if in_time else ())
        return [self._too_late(metrics.SHED_WAITED) if is_late else next(read) for is_late in late]

    def _read(self, batch: list[Parsed], begun: float) -> list[WithState]:
        try:
            sessions = self._index.sessions.of(
                [SessionRequest(one.request.user_id, one.request.session_id, one.event_ts) for one in batch]
            )
        except FAILURES as error:
            raise LogError(f"cannot read the request index: {error}") from error
        until = self._features.until  # before the read: the states are at least as new
        states = self._store.read(
            [
                StateRequest(one.request.user_id, session.session_id, one.event_ts)
                for one, session in zip(batch, sessions, strict=True)
            ]
        )
        read = time.perf_counter()
        for one in batch:
            one.times.extend((begun, read))
        return [
            WithState(one, session.session_id, self._epoch(session, one.event_ts), session.arm, state, until)
            for one, session, state in zip(batch, sessions, states, strict=True)
        ]

    def _epoch(self, session: Session, event_ts: datetime) -> int:
        now = epoch_of(event_ts, self._zone, self._epoch_days)
        return now if session.epoch is None else session.epoch

    def _rank_batch(self, batch: list[Worked]) -> None:
        """From the states to the line for the log, on the event loop; a fault with one request is its own."""
        waiting: list[tuple[WithState, Waiter]] = []
        for _, read, waiter in batch:
            if waiter.future.done():  # its request was cancelled
                continue
            if isinstance(read, Exception):
                waiter.future.set_exception(read)
            else:
                waiting.append((read, waiter))
        encoded: list[tuple[Encoded, Waiter]] = []
        assigned = self._assign([read for read, _ in waiting])
        for one, (_, waiter) in zip(assigned, waiting, strict=True):
            try:
                encoded.append((self._encode(self._order(self._choose(one))), waiter))
            except Exception as error:  # a fault of the code: the others are answered all the same
                waiter.future.set_exception(error)
        self.log.hand_on(encoded)

    def _assign(self, batch: list[WithState]) -> list[Assigned]:
        """Each one's arm, and what each policy answers for all of those whose arm asks it."""
        challenger, champion = self._challenger.current, self._champion.current
        drawn: list[tuple[str, ServedPolicy | None, str | None]] = []
        answers: list[PolicyAnswer | None] = []
        # the policy that each arm asks, by its digest, and the places in the batch of those who ask it
        asking: dict[str, tuple[TimedPolicy, list[int]]] = {}
        for place, read in enumerate(batch):
            user_id, state = read.parsed.request.user_id, read.state
            trying = None if challenger is None else challenger.policy.sha256
            arm = self._assignment.arm(user_id, read.epoch, read.held, state, trying)
            self._index.sessions.hold(user_id, read.session_id, arm, read.epoch)
            serving = challenger if arm == arms.CHALLENGER else champion
            stale = self._features.stale(read.parsed.event_ts)
            missing = STORE if state is None else STALE if stale else None
            drawn.append((arm, serving, missing))
            answers.append(None if serving is None else PolicyAnswer(serving.policy.version))
            if serving is not None and missing is None and ranker.asks(arm):
                _, places = asking.setdefault(serving.policy.sha256, (serving.timed, []))
                places.append(place)
        for policy, places in asking.values():
            states = np.array([batch[place].state for place in places])
            for place, answer in zip(places, ranker.act(policy, states), strict=True):
                answers[place] = answer
        now = time.perf_counter()
        for read in batch:
            read.parsed.times.append(now)
        return [
            Assigned(read, arm, serving, challenger, missing, answer)
            for read, (arm, serving, missing), answer in zip(batch, drawn, answers, strict=True)
        ]

    def _choose(self, assigned: Assigned) -> Chosen:
        read = assigned.read
        uniforms = self._deviations.of(
            read.epoch, read.parsed.request.user_id, read.session_id, read.parsed.request_id
        )
        decision = ranker.decide(
            assigned.arm, assigned.answer, assigned.missing, self._fusion, self._serving, uniforms
        )
        return Chosen(assigned, decision)

    def _order(self, chosen: Chosen) -> Ordered:
        assigned = chosen.assigned
        request = assigned.read.parsed.request
        policy = assigned.serving.policy if assigned.serving else None
        decision, weights, scores = ranker.score(
            chosen.decision, policy, assigned.read.state, request.scores, self._fusion
        )
        shown = top(scores, request.k)
        return Ordered(
            assigned, decision, weights, request.items[shown], scores[shown], request.scores[shown]
        )

    def _encode(self, ordered: Ordered) -> Encoded:
        assigned, decision = ordered.assigned, ordered.decision
        read = assigned.read
        parsed = read.parsed
        day = local_day(parsed.event_ts, self._zone)
        line = line_of(ordered, self._fusion, self._spec_version)
        answer = encode_answer(answer_of(ordered, self._fusion), parsed.accept)
        now = time.perf_counter()
        parsed.times.append(now)
        serving = assigned.serving
        served = ServedRequest(
            parsed.request_id,
            parsed.request.user_id,
            read.session_id,
            parsed.event_ts.timestamp(),
            assigned.arm,
            policy=serving.policy.sha256 if serving is not None and assigned.arm != arms.STATIC else "",
            failed=decision.fallback in POLICY_FAILURES,
            slow=now - parsed.times[0] > self._slow,
            bounded=int(np.count_nonzero(np.abs(decision.action) > AT_BOUND)),
            entries=len(decision.action),
            aside=self._assignment.by_exception(parsed.request.user_id, read.epoch, assigned.arm),
            epoch=read.epoch,
        )
        shadowed = self._shadowed(ordered, day)
        named = parsed.request.request_id is not None
        return Encoded(day, line, served, decision, shadowed, answer, parsed.times, named)

    def _write(self, batch: list[Encoded]) -> list[bytes | RequestError]:
        """The batch to the disk; then its answers may go out. A request whose id is another user's is
        refused."""
        begun = time.perf_counter()
        refused = self._claim(batch)
        answers: list[bytes | RequestError] = [refused.get(at, one.answer) for at, one in enumerate(batch)]
        batch = [one for at, one in enumerate(batch) if at not in refused]
        if not batch:
            return answers
        places = self._files.write([(one.day, one.line) for one in batch])
        self._index.add([one.served for one in batch], places)
        logged = time.perf_counter()
        self._measured.logged([one.decision for one in batch], [(*one.times, begun, logged) for one in batch])
        for one in batch:
            if one.shadowed is not None:
                self._shadow.add(one.shadowed)
        return answers

    def _claim(self, batch: list[Encoded]) -> dict[int, RequestError]:
        """Take the ids that callers made; those that are another user's, by their places in the batch."""
        made = [at for at, one in enumerate(batch) if one.named]
        if not made:
            return {}
        asked = [(batch[at].served.request_id, batch[at].served.user_id) for at in made]
        ours = self._index.claim(asked)
        return {
            at: RequestError(
                f"request_id: {request_id!r} is another user's: an id names one request", status=409
            )
            for at, (request_id, _), good in zip(made, asked, ours, strict=True)
            if not good
        }

    def close(self) -> None:
        """Rank and write what waits."""
        self._ranking.close()
        self.log.close()

    def _too_late(self, reason: str) -> RequestError:
        metrics.shed.labels(reason).inc()
        return RequestError(
            f"more is asked than can be answered within serving.queue_budget_ms, "
            f"{self._serving.queue_budget_ms:g} ms ({reason})",
            503,
            {"retry-after": "1"},
        )

    def _shadowed(self, ordered: Ordered, day: str) -> Ranked | None:
        """The request for the challenger in the shadow, for users that it ranks beside."""
        challenger, read = ordered.assigned.challenger, ordered.assigned.read
        request = read.parsed.request
        if challenger is None or read.state is None or not self._assignment.shadowed(request.user_id):
            return None
        return Ranked(
            day,
            timestamp(read.parsed.event_ts),
            read.parsed.request_id,
            challenger.policy,
            read.state,
            request.items,
            request.scores,
            ordered.decision.action,
            ordered.items,
        )


def line_of(ordered: Ordered, fusion: Fusion, state_spec: str) -> bytes:
    """The request as it is logged: a line without its newline."""
    assigned, decision = ordered.assigned, ordered.decision
    read = assigned.read
    parsed = read.parsed
    return encode(
        decision_line(
            request_id=parsed.request_id,
            session_id=read.session_id,
            user_id=parsed.request.user_id,
            event_ts=timestamp(parsed.event_ts),
            policy_version=decision.policy_version,
            arm=assigned.arm,
            state=read.state,
            action=decision.action,
            action_mean=decision.mean,
            log_density=decision.log_density,
            exploration_unit=decision.exploration_unit,
            epoch=read.epoch,
            fallback=decision.fallback,
            state_spec=state_spec,
            features_until=None if read.features_until is None else timestamp(read.features_until),
            items=logged(ordered.items),
            shown=min(parsed.request.shown, len(ordered.items)),
            scores={
                name: column
                for name, column in zip(fusion.names, ordered.predictions.T.tolist(), strict=True)
                if name in parsed.request.given
            },
        )
    )


def answer_of(ordered: Ordered, fusion: Fusion) -> dict[str, object]:
    """The request as it is answered."""
    decision, read = ordered.decision, ordered.assigned.read
    return {
        "request_id": read.parsed.request_id,
        "session_id": read.session_id,
        "items": answered(ordered.items, read.parsed.request.text_ids),
        "scores": ordered.scores,
        "weights": dict(zip(fusion.names, ordered.weights.tolist(), strict=True)),
        "policy": {
            "version": decision.policy_version,
            "arm": ordered.assigned.arm,
            "fallback": decision.fallback,
        },
    }

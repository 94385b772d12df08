"""Watches what serves: carries a canary on as its evidence allows, and takes a bad policy out by itself.

One worker of the machine does it (whoever holds the lock file), from what all workers count. Every
decision is written to the history with its reason.

An arm is judged by its requests of the last ``window_seconds`` (shares of requests without a usable
action, of slow requests beyond the static arm's, of action entries at a bound), and by its users' sessions
since its policy began: the champion's against static weights', the challenger's against the champion's
(:mod:`serving.control.evidence`). What becomes of a challenger is in :mod:`serving.control.canary`.

A clock that was set back leaves times of the future behind. Requests of then are not of the window, a
comparison that began then begins now, and a canary's step of then begins anew.
"""

import fcntl
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import IO, Any

import structlog

from serving.control import canary as canaries
from serving.control.canary import Tried
from serving.control.evidence import Difference, Evidence, evidence, recorded
from serving.log.index.counts import ArmCounts
from serving.log.index.request_index import RequestIndex
from serving.log.index.returns import ArmReturns
from serving.log.index.tallies import Comparison
from serving.policy.follower import PolicyFollower
from serving.ranking import arms
from training.contract import in_service, rollout
from training.contract.errors import InServiceError
from training.contract.files import write_json_atomic
from training.contract.in_service import InService
from training.contract.log import STATIC_VERSION
from training.contract.pointer import PolicyPointer
from training.contract.records import now as now_text
from training.contract.settings import GuardrailSettings, Settings

_LEASES = 3.0  # looks that a lease lasts: another replica looks after so many that its holder missed
_LEAST_CONTROL = 20  # requests of the static arm in the window, to compare slowness with
_DAY_S = 86_400.0
_QUICK_S = 0.1  # of processor time: a longer look at the sessions rests 20 times as long before the next
_log = structlog.get_logger("mtf.serving.guardrail")


@dataclass(frozen=True)
class Verdict:
    """``rule`` is one of failed, slow, bound, reward, refused."""

    rule: str
    reason: str


def judge(settings: GuardrailSettings, arm: ArmCounts, static: ArmCounts) -> Verdict | None:
    """What an arm's requests say against its policy; None when nothing does, or too little is known."""
    if arm.requests < settings.min_requests:
        return None
    failed, slow = arm.failed / arm.requests, arm.slow / arm.requests
    if failed > settings.max_failed_share:
        return Verdict("failed", f"{failed:.1%} of {arm.requests} requests had no usable action in time")
    # what slows every arm down is not the policy's doing: without a control nothing is said
    usual = static.slow / static.requests if static.requests >= _LEAST_CONTROL else 1.0
    if slow - usual > settings.max_slow_share:
        return Verdict(
            "slow",
            f"{slow:.1%} of {arm.requests} requests took longer than {settings.slow_ms:g} ms, "
            f"{usual:.1%} of the static arm's",
        )
    bound = arm.bounded / arm.entries if arm.entries else 0.0
    if bound > settings.max_bound_share:
        return Verdict("bound", f"{bound:.1%} of the action's entries are at a bound")
    return None


class Guardrail:
    """Changes what is in service by the number of its lease: what it decides of a policy in one piece.

    ``on_rollback`` is called with the arm and the rule that took its policy out, ``on_seen`` with each
    judged arm's difference, ``on_step`` with the canary's step (0: none runs) and whether it is held."""

    def __init__(
        self,
        settings: Settings,
        index: RequestIndex,
        champion: PolicyFollower,
        challenger: PolicyFollower,
        on_rollback: Callable[[str, str], None] = lambda arm, rule: None,
        on_seen: Callable[[str, Difference], None] = lambda arm, difference: None,
        on_step: Callable[[int, bool], None] = lambda step, held: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._serving = settings, settings.serving
        self._rules = settings.serving.guardrail
        self._index = index
        self._champion, self._challenger = champion, challenger
        self._on_rollback, self._on_seen, self._on_step = on_rollback, on_seen, on_step
        self._clock = clock
        idle = self._rules.idle_minutes
        self._idle_s = 60.0 * (settings.session.gap_minutes if idle is None else idle)
        self._found: dict[str, tuple[str, Evidence]] = {}  # by comparison: its key, and what it told last
        self._rest_until = -math.inf  # of the monotonic clock
        self._after: list[Callable[[], object]] = []  # what is said of a look's changes, once they are made
        self._lock: IO[str] | None = None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def check(self) -> None:
        """One look. Raises :class:`MtfError`, sqlite3.Error or OSError; the next look tries again."""
        if not self._is_ours() or not self._index.lead(_LEASES * self._rules.check_seconds):
            return
        seen: dict[str, Any] = {"checked_ts": now_text(), "arms": {}}
        try:
            self._change(lambda row: self._watch(row, seen))
            # apart from it: where there is no way back for the champion, the challenger is out all the same
            self._change(lambda row: self._judge_champion(row, seen))
        except InServiceError as error:
            _log.error("guardrail refused", reason=str(error))
            return
        seen["canary"] = left = in_service.read(self._settings).canary
        self._on_step(*((0, False) if left is None else (left["step"] + 1, left.get("paused") is not None)))
        write_json_atomic(self._settings.layout.guardrail, seen)

    def _change(self, decide: Callable[[InService], None]) -> None:
        self._after = []
        with in_service.changing(self._settings, self._index.fence) as row:
            decide(row)
        for tell in self._after:
            tell()

    def _watch(self, row: InService, seen: dict[str, Any]) -> None:
        challenger, champion = row.challenger, row.champion
        canary = None if challenger is None else self._canary_of(row, challenger)
        stratum = self._look(row, champion, challenger, canary)
        if challenger is not None and canary is not None:
            self._try(row, challenger, canary, champion, stratum, seen)

    def _judge_champion(self, row: InService, seen: dict[str, Any]) -> None:
        champion = row.champion
        if champion is None or champion.version == STATIC_VERSION or not self._compared(champion):
            return  # a new one has brought nothing yet
        verdict = self._verdict(arms.CHAMPION, champion, _began(champion), seen)
        if verdict is not None:
            target = rollout.step_back(row, f"guardrail, {verdict.rule}: {verdict.reason}", to_static=True)
            self._after.append(partial(self._rolled_back, arms.CHAMPION, champion, verdict, target.version))

    def _compared(self, champion: PolicyPointer) -> bool:
        found = self._found.get(arms.CHAMPION)
        return found is not None and found[0] == _key(champion)

    def _canary_of(self, row: InService, challenger: PolicyPointer) -> dict[str, Any]:
        canary = row.canary
        if canary is not None and canary["sha256"] == challenger.sha256:
            return {"paused": None, "lifted": [], **canary}
        return {
            "sha256": challenger.sha256,
            "version": challenger.version,
            "step": -1,
            "began": _began(challenger) if self._settings.gate.evidence == "offline" else self._clock(),
            "paused": None,
            "lifted": [],
        }

    def _look(
        self,
        row: InService,
        champion: PolicyPointer | None,
        challenger: PolicyPointer | None,
        canary: dict[str, Any] | None,
    ) -> float:
        """Count the sessions that rest by now, and read what they tell; returns the present stratum."""
        now, started = self._clock(), time.thread_time()
        tallies = self._index.tallies
        stratum = tallies.shares(row.shares.model_dump_json(), now)
        comparisons = []
        if champion is not None and champion.version != STATIC_VERSION:
            mine = [(arms.CHAMPION, champion.sha256)]
            static = [(arms.STATIC, "")]
            comparisons.append(Comparison(arms.CHAMPION, _key(champion), _began(champion), mine, static))
        if challenger is not None and canary is not None:
            control = _control(champion)
            key = f"{challenger.sha256} {canary['began']} {control}"
            mine = [(arms.CHALLENGER, challenger.sha256)]
            comparisons.append(Comparison(arms.CHALLENGER, key, canary["began"], mine, control))
        tallies.add(comparisons, now - self._idle_s, now)
        keys = {one.name: one.key for one in comparisons}
        told = {name: key for name, (key, _) in self._found.items()}
        if keys != told or time.monotonic() >= self._rest_until:
            error, tuned = 1.0 - self._rules.confidence, canaries.tuned_to(self._serving)
            self._found = {
                one.name: (one.key, evidence(tallies, one.name, error, tuned)) for one in comparisons
            }
            took = time.thread_time() - started
            self._rest_until = time.monotonic() + (20.0 * took if took > _QUICK_S else 0.0)
        for name, (_, found) in self._found.items():
            if found.reward is not None:
                self._on_seen(name, found.reward)
        return stratum

    def _try(
        self,
        row: InService,
        challenger: PolicyPointer,
        canary: dict[str, Any],
        champion: PolicyPointer | None,
        stratum: float,
        seen: dict[str, Any],
    ) -> None:
        """The challenger's canary: out, promoted, ended, held, on to the next step, or where it is."""
        settings, now = self._settings, self._clock()
        current = self._challenger.current
        loaded = current is not None and current.policy.sha256 == challenger.sha256
        refused = None if self._challenger.waiting else self._challenger.refused
        verdict = (
            Verdict("refused", refused)
            if refused is not None and not loaded
            else self._verdict(arms.CHALLENGER, challenger, canary["began"], seen)
        )
        if verdict is not None:
            rollout.withdraw_challenger(row, f"guardrail, {verdict.rule}: {verdict.reason}")
            self._after.append(partial(self._rolled_back, arms.CHALLENGER, challenger, verdict, None))
            return
        # without a canary a person decides: `mtf arms --challenger`
        if not loaded or settings.gate.evidence == "offline":
            return
        found = self._found[arms.CHALLENGER][1]
        if canary["step"] >= 0:
            if canary["since"] > now:
                row.canary = {**canary, "since": now, "began": min(canary["began"], now)}
                return
            over = self._step_over(challenger, canary)
            climbed = over and canary["step"] + 1 >= len(self._serving.canary)
            share = self._share(row, champion) if found.newest[0] == stratum else None
            tried = Tried((now - canary["began"]) / _DAY_S, climbed, share, canary["lifted"])
            move = canaries.decide(self._serving, found, tried)
            if move.what == "promote":
                gain = recorded(found)
                rollout.complete_canary(row, f"canary: {move.reason}", {"by": "canary", **gain})
                self._say("canary completed", version=challenger.version, reason=move.reason)
                return
            if move.what == "end":
                rollout.end_canary(row, f"canary: {move.reason}")
                self._say("canary ended", version=challenger.version, reason=move.reason)
                return
            canary = self._held(row, challenger, canary, move if move.what == "pause" else None)
            if move.what == "pause" or climbed or not over:
                return
        self._step(row, challenger, canary, champion)

    def _step_over(self, challenger: PolicyPointer, canary: dict[str, Any]) -> bool:
        """Whether the present step has had its minutes and requests."""
        now = self._clock()
        counts = self._index.counts.between(canary["since"], now).get(
            (arms.CHALLENGER, challenger.sha256), ArmCounts()
        )
        step = self._serving.canary[min(canary["step"], len(self._serving.canary) - 1)]
        return bool(now - canary["since"] >= 60.0 * step.minutes and counts.requests >= step.requests)

    def _step(
        self,
        row: InService,
        challenger: PolicyPointer,
        canary: dict[str, Any],
        champion: PolicyPointer | None,
    ) -> None:
        steps, now = self._serving.canary, self._clock()
        at = canary["step"] + 1
        if at >= len(steps):  # the settings have fewer steps than when it began
            return
        plan = self._plan(champion, steps[-1].share)
        share = steps[at].share
        shares = row.change_shares(
            {"challenger": share},
            f"step {at + 1} of {len(steps)} of {challenger.version}'s canary; {plan['reason']}",
        )
        row.canary = {**canary, "step": at, "share": share, "since": now, "plan": plan}
        self._after.append(partial(self._index.tallies.shares, shares.model_dump_json(), now))
        self._say("canary step", version=challenger.version, step=at + 1, share=share, plan=plan["reason"])

    def _plan(self, champion: PolicyPointer | None, share: float) -> dict[str, Any]:
        now = self._clock()
        recent = self._index.returns.of_sessions(now - _DAY_S, now)
        control = [recent[key] for key in _control(champion) if key in recent]
        first = min((one.first for one in recent.values()), default=now)
        # an hour says little of a day, less says nothing
        days = max(now - first, 3_600.0) / _DAY_S
        before = ArmReturns(
            sum(one.sessions for one in control),
            sum(one.total for one in control),
            sum(one.squares for one in control),
        )
        told = self._found.get(arms.CHALLENGER) or self._found.get(arms.CHAMPION)
        found = None if told is None else told[1]
        if found is not None and min(found.sessions) < self._rules.min_sessions:
            found = None
        return canaries.plan(
            self._serving, found, before, sum(one.sessions for one in recent.values()) / days, share
        )

    def _held(
        self,
        row: InService,
        challenger: PolicyPointer,
        canary: dict[str, Any],
        pause: canaries.Move | None,
    ) -> dict[str, Any]:
        """The canary with its pause, or without the one that is over; the history says either."""
        before = canary["paused"]
        if (None if pause is None else pause.rule) == (None if before is None else before["rule"]):
            return canary
        why = f"{before['rule']} holds it no longer" if pause is None else f"{pause.rule}: {pause.reason}"
        row.append(
            {
                "action": "resume" if pause is None else "pause",
                "version": challenger.version,
                "sha256": challenger.sha256,
                "reason": f"canary, {why}",
            }
        )
        what = "canary held" if pause else "canary goes on"
        self._say(what, version=challenger.version, reason=why)
        paused = None if pause is None else {"rule": pause.rule, "reason": pause.reason, "ts": now_text()}
        row.canary = changed = {**canary, "paused": paused}
        return changed

    def _share(self, row: InService, champion: PolicyPointer | None) -> float | None:
        """The challenger's share of the users of both sides, as the shares are."""
        shares = row.shares
        own = shares.challenger
        control = sum(arms.share_of(shares, arm) for arm in {arm for arm, _ in _control(champion)})
        return own / (own + control) if own > 0.0 and control > 0.0 else None

    def _verdict(
        self, arm: str, pointer: PolicyPointer, began: float, seen: dict[str, Any]
    ) -> Verdict | None:
        rules, now = self._rules, self._clock()
        window = now - rules.window_seconds
        began = window if began > now else began
        counts = self._index.counts.between(max(began, window), now)
        mine, control = (counts.get(key, ArmCounts()) for key in ((arm, pointer.sha256), (arms.STATIC, "")))
        found = self._found[arm][1]
        verdict = judge(rules, mine, control)
        rival = "static weights'" if arm == arms.CHAMPION else "the champion's"
        if verdict is None and (worse := canaries.loss(rules, found, rival)) is not None:
            verdict = Verdict("reward", worse)
        seen["arms"][arm] = {
            "version": pointer.version,
            "window": vars(mine),
            "evidence": {**recorded(found), "reason": canaries.tell(found)},
            "verdict": None if verdict is None else f"{verdict.rule}: {verdict.reason}",
        }
        return verdict

    def _say(self, event: str, **about: Any) -> None:
        self._after.append(partial(_log.info, event, **about))

    def _rolled_back(self, arm: str, pointer: PolicyPointer, verdict: Verdict, to: str | None) -> None:
        self._on_rollback(arm, verdict.rule)
        about = {"version": pointer.version, "rule": verdict.rule, "reason": verdict.reason}
        _log.error("rolled back", arm=arm, to=to, **about)

    def _is_ours(self) -> bool:
        """Whether this worker is the one that watches; the lock goes with its process."""
        if self._lock is not None:
            return True
        path = self._settings.layout.serving / "guardrail.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._lock = file
        return True


def _control(champion: PolicyPointer | None) -> list[tuple[str, str]]:
    """What a challenger is held against: the champion, or everybody whom static weights serve."""
    if champion is None:
        return [(arms.CHAMPION, ""), (arms.STATIC, "")]
    own = [(arms.CHAMPION, champion.sha256)]
    return [*own, (arms.STATIC, "")] if champion.version == STATIC_VERSION else own


def _key(champion: PolicyPointer) -> str:
    """Of its comparison."""
    return f"{champion.sha256} {champion.promoted_ts}"


def _began(pointer: PolicyPointer) -> float:
    return datetime.fromisoformat(pointer.promoted_ts).timestamp()

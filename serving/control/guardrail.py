"""Watches what serves: carries a canary on step by step, and takes a bad policy out by itself.

One worker of the machine does it (whoever holds the lock file), from what all workers count. Every
decision is written to the history with its reason.

An arm is judged by its requests of the last ``window_seconds`` (shares of requests without a usable
action, of slow requests beyond the static arm's, of action entries at a bound), and by its sessions
since its policy began: it is taken out when the upper end of its mean session reward is below the lower
end of static's. Both ends are of asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy,
Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", 2021, arXiv 2103.06476,
theorem 2.2), each at half of the error: they hold at every look at once, so looking often costs
nothing, and two intervals that must not overlap are more careful than one of the difference.

A clock that was set back leaves times of the future behind. Requests of then are not of the window, a policy
that began then is judged by the window alone, and a canary's step of then begins anew.
"""

import fcntl
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

import structlog

from serving.log.index.counts import ArmCounts
from serving.log.index.request_index import RequestIndex
from serving.log.index.returns import ArmReturns
from serving.policy.champion import ChampionFollower
from serving.ranking import arms
from training.contract import history, rollout
from training.contract.errors import MtfError
from training.contract.files import read_json, write_json_atomic
from training.contract.log import STATIC_VERSION
from training.contract.pointer import ChampionPointer, read_champion
from training.contract.settings import GuardrailSettings, Settings
from training.contract.shares import change_shares

_LEAST_CONTROL = 20  # requests of the static arm in the window, to compare slowness with
_log = structlog.get_logger("mtf.serving.guardrail")


@dataclass(frozen=True)
class Interval:
    """Mean session reward of an arm, with its confidence sequence at this many sessions."""

    sessions: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """``rule`` is one of failed, slow, bound, reward."""

    rule: str
    reason: str


def interval(returns: ArmReturns, error: float, tuned_to: int) -> Interval:
    """Mean ± σ̂ √(2 (tρ² + 1) / (t²ρ²) · log(√(tρ² + 1) / α)), α = ``error``, after t sessions.

    ρ makes it narrowest at ``tuned_to`` sessions. Without two sessions it is infinitely wide.
    """
    t = returns.sessions
    if t < 2:
        return Interval(t, returns.total, -math.inf, math.inf)
    mean = returns.total / t
    variance = max(0.0, (returns.squares - t * mean * mean) / (t - 1))
    twice = -2.0 * math.log(error)
    rho2 = (twice + math.log(twice + 1.0)) / tuned_to
    scaled = t * rho2 + 1.0
    half = math.sqrt(variance * 2.0 * scaled / (t * t * rho2) * math.log(math.sqrt(scaled) / error))
    return Interval(t, mean, mean - half, mean + half)


def judge(
    settings: GuardrailSettings, arm: ArmCounts, static: ArmCounts, reward: Interval, control: Interval
) -> Verdict | None:
    """What speaks against an arm's policy; None when nothing does, or too little is known."""
    if arm.requests >= settings.min_requests:
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
    enough = min(reward.sessions, control.sessions) >= settings.min_sessions
    if enough and reward.high < control.low:
        return Verdict(
            "reward",
            f"mean session reward {reward.mean:.4g} ({reward.low:.4g} to {reward.high:.4g}, "
            f"{reward.sessions} sessions) is below static's {control.mean:.4g} ({control.low:.4g} to "
            f"{control.high:.4g}, {control.sessions} sessions)",
        )
    return None


class Guardrail:
    """``on_rollback`` is called with the arm and the rule that took its policy out, ``on_seen`` with
    each judged arm's interval, ``on_step`` with the canary's step (0: none runs)."""

    def __init__(
        self,
        settings: Settings,
        index: RequestIndex,
        champion: ChampionFollower,
        challenger: ChampionFollower,
        on_rollback: Callable[[str, str], None] = lambda arm, rule: None,
        on_seen: Callable[[str, Interval], None] = lambda arm, interval: None,
        on_step: Callable[[int], None] = lambda step: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._rules = settings.serving.guardrail
        self._index = index
        self._champion, self._challenger = champion, challenger
        self._on_rollback, self._on_seen, self._on_step = on_rollback, on_seen, on_step
        self._clock = clock
        idle = self._rules.idle_minutes
        self._idle_s = 60.0 * (settings.session.gap_minutes if idle is None else idle)
        self._lock: IO[str] | None = None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def check(self) -> None:
        """One look. Raises :class:`MtfError`, sqlite3.Error or OSError; the next look tries again."""
        if not self._is_ours():
            return
        seen: dict[str, Any] = {"checked_ts": history.now(), "arms": {}}
        with history.changing(self._settings.layout):
            challenger = read_champion(self._settings.layout.challenger)
            if challenger is not None:
                self._try(challenger, seen)
            champion = read_champion(self._settings.layout.champion)
            if champion is not None and champion.version != STATIC_VERSION:
                began = datetime.fromisoformat(champion.promoted_ts).timestamp()
                verdict = self._verdict(arms.CHAMPION, champion, began, seen)
                if verdict is not None:
                    target = rollout.step_back(
                        self._settings, f"guardrail, {verdict.rule}: {verdict.reason}", to_static=True
                    )
                    self._rolled_back(arms.CHAMPION, champion, verdict.rule, verdict.reason, target.version)
        canary = _read_canary(self._settings)
        seen["canary"] = canary
        self._on_step(0 if canary is None else canary["step"] + 1)
        write_json_atomic(self._settings.layout.guardrail, seen)

    def _try(self, challenger: ChampionPointer, seen: dict[str, Any]) -> None:
        """The challenger's canary: out, on to the next step, or where it is."""
        settings, now = self._settings, self._clock()
        canary = _read_canary(settings)
        if canary is None or canary["sha256"] != challenger.sha256:
            canary = {"sha256": challenger.sha256, "version": challenger.version, "step": -1, "began": now}
        current = self._challenger.current
        loaded = current is not None and current.policy.sha256 == challenger.sha256
        refused = self._challenger.refused
        verdict = (
            Verdict("refused", refused)
            if refused is not None and not loaded
            else self._verdict(arms.CHALLENGER, challenger, canary["began"], seen)
        )
        if verdict is not None:
            rollout.withdraw_challenger(settings, f"guardrail, {verdict.rule}: {verdict.reason}")
            self._rolled_back(arms.CHALLENGER, challenger, verdict.rule, verdict.reason, None)
            return
        steps = settings.serving.canary
        if not loaded or not steps:  # without steps a person decides: `mtf arms --challenger`
            return
        at = canary["step"]
        if at >= 0 and canary["since"] > now:
            write_json_atomic(settings.layout.canary, {**canary, "since": now})
            return
        if at >= 0:
            counts = self._index.counts.between(canary["since"], now).get(
                (arms.CHALLENGER, challenger.sha256), ArmCounts()
            )
            step = steps[min(at, len(steps) - 1)]
            if now - canary["since"] < 60.0 * step.minutes or counts.requests < step.requests:
                return
        at += 1
        if at >= len(steps):
            rollout.complete_canary(settings, f"its canary of {len(steps)} steps found nothing against it")
            _log.info("canary completed", version=challenger.version)
            return
        share = steps[at].share
        change_shares(
            settings, {"challenger": share}, f"step {at + 1} of {len(steps)} of {challenger.version}'s canary"
        )
        write_json_atomic(settings.layout.canary, {**canary, "step": at, "share": share, "since": now})
        _log.info("canary step", version=challenger.version, step=at + 1, share=share)

    def _verdict(
        self, arm: str, pointer: ChampionPointer, began: float, seen: dict[str, Any]
    ) -> Verdict | None:
        rules, now = self._rules, self._clock()
        window = now - rules.window_seconds
        began = window if began > now else began
        counts = self._index.counts.between(max(began, window), now)
        returns = self._index.returns.of_sessions(began, now - self._idle_s)
        error = (1.0 - rules.confidence) / 2.0
        intervals = {
            name: interval(returns.get(key, ArmReturns()), error, rules.min_sessions)
            for name, key in ((arm, (arm, pointer.sha256)), (arms.STATIC, (arms.STATIC, "")))
        }
        mine, control = (counts.get(key, ArmCounts()) for key in ((arm, pointer.sha256), (arms.STATIC, "")))
        for name, one in intervals.items():
            if one.sessions >= 2:
                self._on_seen(name, one)
        verdict = judge(rules, mine, control, intervals[arm], intervals[arms.STATIC])
        seen["arms"][arm] = {
            "version": pointer.version,
            "window": vars(mine),
            "reward": _plain(intervals[arm]),
            "static_reward": _plain(intervals[arms.STATIC]),
            "verdict": None if verdict is None else f"{verdict.rule}: {verdict.reason}",
        }
        return verdict

    def _rolled_back(
        self, arm: str, pointer: ChampionPointer, rule: str, reason: str, to: str | None
    ) -> None:
        self._on_rollback(arm, rule)
        _log.error("rolled back", arm=arm, version=pointer.version, rule=rule, reason=reason, to=to)

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


def _read_canary(settings: Settings) -> dict[str, Any] | None:
    try:
        canary: dict[str, Any] = read_json(settings.layout.canary)
        return canary
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise MtfError(f"{settings.layout.canary} is not JSON: {error}") from error


def _plain(one: Interval) -> Mapping[str, float | int | None]:
    return {
        name: value if math.isfinite(value) else None  # JSON has no infinity
        for name, value in vars(one).items()
    }

"""Follows a pointer, the champion's or the challenger's: loads beside what serves, checks, warms, then swaps.

A swap is one assignment of an immutable value, so a request sees the old policy or the new one and
never waits. Whatever cannot be served is refused with its reason, and what served before serves on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import structlog

from serving.policy.compiled import compiled
from serving.policy.timed import TimedPolicy
from training.contract.errors import PolicyError
from training.contract.fusion import Head
from training.contract.pointer import PolicyPointer, read_pointer
from training.contract.policy import Policy, load_policy
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.policy")
_WARM_STATES = 8


@dataclass(frozen=True)
class ServedPolicy:
    policy: Policy
    pointer: PolicyPointer
    loaded: float  # epoch seconds
    timed: TimedPolicy

    @property
    def promoted(self) -> float | None:
        """Epoch seconds; None for a candidate that nobody has promoted yet (a Bento's smoke test)."""
        written = self.pointer.promoted_ts
        return datetime.fromisoformat(written).timestamp() if written else None


@dataclass(frozen=True)
class Source:
    """A pointer file and the folder that its policy path is relative to."""

    pointer: Path
    root: Path


class PolicyFollower:
    """Keeps :attr:`current` at what the first existing pointer of ``sources`` names.

    ``sources`` are asked in order: the data folder's pointer, then the one packed into a Bento, so a
    Bento serves its own policy until the data folder has one. A champion's pointer that vanishes
    changes nothing; with ``on_vanished`` (the challenger's) nothing is current then.
    ``on_refused`` is called once for each refused version of the files.
    """

    def __init__(
        self,
        settings: Settings,
        sources: list[Source] | None = None,
        on_swapped: Callable[[ServedPolicy], None] = lambda taken: None,
        on_refused: Callable[[str], None] = lambda reason: None,
        *,
        on_vanished: Callable[[], None] | None = None,
    ) -> None:
        self._on_vanished = on_vanished
        self._budget = settings.serving.policy_budget_ms / 1000.0
        self._spec = settings.state_spec
        self._heads = _behaviour(settings.fusion.heads)
        self._sources = sources or [Source(settings.layout.champion, settings.data)]
        self._on_swapped = on_swapped
        self._on_refused = on_refused
        self._current: ServedPolicy | None = None
        self._previous: ServedPolicy | None = None
        self._refused: str | None = None
        self._seen: tuple[object, ...] | None = None

    @property
    def current(self) -> ServedPolicy | None:
        """What to serve now; None before the first promotion."""
        return self._current

    @property
    def refused(self) -> str | None:
        """Why the files as they are now are not what is served; None when they are."""
        return self._refused

    def look(self) -> bool:
        """Take what the pointer names if its file changed; True when a swap happened."""
        source = next((s for s in self._sources if s.pointer.exists()), None)
        if source is None:
            if self._on_vanished is not None and self._seen is not None:
                self._current, self._refused, self._seen = None, None, None
                self._on_vanished()
                _log.info("policy gone", pointer=self._sources[0].pointer.stem)
            self._refused = None  # what was refused is not there any more
            return False
        seen: tuple[object, ...] = (source.pointer,)
        try:
            seen = (source.pointer, _signature(source.pointer))
            pointer = read_pointer(source.pointer)
            if pointer is None:
                return False
            path = source.root / pointer.policy
            seen = (*seen, _signature(path))
        except (PolicyError, OSError) as error:
            self._refuse(seen, str(error))
            return False
        if seen == self._seen:
            return False
        try:
            taken = self._take(path, pointer)
        except (PolicyError, OSError) as error:
            self._refuse(seen, str(error))
            return False
        self._seen, self._refused = seen, None
        self._previous, self._current = self._current, taken
        self._on_swapped(taken)
        _log.info("policy taken", pointer=source.pointer.stem, version=pointer.version)
        return True

    def _take(self, path: Path, pointer: PolicyPointer) -> ServedPolicy:
        for kept in (self._current, self._previous):  # a rollback needs no file
            if kept is not None and kept.policy.sha256 == pointer.sha256:
                return replace(kept, pointer=pointer, loaded=time.time())
        policy = compiled(load_policy(path, pointer.sha256))
        header = policy.header
        if header.version != pointer.version:
            raise PolicyError(f"{path} is version {header.version}, the pointer names {pointer.version}")
        if header.spec.version != self._spec.version:
            raise PolicyError(
                f"{path} was trained on state specification {header.spec.version}, "
                f"this service assembles {self._spec.version}"
            )
        if _behaviour(header.fusion.heads) != self._heads:
            raise PolicyError(
                f"{path} has heads {', '.join(header.fusion.names)} with other names, β or bounds "
                "than the settings"
            )
        fastest = self._warm(policy)
        if fastest > self._budget:
            raise PolicyError(
                f"{path} takes {fastest * 1000:.0f} ms a state at best, more than serving.policy_budget_ms, "
                f"{self._budget * 1000:g}"
            )
        # half of the budget, for a machine that is busier than it is now
        at_once = max(1, int(0.5 * self._budget / fastest))
        return ServedPolicy(policy, pointer, time.time(), TimedPolicy(policy, self._budget, at_once=at_once))

    def _warm(self, policy: Policy) -> float:
        """Smoke requests, one state each; the shortest time. Raises :class:`PolicyError`."""
        states = np.random.default_rng(0).standard_normal((_WARM_STATES, self._spec.width))
        seconds = []
        for state in states.astype(np.float32):
            started = time.perf_counter()
            actions = policy.act(state[None, :])
            seconds.append(time.perf_counter() - started)
            if policy.ranks:
                policy.scores(np.zeros((1, 2, len(self._heads))), state[None, :], actions)
        return min(seconds)

    def _refuse(self, seen: tuple[object, ...], reason: str) -> None:
        if seen == self._seen:
            return
        self._seen, self._refused = seen, reason
        self._on_refused(reason)
        serving = self._current.policy.version if self._current else "static"
        _log.error("policy refused", reason=reason, serving_on=serving)


def _signature(path: Path) -> tuple[int, int, int]:
    """Changes with every atomic replacement of a file. Raises OSError when there is none."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _behaviour(heads: tuple[Head, ...]) -> tuple[Head, ...]:
    """Heads without what a policy's actions do not depend on: the hand-tuned weight."""
    return tuple(replace(head, static=head.low) for head in heads)

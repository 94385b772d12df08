"""Follows a pointer, the champion's or the challenger's: loads beside what serves, checks, warms, then swaps.

A swap is one assignment of an immutable value, so a request sees the old policy or the new one and
never waits. Whatever cannot be served is refused with its reason, and what served before serves on.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Protocol

import numpy as np
import structlog

from serving.policy.compiled import compiled
from serving.policy.timed import TimedPolicy
from training.contract import in_service
from training.contract.errors import InServiceError, ObjectStoreError, PolicyError
from training.contract.fusion import Head
from training.contract.in_service import policies
from training.contract.log import CHAMPION
from training.contract.pointer import PolicyPointer, read_pointer
from training.contract.policy import Policy, load_policy
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.policy")
_WARM_STATES = 8
_FETCH_WAIT_S = 2.0  # of a look for a file that is fetched; the next ones see whether it is there


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


class Source(Protocol):
    """Where a pointer is, and the file that it names."""

    name: str

    def read(self) -> PolicyPointer | None:
        """None where there is none. Raises :class:`PolicyError`, :class:`InServiceError` or OSError."""

    def file(self, pointer: PolicyPointer) -> Path:
        """Raises :class:`ObjectStoreError` until it is on this disk, and :class:`PolicyError`."""


class InServiceSource:
    """What is in service as ``arm``, champion or challenger. A file that this disk lacks is fetched on a
    thread of its own, so that a store that does not answer holds up nothing else that is followed."""

    def __init__(self, settings: Settings, arm: str) -> None:
        self.name, self._settings = arm, settings
        self._fetched: tuple[str, Future[Path]] | None = None

    def read(self) -> PolicyPointer | None:
        row = in_service.read(self._settings)
        return row.champion if self.name == CHAMPION else row.challenger

    def file(self, pointer: PolicyPointer) -> Path:
        if policies.is_here(self._settings, pointer):
            return self._settings.data / pointer.policy
        wait_s = 0.0
        if self._fetched is None or self._fetched[0] != pointer.sha256:
            future: Future[Path] = Future()
            self._fetched, wait_s = (pointer.sha256, future), _FETCH_WAIT_S
            Thread(target=self._fetch, args=(pointer, future), name="fetching", daemon=True).start()
        try:
            path = self._fetched[1].result(wait_s)
        except TimeoutError:
            raise ObjectStoreError(
                f"policy {pointer.version} is being fetched from {self._settings.serving.ship.to}"
            ) from None
        except Exception:
            self._fetched = None  # the next look tries again
            raise
        self._fetched = None
        return path

    def _fetch(self, pointer: PolicyPointer, future: "Future[Path]") -> None:
        try:
            future.set_result(policies.file_of(self._settings, pointer))
        except Exception as error:  # it is the look's, which waits for it
            future.set_exception(error)


class PackedSource:
    """A pointer file, and the policy beside it: what a Bento brings."""

    def __init__(self, pointer: Path) -> None:
        self.name, self._pointer = "packed", pointer

    def read(self) -> PolicyPointer | None:
        return read_pointer(self._pointer)

    def file(self, pointer: PolicyPointer) -> Path:
        return self._pointer.parent / pointer.policy


class PolicyFollower:
    """Keeps :attr:`current` at what the first pointer that is there of ``sources`` names.

    ``sources`` are asked in order: what is in service, then what is packed into a Bento, so a Bento serves
    its own policy until there is a champion. A champion's pointer that vanishes changes nothing; with
    ``on_vanished`` (the challenger's) nothing is current then. ``on_refused`` is called once for each
    refused pointer and file, and each reason for which they cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[Source] | None = None,
        on_swapped: Callable[[ServedPolicy], None] = lambda taken: None,
        on_refused: Callable[[str], None] = lambda reason: None,
        *,
        on_vanished: Callable[[], None] | None = None,
    ) -> None:
        self._on_vanished = on_vanished
        self._budget = settings.serving.policy_budget_ms / 1000.0
        self._spec = settings.state_spec
        self._heads = _behaviour(settings.fusion.heads)
        self._sources = sources or [InServiceSource(settings, CHAMPION)]
        self._on_swapped = on_swapped
        self._on_refused = on_refused
        self._current: ServedPolicy | None = None
        self._previous: ServedPolicy | None = None
        self._refused: str | None = None
        self._seen: tuple[object, ...] | None = None
        self._waiting = False
        self._taken: tuple[object, ...] | None = None  # what was seen of what is current

    @property
    def current(self) -> ServedPolicy | None:
        """What to serve now; None before the first promotion."""
        return self._current

    @property
    def refused(self) -> str | None:
        """Why what the pointer names now is not what is served; None when it is."""
        return self._refused

    @property
    def waiting(self) -> bool:
        """Whether it is refused only because Redis or the object store does not give it now."""
        return self._waiting

    def look(self) -> bool:
        """Take what the pointer names if that, or its file, changed; True when a swap happened."""
        source, seen = self._sources[0], tuple[object, ...]()
        try:
            for source in self._sources:
                if (pointer := source.read()) is not None:
                    break
            else:
                self._gone()
                return False
            path = source.file(pointer)
            seen = (source.name, pointer)
            seen = (*seen, _signature(path))
            if seen in (self._seen, self._taken):
                if seen == self._taken:
                    self._seen, self._refused, self._waiting = seen, None, False  # it is told again
                return False
            taken = self._take(path, pointer)
        except (PolicyError, InServiceError, OSError) as error:
            # what has no file to look at is tried again: a store or Redis may be back
            self._waiting = isinstance(error, InServiceError | ObjectStoreError)
            self._refuse(seen or (source.name, str(error)), str(error))
            return False
        self._seen = self._taken = seen
        self._refused, self._waiting = None, False
        if self._current is None or self._current.policy is not taken.policy:
            self._previous = self._current
        self._current = taken
        self._on_swapped(taken)
        _log.info("policy taken", pointer=source.name, version=pointer.version)
        return True

    def _gone(self) -> None:
        if self._on_vanished is not None and self._seen is not None:
            self._current = self._seen = self._taken = None
            self._on_vanished()
            _log.info("policy gone", pointer=self._sources[0].name)
        self._refused, self._waiting = None, False  # what was refused is not there any more

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

"""What is one worker of the service made of? Bodies in, answers out, nothing lost in between; no HTTP."""

import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from serving.control import metrics
from serving.control.guardrail import Guardrail
from serving.http.parser import Parser
from serving.http.requests import JSON
from serving.log.day_files import DayFiles
from serving.log.feedback import FeedbackPipeline
from serving.log.index.request_index import RequestIndex
from serving.log.ranked_lines import RankedLines
from serving.log.shipping import Shipper
from serving.log.times import timestamp
from serving.policy.follower import InServiceSource, PolicyFollower, ServedPolicy, Source
from serving.ranking import arms
from serving.ranking.pipeline import Pipeline
from serving.ranking.shadow import Shadow
from serving.running.following import Following
from serving.state.features_age import FeaturesAge
from serving.state.store import StateStore
from training.contract.databases import redis_client
from training.contract.files import read_json
from training.contract.reward import is_negative, item_reward
from training.contract.settings import Settings

_PULSE_S = 1.0
_SHIPPED_S = 1.0  # that a worker which ends waits for the object store: the next one ships what is left


class Engine:
    """Answers requests of one worker process. ``worker`` names its log files.

    :meth:`rank` and :meth:`feedback` take a body and give the answer's; they raise what
    :class:`Pipeline` and :class:`FeedbackPipeline` say.
    """

    def __init__(self, settings: Settings, worker: str, sources: Sequence[Source] | None = None) -> None:
        self._settings = settings
        self._spec_version, self._heads = settings.state_spec.version, list(settings.fusion.names)
        serving, layout = settings.serving, settings.layout
        self._index = _index_of(settings)
        self._decision_files = DayFiles(layout.serving_log / "decisions", worker)
        self._feedback_files = DayFiles(layout.serving_log / "feedback", worker)
        self._champion = PolicyFollower(settings, sources, _taken(arms.CHAMPION), _refused(arms.CHAMPION))
        self._challenger = PolicyFollower(
            settings,
            [InServiceSource(settings, arms.CHALLENGER)],
            _taken(arms.CHALLENGER),
            _refused(arms.CHALLENGER),
            on_vanished=lambda: metrics.policy_gone(arms.CHALLENGER),
        )
        self._assignment = arms.Assignment(settings, _refused("shares"))
        self._features = FeaturesAge(settings)
        self._look()
        self._following = Following(serving.follow_seconds, [self._look])
        self._following.start()
        self._guardrail = Guardrail(
            settings,
            self._index,
            self._champion,
            self._challenger,
            metrics.rolled_back,
            metrics.difference_seen,
            metrics.canary_at,
        )
        self._watching = Following(serving.guardrail.check_seconds, [self._guardrail.check])
        self._watching.start()
        self._shadow = Shadow(DayFiles(layout.serving_log / "shadow", worker), _shadowed)
        self._store = StateStore(settings, _store_failed)
        parser = Parser(settings)
        self._ranking = Pipeline(
            settings,
            parser,
            self._index,
            self._store,
            self._features,
            self._champion,
            self._challenger,
            self._assignment,
            self._decision_files,
            self._shadow,
        )
        ranked = RankedLines(layout.serving_log / "decisions", self._heads)
        self._feedback = FeedbackPipeline(
            settings, parser, self._index, self._store, self._feedback_files, ranked
        )
        self._shipping: Following | None = None
        if serving.ship.to is not None:
            shipper = Shipper(settings, metrics.shipped)
            looks = [self._decision_files.roll, self._feedback_files.roll, shipper.look]
            self._shipping = Following(serving.ship.every_seconds, looks)
            self._shipping.start()
        self._closed = threading.Event()
        self._pulse = threading.Thread(target=self._measure, name="pulse", daemon=True)
        self._pulse.start()

    def close(self) -> None:
        """Write what waits, then stop every thread."""
        self._closed.set()
        self._pulse.join()
        self._following.stop()
        self._watching.stop()
        if self._shipping is not None:
            self._shipping.stop(_SHIPPED_S)
        self._guardrail.close()
        self._ranking.close()
        self._store.close()
        self._shadow.close()
        self._feedback.close()
        self._decision_files.close()
        self._feedback_files.close()
        self._index.close()
        metrics.write()

    def admit(self) -> None:
        """Raises :class:`RequestError` when a request that comes now would wait for too long."""
        self._ranking.admit()

    async def rank(self, body: bytes, media_type: str = JSON, accept: str = JSON) -> bytes:
        """``media_type`` of the body and ``accept`` of the answer: ``JSON`` or ``BINARY``."""
        return await self._ranking.rank(body, media_type, accept)

    async def feedback(self, body: bytes) -> bytes:
        return await self._feedback.take(body)

    def wait_for_store(self, seconds: float) -> None:
        """Return once the store was reached or has refused, or after ``seconds``: until then, as long as its
        SDK takes to import, every answer would be by static weights."""
        self._store.wait_tried(seconds)

    @property
    def unready(self) -> str | None:
        """Why it is not fit to take traffic, None when it is: policy or static weights to serve by, and a
        store once reached.

        A store that fails later does not make a worker unready: static weights serve until it is back.
        """
        return self._store.unreached

    def status(self) -> dict[str, Any]:
        """What this worker serves, for people and ``mtf status``."""
        shares = self._assignment.shares
        return {
            "state_spec": self._spec_version,
            "heads": self._heads,
            "champion": _described(self._champion.current),
            "challenger": _described(self._challenger.current),
            "refused": self._champion.refused,
            "challenger_refused": self._challenger.refused,
            "shares": {arm: arms.share_of(shares, arm) for arm in arms.ARMS},
            "shadow": shares.shadow,
            "shares_refused": self._assignment.refused,
            "guardrail": self._guardrail_seen(),
            "store": {
                "reached": self._store.unreached is None,
                "healthy": self._store.healthy,
                "features_until": None if self._features.until is None else timestamp(self._features.until),
            },
            "log": {
                "decisions_waiting": len(self._ranking.log.line),
                "feedback_waiting": len(self._feedback.log.line),
            },
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
            for name, log in (("decision", self._ranking.log), ("feedback", self._feedback.log)):
                metrics.log_queue.labels(name).set(len(log.line))
                metrics.log_lag.labels(name).set(log.line.lag)
            metrics.write()

    def _look(self) -> None:
        """Take what changed: shares last, because a canary's first step needs its policy."""
        self._champion.look()
        self._challenger.look()
        self._assignment.look()
        self._features.look()


def _index_of(settings: Settings) -> RequestIndex:
    options: dict[str, Any] = {
        "gap_minutes": settings.session.gap_minutes,
        "reward": partial(item_reward, settings),
        "negative": partial(is_negative, settings),
        "text_users": settings.ids.kept("user_id") == "string",
    }
    if settings.serving.index == "file":
        return RequestIndex(settings.layout.serving / "requests.sqlite", **options)
    from serving.log.index.shared import SharedIndex

    copy = settings.layout.serving / f"guardrail.{settings.serving.replica}.sqlite"
    return SharedIndex(redis_client(settings.store), copy, **options)


def _described(served: ServedPolicy | None) -> dict[str, Any] | None:
    if served is None:
        return None
    return {
        "version": served.policy.version,
        "sha256": served.policy.sha256,
        "kind": served.policy.header.kind,
        "day": served.pointer.day,
        "loaded_ts": timestamp(datetime.fromtimestamp(served.loaded, UTC)),
    }


def _taken(arm: str) -> Callable[[ServedPolicy], None]:
    def taken(served: ServedPolicy) -> None:
        metrics.policy_serves(
            arm,
            served.policy.version,
            served.policy.sha256,
            served.loaded,
            served.promoted,
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

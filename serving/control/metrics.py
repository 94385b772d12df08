"""What does a worker measure? Prometheus metrics, added up over all workers at ``GET /metrics``.

Import only inside a worker: ``prometheus_client`` decides at its own import whether values are shared
between processes, by the folder that BentoML names in ``PROMETHEUS_MULTIPROC_DIR``. What a request observes
reaches the others' scrapes with the next :func:`write`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from serving.control.gathered import Gathered, GatheredCounter
from training.contract.fusion import AT_BOUND

if TYPE_CHECKING:
    from serving.control.evidence import Difference
    from serving.log.shipping import Behind

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

content_type = CONTENT_TYPE_LATEST

http_requests = GatheredCounter(
    "mtf_http_requests", "Requests by endpoint and status", ["endpoint", "status"]
)
http_seconds = Gathered(
    "mtf_http_seconds", "Time of a request in the service", ["endpoint"], buckets=_SECONDS
)
ranked = Counter("mtf_ranked", "Ranked requests by arm and fallback", ["arm", "fallback"])
feedback_events = Counter("mtf_feedback_events", "Items that feedback was taken for")
feedback_not_ranked = Counter(
    "mtf_feedback_not_ranked", "Items in feedback that its request did not rank: answered, and not logged"
)
stage_seconds = Gathered(
    "mtf_stage_seconds",
    "Parts of a request: parse, wait (to be ranked), state, policy, fuse, queue (for the log), log",
    ["stage"],
    buckets=_SECONDS,
)
store_errors = Counter("mtf_store_errors", "Store calls that failed or came too late", ["operation"])
store_up = Gauge("mtf_store_up", "1 when the store's latest answer was good", multiprocess_mode="livemin")
log_errors = Counter("mtf_log_errors", "Requests refused because the log could not be written", ["log"])
SHED_RANKING, SHED_LOG, SHED_WAITED = "ranking", "log", "waited"
shed = Counter(
    "mtf_shed",
    "Requests refused because they would wait (for ranking, for the log), or had waited, too long",
    ["reason"],
)
log_queue = Gauge("mtf_log_queue", "Lines waiting for the disk", ["log"], multiprocess_mode="livesum")
log_lag = Gauge("mtf_log_lag_seconds", "Age of the oldest waiting line", ["log"], multiprocess_mode="livemax")
ship_behind = Gauge(
    "mtf_ship_behind_seconds",
    "Age of the oldest closed file of the log that is not in the object store",
    multiprocess_mode="livemax",
)
ship_waiting = Gauge(
    "mtf_ship_waiting_bytes",
    "Closed files of the log that are not in the object store",
    multiprocess_mode="livemax",
)
ship_errors = Counter("mtf_ship_errors", "Looks after which the object store lacked what it could have had")
swaps = Counter("mtf_policy_swaps", "Policies taken", ["role"])
refused = Counter(
    "mtf_refused", "Policies (by role) or shares refused; what was in force stayed so", ["what"]
)
policy_info = Gauge(
    "mtf_policy_info",
    "1 for the version that serves, 0 for those before it",
    ["role", "version", "sha256"],
    multiprocess_mode="livemax",
)
policy_loaded = Gauge(
    "mtf_policy_loaded_timestamp_seconds", "When the policy was taken", ["role"], multiprocess_mode="livemin"
)
policy_promoted = Gauge(
    "mtf_policy_promoted_timestamp_seconds",
    "When the policy was promoted, or became the challenger",
    ["role"],
    multiprocess_mode="livemin",
)
action = Gathered(
    "mtf_action",
    "Action entries of the policies' own arms",
    ["arm", "head"],
    buckets=(-AT_BOUND, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, AT_BOUND, 1.0),
)
arm_share = Gauge("mtf_arm_share", "Share of users in force", ["arm"], multiprocess_mode="livemax")
features_until = Gauge(
    "mtf_features_until_timestamp_seconds",
    "Up to when the online store has materialised features",
    multiprocess_mode="livemin",
)
shadow = Counter("mtf_shadow", "Requests ranked beside by the challenger, by outcome", ["outcome"])
shadow_overlap = Histogram(
    "mtf_shadow_overlap",
    "Share of the shown items that the challenger would have shown",
    buckets=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
)

rollbacks = Counter("mtf_rollbacks", "Policies that the guardrail took out", ["role", "rule"])
canary_step = Gauge(
    "mtf_canary_step", "Step of the challenger's canary; 0: none runs", multiprocess_mode="livemax"
)
canary_held = Gauge(
    "mtf_canary_held", "1 while a signal holds the challenger's canary", multiprocess_mode="livemax"
)
reward_difference = Gauge(
    "mtf_session_return_difference",
    "Mean session return less what it is held against (champion: static weights, challenger: the champion), "
    "and its confidence sequence",
    ["arm", "bound"],
    multiprocess_mode="livemostrecent",
)

# what a full disk is told by must be there before: a new label may need room in the shared file
for _endpoint in ("/rank", "/feedback"):
    log_errors.labels(_endpoint)
    http_requests.labels(_endpoint, 503)
for _reason in (SHED_RANKING, SHED_LOG, SHED_WAITED):
    shed.labels(_reason)

_served: dict[str, set[tuple[str, str]]] = {}  # label values are never removed from a shared file


def policy_gone(role: str) -> None:
    """This worker has no policy of that role any more."""
    for labels in _served.get(role, ()):
        policy_info.labels(role, *labels).set(0.0)


def policy_serves(role: str, version: str, sha256: str, loaded: float, promoted: float | None) -> None:
    """This worker serves another policy from now on, as champion or challenger; times in epoch seconds."""
    policy_gone(role)
    _served.setdefault(role, set()).add((version, sha256[:12]))
    policy_info.labels(role, version, sha256[:12]).set(1.0)
    policy_loaded.labels(role).set(loaded)
    if promoted is not None:
        policy_promoted.labels(role).set(promoted)
    swaps.labels(role).inc()


def shipped(behind: "Behind", failed: bool) -> None:
    ship_behind.set(behind.seconds)
    ship_waiting.set(behind.bytes)
    ship_errors.inc(float(failed))


def rolled_back(role: str, rule: str) -> None:
    rollbacks.labels(role, rule).inc()


def difference_seen(arm: str, seen: "Difference") -> None:
    for bound, value in (("value", seen.value), ("low", seen.low), ("high", seen.high)):
        reward_difference.labels(arm, bound).set(value)


def canary_at(step: int, held: bool) -> None:
    canary_step.set(step)
    canary_held.set(float(held))


def write() -> None:
    """Let every worker's scrape see what this one has gathered."""
    for gathered in (http_requests, http_seconds, stage_seconds, action):
        gathered.write()


def forget_dead_workers() -> None:
    """Remove the live gauges of processes that were killed; their counters keep counting."""
    folder = os.environ.get(_FOLDER)
    if folder is None:
        return
    for file in Path(folder).glob("gauge_live*_*.db"):
        if not Path(f"/proc/{file.stem.rsplit('_', 1)[1]}").exists():
            file.unlink(missing_ok=True)


def exposition() -> bytes:
    """The text format, over every worker."""
    write()
    registry = REGISTRY
    if _FOLDER in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)

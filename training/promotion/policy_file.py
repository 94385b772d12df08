"""The gate's rules on the exported policy file: whole, fitting the settings, small and fast enough."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.contract.errors import PolicyError
from training.contract.policy import Policy, load_policy
from training.contract.settings import Settings
from training.promotion.rules import Rule, ruled

# States that a policy is asked about whose bounds are checked: wide, for a network may leave them far out.
PROBES = 256
PROBE_STD = 5.0

# Latency: the least p99 over blocks of calls. Another process can only add time to a block, so the
# least is the policy's own, and one hiccup of the machine does not refuse a good policy.
WARM_UP_CALLS = 20
BLOCKS = 5
BLOCK_CALLS = 100
CANDIDATES = 500
LATENCY_BUDGET_S = 10.0


def rules(settings: Settings, path: Path, sha256: str) -> Iterator[Rule]:
    """``loadable``, ``size`` and ``latency`` of the file that was judged; the first alone where it fails."""
    limits = settings.gate
    try:
        policy = load_policy(path, sha256)
        _fits(settings, policy)
        _bounded(policy)
    except PolicyError as error:
        yield ruled("loadable", False, None, None, f"the policy file cannot be served: {error}")
        return
    yield ruled(
        "loadable",
        True,
        policy.sha256,
        sha256,
        "the policy file loads and fits the state and heads",
    )
    size = path.stat().st_size
    passed = size <= limits.max_policy_bytes
    yield ruled(
        "size",
        passed,
        size,
        limits.max_policy_bytes,
        f"the policy file has {size:,} bytes, "
        f"{'at most' if passed else 'more than the'} {limits.max_policy_bytes:,} allowed",
    )
    p99 = latency_p99_ms(policy)
    passed = p99 <= limits.max_latency_ms
    yield ruled(
        "latency",
        passed,
        p99,
        limits.max_latency_ms,
        f"one state takes {p99:.3g} ms at the 99th percentile, "
        f"{'at most' if passed else 'more than the'} {limits.max_latency_ms:g} ms allowed",
    )


def _fits(settings: Settings, policy: Policy) -> None:
    header = policy.header
    if header.spec.version != settings.state_spec.version:
        raise PolicyError(
            f"it takes states of specification {header.spec.version}, "
            f"the settings give {settings.state_spec.version}"
        )
    if header.fusion != settings.fusion:
        raise PolicyError("its heads, β or weight intervals are not those of the settings")


def _bounded(policy: Policy) -> None:
    """``Policy.act`` would clip what lies outside [-1, 1], and hide that the network is not ours."""
    states = np.random.default_rng(1).normal(0.0, PROBE_STD, (PROBES, policy.header.spec.width))
    largest = float(np.abs(policy.actor(states.astype(np.float32))).max())
    if not largest <= 1.0 + 1e-6:  # NaN, too
        raise PolicyError(f"it gives actions of {largest:.3g}, outside [-1, 1]")


def latency_p99_ms(policy: Policy) -> float:
    """Milliseconds of one state through the policy at the 99th percentile, in this process.

    With the order of as many candidates as :data:`CANDIDATES` where the policy ranks by itself.
    """
    predictions = np.linspace(0.0, 1.0, CANDIDATES * len(policy.header.fusion.heads)).reshape(CANDIDATES, -1)
    states = np.random.default_rng(0).normal(size=(BLOCK_CALLS, 1, policy.header.spec.width))
    states = states.astype(np.float32)

    def timed(calls: int) -> np.ndarray:
        times = np.empty(calls)
        for i in range(calls):
            start = time.perf_counter()
            action = policy.act(states[i])
            if policy.ranks:
                policy.scores(predictions, states[i, 0], action[0])
            times[i] = time.perf_counter() - start
        return times * 1e3

    timed(WARM_UP_CALLS)
    start, best = time.perf_counter(), np.inf
    for _ in range(BLOCKS):
        best = min(best, float(np.percentile(timed(BLOCK_CALLS), 99)))
        if time.perf_counter() - start > LATENCY_BUDGET_S:  # far too slow: the first block says it
            break
    return round(best, 4)

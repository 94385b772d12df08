"""The service: the arms' shares, the canary, the guardrail, limits and time budgets."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from training.contract.log import LATE_DAYS
from training.contract.settings.exploration import ExplorationSettings
from training.contract.settings.section import Positive, Section, Share


class ShareSettings(Section):
    """Shares of users; what is left goes to the champion. ``shadow`` is beside them: nobody sees it."""

    static: Share = Field(0.05, description="hand-tuned weights: the control")
    random: Share = Field(0.02, description="exploration: Gaussian without a prior (paper)")
    noise: Share = Field(0.02, description="exploration: policy + Gaussian noise (paper)")
    box: Share = Field(0.0, description="exploration: uniform around the policy's action (UnifiedRL)")
    challenger: Share = Field(0.0, description="canary: the challenger's policy, when there is one")
    shadow: Share = Field(0.0, description="users whose requests the challenger ranks beside, unseen")


def check_shares(shares: ShareSettings, max_exploration: float) -> None:
    """Raises ValueError for shares that cannot be in force together."""
    exploration = shares.random + shares.noise + shares.box
    if shares.static + exploration + shares.challenger > 1.0 + 1e-9:
        named = ", ".join(f"{arm} {share:g}" for arm, share in shares if arm != "shadow" and share)
        raise ValueError(f"serving.shares: {named} add up to more than 1: make one of them smaller")
    if exploration > max_exploration + 1e-9:
        raise ValueError(
            f"serving.shares: random {shares.random:g}, noise {shares.noise:g} and box {shares.box:g} "
            f"explore on {exploration:g} of the users, more than serving.max_exploration, "
            f"{max_exploration:g}: make them smaller, or that larger"
        )


class CanaryStep(Section):
    """A share of users for the challenger, for at least so long and so many of its requests.

    Steps are for safety: the last one is left for the champion's place when a gain is shown, too.
    """

    share: float = Field(gt=0.0, le=1.0)
    minutes: float = Field(ge=0.0)
    requests: int = Field(0, ge=0)


class GuardrailSettings(Section):
    """When the service takes a champion or challenger out by itself; see docs/serving-operations.md."""

    check_seconds: Positive = Field(5.0, description="between two looks (ours)")
    window_seconds: Positive = Field(60.0, description="of requests that a look takes in (ours)")
    min_requests: int = Field(200, ge=1, description="fewer of an arm in the window are not judged (ours)")
    max_failed_share: Share = Field(
        0.02, description="requests without a usable action of the policy in time (ours)"
    )
    slow_ms: Positive = Field(50.0, description="a request that takes longer until it is logged is slow")
    max_slow_share: Share = Field(0.05, description="slow requests beyond the static arm's share (ours)")
    max_bound_share: Share = Field(0.5, description="action entries within 0.01 of a bound (ours)")
    confidence: float = Field(
        0.95, gt=0.5, lt=1.0, description="of a difference of session returns, over all looks (ours)"
    )
    min_sessions: int = Field(
        200, ge=2, description="of either side, for their difference to be judged (ours)"
    )
    pause_on: tuple[Literal["negative", "mismatch"], ...] = Field(
        ("negative", "mismatch"),
        description="what holds a canary without ending it: more items with feedback of negative weight than "
        "the champion's sessions have; users of the arms not in the proportion of their shares (ours)",
    )
    idle_minutes: float | None = Field(
        None, ge=0.0, description="a session idle for so long has its reward; none means session.gap_minutes"
    )


class ShipSettings(Section):
    """Closed files of the service's log are copied to an object store; see docs/profiles.md."""

    to: str | None = Field(
        None,
        description="s3://bucket/prefix, or an absolute path of a folder that is there; none ships nothing, "
        "and days are landed from the log's own folder",
    )
    endpoint: str | None = Field(
        None,
        description="address of an S3 server that is not Amazon's",
    )
    every_seconds: Positive = Field(
        300.0, description="files are closed and shipped so often: a disk that is lost takes so much (ours)"
    )
    keep_days: int = Field(
        7,
        gt=LATE_DAYS,
        description="days for which a replica keeps its own files of days that are shipped whole (ours)",
    )

    @field_validator("to")
    @classmethod
    def _place(cls, to: str | None) -> str | None:
        if to is not None and not re.fullmatch(r"s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9._/-]*)?|/.+", to):
            raise ValueError(f"{to!r} is neither s3://bucket/prefix nor an absolute path")
        return to

    @field_validator("endpoint")
    @classmethod
    def _server(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.fullmatch(r"https?://[A-Za-z0-9._-]+(:\d+)?", endpoint):
            # nor shown: it may hold a password, which is $AWS_SECRET_ACCESS_KEY's
            raise ValueError(
                "is no address of a server alone, such as https://s3.internal or http://10.0.0.5:9000"
            )
        return endpoint


class ServingSettings(Section):
    host: str = Field("127.0.0.1", description="address to listen on: 0.0.0.0 for all of the machine's")
    port: int = Field(3000, ge=1, le=65535)
    workers: int = Field(1, ge=1)
    index: Literal["file", "redis"] = Field(
        "file",
        description="where requests, sessions and feedback of two days are known, and what is in service: in "
        "files of the data folder, or for all replicas in the Redis of store.redis_url",
    )
    replica: str = Field(
        "",
        pattern=r"^[a-z0-9_-]{0,40}$",
        description="name of this replica of the service, in the names of its log files; each has another",
    )
    log_folder: Path | None = Field(
        None,
        description="absolute path of this replica's log; none means serving/log in the data folder",
    )
    ship: ShipSettings = ShipSettings()
    shares: ShareSettings = ShareSettings()
    max_exploration: Share = Field(
        0.1, description="most that random, noise and box may take of the users together (ours)"
    )
    exploration: ExplorationSettings = ExplorationSettings()
    no_exploration_for: tuple[str, ...] = Field(
        (),
        description="entries of the state made of the profile, as is_lowactive_period or "
        "user_active_degree=low_active: users who have one are not explored on (ours)",
    )
    canary: tuple[CanaryStep, ...] = Field(
        (
            CanaryStep(share=0.05, minutes=60.0, requests=500),
            CanaryStep(share=0.2, minutes=60.0, requests=2_000),
            CanaryStep(share=0.45, minutes=60.0),
        ),
        description="how a challenger's share grows, where gate.evidence is canary (ours)",
    )
    canary_days: Positive = Field(
        7.0, description="a canary without a gain shown ends after so many, and the champion stays (ours)"
    )
    canary_sessions: int = Field(
        20_000, ge=16, description="of the challenger, after which it ends likewise (ours)"
    )
    canary_effect: Positive = Field(
        0.02, description="gain, as a share of the return, whose time to be seen is told in advance (ours)"
    )
    guardrail: GuardrailSettings = GuardrailSettings()
    salt: str = Field(
        "mtf",
        min_length=1,
        description="of the hashes that assign users to arms, and that deviations are drawn by",
    )
    random_std: Positive = Field(1.0, description="σ of the random group, truncated to [-1, 1] (ours)")
    noise_std: Positive = Field(0.1, description="σ of the noise group (paper)")
    box_width: float = Field(
        0.15, gt=0.0, le=2.0, description="of the box group, to either side of the action (UnifiedRL)"
    )
    max_candidates: int = Field(2_000, ge=1)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    default_k: int = Field(6, ge=1, description="items returned when the request names no k")
    max_k: int = Field(200, ge=1)
    default_shown: int | None = Field(
        None,
        ge=0,
        description="how many of the items returned, from the top, are taken as shown when neither the "
        "request nor its feedback says; none means all (ours)",
    )
    headers_seconds: Positive = Field(
        10.0, description="a connection whose request's headers take longer is closed (ours)"
    )
    keep_alive_seconds: Positive = Field(
        75.0,
        description="an idle connection is kept for so long: more than the balancer in front keeps it (ours)",
    )
    rate_limit: Positive | None = Field(
        None,
        description="requests a second to /rank and /feedback from one address, in each worker; none has no "
        "limit (ours)",
    )
    rate_burst: int = Field(100, ge=1, description="requests that may come at once within rate_limit (ours)")
    accept_event_ts: bool = Field(
        False, description="let requests carry their own time: for simulated and replayed traffic"
    )
    follow_seconds: Positive = Field(1.0, description="how often the champion pointer is looked at")
    state_budget_ms: Positive = Field(50.0, description="longest wait for the online store")
    queue_budget_ms: Positive = Field(
        1_000.0,
        description="longest wait of a request to be ranked or logged; beyond it the answer is 503 (ours)",
    )
    policy_budget_ms: Positive = Field(
        50.0, description="longest time of a policy for one state; beyond it static weights serve (ours)"
    )
    max_features_age_hours: Positive = Field(
        50.0,
        description="materialised features older than this are stale, and static weights serve: a day, its "
        "run and one that was missed (ours)",
    )

    @field_validator("log_folder")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_absolute():
            raise ValueError(f"{str(folder)!r} is no absolute path")
        return folder

    @field_validator("host")
    @classmethod
    def _address(cls, host: str) -> str:
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is no IP address, such as 127.0.0.1, 0.0.0.0 or ::") from None
        return host

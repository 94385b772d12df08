"""The simulated world, and the upstream model of logs without predictions."""

from typing import Literal

from pydantic import Field

from training.contract.settings.section import Folder, Positive, Section


class WorldSettings(Section):
    """The simulated world of ``mtf simulate`` and the demo; nothing of it is used on real logs."""

    build: Literal["synthetic", "kuairand"] = "synthetic"
    logs: Folder | None = Field(None, description="folder of KuaiRand's CSVs, for build: kuairand")
    users: int = Field(3_000, ge=1)
    items: int = Field(5_000, ge=10)
    candidates: int = Field(40, ge=2, description="candidates a request")
    page: int = Field(6, ge=1, description="items shown a request")
    max_requests: int = Field(30, ge=1, description="hard end of a session (a truncation)")
    start_day: str = Field(
        "2026-01-05", pattern=r"^\d{4}-\d{2}-\d{2}$", description="first day of traffic through HTTP"
    )
    past_days: int = Field(
        1, ge=1, description="days before it, simulated without HTTP: the log that learning starts from"
    )
    concurrency: int = Field(16, ge=1, description="requests in flight of the HTTP driver")
    requests_per_day: int = Field(
        20_000, ge=1, description="traffic of a day through HTTP, about; users are sampled to fit"
    )


class UpstreamSettings(Section):
    """The PLE multi-task model for logs without predictions."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(1024, ge=1)
    lr: Positive = 4e-3
    experts: int = Field(2, ge=1, description="task experts, and as many shared ones, a layer")
    layers: int = Field(2, ge=1)
    hidden: int = Field(64, ge=1)
    embedding: int = Field(16, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    calibration_share: float = Field(0.1, gt=0.0, lt=0.5, description="last share by time")

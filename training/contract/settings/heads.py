"""The heads: the predictions that the formula of eq. (1) fuses, with smoothing, bounds and static weights."""

from typing import Self

from pydantic import Field, model_validator

from training.contract.settings.section import Name, Positive, Section


class HeadSettings(Section):
    name: Name = Field(description="the log and the requests carry it as p_<name> / scores.<name>")
    beta: Positive = Field(0.1, description="smoothing inside the logarithm of eq. (1) (ours)")
    low: float = Field(0.0, description="lower end of the weight's interval (ours)")
    high: float = Field(1.0, description="upper end of the weight's interval (ours)")
    static: float = Field(description="hand-tuned weight: the fallback, and the arm to beat")
    maximum: Positive = Field(1.0, description="largest allowed score: 1 for a probability")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if not self.low <= self.static <= self.high:
            raise ValueError(f"static {self.static} must lie within [{self.low}, {self.high}]")
        return self


DEFAULT_HEADS = (
    HeadSettings(name="click", beta=0.1, low=0.0, high=2.0, static=1.0),
    HeadSettings(name="long_view", beta=0.1, low=0.0, high=2.0, static=0.5),
    HeadSettings(name="like", beta=0.01, low=0.0, high=1.0, static=0.3),
    HeadSettings(name="follow", beta=0.01, low=0.0, high=1.0, static=0.1),
    HeadSettings(name="comment", beta=0.01, low=0.0, high=1.0, static=0.1),
    HeadSettings(name="forward", beta=0.01, low=0.0, high=1.0, static=0.1),
    HeadSettings(name="hate", beta=0.01, low=-2.0, high=0.0, static=-0.2),
    HeadSettings(name="play_time", beta=1.0, low=0.0, high=2.0, static=0.3, maximum=36_000.0),
)

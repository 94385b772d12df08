"""The feedback signals, and the reward that eq. (2) makes of them."""

from pydantic import Field, field_validator

from training.contract.settings.section import Name, Positive, Section

# the impressions' columns that are no signal's and no prediction's (training.contract.columns)
SHOWN = (
    "request_id",
    "session_id",
    "user_id",
    "item_id",
    "event_ts",
    "feedback_ts",
    "position",
    "play_time_ms",
    "duration_ms",
    "dt",
)


class SignalSettings(Section):
    name: Name = Field(description="name of the feedback signal in features, rewards and reports")
    column: Name = Field(description="its 0/1 column in the impressions")
    weight: float = Field(0.0, description="its weight in the reward, eq. (2) (ours)")
    positive_interaction: bool = Field(False, description="counts as a positive interaction in UPIRate")

    @field_validator("column")
    @classmethod
    def _of_its_own(cls, column: str) -> str:
        if column in SHOWN:
            raise ValueError(f"{column} is another column of the log: name the one that is 0 or 1")
        return column


class RewardSettings(Section):
    play_time_weight: float = Field(0.02, description="reward per second played, eq. (2) (ours)")
    play_time_cap_s: Positive = Field(120.0, description="seconds of one play that count (ours)")
    integrity_weight: float = Field(
        0.3, description="reward per unit of min(play / duration, 1), eq. (2) (ours)"
    )


DEFAULT_SIGNALS = (
    SignalSettings(name="click", column="is_click", weight=0.1),
    SignalSettings(name="long_view", column="long_view", weight=0.3),
    SignalSettings(name="like", column="is_like", weight=0.5, positive_interaction=True),
    SignalSettings(name="follow", column="is_follow", weight=1.0, positive_interaction=True),
    SignalSettings(name="comment", column="is_comment", weight=0.5, positive_interaction=True),
    SignalSettings(name="forward", column="is_forward", weight=0.5, positive_interaction=True),
    SignalSettings(name="hate", column="is_hate", weight=-2.0),
)

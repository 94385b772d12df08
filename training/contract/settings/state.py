"""The state: which columns of the users table it holds, and how long a history."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from training.contract.settings.section import Name, Positive, Section, repeated

PROFILED = ("user_id", "updated_ts", "dt")  # the users' columns that are no feature of a profile


class ProfileFeature(Section):
    column: Name = Field(description="column of the users table")
    kind: Literal["numeric", "saturating", "log", "flag", "categorical"] = Field(
        "numeric",
        description="a count that grows with the account should be saturating: log and numeric move with it",
    )
    categories: tuple[str, ...] = Field((), description="for kind categorical: the known values")
    half: Positive | None = Field(
        None, description="for kind saturating, x / (x + half): the value whose entry is one half"
    )

    @field_validator("column")
    @classmethod
    def _of_its_own(cls, column: str) -> str:
        if column in PROFILED:
            raise ValueError(f"{column} is whose profile it is, or from when on: name a trait's column")
        return column

    @field_validator("categories")
    @classmethod
    def _once_each(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        if twice := repeated(categories):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return categories

    @model_validator(mode="after")
    def _belongs_to_its_kind(self) -> Self:
        if (self.kind == "saturating") != (self.half is not None):
            raise ValueError("half belongs to kind 'saturating', which needs it")
        if (self.kind == "categorical") != bool(self.categories):
            raise ValueError("categories belong to kind 'categorical', and it needs at least one")
        return self


class StateSettings(Section):
    history_length: int = Field(500, ge=1, description="interactions of the history (paper)")
    profile: tuple[ProfileFeature, ...] = Field(
        (
            ProfileFeature(
                column="user_active_degree",
                kind="categorical",
                categories=("full_active", "high_active", "middle_active", "low_active"),
            ),
            ProfileFeature(column="is_lowactive_period", kind="flag"),
            ProfileFeature(column="is_video_author", kind="flag"),
            ProfileFeature(column="follow_user_num", kind="saturating", half=150),
            ProfileFeature(column="fans_user_num", kind="saturating", half=50),
            ProfileFeature(column="friend_user_num", kind="saturating", half=15),
            ProfileFeature(column="register_days", kind="saturating", half=1000),
        ),
        description="columns of the users table that are part of the state",
    )

    @field_validator("profile")
    @classmethod
    def _once_each(cls, profile: tuple[ProfileFeature, ...]) -> tuple[ProfileFeature, ...]:
        if twice := repeated([feature.column for feature in profile]):
            raise ValueError(f"columns named twice: {', '.join(twice)}")
        return profile

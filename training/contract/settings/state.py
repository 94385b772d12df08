"""The state: which columns of the users table it holds, and how long a history."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.contract.settings.section import Name, Section


class ProfileFeature(Section):
    column: Name = Field(description="column of the users table")
    kind: Literal["numeric", "log", "flag", "categorical"] = "numeric"
    categories: tuple[str, ...] = Field((), description="for kind categorical: the known values")

    @model_validator(mode="after")
    def _categories(self) -> Self:
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
            ProfileFeature(column="follow_user_num", kind="log"),
            ProfileFeature(column="fans_user_num", kind="log"),
            ProfileFeature(column="friend_user_num", kind="log"),
            ProfileFeature(column="register_days", kind="log"),
        ),
        description="columns of the users table that are part of the state",
    )

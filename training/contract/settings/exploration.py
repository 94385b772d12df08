"""How the exploring arms draw, and for how long a user stays in an arm."""

from typing import Literal

from pydantic import Field

from training.contract.settings.section import Section

Unit = Literal["request", "session"]


class ExplorationSettings(Section):
    unit: Unit = Field(
        "session",
        description="what a deviation is drawn once for; its effect on a session's return is seen best where "
        "all of the session's requests deviate alike (ours)",
    )
    epoch_days: int = Field(
        14,
        ge=1,
        description="local days, counted from 1970-01-01, after which users are assigned to arms anew (ours)",
    )

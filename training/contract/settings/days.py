"""How time is cut: into local days, and a user's requests into sessions."""

from datetime import timedelta, timezone

from pydantic import Field

from training.contract.settings.section import Positive, Section


class CalendarSettings(Section):
    utc_offset_hours: int = Field(
        8, ge=-12, le=14, description="a day and an hour of day are cut in this offset (KuaiRand: 8)"
    )

    @property
    def zone(self) -> timezone:
        return timezone(timedelta(hours=self.utc_offset_hours))

    @property
    def timezone(self) -> str:
        return f"Etc/GMT{-self.utc_offset_hours:+d}"


class SessionSettings(Section):
    gap_minutes: Positive = Field(30.0, description="idle minutes that end a session (ours)")
    max_requests: int | None = Field(
        None,
        ge=1,
        description="requests after which the platform itself ends a session, which is then truncated, not "
        "over; none: it never does. The simulated world has its own (ours)",
    )

    @property
    def gap(self) -> timedelta:
        return timedelta(minutes=self.gap_minutes)

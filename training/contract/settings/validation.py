"""What a day's data has to hold, and what a broken expectation does."""

from typing import Literal

from pydantic import Field

from training.contract.settings.section import Positive, Section, Share

Verdict = Literal["fail", "warn"]


class VerdictSettings(Section):
    """What a broken expectation does: ``fail`` stops the day, ``warn`` is shown and the day goes on."""

    volume: Verdict = Field("fail", description="far fewer or more rows than on recent days (ours)")
    bands: Verdict = Field("warn", description="a measure outside its band of recent days (ours)")
    score_drift: Verdict = Field("fail", description="a head's scores are distributed otherwise (ours)")
    calibration: Verdict = Field("warn", description="a head's calibration has changed (ours)")
    column_gone: Verdict = Field("fail", description="the source no longer has a column we read (ours)")
    column_new: Verdict = Field("warn", description="the source has a column it had not (ours)")
    column_retyped: Verdict = Field("warn", description="a source's column has another type (ours)")
    overlap: Verdict = Field("warn", description="too few explored transitions to learn from (ours)")
    coverage: Verdict = Field("warn", description="logged actions leave a head's interval empty (ours)")
    sample_ratio: Verdict = Field("warn", description="users are not in the arms as the shares say (ours)")
    feedback_times: Verdict = Field("fail", description="feedback from before its request (ours)")
    orphan_feedback: Verdict = Field("warn", description="feedback on items that were not ranked (ours)")
    reward_range: Verdict = Field("warn", description="rewards beyond those of recent days (ours)")


class ValidationSettings(Section):
    recent_days: int = Field(7, ge=1, description="days that volumes and rates are held against")
    min_volume_ratio: Share = Field(0.6, description="least rows against the recent days' median")
    max_volume_ratio: Positive = Field(2.5, description="most rows, likewise")
    max_rate_change: Positive = Field(
        0.5, description="half-width of a measure's band, relative, until its spread can be learnt (ours)"
    )
    band_days: int = Field(5, ge=3, description="recent days from which on a band's width is learnt (ours)")
    band_alarm_rate: float = Field(
        1e-3, gt=0.0, lt=0.5, description="chance that a good day lies outside one learnt band (ours)"
    )
    band_floor: Share = Field(0.1, description="least half-width of a learnt band, relative (ours)")
    min_rate_count: int = Field(100, ge=0, description="expected positives below which a rate is not judged")
    warn_psi: Positive = Field(0.1, description="population stability index of a head that warns (ours)")
    max_psi: Positive = Field(0.25, description="and that is drift; see verdicts.score_drift (ours)")
    min_drift_rows: int = Field(2_000, ge=1, description="fewest scores that such an index is made of (ours)")
    max_calibration_change: Positive = Field(
        0.3, description="relative change of predicted / observed against recent days that is drift (ours)"
    )
    max_fallback_share: Share = Field(0.05, description="of the decisions; more is warned of (ours)")
    min_sample_ratio_p: Share = Field(
        1e-3, description="p of the chi-square test of users by arm below which it warns (ours)"
    )
    min_exploring_share: Share = Field(
        0.01, description="least share of the random and of the noise group's transitions (ours)"
    )
    min_action_coverage: Share = Field(
        0.5, description="least share of a head's interval, in tenths, that logged actions reach (ours)"
    )
    verdicts: VerdictSettings = VerdictSettings()
    max_null_share: Share = Field(0.0, description="of required columns")
    max_bad_share: Share = Field(
        1e-4,
        description="of a table's rows that may break a row check: they go to quarantine and the day goes "
        "on; more stop it (ours)",
    )
    max_bad_shares: dict[str, Share] = Field(
        {},
        description="the same of single checks, by their field in Data Docs: p_click, repeated_rows",
    )
    max_later_share: Share = Field(
        0.01,
        description="of a delivery's rows that may be of a later day: they go to quarantine; one row always "
        "may (ours)",
    )
    quarantine_rows: int = Field(10_000, ge=1, description="bad rows kept a day and table")
    min_transitions: int = Field(500, ge=1, description="fewest transitions to train on (ours)")

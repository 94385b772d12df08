"""What broke, in groups: broken expectations by their cause, each with what is done about it.

:data:`CAUSES` is the table; the first that fits an expectation takes it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.operations.runbook import SECTIONS

NAMED = 4  # columns that a line names
SHORT = 160  # characters of a stage's error that a line holds; the day's page has all of it


@dataclass(frozen=True)
class Cause:
    """``fits`` is searched in "<suite> <expectation> <field>"; ``setting`` decides what such a fault does."""

    name: str
    fits: str
    remedy: str
    setting: str = ""
    section: str = "the-landed-log-is-invalid"

    @property
    def drift(self) -> bool:
        """Whether it is that the source, or who comes, is no longer what it was."""
        return self.section == _DRIFT


_MEND = "Mend the source and run the day again, or mend the rows in quarantine."
_DRIFT = "predictions-drift"
_EXPLORE = "Explore on more users, or wait for more days."
CAUSES = (
    Cause("files cannot be read", r"readable$", "Bring the day's files again.", section="landing-failed"),
    Cause(
        "refused at landing",
        r"^landing ",
        "The page of the suite names file, row and value: mend them at the source.",
        section="landing-failed",
    ),
    Cause(
        "the source lost a column",
        r"(_gone|_gone_from_source)$",
        "Bring the column back, or map the one that took its place in columns.json.",
        "validation.verdicts.column_gone",
        _DRIFT,
    ),
    Cause(
        "the source's columns changed",
        r"_in_source$",
        "Map the column in columns.json if it is one under another name; else nothing.",
        "validation.verdicts.column_new, column_retyped",
        _DRIFT,
    ),
    Cause(
        "columns missing or of another type",
        r"ExpectColumnToExist|_files ExpectColumnValuesToBeInSet",
        "Land the day again; the lake was written past landing, or the settings name other columns.",
    ),
    Cause(
        "scores have moved",
        r"_psi(_warn)?$",
        "Was the upstream model changed on purpose? Then let it warn for some days; else it is to be mended.",
        "validation.verdicts.score_drift",
        _DRIFT,
    ),
    Cause(
        "calibration has changed",
        r"_calibration$",
        "Users behave otherwise, or a signal is logged otherwise: compare signals and scores on the page.",
        "validation.verdicts.calibration",
        _DRIFT,
    ),
    Cause(
        "users are not in the arms as the shares say",
        r"_sample_ratio$",
        "Find what keeps users of one arm out of the log before any arm is compared.",
        "validation.verdicts.sample_ratio",
        _DRIFT,
    ),
    Cause(
        "profiles have moved",
        r"_day \S+ profile_",
        "A state is made of the profile: does its source still say the same of the same users?",
        "validation.verdicts.bands",
        _DRIFT,
    ),
    Cause(
        "categories that the settings do not name",
        r"_unknown_rows$",
        "Name them in the settings, or mend their spelling: such a user's state says nothing of the column.",
        "state.profile",
    ),
    Cause(
        "volume",
        r"_recent_median$",
        "Are files or hours missing, or is it a feast day? If it is right, widen validation.min_volume_ratio "
        "and max_volume_ratio.",
        "validation.verdicts.volume",
    ),
    Cause("no rows", r"_day \S+ rows$", "Bring the day's files, or see why the stage before made none."),
    Cause(
        "a signal that never occurs",
        r"_day \S+ \S+_rate$",
        "It is no longer logged, or under another name: a reward without it teaches something else.",
    ),
    Cause(
        "ranked by a policy, and no state logged",
        r"state_of_served$",
        "What is not logged with its state is not learnt from: see the service's log.",
    ),
    Cause(
        "requests fell back to static weights",
        r"fallback_share$",
        "See the service's log for the reason: store, age of the features, or the policy.",
        "validation.max_fallback_share",
    ),
    Cause(
        "feedback on items that were not ranked",
        r"orphan_feedback$",
        "The caller sends item ids or request ids of other lists.",
        "validation.verdicts.orphan_feedback",
    ),
    Cause(
        "feedback before its request",
        r"seconds_to_feedback$",
        "A clock or a zone is wrong at the source.",
        "validation.verdicts.feedback_times",
    ),
    Cause(
        "single rows were set aside",
        r"rows_set_aside$",
        "The day went on without them: mend them in quarantine if they matter.",
        "validation.max_bad_share",
        "rows-are-in-quarantine",
    ),
    Cause("rows twice", r"repeated_rows$", _MEND, "validation.max_bad_shares"),
    Cause(
        "requests contradict themselves",
        r"requests_of_several_|decisions_for_another_user$|share_without_impressions$|rows_since_landing$"
        r"|end_known$",
        _MEND,
    ),
    Cause(
        "too few transitions",
        r"current_(transitions|spec_share)$|share_of_decisions$",
        "It mends itself as days come in, if states are served and their specification stays.",
        "validation.min_transitions",
        "the-training-set-is-invalid",
    ),
    Cause(
        "rewards that do not differ, or by far more than before",
        r"training_set_day \S+ reward_(std|min|max)$",
        "Compare signals and play times of the window's days: one of them is logged otherwise.",
        "validation.verdicts.reward_range",
        "the-training-set-is-invalid",
    ),
    Cause(
        "too little exploration",
        r"training_set_day .*_(share|coverage)$",
        _EXPLORE,
        "serving.shares, validation.min_exploring_share",
        "the-training-set-is-invalid",
    ),
    Cause(
        "values missing",
        r"NonNull|_null_share$",
        _MEND,
        "validation.max_null_share, max_bad_share",
    ),
    Cause("values out of range", r"_rows ExpectColumnM", _MEND, "validation.max_bad_share"),
    Cause(
        "measures outside their band",
        r"_day ",
        "Compare with the recent days on the page: a feast day is outside its band, and that is right.",
        "validation.verdicts.bands",
    ),
    Cause("other", "", _MEND),
)


@dataclass
class Group:
    """Faults of one cause and severity. ``rows`` is the most that any of them counts."""

    cause: Cause
    severity: str
    faults: list[Mapping[str, Any]] = field(default_factory=list)
    page: str = ""  # of Data Docs, relative to the data folder
    stage: str = ""

    @property
    def stops(self) -> bool:
        return self.severity == "critical"

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(_where(fault) for fault in self.faults))

    @property
    def rows(self) -> int:
        return max((fault.get("unexpected_count") or 0 for fault in self.faults), default=0)

    @property
    def text(self) -> str:
        """A short line: the cause, where, and how many rows."""
        if not self.faults:
            return self.cause.name
        named = ", ".join(self.columns[:NAMED])
        more = f" and {len(self.columns) - NAMED} more" if len(self.columns) > NAMED else ""
        rows = f", up to {self.rows:,} rows each" if self.rows else ""
        return f"{self.cause.name}: {named}{more}{rows}"


def _where(fault: Mapping[str, Any]) -> str:
    """The column, or which rows: those of a source have a volume of their own."""
    source = re.fullmatch(r"rows_of_(\w+)_to_recent_median", str(fault.get("field")))
    return f"rows of the {source[1]}" if source else str(fault["column"])


def groups(records: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """What broke on a day, what stops it first; a stage that failed without a suite is a group of its own."""
    found: dict[tuple[str, str], Group] = {}
    alone = []
    for stage, record in records.items():
        suites = record.get("suites", {})
        for suite, result in suites.items():
            for fault in result["failed"]:
                cause = cause_of(suite, fault)
                group = found.setdefault(
                    (cause.name, fault["severity"]),
                    Group(cause, fault["severity"], page=result.get("page", ""), stage=stage),
                )
                group.faults.append(fault)
        if not record.get("success", True) and not any(s["failed"] for s in suites.values()):
            cause = Cause(short(str(record.get("error", "failed"))), "", "", section=SECTIONS.get(stage, ""))
            alone.append(Group(cause, "critical", stage=stage))
    return alone + sorted(found.values(), key=lambda group: not group.stops)


def cause_of(suite: str, fault: Mapping[str, Any]) -> Cause:
    told = f"{suite} {fault.get('expectation', '')} {fault.get('field') or fault.get('column')}"
    return next(cause for cause in CAUSES if re.search(cause.fits, told))


def short(text: str, length: int = SHORT) -> str:
    """The text's first line, cut at a word."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= length else line[: length + 1].rpartition(" ")[0].rstrip(",;:") + " …"

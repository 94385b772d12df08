"""The stages of a day, by name: what Airflow's tasks and the command line both call.

A stage is a function of the settings and the day. It runs when something that it depends on is not what
it was (:mod:`dags.inputs`), when it failed or was killed, or when it is told to; else its record is kept.
A run writes the stage's record, whether it succeeds, is skipped or fails, and drops the later records that
no longer hold. A day page is made again whenever a stage fails, and at the end.
"""

import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from dags import inputs
from training.contract import version
from training.contract.errors import DataError, MtfError, StorageError
from training.contract.files import locked
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.records import STAGES, now, read_record, read_records, recorded_days, write_record
from training.contract.settings import Settings
from training.operations import lineage, metrics

Record = dict[str, Any]

# another try would find the same: the data, the settings or a policy is wrong, or the code is
PERMANENT = (MtfError, TypeError, AttributeError, NameError, ImportError, AssertionError)


def land(settings: Settings, day: date) -> Record:
    from training import ingest

    try:
        return ingest.land_day(settings, day)
    except DataError as error:
        from training.validation.refusals import refused

        return refused(settings, day, error)


def land_files_from(settings: Settings, day: date, folder: Path) -> Record:
    """`mtf ingest --source files`: a landing from any folder, outside the day's own run.

    It leaves the day's record alone, for the day has not run; a refusal is a stopped stage all the same,
    with its record, Data Docs and the day's page.
    """
    from training import ingest

    started = time.monotonic()
    try:
        return ingest.land_files(settings, day, folder)
    except DataError as error:
        from training.validation.refusals import refused

        told = {"why": "told to", "inputs": inputs.of_stage(settings, day, "land")}
        _finish(settings, day, "land", started, told | refused(settings, day, error))
        _drop_later(settings, day, "land")
        make_report(settings, day)
        raise


def validate_landed(settings: Settings, day: date) -> Record:
    from training.validation import stages as validation

    return validation.validate_landed(settings, day)


def transform(settings: Settings, day: date) -> Record:
    from training.warehouse import transform as transformation

    record = transformation.run(settings, day)
    transformation.docs(settings)
    return record


def validate_transitions(settings: Settings, day: date) -> Record:
    from training.validation import stages as validation

    return validation.validate_transitions(settings, day)


def features(settings: Settings, day: date) -> Record:
    from training import features as store

    store.apply(settings)
    return store.materialise(settings, day)


def parity(settings: Settings, day: date) -> Record:
    from training import features as store

    return store.parity(settings, day)


def validate_training_set(settings: Settings, day: date) -> Record:
    from training.validation import stages as validation

    return validation.validate_training_set(settings, day)


def train(settings: Settings, day: date) -> Record:
    from training import policies

    return policies.train(settings, day)


def evaluate(settings: Settings, day: date) -> Record:
    from training.promotion.challenger import judge_pool

    return judge_pool(settings, day)


def gate(settings: Settings, day: date) -> Record:
    from training import promotion

    refuse_outdated(settings, day)
    return promotion.gate(settings, day, smoke=smoke(settings, day))


def refuse_outdated(settings: Settings, day: date) -> None:
    """:class:`DataError` where a stage that the gate rests on would run again."""
    for stage in DAY_STAGES[: DAY_STAGES.index("gate")]:
        why = inputs.why_not_current(settings, day, stage)
        if why is not None and read_record(settings.layout, day, stage) is not None:
            raise DataError(
                f"{stage} of {day} is not up to date ({why}): `mtf day --date {day}` runs what has to"
            )


def smoke(settings: Settings, day: date) -> Callable[[Path], Record]:
    """The gate's last question: does a Bento of this policy file answer?"""
    from serving.release import bento
    from training.contract.pointer import PolicyPointer
    from training.contract.policy import load_policy

    def ask(path: Path) -> Record:
        policy = load_policy(path)
        candidate = PolicyPointer(
            policy=str(path.relative_to(settings.layout.root)),
            sha256=policy.sha256,
            version=policy.version,
            day=day.isoformat(),
            model_version="",  # the registry has it only once the gate has let it through
            promoted_ts="",
        )
        tag = bento.build(settings, candidate)
        return {**bento.smoke(settings, tag), "bento": tag}

    return ask


def promote(settings: Settings, day: date) -> Record:
    from training import promotion

    decision = read_record(settings.layout, day, "gate")
    if decision is None:
        raise DataError(f"no decision of the gate for {day}: run `mtf day --date {day}` first")
    if decision["decision"] == "refuse":
        return {"skipped": f"the gate refused: {'; '.join(decision['reasons'])}"}
    return promotion.promote(settings, day, decision)


FUNCTIONS: dict[str, Callable[[Settings, date], Record]] = {
    "land": land,
    "validate_landed": validate_landed,
    "transform": transform,
    "validate_transitions": validate_transitions,
    "features": features,
    "parity": parity,
    "validate_training_set": validate_training_set,
    "train": train,
    "evaluate": evaluate,
    "gate": gate,
    "promote": promote,
}
DAY_STAGES = tuple(FUNCTIONS)
LEARNING_STAGES = ("validate_training_set", "train", "evaluate", "gate", "promote")


def run_stage(
    settings: Settings, day: date, stage: str, *, force: bool = False, keep_superseded: bool = False
) -> Record:
    """Run one stage of one day and write its record, or keep the record that still holds.

    A kept record has ``kept`` (when that was last found); a new one has ``why`` the stage ran. ``force``
    runs it in any case. ``keep_superseded`` also keeps the model and the decision of a day whose rows have
    changed since, once a later day's training set holds these rows.

    Raises what the stage raises, and :class:`DataError` when a validation stage found the data bad;
    the record then says so and the day's page is made again before the error goes on; :class:`MtfError` for
    a data folder of another release. It waits while ``mtf backup`` copies the folder.
    """
    version.refuse_other(settings.layout)
    with locked(settings.layout.stages_lock, shared=True):
        return _run_stage(settings, day, stage, force, keep_superseded)


def _run_stage(settings: Settings, day: date, stage: str, force: bool, keep_superseded: bool) -> Record:
    layout = settings.layout
    why = "told to" if force else inputs.why_not_current(settings, day, stage)
    if why is not None and keep_superseded and not force and _superseded(settings, day, stage):
        why = None
    if why is None:
        record = {**(read_record(layout, day, stage) or {}), "kept": now()}
        write_record(layout, day, stage, record)
        return record
    started = time.monotonic()
    facts: Record = {"why": why, "inputs": inputs.of_stage(settings, day, stage)}
    (layout.run(day) / f"{stage}.json").unlink(missing_ok=True)
    lineage_run = lineage.start(settings, day, stage)
    try:
        if stage in LEARNING_STAGES and not _has_decisions(settings, day):
            record = {"skipped": f"no decisions were logged in the {_window(settings)} to {day}"}
        else:
            record = FUNCTIONS[stage](settings, day)
    except Exception as error:
        _drop_later(settings, day, stage)
        failure = {"success": False, "error": _explain(error), "transient": _may_pass(error)}
        lineage_run.end(_finish(settings, day, stage, started, {**facts, **failure}))
        make_report(settings, day)
        raise
    record = _finish(settings, day, stage, started, {"success": True, **facts, **record})
    lineage_run.end(record)
    _drop_later(settings, day, stage, all_of_them=not record["success"])
    if not record["success"]:
        make_report(settings, day)
        raise DataError(f"{stage} of {day} failed: {_failures(record)}")
    return record


def run_day(
    settings: Settings,
    day: date,
    *,
    force: bool = False,
    begin: Callable[[str], None] = lambda stage: None,
    done: Callable[[str, Record], None] = lambda stage, record: None,
) -> list[str]:
    """Run the day's stages in order, and make its page if any ran; returns those that ran.

    Stages whose records hold are kept, so that a day that failed or was killed goes on where it ended.
    ``begin(stage)`` and ``done(stage, record)`` are called around each. Raises as :func:`run_stage`.
    """
    ran = []
    for stage in DAY_STAGES:
        begin(stage)
        record = run_stage(settings, day, stage, force=force)
        if "kept" not in record:
            ran.append(stage)
        done(stage, record)
    if ran:
        make_report(settings, day)
    return ran


def open_days(settings: Settings, before: date) -> list[date]:
    """Days before this one that wait to be run again, at most ``orchestration.reopen_days`` back.

    Late rows have changed what was landed since the day's run; or the day failed, and either its source
    files are others now (delivered late, mended) or the failure was one that another try can mend.
    """
    from training import ingest

    changed = set(ingest.changed_days(settings))
    oldest = before - timedelta(days=settings.orchestration.reopen_days)
    return [
        day
        for day in recorded_days(settings.layout)
        if oldest <= day < before and (day in changed or _failure_has_passed(settings, day))
    ]


def _failure_has_passed(settings: Settings, day: date) -> bool:
    records = read_records(settings.layout, day)
    failed = [record for record in records.values() if not record.get("success", True)]
    if not failed:
        return False
    if any(record.get("transient") for record in failed):
        return True
    source = records.get("land", {}).get("inputs", {})
    if inputs.differences(source, inputs.of_stage(settings, day, "land")):
        return True
    # no file of its own, but late rows in those of other days
    return (
        not records.get("land", {}).get("success", True)
        and settings.layout.partition(IMPRESSIONS, day).exists()
    )


def _superseded(settings: Settings, day: date, stage: str) -> bool:
    """Whether the day has its model and decision, and a later day learns from its rows as they are now."""
    if stage not in LEARNING_STAGES or read_record(settings.layout, day, "promote") is None:
        return False
    later = (day + timedelta(days=ahead) for ahead in range(1, settings.learner.window_days))
    return any(settings.layout.partition(DECISIONS, d).exists() for d in later)


# records that no stage of FUNCTIONS writes under its own name, and the stage whose results they describe
_DESCRIBED = {"drift": "validate_landed", "reward": "validate_transitions"}


def _drop_later(settings: Settings, day: date, stage: str, all_of_them: bool = True) -> None:
    """Remove later stages' records: all after a failure, else those whose inputs have changed."""
    for later in STAGES[STAGES.index(stage) + 1 :]:
        path = settings.layout.run(day) / f"{later}.json"
        if not path.exists() or _DESCRIBED.get(later) == stage:
            continue
        describes = _DESCRIBED.get(later, later)
        if all_of_them or inputs.why_not_current(settings, day, describes) is not None:
            path.unlink()


def make_report(settings: Settings, day: date) -> Path:
    """The day's page, and the index over all days."""
    from training.operations.report import index_page, page

    path = page.build(settings, day)
    index_page.index(settings)
    return path


def _finish(settings: Settings, day: date, stage: str, started: float, record: Record) -> Record:
    record["seconds"] = round(time.monotonic() - started, 2)
    write_record(settings.layout, day, stage, record)
    metrics.write(settings)
    return record


def _may_pass(error: Exception) -> bool:
    return isinstance(error, StorageError) or not isinstance(error, PERMANENT)


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, MtfError) else f"{type(error).__name__}: {error}"


def _failures(record: Record) -> str:
    failed = [
        f"{name}: {fault['message']}"
        for name, suite in record.get("suites", {}).items()
        for fault in suite["failed"]
        if fault["severity"] == "critical"
    ]
    return "; ".join(failed) or "see its record"


def _window(settings: Settings) -> str:
    days = settings.learner.window_days
    return "day" if days == 1 else f"{days} days"


def _has_decisions(settings: Settings, day: date) -> bool:
    window = (day - timedelta(days=back) for back in range(settings.learner.window_days))
    return any(settings.layout.partition(DECISIONS, d).exists() for d in window)

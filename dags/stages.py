"""The stages of a day, by name: what Airflow's tasks and the command line both call.

A stage is a function of the settings and the day. Running one drops the records of the stages after
it, because they describe results that the rerun replaces; it then writes its own record, whether it
succeeds, is skipped or fails. A day page is made again whenever a stage fails, and at the end.
"""

import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from training.contract.errors import DataError, MtfError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.records import STAGES, read_record, write_record
from training.contract.settings import Settings

Record = dict[str, Any]


def land(settings: Settings, day: date) -> Record:
    from training import ingest

    if settings.logs.source == "files":
        return ingest.land_files(settings, day, settings.logs.folder)
    if ingest.has_service_log(settings, day):
        return ingest.land_service_log(settings, day)
    if settings.layout.partition(IMPRESSIONS, day).exists():
        return ingest.landed(settings, day)  # brought by `mtf ingest`
    raise DataError(
        f"there is no log of {day}: the service's log in {settings.layout.serving_log} has no file of "
        f"that day, and nothing was landed by `mtf ingest`"
    )


def validate_landed(settings: Settings, day: date) -> Record:
    from training import validation

    return validation.validate_landed(settings, day)


def transform(settings: Settings, day: date) -> Record:
    from training import transform as transformation

    record = transformation.run(settings, day)
    transformation.docs(settings)
    return record


def validate_transitions(settings: Settings, day: date) -> Record:
    from training import validation

    return validation.validate_transitions(settings, day)


def features(settings: Settings, day: date) -> Record:
    from training import features as store

    store.apply(settings)
    return store.materialise(settings, day)


def parity(settings: Settings, day: date) -> Record:
    from training import features as store

    return store.parity(settings, day)


def validate_training_set(settings: Settings, day: date) -> Record:
    from training import validation

    return validation.validate_training_set(settings, day)


def train(settings: Settings, day: date) -> Record:
    from training import policies

    return policies.train(settings, day)


def evaluate(settings: Settings, day: date) -> Record:
    from training import evaluation, promotion
    from training.contract.policy import constant_policy, load_policy

    layout = settings.layout
    candidates = {
        "challenger": load_policy(layout.model(day) / "policy.safetensors"),
        "static": constant_policy(
            settings.state_spec, settings.fusion, settings.fusion.static_action, "static"
        ),
    }
    champion = promotion.champion_policy(settings, before=day)
    if champion.version != "static":
        candidates["champion"] = champion
    return evaluation.evaluate(settings, day, candidates)


def gate(settings: Settings, day: date) -> Record:
    from serving import bento
    from training import promotion
    from training.contract.pointer import ChampionPointer
    from training.contract.policy import load_policy

    def smoke(path: Path) -> Record:
        policy = load_policy(path)
        candidate = ChampionPointer(
            policy=str(path.relative_to(settings.layout.root)),
            sha256=policy.sha256,
            version=policy.version,
            day=day.isoformat(),
            model_version="",  # the registry has it only once the gate has let it through
            promoted_ts="",
        )
        tag = bento.build(settings, candidate)
        return {**bento.smoke(settings, tag), "bento": tag}

    return promotion.gate(settings, day, smoke=smoke)


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


def run_stage(settings: Settings, day: date, stage: str) -> Record:
    """Run one stage of one day and write its record.

    Raises what the stage raises, and :class:`DataError` when a validation stage found the data bad;
    the record then says so and the day's page is made again before the error goes on.
    """
    for later in STAGES[STAGES.index(stage) + 1 :]:
        (settings.layout.run(day) / f"{later}.json").unlink(missing_ok=True)
    started = time.monotonic()
    try:
        if stage in LEARNING_STAGES and not _has_decisions(settings, day):
            record: Record = {"skipped": f"no decisions were logged in the {_window(settings)} to {day}"}
        else:
            record = FUNCTIONS[stage](settings, day)
    except Exception as error:
        _finish(settings, day, stage, started, {"success": False, "error": _explain(error)})
        make_report(settings, day)
        raise
    record = _finish(settings, day, stage, started, {"success": True, **record})
    if not record["success"]:
        make_report(settings, day)
        raise DataError(f"{stage} of {day} failed: {_failures(record)}")
    return record


def make_report(settings: Settings, day: date) -> Path:
    """The day's page, and the index over all days."""
    from training import report

    path = report.build(settings, day)
    report.index(settings)
    return path


def _finish(settings: Settings, day: date, stage: str, started: float, record: Record) -> Record:
    record["seconds"] = round(time.monotonic() - started, 2)
    write_record(settings.layout, day, stage, record)
    return record


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

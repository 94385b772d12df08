"""The model registry: MLflow on SQLite below the data folder, or on PostgreSQL; no MLflow server is needed.

One run a (day, policy hash) and one model version a policy hash, so that a rerun finds what the
first run left and adds nothing.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from training.contract import databases
from training.contract.files import write_atomic, write_json_atomic
from training.contract.settings import Settings

EXPERIMENT = "mtf"
MODEL = "mtf-fusion"
CHAMPION = "champion"
CHALLENGER = "challenger"
TAG_CHARACTERS = 5_000  # MLflow refuses longer ones; the whole lineage is an artifact of the run
ARTIFACTS = "mlflow-artifacts:/"  # of every run; no address names the data folder, so that it can move
BATCH = 1_000  # most metrics MLflow takes in one call


def register(
    settings: Settings, day: date, train_record: Mapping[str, Any], evaluate_record: Mapping[str, Any]
) -> str:
    """Log the day's challenger and register it; returns its model version, the old one on a rerun.

    Parameters are the learner's settings, metrics the training curves and the offline estimates,
    tags the lineage; the policy file is the artifact that the version points to. The version takes
    the alias ``challenger``.
    """
    client = _client(settings)
    digest = evaluate_record["sha256"]
    run = _run(client, settings, day, evaluate_record)
    if run.info.status != "FINISHED":
        client.log_batch(
            run.info.run_id,
            params=[Param(k, str(v)) for k, v in settings.learner.model_dump().items()],
            tags=[RunTag(f"lineage.{k}", _text(v)) for k, v in train_record.get("lineage", {}).items()],
        )
        metrics = list(_metrics(day, train_record, evaluate_record))
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run.info.run_id, metrics=metrics[start : start + BATCH])
        files = artifacts(settings, run.info.run_id)
        write_json_atomic(files / "lineage.json", train_record.get("lineage", {}))
        policy = settings.layout.root / evaluate_record["policy"]
        write_atomic(files / "policy.safetensors", lambda temporary: shutil.copyfile(policy, temporary))
        client.set_terminated(run.info.run_id)
    version = _version(client, digest)
    if version is None:
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL, description="fusion policies, one version a file")
        version = client.create_model_version(
            MODEL,
            f"{run.info.artifact_uri}/policy.safetensors",
            run_id=run.info.run_id,
            tags={"sha256": digest, "policy": evaluate_record["version"], "day": day.isoformat()},
        ).version
    client.set_registered_model_alias(MODEL, CHALLENGER, version)
    return str(version)


def set_alias(settings: Settings, alias: str, model_version: str) -> None:
    _client(settings).set_registered_model_alias(MODEL, alias, model_version)


def alias_version(settings: Settings, alias: str) -> str | None:
    """The model version that carries an alias, or None."""
    models = _client(settings).search_registered_models(f"name = '{MODEL}'")
    found = models[0].aliases.get(alias) if models else None
    return None if found is None else str(found)


def artifacts(settings: Settings, run_id: str) -> Path:
    """Folder of a run's files: what MLflow's server serves for the run's address ``mlflow-artifacts:/…``.

    MLflow's own client resolves that address through a server alone, and here there may be none.
    """
    return settings.layout.artifacts / run_id / "artifacts"


def delete(settings: Settings, days: Collection[date]) -> None:
    """Delete the runs of these days for good, with their files and model versions.

    A version that carries an alias stays, and so does its run.
    """
    client = _client(settings)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    # MLflow's store has no types
    store: Any = SqlAlchemyStore(databases.mlflow(settings), ARTIFACTS)  # type: ignore[no-untyped-call]
    models = client.search_registered_models(f"name = '{MODEL}'")
    named = {str(version) for model in models for version in model.aliases.values()}
    for day in sorted(days):
        for run in client.search_runs([experiment.experiment_id], f"tags.`mtf.day` = '{day}'"):
            versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
            if any(str(version.version) in named for version in versions):
                continue
            for version in versions:
                client.delete_model_version(MODEL, str(version.version))
            shutil.rmtree(artifacts(settings, run.info.run_id).parent, ignore_errors=True)
            # as `mlflow gc`, which would ask a server to delete the files
            store._hard_delete_run(run.info.run_id)


def _client(settings: Settings) -> MlflowClient:
    settings.layout.mlflow.mkdir(parents=True, exist_ok=True)
    uri = databases.mlflow(settings)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _run(client: MlflowClient, settings: Settings, day: date, judged: Mapping[str, Any]) -> Run:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        experiment_id = client.create_experiment(EXPERIMENT, artifact_location=ARTIFACTS)
    else:
        experiment_id = experiment.experiment_id
    digest = judged["sha256"]
    found = client.search_runs(
        [experiment_id], f"tags.`mtf.day` = '{day}' and tags.`mtf.sha256` = '{digest}'", max_results=1
    )
    if found:
        return found[0]
    tags = {"mtf.day": day.isoformat(), "mtf.sha256": digest, "mtf.policy": judged["version"]}
    return client.create_run(experiment_id, tags=tags, run_name=f"{day} {judged['version']}")


def _version(client: MlflowClient, digest: str) -> str | None:
    found = client.search_model_versions(f"name = '{MODEL}' and tags.sha256 = '{digest}'")
    return str(found[0].version) if found else None


def _metrics(
    day: date, train_record: Mapping[str, Any], evaluate_record: Mapping[str, Any]
) -> Iterator[Metric]:
    """Curves by step and estimates. One timestamp a day: logged twice, they are the same rows."""
    stamp = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1e3)
    curves = dict(train_record["pool"][evaluate_record["chosen"]]["curves"])
    steps = curves.pop("step", None)
    for name, values in curves.items():
        for i, value in enumerate(values):
            if value is not None:
                yield Metric(f"train.{name}", float(value), stamp, i if steps is None else int(steps[i]))
    for policy, estimate in evaluate_record["estimates"].items():
        for name in ("lower", "value", "upper", "bound_share"):
            if name in estimate:
                yield Metric(f"{policy}.{name}", float(estimate[name]), stamp, 0)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text[:TAG_CHARACTERS]

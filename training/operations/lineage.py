"""OpenLineage events: what each stage and each dbt model read and wrote, as a run that starts and ends.

They go to ``lineage/<day>.jsonl``, one event a line, or to the HTTP endpoint that ``lineage.url`` names
(Marquez, DataHub, OpenMetadata read them). A stage is the job ``<stage>`` of the namespace
``lineage.namespace``, with the partitions that it read and wrote; dbt's models are jobs of their own below
``transform``, with columns, SQL and tests, from dbt's manifest and results by OpenLineage's own reader of
them. A run that was killed has a start and no end.

Lineage is an account of the work and no part of it: an endpoint that is down is a warning in the log.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.contract.layout import DECISIONS, TABLES
from training.contract.settings import Settings
from training.warehouse.engines import engine_of
from training.warehouse.exports import MARTS
from training.warehouse.transform import BUILD_RESULTS

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset

PRODUCER = "mtf"
PARENT = "OPENLINEAGE_PARENT_ID"  # namespace/job/run id
FILES = "file"  # OpenLineage's namespace of local files; their names are absolute paths

log = logging.getLogger("mtf.lineage")


@dataclass(frozen=True)
class Part:
    """A dataset, and the days of it that a run read or wrote; no days where it has no partitions."""

    path: Path
    days: tuple[date, ...] = ()
    rows: int | None = None


@dataclass(frozen=True)
class StageRun:
    """One run of a stage, begun; :meth:`end` tells how it went."""

    settings: Settings
    day: date
    stage: str
    run_id: str

    def end(self, record: Mapping[str, Any]) -> None:
        """Emit the end: failed where the record says so, else complete with what was written."""
        failed = not record.get("success", True)
        _emit(self, "FAIL" if failed else "COMPLETE", record)


def start(settings: Settings, day: date, stage: str) -> StageRun:
    """Emit the start of a stage's run."""
    from openlineage.client.uuid import generate_new_uuid

    run = StageRun(settings, day, stage, str(generate_new_uuid()))
    _emit(run, "START", {})
    return run


def _emit(run: StageRun, state: str, record: Mapping[str, Any]) -> None:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import error_message_run, job_type_job, nominal_time_run

    settings = run.settings
    if not settings.lineage.enabled:
        return
    try:
        reads, writes = datasets(settings, run.day, run.stage, record)
        facets: dict[str, Any] = {
            "nominalTime": nominal_time_run.NominalTimeRunFacet(
                nominalStartTime=settings.day_start(run.day).isoformat(),
                nominalEndTime=settings.day_start(run.day + timedelta(days=1)).isoformat(),
            ),
            **_parent(),
        }
        if state == "FAIL":
            message = record.get("error") or f"see runs/dt={run.day}/{run.stage}.json"
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message, "PYTHON")
        batch = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="MTF", jobType="STAGE")
        event = RunEvent(
            eventType=RunState[state],
            eventTime=datetime.now(UTC).isoformat(),
            run=Run(run.run_id, facets=facets),
            job=Job(settings.lineage.namespace, run.stage, facets={"jobType": batch}),
            producer=PRODUCER,
            inputs=[_input(part) for part in reads],
            outputs=[_output(part) for part in writes] if state == "COMPLETE" else [],
        )
        client = _client(settings, run.day)
        client.emit(event)
        if run.stage == "transform" and state != "START":
            for model in _models(run):
                client.emit(model)
        client.close()
    except Exception as error:  # whatever it is, the stage's own result stands
        log.warning("no lineage of %s of %s: %s: %s", run.stage, run.day, type(error).__name__, error)


def datasets(
    settings: Settings, day: date, stage: str, record: Mapping[str, Any]
) -> tuple[list[Part], list[Part]]:
    """What a stage of a day reads, and, by its record, what it wrote."""
    layout, days = settings.layout, (day,)
    lake = [Part(layout.table(table), days) for table in TABLES if layout.partition(table, day).exists()]
    back = (day - timedelta(days=n) for n in range(settings.learner.window_days - 1, -1, -1))
    window = tuple(d for d in back if layout.partition(DECISIONS, d).exists())
    transitions = layout.mart("fct_transitions")
    marts = ("dim_users", "fct_user_history", "fct_session_state")
    features = [Part(layout.mart(name), days) for name in marts]
    model = Part(layout.models, days)
    sources = [settings.logs.folder] if settings.logs.folder and settings.logs.source != "service" else []
    sources += [layout.serving_log] if settings.logs.source != "files" else []
    reads: dict[str, list[Part]] = {
        "land": [Part(Path(source), days) for source in sources],
        "validate_landed": lake,
        "transform": [
            Part(layout.table(table), _days(record.get("reprocessed_days", [str(day)])))
            for table in TABLES
            if layout.table(table).exists()
        ],
        "validate_transitions": [Part(transitions, days)],
        "features": features[:2],
        "parity": [*features, Part(layout.table(DECISIONS), days)],
        "validate_training_set": [Part(transitions, window)],
        "train": [Part(transitions, window)],
        "evaluate": [Part(transitions, window), model],
        "gate": [model, Part(layout.champion)],
        "promote": [model],
    }
    if "skipped" in record:
        return reads[stage], []
    landed = record.get("tables", {})
    exported = record.get("exported", {})
    writes: dict[str, list[Part]] = {
        "land": [
            Part(layout.table(table), _days(landed[table]["days"]), landed[table]["rows"])
            for table in TABLES
            if table in landed
        ],
        "validate_landed": [
            Part(layout.quarantine(table, day).parent, days, rows)
            for table, rows in record.get("quarantined", {}).items()
        ],
        "transform": [
            Part(layout.mart(mart), _days(exported[mart]["days"]), exported[mart]["rows"])
            for mart in MARTS
            if mart in exported
        ],
        "features": [Part(layout.feast)],
        "train": [model],
        "gate": [Part(layout.bentos)],
        "promote": [Part(layout.champion)],
    }
    return reads[stage], writes.get(stage, [])


def _days(names: Iterable[str]) -> tuple[date, ...]:
    return tuple(map(date.fromisoformat, names))


def transport(settings: Settings, name: str) -> dict[str, Any]:
    """OpenLineage's configuration of where events go; ``name`` is the file's, where there is no endpoint."""
    if settings.lineage.url:
        # a stage does not wait long for an endpoint that is down
        return {"type": "http", "url": settings.lineage.url, "timeout": 2.0, "retry": {"total": 1}}
    path = settings.layout.lineage.resolve() / f"{name}.jsonl"
    return {"type": "file", "log_file_path": str(path), "append": True}


def _client(settings: Settings, day: date) -> "OpenLineageClient":
    from openlineage.client import OpenLineageClient

    settings.layout.lineage.mkdir(parents=True, exist_ok=True)
    return OpenLineageClient(config={"transport": transport(settings, str(day))})


def _parent() -> dict[str, Any]:
    """The run that this one is part of, as OpenLineage's own variable names it: an Airflow task's."""
    from openlineage.client.facet_v2 import parent_run

    namespace, _, rest = os.environ.get(PARENT, "").partition("/")
    job, _, run = rest.rpartition("/")
    if not run:
        return {}
    return {"parent": parent_run.ParentRunFacet(parent_run.Run(run), parent_run.Job(namespace, job))}


def _partitions(part: Part) -> Any:
    from openlineage.client.facet_v2 import base_subset_dataset as subset

    return subset.PartitionSubsetCondition([subset.Partition({"dt": str(day)}) for day in part.days])


def _input(part: Part) -> "InputDataset":
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import base_subset_dataset as subset

    facets: dict[str, Any] = {}
    if part.days:
        facets["subset"] = subset.InputSubsetInputDatasetFacet(_partitions(part))
    return InputDataset(FILES, str(part.path.resolve()), inputFacets=facets)


def _output(part: Part) -> "OutputDataset":
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import base_subset_dataset as subset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    facets: dict[str, Any] = {}
    if part.days:
        facets["subset"] = subset.OutputSubsetOutputDatasetFacet(_partitions(part))
    if part.rows is not None:
        facets["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(rowCount=part.rows)
    return OutputDataset(FILES, str(part.path.resolve()), outputFacets=facets)


def _models(run: StageRun) -> list[Any]:
    """Events of dbt's models and tests, below the stage's run; none where dbt came to no result."""
    from openlineage.common.provider.dbt.facets import ParentRunMetadata
    from openlineage.common.provider.dbt.local import DbtLocalArtifactProcessor

    layout, namespace = run.settings.layout, run.settings.lineage.namespace
    engine = engine_of(run.settings)

    class Processor(DbtLocalArtifactProcessor):  # type: ignore[misc]  # it has no types
        """Sources are the lake's folders, as the stages name them, and not tables of the warehouse."""

        def extract_namespace(self, profile: dict[str, Any]) -> str:
            return engine.namespace

        def extract_dataset_data(self, node: Any, assertions: Any, has_facets: bool = False) -> Any:
            namespace, name, *facets = super().extract_dataset_data(node, assertions, has_facets)
            if node.type == "source":
                namespace, name = FILES, str(layout.table(node.metadata_node["name"]).resolve())
            return (namespace, name, *facets)

    if not (layout.dbt_target / BUILD_RESULTS).exists():
        return []
    processor = Processor(
        str(layout.dbt_target / "project"),
        target=engine.target,
        target_path=str(layout.dbt_target.resolve()),
        producer=PRODUCER,
        job_namespace=namespace,
        skip_errors=True,
    )
    processor.run_result_path = str(layout.dbt_target / BUILD_RESULTS)
    processor.dbt_run_metadata = ParentRunMetadata(run.run_id, run.stage, namespace)
    return processor.parse().events()

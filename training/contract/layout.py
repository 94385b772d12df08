"""Where everything at rest lives: one data folder, and a name for each place in it."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

IMPRESSIONS = "impressions"
DECISIONS = "decisions"
USERS = "users"
TABLES = (IMPRESSIONS, DECISIONS, USERS)


def day_of_folder(folder: Path) -> date:
    """The day of a folder ``dt=YYYY-MM-DD``."""
    return date.fromisoformat(folder.name.removeprefix("dt="))


def days_in(folder: Path) -> list[date]:
    """The days of which ``folder`` holds a folder, oldest first."""
    return sorted(day_of_folder(path) for path in folder.glob("dt=*") if path.is_dir())


@dataclass(frozen=True)
class Layout:
    """Paths below the data folder. Nothing is created here: writers make their own parents."""

    root: Path
    log_folder: Path | None = None  # of the service's own log, where it lies outside

    @property
    def version(self) -> Path:
        """Of which release's form the folder is; see :mod:`training.contract.version`."""
        return self.root / "version.json"

    # the lake: landed logs, one folder a day
    def table(self, table: str) -> Path:
        return self.root / "lake" / table

    def partition(self, table: str, day: date) -> Path:
        return self.table(table) / f"dt={day.isoformat()}"

    def quarantine(self, table: str, day: date) -> Path:
        return self.root / "lake" / "quarantine" / table / f"dt={day.isoformat()}"

    def corrections(self, table: str, day: date) -> Path:
        """Rows of the day that a person mended; see :mod:`training.ingest.corrections`."""
        return self.root / "lake" / "corrections" / table / f"dt={day.isoformat()}"

    def days(self, table: str) -> list[date]:
        """Landed days of a table, oldest first."""
        return days_in(self.table(table))

    # the warehouse: dbt's DuckDB file and the Parquet exports that Feast and the learner read
    @property
    def warehouse(self) -> Path:
        return self.root / "warehouse" / "mtf.duckdb"

    @property
    def spark_tables(self) -> Path:
        """Spark's tables, ``<table>/dt=YYYY-MM-DD/*.parquet``, where Spark makes them (warehouse.engine)."""
        return self.root / "warehouse" / "spark"

    @property
    def spark_scratch(self) -> Path:
        """What Spark spills while it runs."""
        return self.root / "warehouse" / "spark_scratch"

    @property
    def marts(self) -> Path:
        return self.root / "warehouse" / "marts"

    def mart(self, name: str) -> Path:
        """Folder of one mart's export: ``dt=YYYY-MM-DD/part-0.parquet`` below it."""
        return self.marts / name

    def part(self, table: str, day: date) -> Path:
        """Each source's own rows of a day that two bring; see :mod:`training.ingest.merging`."""
        return self.root / "lake" / "parts" / table / f"dt={day.isoformat()}"

    @property
    def dbt_target(self) -> Path:
        return self.root / "warehouse" / "dbt_target"

    # features
    @property
    def feast(self) -> Path:
        return self.root / "feast"

    @property
    def materialised(self) -> Path:
        """Up to when the online store has features: ``{"until": ISO instant}``."""
        return self.feast / "materialised.json"

    # validation: Great Expectations' context and its Data Docs
    @property
    def validation(self) -> Path:
        return self.root / "validation"

    # models
    @property
    def models(self) -> Path:
        return self.root / "models"

    def model(self, day: date) -> Path:
        """Folder of the challenger trained for ``day``: checkpoints, policy file, lineage."""
        return self.models / f"dt={day.isoformat()}"

    @property
    def upstream(self) -> Path:
        return self.models / "upstream"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def artifacts(self) -> Path:
        """What MLflow's server resolves `mlflow-artifacts:/` to."""
        return self.mlflow / "artifacts"

    @property
    def bentos(self) -> Path:
        return self.root / "bentoml"

    # serving
    @property
    def serving(self) -> Path:
        return self.root / "serving"

    @property
    def champion(self) -> Path:
        """Pointer that the running service follows; see :mod:`training.contract.pointer`."""
        return self.serving / "champion.json"

    @property
    def challenger(self) -> Path:
        """Pointer to the policy of the challenger arm and of the shadow; absent when there is none."""
        return self.serving / "challenger.json"

    @property
    def canary(self) -> Path:
        """How far the challenger's canary is; written by the service."""
        return self.serving / "canary.json"

    @property
    def guardrail(self) -> Path:
        """What the guardrail saw last; written by the service."""
        return self.serving / "guardrail.json"

    @property
    def shares(self) -> Path:
        """Shares of the arms in force; see :mod:`training.contract.in_service`."""
        return self.serving / "shares.json"

    @property
    def history(self) -> Path:
        """Events of what is in service, JSON lines; see :mod:`training.contract.in_service`."""
        return self.serving / "history.jsonl"

    @property
    def in_redis(self) -> Path:
        """Is there once Redis had a row of what is in service: the files beside it are not read then."""
        return self.serving / "in_redis.json"

    @property
    def serving_log(self) -> Path:
        return self.log_folder or self.serving / "log"

    @property
    def shipped(self) -> Path:
        """What replicas last said of their logs; see :mod:`training.ingest.shipped`."""
        return self.serving / "shipped"

    # the simulated world: its saved users and what it knows to be true
    @property
    def world(self) -> Path:
        return self.root / "world"

    # per-day records of each stage, and the pages made from them
    def run(self, day: date) -> Path:
        return self.root / "runs" / f"dt={day.isoformat()}"

    @property
    def stages_lock(self) -> Path:
        """Held, shared, by every stage that runs."""
        return self.root / "runs" / "stages.lock"

    @property
    def lineage(self) -> Path:
        """OpenLineage events, a file a day."""
        return self.root / "lineage"

    @property
    def metrics(self) -> Path:
        """The pipeline's own metrics, for a textfile collector."""
        return self.root / "metrics"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def airflow(self) -> Path:
        return self.root / "airflow"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

"""All settings: the sections together, and what has to fit between them."""

from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from training.contract.fusion import Form, Fusion, Head
from training.contract.layout import Layout
from training.contract.settings.days import CalendarSettings, SessionSettings
from training.contract.settings.evaluation import EvaluationSettings
from training.contract.settings.gate import GateSettings
from training.contract.settings.heads import DEFAULT_HEADS, HeadSettings
from training.contract.settings.ids import IdSettings
from training.contract.settings.learner import LearnerSettings
from training.contract.settings.logs import LogsSettings
from training.contract.settings.orchestration import AlertSettings, LineageSettings, OrchestrationSettings
from training.contract.settings.retention import RetentionSettings
from training.contract.settings.reward import DEFAULT_SIGNALS, RewardSettings, SignalSettings
from training.contract.settings.section import Place, repeated
from training.contract.settings.serving import ServingSettings, check_shares
from training.contract.settings.state import StateSettings
from training.contract.settings.stores import PostgresSettings, StoreSettings
from training.contract.settings.validation import ValidationSettings
from training.contract.settings.warehouse import WarehouseSettings
from training.contract.settings.world import UpstreamSettings, WorldSettings
from training.contract.state import StateFeature, StateSpec, Transform, default_features

ENV_PREFIX = "MTF__"


class Settings(BaseSettings):
    """All settings. Load them with :func:`load_settings`; construct them directly in tests."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        allow_inf_nan=False,
    )

    version: Literal[1] = 1
    ids: IdSettings = IdSettings()
    data: Place = Field(Path("data"), description="the data folder, relative to the settings file")
    seed: int = Field(7, ge=0)
    heads: tuple[HeadSettings, ...] = Field(DEFAULT_HEADS, min_length=1, max_length=64)
    fusion_form: Form = Field("log_sum", description="eq. (1) (paper), or sum: the plain weighted sum (xMTF)")
    signals: tuple[SignalSettings, ...] = Field(DEFAULT_SIGNALS, min_length=1, max_length=64)
    reward: RewardSettings = RewardSettings()
    state: StateSettings = StateSettings()
    calendar: CalendarSettings = CalendarSettings()
    session: SessionSettings = SessionSettings()
    logs: LogsSettings = LogsSettings()
    retention: RetentionSettings = RetentionSettings()
    lineage: LineageSettings = LineageSettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    validation: ValidationSettings = ValidationSettings()
    serving: ServingSettings = ServingSettings()
    warehouse: WarehouseSettings = WarehouseSettings()
    store: StoreSettings = StoreSettings()
    postgres: PostgresSettings = PostgresSettings()
    orchestration: OrchestrationSettings = OrchestrationSettings()
    alerts: AlertSettings = AlertSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    world: WorldSettings = WorldSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @field_validator("heads", "signals")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := repeated([value.name for value in values]):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return values

    @field_validator("signals")
    @classmethod
    def _own_columns(cls, signals: tuple[SignalSettings, ...]) -> tuple[SignalSettings, ...]:
        if twice := repeated([signal.column for signal in signals]):
            raise ValueError(f"columns named twice: {', '.join(twice)}: a signal has a column of its own")
        return signals

    @model_validator(mode="after")
    def _feedback_is_no_prediction(self) -> Self:
        predicted = {f"p_{head.name}" for head in self.heads}
        for place, signal in enumerate(self.signals):
            if signal.column in predicted:
                raise ValueError(
                    f"signals.{place}.column: {signal.column} is the prediction of a head: name the column "
                    "of what was done"
                )
        return self

    @model_validator(mode="after")
    def _shares(self) -> Self:
        shares = self.serving.shares
        check_shares(shares, self.serving.max_exploration)
        if self.gate.evidence == "offline":
            return self
        if not self.serving.canary:
            raise ValueError("serving.canary: has no step; gate.evidence: offline goes without a canary")
        largest = max(step.share for step in self.serving.canary)
        others = shares.static + shares.random + shares.noise + shares.box
        if others + largest > 1.0 + 1e-9:
            raise ValueError(
                f"serving.shares: static, random, noise and box take {others:g}, which leaves less than the "
                f"largest step of serving.canary, {largest:g}: make one of them smaller"
            )
        return self

    @model_validator(mode="after")
    def _workers(self) -> Self:
        if self.orchestration.executor == "celery" and "airflow" not in self.postgres.uses:
            raise ValueError(
                "orchestration.executor: celery needs Airflow's metadata in PostgreSQL: add airflow to "
                "postgres.uses"
            )
        return self

    @model_validator(mode="after")
    def _replicas(self) -> Self:
        if self.serving.index == "redis" and self.store.online != "redis":
            raise ValueError("serving.index: redis is kept beside the states: set store.online: redis, too")
        if self.serving.index == "redis" and self.store.redis_cluster:
            raise ValueError(
                "serving.index: redis needs one Redis server, and store.redis_cluster is on: take "
                "serving.index: file, or a server that is no cluster"
            )
        return self

    @model_validator(mode="after")
    def _executors_reach_the_online_store(self) -> Self:
        master = self.warehouse.spark.master
        of_cluster = self.warehouse.engine == "spark" and not master.startswith("local")
        if of_cluster and self.store.online == "sqlite":
            raise ValueError(
                f"warehouse.spark.master: the executors of {master} fill the online store, which cannot be a "
                f"file of this machine: set store.online: redis"
            )
        return self

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        """A night's run whose hour is left out when clocks are put forward would be of another day."""
        fields = self.orchestration.schedule.split()
        if len(fields) == 5 and fields[0].isdigit() and fields[1].isdigit():
            left_out = self.calendar.left_out(hour=int(fields[1]) % 24, minute=int(fields[0]) % 60)
            if left_out is not None:
                raise ValueError(
                    f"orchestration.schedule: there is no such time in {self.calendar.timezone} on "
                    f"{left_out}, when clocks are put forward: name another hour"
                )
        return self

    @model_validator(mode="after")
    def _cohorts(self) -> Self:
        known = [
            name
            for feature in self.state_spec.features
            if feature.source == "profile" and feature.transform in ("identity", "onehot")
            for name in ([f"{feature.name}={c}" for c in feature.categories] or [feature.name])
        ]
        for name in self.serving.no_exploration_for:
            if name not in known:
                raise ValueError(
                    f"serving.no_exploration_for: {name!r} is no flag or category of the profile; there are "
                    f"{', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _gate_has_its_estimator(self) -> Self:
        if self.gate.estimator not in self.evaluation.estimators:
            raise ValueError(f"gate.estimator: {self.gate.estimator!r} is not among evaluation.estimators")
        return self

    @property
    def layout(self) -> Layout:
        return Layout(self.data, self.serving.log_folder)

    @property
    def fusion(self) -> Fusion:
        return Fusion(tuple(Head(**head.model_dump()) for head in self.heads), self.fusion_form)

    @property
    def signal_names(self) -> list[str]:
        return [signal.name for signal in self.signals]

    def day_start(self, day: date) -> datetime:
        """The instant at which a local day starts, in UTC."""
        return self.calendar.day_start(day)

    @property
    def head_names(self) -> list[str]:
        return [head.name for head in self.heads]

    @property
    def state_spec(self) -> StateSpec:
        """Profile features as the settings name them, then history, session and context."""
        kinds: dict[str, Transform] = {
            "numeric": "identity",
            "flag": "identity",
            "saturating": "saturating",
            "log": "log1p",
            "categorical": "onehot",
        }
        profile = [
            StateFeature(p.column, "profile", kinds[p.kind], (p.column,), p.categories, p.half)
            for p in self.state.profile
        ]
        return StateSpec((*profile, *default_features(self.signal_names, self.head_names)))

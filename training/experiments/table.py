"""A table's settings file: which methods, seeds and worlds, of what size, and what is reported."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.contract.errors import SettingsError
from training.contract.settings import Settings

SHIPPED = Path(__file__).parent / "tables"

Count = Annotated[int, Field(ge=1)]
Label = Annotated[str, Field(pattern=r"^[\w .,+=()γ/-]{1,60}$")]
Leaning = Literal["time", "integrity", "interaction"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TableWorld(Section):
    """A world of the table: overrides of the table's settings, and how its users are ranked."""

    settings: dict[str, Any] = Field({}, description="merged over the table's settings")
    ranking: dict[str, Any] = Field(
        {},
        description="heads and fusion_form of the ranker; the world itself stays that of the settings, so "
        "two rankings can be held against each other in one world",
    )


class ExplorationLog(Section):
    """A fixed log of explored sessions, equal for all methods of a seed."""

    sessions: Count = Field(description="sessions, over all days of the log")
    random: float = Field(0.5, ge=0.0, description="share of the random group")
    noise: float = Field(0.5, ge=0.0, description="share of the noise group, around static weights")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.random + self.noise <= 0.0:
            raise ValueError("one of random and noise must be above 0")
        return self


class Judge(Section):
    sessions: int = Field(2_000, ge=20, description="sessions that every method of a seed is judged on")
    curve_sessions: int = Field(500, ge=20, description="others, for the points of the learning curves")
    checkpoints: Count = Field(5, description="points of a learning curve")
    log: str = Field("mixed", description="the log whose last sessions the offline estimates are made on")


class Method(Section):
    """A row of the table."""

    name: Label
    kind: Literal[
        "static",
        "cross_entropy",
        "bayesian",
        "evolution_strategies",
        "oracle",
        "learner",
    ]
    budget_sessions: int = Field(
        0, ge=0, description="simulated sessions that a search may use; learners have the log"
    )
    learner: dict[str, Any] = Field({}, description="for kind learner: merged over settings.learner")
    log: str = Field("mixed", description="for kind learner: what it is trained on")
    reward: Leaning | None = Field(None, description="for kind learner: the reward that it is trained with")
    rounds: Count = Field(
        1,
        description="for kind learner: 1 trains on the fixed log; n collects the log in n equal parts, each "
        "after the first with the noise group around the policy learnt so far",
    )
    explore: Literal["mixed", "box", "cells"] = Field(
        "mixed",
        description="of a learner's rounds: the log's groups; box, uniform within serving.box_width of the "
        "present policy's mean (UnifiedRL); or cells, the log's groups on xMTF's cells from the second on",
    )
    tuning_runs: int = Field(
        0,
        ge=0,
        description="runs on this world's truth, of one setting and seed each, that its settings were "
        "chosen by: a column of the table",
    )

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        search = self.kind in ("cross_entropy", "bayesian", "evolution_strategies", "oracle")
        if search != (self.budget_sessions > 0):
            raise ValueError("budget_sessions belongs to searches (every kind but static and learner)")
        if self.kind != "learner" and (self.learner or self.reward or self.rounds > 1):
            raise ValueError("learner, reward and rounds belong to kind learner")
        if self.explore != "mixed" and self.rounds == 1:
            raise ValueError(f"explore: {self.explore} belongs to rounds; one round has the fixed log")
        if self.explore == "cells" and self.learner.get("algorithms") != ["xmtf"]:
            raise ValueError("explore: cells belongs to the algorithm xmtf")
        return self


Column = Literal[
    "v_hat",
    "session_return",
    "session_return_change",
    "discounted_return",
    "watch_s",
    "watch_change",
    "adtime_change",
    "upirate_change",
    "bound_share",
    "distance_to_logged",
    "seed_spread",
    "sessions",
    "tuning_runs",
]


class Table(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")
    title: str
    baseline: Label = Field(description="the method that changes are relative to")
    seeds: tuple[int, ...] = Field(min_length=2)
    settings: dict[str, Any] = Field({}, description="of the project's settings file, where not default")
    worlds: dict[Label, TableWorld] = Field(min_length=1)
    past_days: Count = Field(3, description="days under static weights before the log: users get a history")
    log_days: Count = Field(3, description="days that a log is spread over (paper: the last three)")
    logs: dict[str, ExplorationLog] = Field(min_length=1)
    judge: Judge = Judge()
    reward_leaning: float = Field(3.0, gt=1.0, description="factor of the terms leant to (ours)")
    columns: tuple[Column, ...] = Field(min_length=1)
    methods: tuple[Method, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [method.name for method in self.methods]
        for labels in (names, list(self.worlds)):
            if len({slug(label) for label in labels}) < len(labels):
                raise ValueError("two methods or worlds have one name, but for signs and case")
        if self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is no method of the table")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice")
        for log in (self.judge.log, *(m.log for m in self.methods if m.kind == "learner")):
            if log not in self.logs:
                raise ValueError(f"there is no log {log!r}")
        return self

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def world_settings(self, world: str) -> Settings:
        """Settings that the world is built with. Raises :class:`SettingsError` naming the fault."""
        return _settings(merged(self.settings, self.worlds[world].settings), f"worlds.{world}.settings")

    def ranking_settings(self, world: str) -> Settings:
        """Settings that its requests are ranked, logged and learnt with."""
        ranking = self.worlds[world].ranking
        values = merged(merged(self.settings, self.worlds[world].settings), ranking)
        settings = _settings(values, f"worlds.{world}.ranking")
        before = self.world_settings(world)
        unchanged = settings.model_copy(update={"heads": before.heads, "fusion_form": before.fusion_form})
        same_heads = [h.name for h in settings.heads] == [h.name for h in before.heads]
        if unchanged != before or not same_heads:
            raise SettingsError(
                f"worlds.{world}.ranking may change fusion_form and the heads' bounds, weights and β only"
            )
        return settings

    def method_settings(self, world: str, method: Method) -> Settings:
        """Settings of the ranking, with the method's own of the learner."""
        settings = self.ranking_settings(world)
        learner = merged(settings.learner.model_dump(exclude_unset=True), method.learner)
        values = settings.model_dump(exclude_unset=True) | {"learner": learner}
        return _settings(values, f"methods.{method.name}.learner")


def load_table(name: str | Path) -> Table:
    """A table by the path of its file, or a shipped one by its name.

    Raises :class:`SettingsError` that lists every fault; settings of every world and method are checked.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in SHIPPED.glob("*.yaml")))
        raise SettingsError(f"there is no table {path}; shipped are {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        table = Table.model_validate(values)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(_faults(error, str(path))) from None
    for world in table.worlds:
        table.world_settings(world)
        for method in table.methods:
            table.method_settings(world, method)
    return table


def slug(label: str) -> str:
    """A label as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``values``, mapping by mapping; lists are replaced."""
    out = dict(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def _settings(values: dict[str, Any], place: str) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_faults(error, place)) from None


def _faults(error: ValidationError, place: str) -> str:
    return "\n".join(
        f"{place}: {'.'.join(map(str, fault['loc'])) or 'table'}: {fault['msg']}" for fault in error.errors()
    )

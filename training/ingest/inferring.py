"""Settings and a mapping of columns that hold for someone's logs, inferred from a sample of them.

A column is what its name says (:mod:`training.ingest.naming`) where its values can be that: feedback is 0 or
1 and differs within requests, for the same item and for the same user, a prediction is a number that does;
else it is a trait of one of them. What cannot be known is a :class:`Question`, and is never guessed: which of
several columns is meant, and the zone in which days are cut. Landing reads everything and has the last word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from training.contract.arrays import Float64Array
from training.contract.errors import DataError, MtfError, SettingsError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import HeadSettings, ProfileFeature, Settings, SignalSettings
from training.ingest import kinds, naming, zones
from training.ingest.said import column_of, read_said, refuse_shared
from training.ingest.sampled_times import SampledTime, look_at
from training.ingest.samples import Sample, read_samples, refuse_inexact

_TIMES = ("event_ts", "feedback_ts", "updated_ts")
_WHOLE = ("position", "play_time_ms", "duration_ms")
_LARGEST = float(np.finfo(np.float32).max)  # that a prediction may be, as it is kept
_GROUPS = 5  # of several rows, by which a column can be told from a trait


@dataclass(frozen=True)
class Question:
    """What only a person can say: the option that answers it, and the words."""

    option: str  # as `--timezone`, or `--column event_ts` whose value follows a `=`
    text: str
    choices: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """One line for where nobody can be asked."""
        name, _, of = self.option.partition(" ")
        given = f"{name} {of}=COLUMN" if of else f"{name} NAME"
        shown = f" ({', '.join(self.choices)})" if self.choices else ""
        return f"{self.text}{shown}: give {given}"


class Unknown(MtfError):
    """The sample leaves questions open."""

    def __init__(self, questions: list[Question]) -> None:
        super().__init__(*(question.told for question in questions))
        self.questions = questions


@dataclass(frozen=True)
class Answers:
    """What a person said; ``columns`` by the contract's names, with ``users.`` before those of a profile."""

    timezone: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    heads: tuple[HeadSettings, ...] = ()
    machine: str = "UTC"


@dataclass
class Inferred:
    """The settings, what ``columns.json`` has to say, and what was made of each column, and why."""

    settings: Settings
    folder: Path | None
    columns: dict[str, dict[str, Any]]
    read: list[tuple[str, str, str, str]]  # table, their column, what it is, what was seen
    left_out: list[tuple[str, str, str]]  # table, their column, why
    zone: zones.Zone
    profiles: bool


def infer(place: Path, answers: Answers) -> Inferred:
    """Settings for the logs at ``place``. Raises :class:`Unknown`; :class:`DataError` as the readers do."""
    folder, samples = read_samples(place)
    said = read_said(folder)
    samples = {name: sample for name, sample in samples.items() if sample.rows or name == IMPRESSIONS}
    if not samples[IMPRESSIONS].rows:
        raise DataError(
            f"{samples[IMPRESSIONS].parts[0].path}: no rows: bring a file of impressions that has some"
        )
    _refuse_without_table(answers, samples)
    tables = {name: _Table(sample, said.get(name, {}), answers) for name, sample in samples.items()}
    questions = [question for table in tables.values() for question in table.questions]
    shown = tables[IMPRESSIONS]
    heads = _heads(shown, answers.heads)
    signals = _signals(shown)
    if not heads:
        raise DataError(
            f"{place}: no column of predictions (p_<head>) is found; say which with --column p_click=COLUMN; "
            f"it has {', '.join(shown.sample.names)}"
        )
    if not signals:
        raise DataError(
            f"{place}: no column of feedback (0 or 1) is found; say which with --column is_click=COLUMN; "
            f"it has {', '.join(shown.sample.names)}"
        )
    zone = _zone(shown, answers)
    if zone.name is None:
        text = f"in which time zone are your days cut? {zone.why}"
        questions.append(Question("--timezone", text[0].upper() + text[1:], zone.examples))
    if questions:
        raise Unknown(questions)
    profile = _profile(tables[USERS]) if USERS in tables else ()
    logs = {"source": "both", "folder": folder.resolve()} if folder is not None else {}
    for table in tables.values():
        table.refuse_not_taken()
    settings = _settings(
        heads=heads,
        signals=signals,
        state={"profile": profile},
        ids={
            "users": kinds.ids([one.ids("user_id") for one in tables.values()]),
            "items": kinds.ids([shown.ids("item_id")]),
        },
        calendar={"timezone": zone.name},
        logs=logs,
    )
    for table in tables.values():
        table.leave_out_the_rest()
    return Inferred(
        settings,
        folder,
        said | {name: told for name, table in tables.items() if (told := said.get(name, {}) | table.mapping)},
        [entry for table in tables.values() for entry in table.read],
        [entry for table in tables.values() for entry in table.left_out],
        zone,
        USERS in tables,
    )


def _settings(**values: Any) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise SettingsError(*told) from None


def _refuse_without_table(answers: Answers, samples: Mapping[str, Sample]) -> None:
    for name, column in answers.columns.items():
        if name.startswith(f"{USERS}.") and USERS not in samples:
            raise SettingsError(f"--column {name}={column}: there are no profiles; they lie in users/dt=…")


class _Table:
    """A table's columns, as they are found one after the other."""

    def __init__(self, sample: Sample, said: Mapping[str, Any], answers: Answers) -> None:
        self.sample, self.name = sample, sample.table
        self.columns: dict[str, str] = {}  # theirs by the contract's names
        self.times: dict[str, SampledTime] = {}
        self.mapping: dict[str, Any] = {}
        self.questions: list[Question] = []
        self.read: list[tuple[str, str, str, str]] = []
        self.left_out: list[tuple[str, str, str]] = []
        given = {name: column_of(name, one) for name, one in said.items()}
        self.nulls = {name for name, column in given.items() if column is None}
        self.said = set(given)
        given = {name: column for name, column in given.items() if column is not None}
        given |= {
            name.removeprefix(f"{USERS}."): column
            for name, column in answers.columns.items()
            if name.startswith(f"{USERS}.") == (sample.table == USERS)
        }
        for name, column in given.items():
            if column not in sample.names:
                raise SettingsError(
                    f"{name}: there is no column {column!r} in {sample.parts[0].path}; it has "
                    + ", ".join(sample.names)
                )
        refuse_shared(f"{self.name}: ", given)
        self.given = given
        wanted = (*naming.REQUIRED[self.name], *naming.OPTIONAL[self.name])
        own = {name for name in wanted if name in sample.names and name not in given.values()}
        found = {name: given.get(name) or (name if name in own else None) for name in wanted}
        reserved = {*found.values(), *given.values()}
        for name in sorted(wanted, key=list(naming.PATTERNS).index):
            self._find(name, found[name], reserved)

    def _find(self, name: str, column: str | None, reserved: set[str | None]) -> None:
        if name in self.nulls:
            return
        pattern = re.compile(naming.PATTERNS[name])
        free = [c for c in self.sample.names if c not in reserved and c not in self.columns.values()]
        close = [column] if column else [c for c in free if pattern.fullmatch(naming.plain(c))]
        close = [one for one in close if self._can_be(name, one, named=column is not None)]
        if len(close) == 1:
            self.take(name, close[0])
        elif name in naming.REQUIRED[self.name] and not (column and name in _TIMES and self.questions):
            self._ask(name, close)

    def _ask(self, name: str, close: list[str]) -> None:
        option = f"--column {'users.' if self.name == USERS else ''}{name}"
        text = f"which column of {self.name} is {naming.WHAT[name]}?"
        if not close:
            odd = [
                c
                for c in self.sample.names
                if name == "play_time_ms" and re.fullmatch(naming.OTHER_UNIT, naming.plain(c))
            ]
            text += f" {odd[0]} is in no milliseconds by its name;" if odd else ""
            taken = {*self.given.values(), *self.columns.values()}
            text += f" None of {', '.join(c for c in self.sample.names if c not in taken)} is called so"
        self.questions.append(Question(option, text[0].upper() + text[1:], tuple(close)))

    def _can_be(self, name: str, column: str, named: bool) -> bool:
        if name in _TIMES:
            seen = look_at(self.sample, column)
            if seen is None:
                return False
            self.times[name] = seen
            return True
        if name in _WHOLE and not named:
            values = self.sample.numbers(column)
            return values is not None and bool(np.all((values == np.floor(values)) | np.isnan(values)))
        return True

    def take(self, name: str, column: str, seen: str = "", what: str = "") -> None:
        self.columns[name] = column
        told: dict[str, str] = {}
        if name in self.times:
            time = self.times[name]
            told, seen = time.entries, time.told
        if name not in self.said and (told or name != column):
            self.mapping[name] = {"column": column, **told} if told else column
        self.read.append((self.name, column, what or name, seen))

    def free(self) -> list[str]:
        taken = {*self.columns.values(), *(column for _, column, _ in self.left_out)}
        return [name for name in self.sample.names if name not in taken]

    def drop(self, column: str, why: str) -> None:
        self.left_out.append((self.name, column, why))

    def takes(self, ours: str) -> bool:
        """Whether it may be a further column's name: no other column has it, or is to have it."""
        others = (*naming.REQUIRED[self.name], *naming.OPTIONAL[self.name], "dt")
        return naming.legal(ours) and ours not in self.columns and ours not in others

    def refuse_not_taken(self) -> None:
        """What a person said holds, or is refused."""
        for name, column in self.given.items():
            if self.columns.get(name) != column:
                why = [told for _, one, told in self.left_out if one == column]
                why += [f"it is read as {ours}" for ours, one in self.columns.items() if one == column]
                told = (why or ["it cannot be read as that"])[0]
                whose = f"{USERS}." if self.name == USERS else ""
                raise SettingsError(f"{whose}{name}={column}: {told}: name another column, or leave it out")

    def numbers(self, column: str) -> Float64Array | None:
        """As a sample has them, NaN for what is no finite number of the type that is kept."""
        values = self.sample.numbers(column)
        return None if values is None else np.where(np.abs(values) <= _LARGEST, values, np.nan)

    def first(self, columns: list[str]) -> list[str]:
        """Those that a person named before the others, whose names they may take."""
        return sorted(columns, key=lambda column: column not in self.given.values())

    def leave_out_the_rest(self) -> None:
        for column in self.free():
            self.drop(column, "neither 0 or 1, nor named like a prediction")

    def ids(self, name: str) -> list[pd.Series]:
        if (column := self.columns.get(name)) is None:
            return []
        refuse_inexact(self.sample, column)
        return [self.sample.texts(column)]

    def trait_of(self, values: Float64Array) -> str:
        """Of what a column of numbers is a trait: it never differs within one; nothing for feedback."""
        for name in ("request_id", "item_id", "user_id"):
            if name not in self.columns:
                continue
            rows = pd.DataFrame({"of": self.sample.texts(self.columns[name]), "value": values}).dropna()
            groups = rows.groupby("of", observed=True)["value"].agg(["size", "min", "max"])
            several = groups[(groups["size"] > 1) & (groups["max"] > 0)]
            if len(several) >= _GROUPS and (several["min"] == several["max"]).all():
                return name.removesuffix("_id")
        return ""


def _heads(table: _Table, asked: tuple[HeadSettings, ...]) -> tuple[HeadSettings, ...]:
    found: dict[str, HeadSettings] = {}
    # the contract's own names are beyond doubt
    given = {name: name[2:] for name in table.free() if re.fullmatch(r"p_[a-z][a-z0-9_]*", name)}
    given |= {column: name[2:] for name, column in table.given.items() if name.startswith("p_")}
    wanted = {head.name for head in asked}
    for column in table.first(table.free()):
        values = table.numbers(column)
        name = given.get(column) or naming.head_of(column)
        if column in table.given.values() and column not in given:
            continue
        if values is None or not np.isfinite(values).any():
            if column in given:
                path = next(part.path for part, _ in table.sample.columns(column))
                said = "" if column == f"p_{given[column]}" else f", given as p_{given[column]},"
                raise DataError(f"{path}: {column}{said} holds no finite number, as predictions are")
            continue
        fractional = bool(np.nanmax(np.abs(values - np.floor(values))) > 0)
        unnamed = name is None and fractional and np.nanmin(values) >= 0 and np.nanmax(values) <= 1
        if unnamed:
            name = naming.plain(column)
        if name is None or (column not in given and not fractional):
            continue
        if wanted and name not in wanted:
            table.drop(column, "not among --heads")
        elif column not in given and (trait := table.trait_of(values)):
            table.drop(column, f"never differs within the same {trait}, as a prediction would")
        elif np.nanmin(values) < 0:
            table.drop(column, "below 0: a prediction that is fused is a probability or an amount")
        elif not naming.legal(name) or name in found:
            table.drop(column, f"its head would be called {name!r}: give --column p_NAME={column}")
        else:
            found[name] = naming.new_head(name, values)
            low, high = np.nanmin(values), np.nanmax(values)
            odd = int(np.isnan(values).sum()) - table.sample.texts(column).isna().sum()
            seen = f"{low:.3g} to {high:.3g}" + (f", {odd} not finite" if odd else "")
            table.take(f"p_{name}", column, seen, f"prediction {name}")
    if missing := sorted(wanted - found.keys()):
        raise SettingsError(
            f"--heads: no predictions of {', '.join(missing)}: give --column p_{missing[0]}=COLUMN; "
            "there are " + ", ".join(table.sample.names)
        )
    return tuple(found.values())


def _signals(table: _Table) -> tuple[SignalSettings, ...]:
    found: dict[str, SignalSettings] = {}
    given = {column: name for name, column in table.given.items()}
    for column in table.first(table.free()):
        values = table.sample.numbers(column)
        if values is not None and np.isnan(values).all():
            table.drop(column, "without a value")
            continue
        if values is None or not bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all()):
            if column in given:
                raise DataError(f"{column}, given as {given[column]}, is feedback and not always 0 or 1")
            continue
        ours = given.get(column) or (column if naming.legal(column) else f"is_{naming.signal_of(column)}")
        name, rate = naming.signal_of(ours), float(np.nan_to_num(np.nanmean(values)))
        if column not in given and name not in naming.WORDS and (trait := table.trait_of(values)):
            table.drop(column, f"never differs within the same {trait}, as feedback would")
        elif column not in given and rate in (0.0, 1.0) and name not in naming.WORDS:
            table.drop(column, f"{rate:.0f} in every row")
        elif not naming.legal(name) or name in found or not table.takes(ours):
            table.drop(column, f"its signal would be called {name!r}: give --column is_NAME={column}")
        else:
            found[name] = naming.new_signal(name, ours)
            table.take(ours, column, f"{rate:.2%} of the rows", f"signal {name}")
    return tuple(found.values())


def _profile(table: _Table) -> tuple[ProfileFeature, ...]:
    found = []
    given = {column: name for name, column in table.given.items()}
    for column in table.first(table.free()):
        ours = given.get(column) or (column if naming.legal(column) else naming.plain(column))
        values, texts = table.numbers(column), table.sample.texts(column).dropna()
        if texts.empty or (values is not None and np.isnan(values).all()):
            table.drop(column, "without a value")
            continue
        if not table.takes(ours):
            table.drop(column, f"it would be called {ours!r}: give --column users.NAME={column}")
            continue
        feature = kinds.numeric(ours, values) if values is not None else kinds.categories(ours, texts)
        if isinstance(feature, str):
            table.drop(column, feature)
            continue
        seen = {
            "categorical": ", ".join(feature.categories[:6]) + (" …" if len(feature.categories) > 6 else ""),
            "saturating": f"one half at the median, {feature.half:g}" if feature.half else "",
        }.get(feature.kind, "" if values is None else f"{np.nanmin(values):.3g} to {np.nanmax(values):.3g}")
        found.append(feature)
        table.take(ours, column, seen, f"profile, {feature.kind}")
    return tuple(found)


def _zone(table: _Table, answers: Answers) -> zones.Zone:
    if answers.timezone:
        return zones.Zone(answers.timezone, "as you said")
    time = table.times.get("event_ts")
    if time is None:
        return zones.Zone(None, "your times do not say")
    found = zones.infer(time.instants, time.named, time.offsets, answers.machine)
    if found.name is None and any(one.on_a_wall for one in time.instants):
        return zones.Zone(None, "Your times have no offset and are taken to be of that zone", found.examples)
    return found

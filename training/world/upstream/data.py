"""What the multi-task model is told of an impression: who, what, where, when, and past days' counts.

Rows come from the lake (so they are the rows that everything else sees); profiles, videos and the
page (``tab``) come from KuaiRand's CSVs. Counts are of *days before* the row's own, never of its own:
the day's feedback is not known when the day's predictions are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS
from training.contract.settings import Settings
from training.ingest.schema import local_sql

PLAY_TIME = "play_time"  # the one head that is not a probability: expected seconds
LOGARITHMIC = {  # numbers of a wide range; every other column is taken for a category
    "follow_user_num",
    "fans_user_num",
    "friend_user_num",
    "register_days",
    "server_width",
    "server_height",
}
IGNORED = {"video_id", "user_id", "author_id", "music_id", "upload_dt", "video_duration"}
SMOOTHING = 20.0  # impressions that a rate of past days must outweigh
CLIP = 5.0  # standard deviations: a rare signal's rates have tails that would rule the network
STILL_SHARE = 0.85  # a number that is the same in more of the rows is not used
MINIMUM_COUNT = 10  # entities that share a category before it is told from the unknown one
ENTITIES = ("user", "item", "author")


@dataclass(frozen=True)
class Block:
    """Encoded features of n things: category indices int64[n, c] and numbers float32[n, k]."""

    categories: np.ndarray
    numbers: np.ndarray

    def take(self, index: np.ndarray) -> "Block":
        return Block(self.categories[index], self.numbers[index])

    @staticmethod
    def join(blocks: Sequence["Block"]) -> "Block":
        return Block(
            np.concatenate([b.categories for b in blocks], axis=1),
            np.concatenate([b.numbers for b in blocks], axis=1),
        )


@dataclass(frozen=True)
class Encoder:
    """Vocabulary of each category, mean and scale of each number.

    Index 0 of a category is the unknown value. Scale 0 is a number that hardly varied (past counts
    on the first days of all): little was learnt of it, and it is encoded as 0 whatever it becomes.
    """

    vocabularies: dict[str, list[str]]
    scales: dict[str, tuple[float, float]]

    @classmethod
    def learn(cls, frame: pd.DataFrame, categories: Sequence[str], numbers: Sequence[str]) -> "Encoder":
        vocabularies = {}
        for name in categories:
            counts = frame[name].value_counts()
            vocabularies[name] = sorted(counts.index[counts >= min(MINIMUM_COUNT, len(frame))])
        scales = {}
        for name in numbers:
            still = frame[name].value_counts(normalize=True, dropna=False).iloc[0] > STILL_SHARE
            mean, std = float(frame[name].mean()), float(frame[name].std(ddof=0))
            scales[name] = (0.0, 0.0) if still else (mean, std)
        return cls(vocabularies, scales)

    def to_plain(self) -> dict[str, list[Any]]:
        """As lists of pairs: the order of the columns is the order of the network's inputs."""
        return {"vocabularies": list(self.vocabularies.items()), "scales": list(self.scales.items())}

    @classmethod
    def of_plain(cls, plain: dict[str, list[Any]]) -> "Encoder":
        scales = {name: (mean, scale) for name, (mean, scale) in plain["scales"]}
        return cls(dict(plain["vocabularies"]), scales)

    @property
    def cardinalities(self) -> list[int]:
        return [len(values) + 1 for values in self.vocabularies.values()]

    def encode(self, frame: pd.DataFrame) -> Block:
        """Unknown and null categories are index 0, null numbers the mean; the rest are clipped."""
        categories = [
            pd.Index(values).get_indexer(frame[name]) + 1 for name, values in self.vocabularies.items()
        ]
        numbers = [
            (frame[name].to_numpy(np.float64) - mean) / scale if scale else np.zeros(len(frame))
            for name, (mean, scale) in self.scales.items()
        ]
        n = len(frame)
        return Block(
            np.stack(categories, axis=1).astype(np.int64) if categories else np.zeros((n, 0), np.int64),
            np.nan_to_num(np.stack(numbers, axis=1)).clip(-CLIP, CLIP).astype(np.float32)
            if numbers
            else np.zeros((n, 0), np.float32),
        )


@dataclass(frozen=True)
class LandedLog:
    """Every landed impression in order of time, and the two tables it refers to.

    ``rows`` has request_id, user_id, item_id, event_ts, day, tab, hour, age_days, duration_s, the
    past-day counts and one ``y_<head>`` a head; ``user_row`` and ``item_row`` index ``users`` and
    ``items`` (whose last row is the unknown one). ``latest`` holds, an entity, ``key`` and the same
    counts over all days: what a day after the last would be told.
    """

    rows: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame
    latest: dict[str, pd.DataFrame]
    heads: tuple[str, ...]
    user_row: np.ndarray
    item_row: np.ndarray

    @property
    def days(self) -> list[date]:
        return sorted(self.rows["day"].unique())


def targets(settings: Settings) -> dict[str, str]:
    """SQL of each head that the log can teach: its signal, or capped seconds for play time."""
    columns = {signal.name: signal.column for signal in settings.signals}
    cap = settings.reward.play_time_cap_s
    found = {}
    for head in settings.heads:
        if head.name == PLAY_TIME:
            found[head.name] = f"least(greatest(play_time_ms, 0) / 1000.0, {cap})"
        elif head.name in columns:
            found[head.name] = f'cast("{columns[head.name]}" as double)'
    if not found:
        raise DataError("no head of the settings is the name of a feedback signal, or play_time")
    return found


def context_columns() -> tuple[list[str], list[str]]:
    """Categories and numbers of a row beside its user and its item."""
    return ["tab", "hour"], ["log_duration", "log_age"]


def count_columns(entity: str, heads: Sequence[str]) -> list[str]:
    return [f"{entity}_n", *[f"{entity}_{head}" for head in heads]]


def read_log(settings: Settings, folder: Path) -> LandedLog:
    """Read the lake and KuaiRand's tables in ``folder``; raises :class:`DataError` if a file lacks."""
    lake = sorted(settings.layout.table(IMPRESSIONS).glob("dt=*/part-*.parquet"))
    if not lake:
        raise DataError(f"no landed impressions below {settings.layout.table(IMPRESSIONS)}")
    heads = targets(settings)
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        users = _table(connection, folder, "user_features*.csv*", "user_id")
        items = _table(connection, folder, "video_features_basic*.csv*", "video_id")
        connection.register("items", items[["video_id", "author_id", "upload_dt"]])
        connection.read_parquet([str(path) for path in lake], union_by_name=True).create_view("landed")
        _tabs(connection, folder)
        connection.execute(f"""
            create table base as
            select request_id, user_id, item_id, event_ts, local::date as day, tab,
                   cast(hour(local) as varchar) as hour,
                   case when duration_ms > 0 then ln(1 + duration_ms / 1000.0) end as log_duration,
                   ln(1 + greatest(local::date - upload_dt::date, 0)) as log_age,
                   user_id as user_key, item_id as item_key, author_id as author_key,
                   {", ".join(f"{sql} as y_{head}" for head, sql in heads.items())}
            from (
                select *, {local_sql(settings, "event_ts")} as local,
                       epoch_us(event_ts) // 1000 as time_ms
                from landed
            )
            left join items on video_id = item_id
            left join tabs using (user_id, item_id, time_ms)
        """)  # noqa: S608
        for entity in ENTITIES:
            connection.execute(f"create table {entity}_counts as {_past_counts(entity, list(heads))}")
        counts = ", ".join(c for entity in ENTITIES for c in count_columns(entity, list(heads)))
        joins = " ".join(f"left join {entity}_counts using ({entity}_key, day)" for entity in ENTITIES)
        latest = {e: connection.sql(_latest_counts(e, list(heads))).df() for e in ENTITIES}
        rows = connection.sql(
            f"select base.* exclude (user_key, item_key, author_key), {counts} from base {joins} "  # noqa: S608
            "order by event_ts, request_id, item_id"
        ).df()
    rows["day"] = pd.to_datetime(rows["day"]).dt.date
    return LandedLog(
        rows,
        users,
        items,
        latest,
        tuple(heads),
        user_row=pd.Index(users["user_id"][:-1]).get_indexer(rows["user_id"]),
        item_row=pd.Index(items["video_id"][:-1]).get_indexer(rows["item_id"]),
    )


def _table(connection: duckdb.DuckDBPyConnection, folder: Path, pattern: str, key: str) -> pd.DataFrame:
    """A table of KuaiRand by its key, texts but for numbers; the last row stands for the unknown."""
    files = _files(folder, pattern)
    frame = connection.read_csv(files, all_varchar=True).df()  # type: ignore[arg-type]  # the stub wants one
    frame[key] = frame[key].astype(np.int64)
    frame = frame.drop_duplicates(key).sort_values(key, ignore_index=True)
    for name in frame.columns:
        if name in LOGARITHMIC:
            frame[name] = np.log1p(pd.to_numeric(frame[name], errors="coerce").clip(lower=0))
        elif name == "tag":  # a comma list: the first is the main one
            frame[name] = frame[name].str.split(",").str[0]
        elif name == "author_id":
            frame[name] = pd.to_numeric(frame[name]).astype("Int64")
        elif name == "upload_dt":
            frame[name] = pd.to_datetime(frame[name], errors="coerce")
    return frame.reindex(range(len(frame) + 1)).astype({key: "Int64"})


def _files(folder: Path, pattern: str) -> list[str]:
    """Both the official archives, which hold a folder ``data``, and a flat folder."""
    found = sorted(str(path) for path in folder.rglob(pattern))
    if not found:
        raise DataError(f"no file {pattern} in {folder}: it should hold KuaiRand's CSVs, plain or .gz")
    return found


def _tabs(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """The page of each impression, which the log's contract does not carry."""
    files = _files(folder, "log_*.csv*")
    connection.read_csv(files).create_view("raw")  # type: ignore[arg-type]  # as above
    connection.execute("""
        create table tabs as
        select user_id, video_id as item_id, time_ms, cast(min(tab) as varchar) as tab
        from raw group by all
    """)


def _past_counts(entity: str, heads: list[str]) -> str:
    """Counts of an entity over the days before each of its days (:data:`SMOOTHING` for the rates)."""
    window = "order by day rows between unbounded preceding and 1 preceding"
    sums = ", ".join(f"sum(y_{h}) as s_{h}" for h in heads)
    before = ", ".join(f"coalesce(sum({c}) over w, 0) as {c}" for c in ["n", *(f"s_{h}" for h in heads)])
    means = ", ".join(f"coalesce(sum(s_{h}) over w / sum(n) over w, 0) as m_{h}" for h in heads)
    return f"""
        with daily as (
            select {entity}_key, day, count(*) as n, {sums}
            from base where {entity}_key is not null group by all
        ), past as (
            select {entity}_key, day, {before} from daily
            window w as (partition by {entity}_key {window})
        ), overall as (
            select day, {means} from (
                select day, count(*) as n, {sums} from base group by day
            ) window w as ({window})
        )
        select {entity}_key, day, {_rates(entity, heads)} from past join overall using (day)
    """  # noqa: S608


def _latest_counts(entity: str, heads: list[str]) -> str:
    sums = ", ".join(f"sum(y_{h}) as s_{h}" for h in heads)
    means = ", ".join(f"avg(y_{h}) as m_{h}" for h in heads)
    return f"""
        select key, {_rates(entity, heads)} from (
            select {entity}_key as key, count(*) as n, {sums}
            from base where {entity}_key is not null group by 1
        ), (select {means} from base)
    """  # noqa: S608


def _rates(entity: str, heads: list[str]) -> str:
    """Deviation from everyone's mean m, drawn to 0 while the count n is small: (s - n m) / (n + K)."""
    rates = [f"(s_{h} - n * m_{h}) / (n + {SMOOTHING}) as {entity}_{h}" for h in heads]
    return ", ".join([f"ln(1 + n) as {entity}_n", *rates])

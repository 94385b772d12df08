"""What days of a lake hold, counted: nulls, users, sessions and their returns, and how much was explored."""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from statistics import NormalDist

import duckdb

from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.log import EXPLORING
from training.contract.settings import ServingSettings, Settings
from training.ingest.landing import PART, connect
from training.ingest.schema import table_spec

HEAVIEST = 5  # users that are named
_SEEN = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)  # standard errors: 95 %, seen in four of five


@dataclass(frozen=True)
class Shown:
    """The impressions of all days."""

    rows: int
    requests: int
    users: int
    items: int
    first: datetime
    last: datetime
    nulls: tuple[tuple[str, int], ...]  # columns that have some
    heaviest: tuple[tuple[str, int, int], ...]  # user, requests, rows


@dataclass(frozen=True)
class Sessions:
    """Sessions of the impressions, cut by ``session.gap_minutes``, and their returns, eq. (2)."""

    count: int
    a_day: float
    requests: float  # a session
    mean: float
    deviation: float


@dataclass(frozen=True)
class Explored:
    """Decisions in the logs, and what of them can be learnt from.

    ``information`` is the sum over drawn deviations (a session's or a request's) of their mean square, an
    entry of the action.
    """

    decisions: int
    drawn: int  # of an exploring arm, with the density that they were drawn with
    with_state: int  # of these, with a state of the settings' specification
    draws: int  # sessions or requests, by what an action was drawn once for
    information: float


def shown(settings: Settings, days: Sequence[date]) -> Shown:
    """Of the days' impressions, which are there."""
    columns = [column for column in table_spec(settings, IMPRESSIONS).schema.names if column != "session_id"]
    with connect() as connection:
        _view(settings, connection, IMPRESSIONS, days)
        nulls = ", ".join(f'count(*) - count("{name}")' for name in columns)
        query = (
            "select count(*), count(distinct request_id), count(distinct user_id), count(distinct item_id), "
            f"min(event_ts), max(event_ts), {nulls} from {IMPRESSIONS}"
        )
        counts = connection.execute(query).fetchall()[0]
        heaviest = connection.execute(
            f"select user_id::varchar, count(distinct request_id) as n, count(*) from {IMPRESSIONS} "
            f"where user_id is not null group by user_id order by n desc, user_id limit {HEAVIEST}"
        ).fetchall()
    missing = zip(columns, counts[6:], strict=True)
    some = tuple((name, n) for name, n in missing if n)
    rows, requests, users, items, first, last = counts[:6]
    return Shown(rows, requests, users, items, first, last, some, tuple(map(tuple, heaviest)))


def sessions(settings: Settings, days: Sequence[date]) -> Sessions | None:
    """Of the days' impressions; None where there are fewer than two.

    An estimate of what dbt will make of them, for planning: cut to the microsecond, and a session that comes
    back after another of its user counts twice.
    """
    reward = settings.reward
    signals = " + ".join(f'{s.weight!r} * coalesce("{s.column}", 0)' for s in settings.signals)
    cap = reward.play_time_cap_s
    played = f"{reward.play_time_weight!r} * least(coalesce(play_time_ms, 0) / 1000.0, {cap!r})"
    share = "case when duration_ms > 0 then least(coalesce(play_time_ms, 0) / duration_ms, 1.0) else 0 end"
    whole = f"{reward.integrity_weight!r} * {share}"
    gap = f"interval {settings.session.gap.total_seconds():.0f} second"
    with connect() as connection:
        _view(settings, connection, IMPRESSIONS, days)
        count, requests, mean, deviation = connection.execute(f"""
            with requests as (
                select request_id, any_value(user_id) as u, any_value(session_id) as s, min(event_ts) as t,
                    sum({signals} + {played} + {whole}) as reward
                from {IMPRESSIONS} group by request_id
            ), marked as (
                select *, case when t - lag(t) over one <= {gap} and s is not distinct from lag(s) over one
                    then 0 else 1 end as begins
                from requests window one as (partition by u order by t, request_id)
            ), numbered as (
                select *, sum(begins) over (partition by u order by t, request_id) as n from marked
            ), sessions as (select u, n, count(*) as requests, sum(reward) as r from numbered group by u, n)
            select count(*), avg(requests), avg(r), stddev_samp(r) from sessions
        """).fetchall()[0]
    if count < 2:
        return None
    return Sessions(count, count / len(days), requests, mean, deviation)


def explored(settings: Settings, days: Sequence[date]) -> Explored:
    """Of the days' decisions, where there are any."""
    with connect() as connection:
        if not _view(settings, connection, DECISIONS, days):
            return Explored(0, 0, 0, 0, 0.0)
        pairs = "list_transform(list_zip(action, action_mean), lambda p: (p[1] - p[2]) ** 2)"
        counts = connection.execute(f"""
            with drawn as (
                select *, state is not null and state_spec = '{settings.state_spec.version}' as usable,
                    case when exploration_unit = 'session' then session_id else request_id end as unit,
                    list_avg({pairs}) as square
                from {DECISIONS}
                where arm in {EXPLORING!r} and log_density is not null and fallback is null
            ), units as (select unit, avg(square) as square from drawn where usable group by unit)
            select (select count(*) from {DECISIONS}), (select count(*) from drawn),
                (select count(*) from drawn where usable), (select count(*) from units),
                (select coalesce(sum(square), 0) from units)
        """).fetchall()[0]
    return Explored(*counts)


def needed(found: Sessions, effect: float) -> float | None:
    """Information after which the slope of a session's return along one weight is seen where it is worth
    ``effect``, as a share of the mean return, from the middle of the weight's interval to its end.

    A least-squares slope has the standard error σ / √(Σ deviation²). None where there is no return.
    """
    if found.mean == 0.0 or found.deviation == 0.0:
        return None
    return (_SEEN * found.deviation / (effect * abs(found.mean))) ** 2


def information_of_a_session(serving: ServingSettings) -> float:
    """What a session brings, on average, under the shares of the exploring arms."""
    shares = serving.shares
    return (
        shares.random * _variance(serving.random_std)
        + shares.noise * _variance(serving.noise_std)
        + shares.box * serving.box_width**2 / 3.0
    )


def _variance(std: float) -> float:
    """Of N(0, std²) truncated to [-1, 1]."""
    normal, bound = NormalDist(), 1.0 / std
    kept = 1.0 - 2.0 * normal.cdf(-bound)
    return std**2 * (1.0 - 2.0 * bound * normal.pdf(bound) / kept)


def _view(
    settings: Settings, connection: duckdb.DuckDBPyConnection, table: str, days: Sequence[date]
) -> bool:
    """Make the days' partitions a view by the table's name; false where none is there."""
    paths = [str(settings.layout.partition(table, day) / PART) for day in days]
    paths = [
        path
        for path, day in zip(paths, days, strict=True)
        if (settings.layout.partition(table, day)).is_dir()
    ]
    if not paths:
        return False
    connection.read_parquet(paths, hive_partitioning=False).create_view(table)
    return True


def days_for(information: float, a_day: float, serving: ServingSettings) -> float:
    """Days of so many sessions until the exploring arms have brought the information; inf without any."""
    rate = a_day * information_of_a_session(serving)
    return information / rate if rate > 0.0 else math.inf

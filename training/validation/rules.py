"""What must hold of each table: columns and types, rows, key, and the rates that should stay put.

Severities: *critical* stops the day, because a learner, a state or a reward made of such rows would
be wrong; *warning* is for a person to look at, because the data can be right and merely unusual.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from training.contract.columns import decision_columns, impression_columns, user_columns, with_ids
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.log import ARMS, EXPLORING, STATIC, UNITS, Column
from training.contract.settings import Settings
from training.contract.transitions import OF_SOME_LEARNERS, TRANSITION
from training.validation.checks import (
    NOT_FINITE,
    Check,
    Field,
    at_least,
    at_most,
    present,
    severity_of,
    within,
)

TRANSITIONS = "transitions"
TRAINING_SET = "training_set"

# Entries of a state are indicators, rates, logarithms and sines; one beyond this is a broken feature.
STATE_LIMIT = 1e6
# Room for float32 in logged actions and for the order of summation in rewards.
TOLERANCE = 1e-6
# The head that predicts seconds of play; the others predict the signal of their name.
PLAY_TIME = "play_time"
# No play is longer than a day; a longer one is a clock or a unit gone wrong.
DAY_MS = 86_400_000
# Times are summed in whole milliseconds of 64 bits, by user and session: with one beyond it no sum holds.
YEAR_MS = 366 * DAY_MS

PROFILE = "profile_"  # what measures of a profile's column begin with
# SQL and the columns that it needs
Measured = tuple[str, tuple[str, ...]]

# the types that an export's column may have for the declared one: another engine may have written it
_EXPORTED = {
    "int32": ("int8", "int16", "int32", "int64"),
    "double": ("double", "float"),
    "list<float>": ("list<float>", "list<double>"),
}
_EMPTY = ("fallback", "next_state", "next_request_id")  # of no type where a day has nothing but nulls


@dataclass(frozen=True)
class Rules:
    """All that is checked of one table's partition.

    ``types`` maps each column to the types that it may have. Held against recent days are ``rates``,
    SQL aggregates by name, and quantiles of ``histograms``, SQL expressions by name; both with the
    columns that they need, the first of which a person is told of. ``signals`` names those rates that
    are shares of 0/1 signals; ``calibrated`` gives what each prediction should come true as.
    """

    table: str
    key: tuple[str, ...]
    types: Mapping[str, tuple[str, ...]]
    fields: Sequence[Field]
    checks: Sequence[Check]
    rates: Mapping[str, Measured] = field(default_factory=dict)
    histograms: Mapping[str, Measured] = field(default_factory=dict)
    calibrated: Mapping[str, Measured] = field(default_factory=dict)
    signals: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()

    @property
    def key_text(self) -> str:
        return f"no two rows have the same {', '.join(self.key)}"


def _types(columns: Sequence[Column]) -> dict[str, tuple[str, ...]]:
    return {column.name: (column.type,) for column in columns}


def _exported_types(column: Column) -> tuple[str, ...]:
    types = _EXPORTED.get(column.type, (column.type,))
    return (*types, "null") if column.name in _EMPTY else types


def _plain(name: str) -> Field:
    return Field(name, f'"{name}"', (name,))


def _presence(name: str) -> Field:
    """Only whether the value is there: strings and times need not become Python objects."""
    return Field(name, f'CASE WHEN "{name}" IS NOT NULL THEN 1::TINYINT END', (name,))


def _number(name: str, sql: str | None = None, needs: tuple[str, ...] | None = None) -> Field:
    """A float whose NaN and infinities become :data:`NOT_FINITE`: GX takes them for nulls."""
    return Field(name, _finite(sql or f'"{name}"'), needs or (name,))


def _finite(sql: str) -> str:
    return f"CASE WHEN NOT isfinite({sql}) THEN {NOT_FINITE!r}::FLOAT ELSE {sql} END"


def _local_hour(column: str, day: date, settings: Settings) -> Field:
    """Hours from the day's local midnight."""
    midnight = settings.day_start(day).timestamp()
    return Field(f"{column}_local_hour", f"epoch({column}) / 3600.0 - {midnight / 3600.0!r}", (column,))


def _in_day(column: str, day: date, settings: Settings) -> tuple[Field, list[Check]]:
    hour = _local_hour(column, day, settings)
    length = settings.day_start(day + timedelta(days=1)) - settings.day_start(day)
    text = f"{column} lies in the local day {day} ({settings.calendar.timezone})"
    return hour, [at_least(hour, 0.0, text), at_most(hour, length / timedelta(hours=1) - 1e-9, text)]


def _vectors(settings: Settings) -> tuple[list[Field], list[Check]]:
    """State, action and density of a request, as decisions and transitions both carry them."""
    spec, heads = settings.state_spec, settings.heads
    fields: list[Field] = []
    checks: list[Check] = []
    for column in ("action", "action_mean"):
        length = Field(f"{column}_length", f"len({column})", (column,))
        fields.append(length)
        checks += within(length, len(heads), len(heads), f"the length of {column}")
        for index, head in enumerate(heads):
            entry = _number(f"{column}_{head.name}", f"{column}[{index + 1}]", (column,))
            fields.append(entry)
            checks.append(present(entry))
            checks += [
                at_least(entry, -1.0 - TOLERANCE, f"{entry.name} is at least -1"),
                at_most(entry, 1.0 + TOLERANCE, f"{entry.name} is at most 1"),
            ]
    length = Field(
        "state_length",
        f"CASE WHEN state_spec = '{spec.version}' THEN len(state) END",
        ("state", "state_spec"),
    )
    size = _absolute("state")
    density = _number("log_density")
    drawn = Field(
        "log_density_of_drawn",
        f"CASE WHEN arm IN {EXPLORING!r} AND fallback IS NULL "
        "THEN (CASE WHEN log_density IS NOT NULL THEN 1 ELSE 0 END)::TINYINT END",
        ("log_density", "arm", "fallback"),
    )
    unit = Field(
        "exploration_unit_known",
        f"CASE WHEN exploration_unit IS NULL OR exploration_unit IN {UNITS!r} THEN 1 ELSE 0 END::TINYINT",
        ("exploration_unit",),
    )
    arm = Field("arm_known", f"CASE WHEN arm IS NULL OR arm IN {ARMS!r} THEN 1 ELSE 0 END::TINYINT", ("arm",))
    fields += [length, size, density, drawn, unit, arm]
    checks += within(length, spec.width, spec.width, f"the length of a state of {spec.version}")
    checks.append(at_most(size, STATE_LIMIT, f"every entry of state is a number within {STATE_LIMIT:g}"))
    checks += [
        at_least(density, -1e6, "log_density is a finite number"),
        at_most(density, 1e6, "log_density is a finite number"),
        at_least(drawn, 1, "an action drawn by an exploring arm has its log_density"),
        at_least(unit, 1, f"exploration_unit is one of {', '.join(UNITS)}"),
        at_least(arm, 1, f"arm is one of {', '.join(ARMS)}"),
    ]
    return fields, checks


def _absolute(column: str) -> Field:
    largest = f"list_max(list_transform({column}, lambda x: {_finite('abs(x)')}))"
    return Field(f"{column}_largest_entry", largest, (column,))


def impressions(settings: Settings, day: date) -> Rules:
    columns = impression_columns(settings)
    null_share = settings.validation.max_null_share
    hour, checks = _in_day("event_ts", day, settings)
    fields = [hour]
    for column in columns:
        if column.required:
            strings = column.type == "string" or column.type.startswith("timestamp")
            entry = _presence(column.name) if strings else _plain(column.name)
            fields.append(entry)
            checks.append(present(entry, null_share))
    for name, maximum in [("position", None), ("play_time_ms", DAY_MS), ("duration_ms", None)]:
        checks.append(at_least(_plain(name), 0, f"{name} is at least 0"))
        if maximum:
            checks.append(at_most(_plain(name), maximum, f"{name} is at most a day, {maximum}", "warning"))
        if name != "position":
            text = f"{name} is at most a year, {YEAR_MS}: times beyond it cannot be summed"
            checks.append(at_most(_plain(name), YEAR_MS, text))
    waited = Field(
        "seconds_to_feedback",
        "CASE WHEN feedback_ts IS NOT NULL THEN (epoch_us(feedback_ts) - epoch_us(event_ts)) / 1e6 END",
        ("feedback_ts", "event_ts"),
    )
    fields.append(waited)
    # a state that held what was done to the request's own items would give its reward away
    text = "feedback comes after its request: feedback_ts - event_ts is at least 0"
    checks.append(at_least(waited, 0.0, text, severity_of(settings, "feedback_times")))
    for signal in settings.signals:
        checks += within(_plain(signal.column), 0, 1, f"{signal.column}, a 0/1 signal,")
    predictions = tuple(f"p_{head.name}" for head in settings.heads)
    observed: dict[str, Measured] = {s.name: (f'"{s.column}"', (s.column,)) for s in settings.signals}
    observed[PLAY_TIME] = ("play_time_ms / 1000.0", ("play_time_ms",))
    for head in settings.heads:
        prediction = _number(f"p_{head.name}")
        fields.append(prediction)
        checks += within(prediction, 0.0, head.maximum, f"the predicted {head.name}, p_{head.name},")
    return Rules(
        IMPRESSIONS,
        ("request_id", "item_id"),
        _types(columns),
        fields,
        checks,
        rates=_impression_rates(settings),
        histograms={name: (f'"{name}"', (name,)) for name in ("play_time_ms", *predictions)},
        calibrated={
            f"p_{h.name}": (observed[h.name][0], (f"p_{h.name}", *observed[h.name][1]))
            for h in settings.heads
            if h.name in observed
        },
        signals=tuple(s.column for s in settings.signals),
        predictions=predictions,
    )


def _impression_rates(settings: Settings) -> dict[str, Measured]:
    means = {s.column: f'avg("{s.column}")' for s in settings.signals} | {"play_time_ms": "avg(play_time_ms)"}
    for head in settings.heads:
        name = f"p_{head.name}"
        means[name] = f'avg(CASE WHEN isfinite("{name}") THEN "{name}" END)'
    users = "count(DISTINCT user_id)"
    sessions = "count(DISTINCT hash(session_id, user_id))"
    return {name: (sql, (name,)) for name, sql in means.items()} | {
        "items_per_request": ("count(*) / count(DISTINCT hash(request_id))", ("request_id",)),
        "requests_per_user": (
            f"count(DISTINCT hash(request_id)) / nullif({users}, 0)",
            ("request_id", "user_id"),
        ),
        "sessions_per_user": (
            f"CASE WHEN count(session_id) > 0 THEN {sessions} / nullif({users}, 0) END",
            ("session_id", "user_id"),
        ),
        "duration_known": ("count(*) FILTER (WHERE duration_ms > 0) / count(*)", ("duration_ms",)),
    }


def decisions(settings: Settings, day: date) -> Rules:
    columns = decision_columns(settings.ids)
    hour, checks = _in_day("event_ts", day, settings)
    fields = [hour]
    for column in columns:
        if column.required:
            entry = _presence(column.name)
            fields.append(entry)
            checks.append(present(entry, settings.validation.max_null_share))
    more_fields, more_checks = _vectors(settings)
    served = Field(
        "state_of_served",
        f"CASE WHEN fallback IS NULL AND arm <> '{STATIC}' "
        "THEN (CASE WHEN state IS NOT NULL THEN 1 ELSE 0 END)::TINYINT END",
        ("state", "fallback", "arm"),
    )
    return Rules(
        DECISIONS,
        ("request_id",),
        _types(columns),
        [*fields, *more_fields, served],
        [
            *checks,
            *more_checks,
            at_least(served, 1, "a request ranked by a policy has the state it was ranked with", "warning"),
        ],
        rates={
            "requests_per_session": (
                "count(*) / count(DISTINCT hash(session_id, user_id))",
                ("session_id", "user_id"),
            ),
            **_profile_rates(settings),
        },
    )


def _profile_rates(settings: Settings) -> dict[str, Measured]:
    """Means of the state's entries that are made of the profile: shares of categories and flags, by request.

    Of the served state and not of the landed users, who are those that are new or have changed.
    """
    spec = settings.state_spec
    columns = {feature.name for feature in spec.features if feature.source == "profile"}
    return {
        f"{PROFILE}{name}": (
            f"avg(state[{place}]) FILTER (WHERE state_spec = '{spec.version}' AND isfinite(state[{place}]))",
            ("state", "state_spec"),
        )
        for place, name in enumerate(spec.entry_names, start=1)
        if name.partition("=")[0] in columns
    }


def users(settings: Settings, day: date) -> Rules:
    columns = user_columns(settings)
    fields: list[Field] = []
    checks: list[Check] = []
    for name in ("user_id", "updated_ts"):
        fields.append(_presence(name))
        checks.append(present(fields[-1], settings.validation.max_null_share))
    for feature in settings.state.profile:
        if feature.kind == "flag":
            entry = _plain(feature.column)
            fields.append(entry)
            checks += within(entry, 0, 1, f"{feature.column}, a 0/1 flag,")
        elif feature.kind != "categorical":
            entry = _number(feature.column)
            fields.append(entry)
            checks.append(at_most(entry, 1e15, f"{feature.column} is a finite number"))
            checks.append(at_least(entry, -1e15, f"{feature.column} is a finite number"))
    return Rules(USERS, ("user_id",), _types(columns), fields, checks)


def transitions(settings: Settings, table: str = TRANSITIONS) -> Rules:
    """Of the ``fct_transitions`` export, for a day or (``training_set``) for the whole window."""
    columns = [c for c in with_ids(TRANSITION, settings.ids) if c.name not in (*OF_SOME_LEARNERS, "dt")]
    types = {column.name: _exported_types(column) for column in columns}
    optional = {column.name for column in columns if not column.required}
    fields, checks = _vectors(settings)
    for name in types:
        if name in optional:
            continue
        entry = _number(name) if name in ("reward", "play_s") else _presence(name)
        if name in ("step", "impressions"):
            entry = _plain(name)
        fields.append(entry)
        checks.append(present(entry))
    spec = settings.state_spec
    next_length = Field(
        "next_state_length",
        f"CASE WHEN state_spec = '{spec.version}' THEN len(next_state) END",
        ("next_state", "state_spec"),
    )
    next_size = _absolute("next_state")
    low, high = reward_range(settings)
    finite = "CASE WHEN isfinite(reward) THEN reward END"
    per_item = _number(
        "reward_per_impression", "reward / greatest(impressions, 1)", ("reward", "impressions")
    )
    one_end = Field(
        "end_known",
        "CASE WHEN (done AND truncated) OR (next_state IS NULL AND NOT done AND NOT truncated) "
        "THEN 0 ELSE 1 END::TINYINT",
        ("done", "truncated", "next_state"),
    )
    fields += [next_length, next_size, per_item, one_end]
    checks += within(next_length, spec.width, spec.width, f"the length of a next state of {spec.version}")
    checks += [
        at_most(next_size, STATE_LIMIT, f"every entry of next_state is a number within {STATE_LIMIT:g}"),
        at_least(per_item, low - TOLERANCE, f"reward per impression is at least {low:g}, eq. (2)'s least"),
        at_most(per_item, high + TOLERANCE, f"reward per impression is at most {high:g}, eq. (2)'s most"),
        at_least(one_end, 1, "a transition has a next state, or is done, or is truncated, and not both"),
        at_least(_plain("step"), 0, "step is at least 0"),
        at_least(_number("play_s"), 0.0, "play_s is at least 0"),
        at_least(_plain("impressions"), 1, "a request has shown something", "warning"),
    ]
    return Rules(
        table,
        ("request_id",),
        types,
        fields,
        checks,
        rates={
            "reward": (f"avg({finite})", ("reward",)),
            "reward_spread": (f"stddev_pop({finite})", ("reward",)),
            "reward_p90": (f"quantile_cont({finite}, 0.9)", ("reward",)),
            "play_s": ("avg(play_s)", ("play_s",)),
        },
    )


def reward_range(settings: Settings) -> tuple[float, float]:
    """Least and most reward that one impression can give by eq. (2) with the settings' weights."""
    weights = [signal.weight for signal in settings.signals]
    weights += [
        settings.reward.play_time_weight * settings.reward.play_time_cap_s,
        settings.reward.integrity_weight,
    ]
    return sum(w for w in weights if w < 0), sum(w for w in weights if w > 0)

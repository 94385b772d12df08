"""The three feature views of a user's state.

A profile has no ttl, and by default no view has: a row is the best that is known of a user until a newer
one replaces it, and a silent expiry would turn a returning user into an unknown one. With
``store.history_ttl_days`` a history ends, for point-in-time reads as in the online store. How long ago they
were here is a feature, ``hist_days_since_last``, counted from ``hist_last_ts`` on the day of use. Session
features do end, by the session gap: a rule of :mod:`training.contract.session`, applied to served and to
offline states alike.
"""

from datetime import timedelta

from feast import FeatureView, Field
from feast.types import Float64, Int64, PrimitiveFeastType, String, UnixTimestamp

from feature_repo import data_sources
from feature_repo.entities import user
from training.contract.settings import Settings
from training.contract.state import history_columns, session_columns

FOREVER = timedelta(0)
PROFILE_TYPES: dict[str, PrimitiveFeastType] = {
    "numeric": Float64,
    "saturating": Float64,
    "log": Float64,
    "flag": Int64,
    "categorical": String,
}


def user_profile(settings: Settings) -> FeatureView | None:
    """None when the settings name no profile column: Feast has no view without features."""
    if not settings.state.profile:
        return None
    schema = [
        _user(settings),
        *[Field(name=p.column, dtype=PROFILE_TYPES[p.kind]) for p in settings.state.profile],
    ]
    return FeatureView(
        name="user_profile",
        entities=[user(settings)],
        ttl=FOREVER,
        schema=schema,
        source=data_sources.users(settings, schema),
        description="who the user is: the settings' profile columns",
    )


def user_history(settings: Settings) -> FeatureView:
    schema = [
        _user(settings),
        *[Field(name=name, dtype=Float64) for name in history_columns(settings.signal_names)],
        Field(name="hist_last_ts", dtype=UnixTimestamp),
    ]
    return FeatureView(
        name="user_history",
        entities=[user(settings)],
        ttl=timedelta(days=settings.store.history_ttl_days or 0),
        schema=schema,
        source=data_sources.user_history(settings, schema),
        description="the last interactions of a user up to the end of a day",
    )


def user_session(settings: Settings) -> FeatureView:
    """Sums over the session so far, whose they are, and the request that moved them last."""
    sums = session_columns(settings.signal_names, settings.head_names)
    schema = [
        _user(settings),
        *[Field(name=name, dtype=Float64) for name in sums],
        Field(name="sess_session_id", dtype=String),
        Field(name="sess_last_ts", dtype=UnixTimestamp),
        Field(name="request_id", dtype=String),
    ]
    return FeatureView(
        name="user_session",
        entities=[user(settings)],
        ttl=FOREVER,
        schema=schema,
        source=data_sources.session_push(settings, schema),
        description="what happened in the user's current session, moved by every feedback",
    )


def views(settings: Settings) -> list[FeatureView]:
    every = (user_profile(settings), user_history(settings), user_session(settings))
    return [view for view in every if view is not None]


def _user(settings: Settings) -> Field:
    """The join key's column: Feast would read an export to learn its type."""
    kinds = {"int64": Int64, "string": String}
    return Field(name="user_id", dtype=kinds[settings.ids.kept("user_id")])

"""Where MLflow and Airflow keep their rows, and how the scale profile's servers get their passwords.

No address holds a password. PostgreSQL's client library takes ``$PGPASSWORD`` or the file ``$PGPASSFILE``
by itself; for Redis, ``feature_store.yaml`` names a variable, whose value Feast puts in on reading the file.
"""

import os
import re
from typing import TYPE_CHECKING

from training.contract.errors import SettingsError
from training.contract.settings import Settings, StoreSettings

if TYPE_CHECKING:
    from redis import Redis

REDIS_PASSWORD = "MTF_REDIS_PASSWORD"  # noqa: S105 -- the name of a variable
_WAIT_S = 1.0  # for Redis: longer than any script takes


def mlflow(settings: Settings) -> str:
    """MLflow's database, as SQLAlchemy takes it."""
    if "mlflow" in settings.postgres.uses:
        return settings.postgres.url("mlflow")
    return f"sqlite:///{(settings.layout.mlflow / 'mlflow.db').absolute()}"


def airflow(settings: Settings) -> str:
    """Airflow's database, likewise."""
    if "airflow" in settings.postgres.uses:
        return settings.postgres.url("airflow")
    return f"sqlite:///{(settings.layout.airflow / 'airflow.db').absolute()}"


def redis(settings: Settings) -> str:
    """Redis' connection string, as Feast takes it, with the variable's name in the password's place.

    Raises :class:`SettingsError` as :func:`redis_password` does, where ``store.redis_password`` is on.
    """
    if not settings.store.redis_password:
        return settings.store.redis_url
    redis_password("store.redis_password")
    return f'{settings.store.redis_url},password="${{{REDIS_PASSWORD}}}"'


def redis_client(store: StoreSettings) -> "Redis":
    """Redis of ``store.redis_url``. No call is made twice: the first one may have been done."""
    # imported where replicas share it: nothing else of the contract needs it
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    host, _, port = store.redis_url.partition(":")
    password = os.environ.get(REDIS_PASSWORD) if store.redis_password else None
    return Redis(
        host,
        int(port or 6379),
        password=password,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        socket_timeout=_WAIT_S,
        socket_connect_timeout=_WAIT_S,
    )


def broker(settings: Settings) -> str:
    """The address of Celery's broker, with the password of this process's environment."""
    password = os.environ.get(REDIS_PASSWORD, "") if settings.orchestration.broker_password else ""
    return f"redis://{f':{password}@' if password else ''}{settings.orchestration.broker}"


def redis_password(setting: str) -> str:
    """The password of the environment. Raises :class:`SettingsError`, which names ``setting``, when it is not
    set, or has characters that a connection string does not take as they are."""
    value = os.environ.get(REDIS_PASSWORD, "")
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", value):
        wrong = "may hold letters, digits and . _ ~ - only" if value else "is not set"
        raise SettingsError(f"{setting} is on, and ${REDIS_PASSWORD} {wrong}")
    return value

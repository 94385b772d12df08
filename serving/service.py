"""The BentoML service: ``bentoml serve serving.service:RankService``, or ``bentoml serve <tag>``.

The endpoints are a Starlette application in front of BentoML's, so that a body is parsed once, as columns,
and every page is ours; start-up, workers and the Bento are BentoML's. Settings come from
``$MTF_SETTINGS``, else from the file packed in the Bento, else from ``mtf.yaml``.
"""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TextIO, cast

import bentoml
import structlog

from serving.http import connections
from serving.http.app import Outermost, create_app
from serving.policy.follower import InServiceSource, PackedSource, Source
from serving.running.ending import end_with_parent
from training.contract.errors import SettingsError
from training.contract.log import CHAMPION
from training.contract.settings import ENV_PREFIX, SETTINGS_VARIABLE, Settings, load_settings

TOKEN_VARIABLE = "MTF_TOKEN"  # noqa: S105
PACKED = Path(__file__).resolve().parent.parent / "packed"
PACKED_SETTINGS = PACKED / "settings.yaml"
PACKED_CHAMPION = PACKED / "champion.json"
STORE_SECONDS = 60.0  # longest wait of a starting worker for the store, while others serve
# one policy is a few small products: threads inside of them only fight with the other workers
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def settings_in_use() -> Settings:
    if SETTINGS_VARIABLE not in os.environ and PACKED_SETTINGS.exists():
        return load_settings(PACKED_SETTINGS)
    return load_settings()


def token() -> str:
    """The bearer token of ``/feedback``. Raises :class:`SettingsError` when none is set."""
    value = os.environ.get(TOKEN_VARIABLE, "")
    if len(value) < 8:
        raise SettingsError(
            f"${TOKEN_VARIABLE} must hold a token of at least 8 characters: /feedback changes state and is "
            f"refused without it. Set one, for example: export {TOKEN_VARIABLE}=$(openssl rand -hex 16)"
        )
    return value


def refuse_unnamed(settings: Settings) -> None:
    """Raises :class:`SettingsError` when replicas share an index or ship, and this one has no name."""
    serving = settings.serving
    why = "index: redis" if serving.index == "redis" else "ship.to" if serving.ship.to is not None else None
    if why is not None and not serving.replica:
        raise SettingsError(
            f"serving.replica: is empty, and serving.{why} is for replicas, each of another name: set "
            f"${ENV_PREFIX}SERVING__REPLICA on each machine"
        )


_settings = settings_in_use()
_app = create_app(_settings)
connections.keep(_settings.serving)


@bentoml.service(
    name="mtf_rank",
    workers=_settings.serving.workers,
    # ours are at /metrics: BentoML's own would keep one series for every path anyone asks for
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    envs=[{"name": name, "value": "1"} for name in _ONE_THREAD],
)
class RankService:
    """Ranks candidates by fused multi-task predictions; see ``/``."""

    @bentoml.on_deployment  # which calls it without an instance
    def check() -> None:
        """Before the first worker: a start that cannot succeed ends here, with its reason."""
        token()
        refuse_unnamed(_settings)

    def __init__(self) -> None:
        from serving.control import metrics
        from serving.engine import Engine
        from serving.log.day_files import worker_name

        _configure_logs()
        end_with_parent()  # a worker whose supervisor was killed would keep the port from the next one
        metrics.forget_dead_workers()
        worker = worker_name(_settings.serving.replica, bentoml.server_context.worker_index or 0)
        sources: list[Source] = [
            InServiceSource(_settings, CHAMPION),
            PackedSource(PACKED_CHAMPION),
        ]
        _app.state.token = token()
        _app.state.engine = Engine(_settings, worker, sources)
        if _settings.serving.workers > 1:  # the port is the others', too: they take what comes meanwhile
            _app.state.engine.wait_for_store(STORE_SECONDS)

    @bentoml.on_shutdown
    def close(self) -> None:
        _app.state.engine.close()


# a Service by now: mypy does not take a class for what its decorator returns
RankService.add_asgi_middleware(Outermost, ours=_app)  # type: ignore[attr-defined]


def _configure_logs() -> None:
    """One JSON object a line on standard error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Unfailing(sys.stderr))),
    )


class _Unfailing:
    """A stream whose failures are nobody's: a full disk below standard error must not fail a request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

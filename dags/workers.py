"""Airflow with Celery's workers: what they are told, and how they are started.

A task whose worker is gone is run again by Airflow, not by Celery (docs/profiles.md): the scheduler misses
its heartbeats, fails the try and sends the next one.
"""

import importlib.util
import os
import time

from training.contract import databases
from training.contract.errors import SettingsError
from training.contract.settings import Settings, load_settings

_EXTRA_S = 3_600  # beyond the longest task, for what has no limit of its own: a night's missed days
_AGAIN_S = 5.0  # between the end of a worker and the start of the next


def environment(settings: Settings) -> dict[str, str]:
    """What Airflow's processes are told where its tasks go to Celery; holds the broker's password."""
    longest = settings.orchestration.stage_minutes * 60
    return {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": databases.broker(settings),
        # One task a process, acknowledged when it is done: a worker holds no message but that of its task, so
        # one that is killed takes no other task with it.
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "1",
        "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
        "AIRFLOW__CELERY__TASK_ACKS_LATE": "True",
        # Redis hands a message that was not acknowledged for so long to another worker. Of a task that still
        # runs, it is in vain, and that worker is away from its own queue: so no task takes as long.
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": str(longest + _EXTRA_S),
        # the default, a second, is not enough for the scheduler of a busy machine to send a task: four times
        # in vain, and a try has failed
        "AIRFLOW__CELERY__OPERATION_TIMEOUT": "30",
        # ended by SIGTERM a worker ends its task, too, which Airflow then runs again
        "REMAP_SIGTERM": "SIGQUIT",
    }


def refuse_unfit(settings: Settings) -> None:
    """Raises :class:`SettingsError` where tasks cannot go to Celery: no provider, or no password."""
    if settings.orchestration.executor != "celery":
        return
    if importlib.util.find_spec("airflow.providers.celery") is None:
        raise SettingsError(
            "orchestration.executor: celery needs Celery's provider, which is not installed: "
            'run `make scale`, or pip install "mtf[scale]"'
        )
    if settings.orchestration.broker_password:
        databases.redis_password("orchestration.broker_password")


def command(name: str) -> list[str]:
    """Airflow's command of a worker, but for ``airflow`` itself. Its logs are in the data folder, which
    Airflow's server reads, so it serves none."""
    quiet = ["--skip-serve-logs", "--without-gossip", "--without-mingle"]
    return ["celery", "worker", *quiet, "--celery-hostname", f"{name}@%h"]


def standalone() -> None:
    """`airflow standalone` with workers; its own would force LocalExecutor. A worker that ends is started
    again.
    """
    from airflow import configuration
    from airflow.cli.commands.standalone_command import StandaloneCommand, SubCommand

    class Worker(SubCommand):
        stopped = False

        def run(self) -> None:
            while not self.stopped:
                super().run()
                time.sleep(_AGAIN_S)

        def stop(self) -> None:
            self.stopped = True
            super().stop()

    class Standalone(StandaloneCommand):
        def calculate_env(self) -> dict[str, str]:
            return super().calculate_env() | {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor"}

        def initialize_database(self) -> None:
            """Also names the workers, which keep results in the database."""
            super().initialize_database()
            for number in range(1, load_settings().orchestration.workers + 1):
                name = f"worker-{number}"
                self.subcommands[name] = Worker(self, name, command(f"mtf-{number}"), dict(os.environ))

    configuration.write_default_airflow_configuration_if_needed()  # its processes share the secrets in it
    Standalone().run()


if __name__ == "__main__":
    standalone()

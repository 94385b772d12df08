"""`mtf worker`: one more of Airflow's Celery workers, here or on another machine."""

import os

from dags import workers
from dags.command_line import stack
from training.contract.errors import SettingsError
from training.contract.settings import load_settings, settings_path


def worker() -> None:
    """Run one more of Airflow's Celery workers in the foreground (Ctrl-C stops it).

    On another machine it needs what `mtf up` has: the settings file, the passwords, and the data folder
    under the same path.
    """
    settings = load_settings()
    if settings.orchestration.executor != "celery":
        raise SettingsError("orchestration.executor: is local, which has no workers; celery has")
    workers.refuse_unfit(settings)
    airflow = stack.executable("airflow")
    environment = stack.airflow_environment(settings, settings_path())
    os.execve(airflow, [airflow, *workers.command(f"mtf-{os.getpid()}")], environment)  # noqa: S606

"""The stack's processes find their files in the settings' data folder, wherever it was before."""

import configparser
import subprocess
import sys
from pathlib import Path

from dags.command_line.stack import airflow_environment
from training.contract.settings import Settings


def test_no_path_is_taken_from_the_airflow_cfg_that_airflow_writes(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    environment = airflow_environment(settings, tmp_path / "mtf.yaml")
    command = [sys.executable, "-m", "airflow", "config", "get-value", "core", "executor"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    written = configparser.ConfigParser(interpolation=None)
    written.read(settings.layout.airflow / "airflow.cfg")
    absolute = {
        f"AIRFLOW__{section.upper()}__{name.upper()}"
        for section in written.sections()
        for name, value in written.items(section)
        if str(tmp_path) in value
    }
    assert len(absolute) >= 5 and absolute <= environment.keys()

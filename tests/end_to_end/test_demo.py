"""A demo that is told to end leaves nothing running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dags.command_line import stack
from serving.release.bento import free_port
from tests.end_to_end import small_days
from training.contract.settings import SETTINGS_VARIABLE

pytestmark = pytest.mark.slow  # the services start
SECONDS = 120


def test_a_demo_that_is_terminated_takes_its_services_down(tmp_path: Path):
    ports = {"airflow_port": free_port(), "mlflow_port": free_port()}
    settings = small_days.write_settings(tmp_path, {"serving": {"port": free_port()}, "orchestration": ports})
    demo = subprocess.Popen(
        [Path(sys.executable).parent / "mtf", "demo", "--days", "1"],
        cwd=tmp_path,
        env=os.environ | {SETTINGS_VARIABLE: str(tmp_path / "mtf.yaml")},
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + SECONDS
        while len(stack.running(settings)) < 3:
            assert demo.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(SECONDS) != 0
        assert stack.running(settings) == []
    finally:
        demo.kill()
        for name in stack.running(settings):
            stack.stop(settings, name)

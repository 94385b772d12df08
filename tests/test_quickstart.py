"""The quickstart is pasted as it stands, line by line, and ends on the index page."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dags.command_line import stack
from serving.release.bento import free_port
from training.contract.settings import load_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # a week is run, and all services start
PAGE = Path(__file__).parents[1] / "docs/quickstart.md"
SECONDS = 15 * 60
FENCED = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLED = "make install\n. .venv/bin/activate\n"  # as this environment was


def test_the_pages_commands_end_on_the_index_page(tmp_path: Path) -> None:
    blocks = FENCED.findall(PAGE.read_text(encoding="utf-8"))
    assert blocks[0] == INSTALLED and len(blocks) > 4
    port = free_port()
    commands = "".join(blocks[1:]).replace("127.0.0.1:3000/", f"127.0.0.1:{port}/")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MTF__SERVING__PORT": str(port),
        "MTF__ORCHESTRATION__AIRFLOW_PORT": str(free_port()),
        "MTF__ORCHESTRATION__MLFLOW_PORT": str(free_port()),
    }
    started = time.monotonic()
    try:
        ran = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        took = time.monotonic() - started
    finally:
        if (tmp_path / "my.yaml").exists():
            settings = load_settings(tmp_path / "my.yaml")
            for name in stack.running(settings):
                stack.stop(settings, name)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert '"items"' in ran.stdout and "All 7 days land and pass" in ran.stdout
    index = tmp_path / "data/reports/index.html"
    assert str(index) in ran.stdout.splitlines()[-1]
    assert len(re.findall(r"dt=\d{4}-\d{2}-\d{2}/index.html", index.read_text(encoding="utf-8"))) >= 7
    assert took < SECONDS

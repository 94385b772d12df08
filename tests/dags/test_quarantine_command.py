"""`mtf quarantine` shows, writes and lands what validation held back."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dags.command_line.main import app
from tests.training.ingest.conftest import DAY, read
from tests.training.validation.test_quarantine import quarantine_day, source
from training.contract.layout import IMPRESSIONS
from training.contract.settings import SETTINGS_VARIABLE, load_settings
from training.ingest import land

OF_DAY = ["--date", str(DAY), "--table", "impressions"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console takes its width from the terminal when it is made, which is at the first import."""
    monkeypatch.setattr("dags.command_line.quarantine.console", Console(width=220))


def mtf(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["quarantine", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_from_the_list_to_the_mended_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "mtf.yaml"
    file.write_text("calendar: {timezone: Asia/Shanghai}\n")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
    settings = load_settings(file)
    assert "nothing is in quarantine" in mtf("list")
    land(settings, IMPRESSIONS, DAY, source(settings), "test")
    quarantine_day(settings)
    assert "p_click, is at most 1" in mtf("list", "--date", DAY)
    shown = mtf("show", *OF_DAY, "--reason", "play", "--limit", 1)
    assert "play_time_ms" in shown and "-5" in shown and "1 of 1 rows" in shown
    path = tmp_path / "bad.csv"
    assert "2 rows of impressions" in mtf("export", *OF_DAY, "--to", path)
    path.write_text(path.read_text().replace("1.7", "0.7").replace(",-5,", ",5,"))
    land_it = ["land", *OF_DAY, "--from", path, "--why", "percent", "--by", "ann"]
    assert f"mtf day --date {DAY}" in mtf(*land_it)
    assert "nothing changed" in mtf(*land_it)
    assert [r["play_time_ms"] for r in read(settings)] == [0, 0, 5, 0, 0]
    assert "ann" in mtf("list") and "percent" in mtf("list")

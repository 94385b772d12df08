"""Where Spark's Java is from: the system's, or the package index's."""

import shutil
import subprocess
from pathlib import Path

import pytest

from training.contract.errors import MtfError
from training.warehouse import java


def pretended(home: Path, version: str) -> Path:
    """A Java that says which one it is."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "openjdk {version} 2025-04-15"\n')
    program.chmod(0o755)
    return home


def only(monkeypatch: pytest.MonkeyPatch, folder: Path, home: Path | None) -> None:
    """Nothing on the path but the shell, and a JAVA_HOME or none."""
    folder.mkdir()
    (folder / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("JAVA_HOME", str(home))


def test_the_systems_java_is_taken_where_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = pretended(tmp_path / "home", "17.0.15")
    only(monkeypatch, tmp_path / "path", home)
    assert java.java_home(tmp_path / "shim") == home
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert java.java_home(tmp_path / "shim") == home
    assert not (tmp_path / "shim").exists()


def test_without_a_java_the_fault_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tmp_path / "path", pretended(tmp_path / "old", "11.0.2"))
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MtfError, match=r"Java 17 or newer.*old is of version 11: run `make scale`"):
        java.java_home(tmp_path / "shim")


@pytest.mark.scale
def test_the_package_indexs_java_runs_without_the_module_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, tmp_path / "path", None)
    home = java.java_home(tmp_path / "with space")
    assert home == tmp_path / "with space"
    command = [home / "bin" / "java", "--add-modules=jdk.incubator.vector", "-Dsaid=two words", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert java._version(home / "bin" / "java") >= java.LEAST

"""Atomic files: the old or the new, after an error and after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.contract.files import (
    locked,
    read_json,
    recover_folder,
    replaced_folder,
    sha256,
    write_atomic,
    write_json_atomic,
    write_text_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text_atomic(path, "one")
    write_text_atomic(path, "två")
    assert path.read_text(encoding="utf-8") == "två"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_equal_values_are_equal_json(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a", {"b": 1, "a": [1.5, None]})
    write_json_atomic(tmp_path / "b", {"a": [1.5, None], "b": 1})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert read_json(tmp_path / "a") == {"a": [1.5, None], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "a", {"x": float("nan")})
    assert read_json(tmp_path / "a") == {"a": [1.5, None], "b": 1}


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_atomic(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, fail)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "dt=2026-01-05"
    with replaced_folder(folder) as fresh:
        (fresh / "a").write_text("1")
        (fresh / "b").write_text("1")
    with replaced_folder(folder) as fresh:
        assert names(fresh) == [] and names(folder) == ["a", "b"]
        (fresh / "a").write_text("2")
    assert names(folder) == ["a"] and (folder / "a").read_text() == "2"
    with pytest.raises(RuntimeError), replaced_folder(folder) as fresh:
        (fresh / "a").write_text("3")
        raise RuntimeError
    assert (folder / "a").read_text() == "2" and names(tmp_path) == [folder.name]


def test_what_a_kill_leaves_is_put_right(tmp_path: Path) -> None:
    folder = tmp_path / "day"
    with replaced_folder(folder) as fresh:
        (fresh / "a").write_text("1")
    folder.replace(tmp_path / ".day.old")  # killed between the two renames
    (tmp_path / ".day.x.new").mkdir()
    recover_folder(folder)
    assert names(tmp_path) == ["day"] and (folder / "a").read_text() == "1"
    (tmp_path / ".day.old").mkdir()  # killed after them: the new folder stands
    recover_folder(folder)
    assert names(tmp_path) == ["day"] and (folder / "a").read_text() == "1"


KILLED = """
import json, os, signal, sys
from pathlib import Path
from training.contract import files

target, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "writing":
    def write(temporary):
        temporary.write_text("ha")
        os.kill(os.getpid(), signal.SIGKILL)
    files.write_atomic(target / "file", write)
with files.replaced_folder(target) as fresh:
    (fresh / "file").write_text("new")
    if moment == "filling":
        os.kill(os.getpid(), signal.SIGKILL)
    rename = Path.replace
    def once(self, to):
        rename(self, to)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.replace = once
"""


@pytest.mark.parametrize("moment", ["writing", "filling", "between the renames"])
def test_a_killed_process_leaves_the_old_content(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "day"
    write_text_atomic(folder / "file", "old")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], env=environment)
    assert killed.returncode == -signal.SIGKILL
    recover_folder(folder)
    assert (folder / "file").read_text() == "old"
    with replaced_folder(folder) as fresh:
        (fresh / "file").write_text("new")
    assert names(folder) == ["file"] and json.dumps((folder / "file").read_text()) == '"new"'
    assert names(tmp_path) == ["day"]


def test_a_lock_excludes_others_and_a_shared_one_those_that_want_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.lock"
    with locked(path), pytest.raises(BlockingIOError), locked(path, shared=True, wait=False):
        pass
    both = locked(path, shared=True), locked(path, shared=True, wait=False)
    with both[0], both[1], pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with locked(path, wait=False):
        pass


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    modes = []

    def write(temporary: Path) -> None:
        modes.append(temporary.stat().st_mode & 0o777)
        temporary.write_text("secret")

    write_atomic(tmp_path / "token", write, mode=0o600)
    assert [*modes, (tmp_path / "token").stat().st_mode & 0o777] == [0o600, 0o600]

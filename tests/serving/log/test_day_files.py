import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.log.day_files import DayFiles, cut_torn_tails, worker_name

DAY = "2026-01-05"


def lines(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def test_lines_go_to_one_file_a_day(tmp_path):
    files = DayFiles(tmp_path, "w1")
    files.write([(DAY, b"1"), ("2026-01-06", b"2"), (DAY, b"3")])
    files.write([(DAY, b"4")])
    files.close()
    by_day = {path.name.split(".")[0]: path.read_bytes() for path in tmp_path.iterdir()}
    assert by_day == {DAY: b"1\n3\n4\n", "2026-01-06": b"2\n"}


def test_a_full_file_is_followed_by_the_next(tmp_path):
    files = DayFiles(tmp_path, "w1", max_bytes=10)
    for number in range(5):
        files.write([(DAY, b"1234567%d" % number)])
    names = sorted(path.name.split(".") for path in tmp_path.iterdir())
    assert [name[2] for name in names] == ["000000", "000001", "000002"]
    assert len(lines(tmp_path)) == 5


def test_going_back_and_forth_between_days_holds_few_files_open(tmp_path):
    files = DayFiles(tmp_path, "w1", open_days=2)
    for _ in range(3):
        for day in range(1, 6):
            files.write([(f"2026-01-{day:02d}", b"x")])
    assert len(files._files) == 2
    assert len(lines(tmp_path)) == 15


def test_processes_never_share_a_file(tmp_path):
    first, second = DayFiles(tmp_path, "w1"), DayFiles(tmp_path, "w1")
    first.write([(DAY, b"1")])
    second.write([(DAY, b"2")])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_torn_tail_is_cut_on_start_but_not_under_a_living_writer(tmp_path):
    dead = tmp_path / f"{DAY}.w1-dead.000000.jsonl"
    dead.write_bytes(b'{"a":1}\n{"b":2}\n{"torn":')
    headless = tmp_path / f"{DAY}.w2-dead.000000.jsonl"
    headless.write_bytes(b"x" * 200_000)
    living = DayFiles(tmp_path, "w3")  # cuts as it starts
    assert dead.read_bytes() == b'{"a":1}\n{"b":2}\n'
    assert headless.read_bytes() == b""
    living.write([(DAY, b"1")])
    held = next(path for path in tmp_path.iterdir() if ".w3-" in path.name)
    with held.open("ab") as file:
        file.write(b"being written")
    assert cut_torn_tails(tmp_path) == []
    living.close()
    assert cut_torn_tails(tmp_path) == [held]


def test_a_replica_cuts_no_file_of_another(tmp_path):
    files = {}
    for replica in ("", "a", "b"):
        files[replica] = tmp_path / f"{DAY}.{worker_name(replica, 0)}-dead.000000.jsonl"
        files[replica].write_bytes(b"1\ntorn")
    DayFiles(tmp_path, worker_name("a", 3)).close()  # cuts as it starts
    assert {replica: path.read_bytes() for replica, path in files.items()} == {
        "": b"1\ntorn",
        "a": b"1\n",
        "b": b"1\ntorn",
    }
    assert cut_torn_tails(tmp_path) == [files[""]]


def test_a_failed_append_leaves_no_part_of_it(tmp_path):
    files = DayFiles(tmp_path, "w1")
    files.write([(DAY, b"kept")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))  # the kernel takes 3 bytes more, then refuses
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write([(DAY, b"lost in the middle")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines(tmp_path) == [b"kept"]
    files.write([(DAY, b"after")])  # the disk has room again
    assert lines(tmp_path) == [b"kept", b"after"]


def test_a_full_disk_leaves_no_empty_files(tmp_path):
    files = DayFiles(tmp_path, "w1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        for _ in range(5):
            with pytest.raises(OSError, match="File too large"):
                files.write([(DAY, b"refused")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    files.write([(DAY, b"taken")])  # when there is room again
    assert lines(tmp_path) == [b"taken"]


WRITER = """
import asyncio, sys
from pathlib import Path
from serving.log.day_files import DayFiles, LogError
from serving.running.batches import ThreadBatches

async def main():
    log = ThreadBatches("test log", DayFiles(Path(sys.argv[1]), "w1").write, LogError)
    async def writer(name):
        number = 0
        while True:
            await log.add(("2026-01-05", b'{"key":"%s-%d"}' % (name, number)))
            print(f"{name.decode()}-{number}", flush=True)
            number += 1
    await asyncio.gather(*(writer(b"%d" % i) for i in range(8)))

asyncio.run(main())
"""


def test_whatever_was_acknowledged_before_a_kill_is_on_disk_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONPATH": "."},
    )
    acknowledged = [process.stdout.readline().decode().strip() for _ in range(400)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().decode()
    process.wait()
    acknowledged += [line for line in rest.split("\n")[:-1] if line]
    cut_torn_tails(tmp_path)
    keys = [json.loads(line)["key"] for line in lines(tmp_path)]
    assert set(acknowledged) <= set(keys)
    assert len(keys) == len(set(keys))

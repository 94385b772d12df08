import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from serving.release import bento
from training.contract.errors import PolicyError
from training.contract.files import write_json_atomic
from training.contract.pointer import read_pointer
from training.contract.policy import load_policy
from training.contract.settings import load_settings

REPOSITORY = Path(__file__).parents[3]
SYSTEM_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
IMPORTS = """
import serving.engine, serving.service, training.contract.policy
import importlib.util
for name in ("training.policies", "training.world", "training.features"):
    found = importlib.util.find_spec(name)
    assert found is None, found
print(serving.service.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory, constant):
    """Settings, the pointer of a policy, its tag and its folder; built once for the module."""
    folder = tmp_path_factory.mktemp("bento")
    path = folder / "mtf.yaml"
    path.write_text(yaml.safe_dump({"data": str(folder / "data"), "serving": {"state_budget_ms": 2000.0}}))
    settings = load_settings(path)
    pointer = constant(settings, "packed-v1", 0.25)
    tag = bento.build(settings, pointer)
    return settings, pointer, tag, settings.layout.bentos / "bentos" / tag.replace(":", "/")


def test_a_bento_holds_the_service_the_contract_the_settings_and_the_policy(built):
    settings, pointer, tag, folder = built
    assert tag.startswith(f"mtf_rank:{pointer.sha256[:12]}-")
    source = folder / "src"
    folders = {path.parent.relative_to(source).as_posix() for path in source.rglob("*.py")}
    rooms = {name for name in folders if not name.startswith(("serving/", "training/contract/"))}
    assert rooms == {"serving", "training", "training/contract", "feature_repo"}
    assert load_settings(source / "packed" / "settings.yaml") == settings
    packed = read_pointer(source / "packed" / "champion.json")
    assert packed.version == "packed-v1"
    assert load_policy(source / "packed" / packed.policy, pointer.sha256).version == "packed-v1"
    requirements = (folder / "env" / "python" / "requirements.txt").read_text()
    assert "bentoml==" in requirements and "torch" not in requirements
    assert (folder / "env" / "docker" / "Dockerfile").exists()


def test_nothing_of_the_training_code_can_be_imported_from_it(built):
    *_, folder = built
    # an editable installation would find the source tree behind the Bento's own packages
    code = f"import sys; sys.path.insert(0, {str(folder / 'src')!r})\n"
    code += "sys.meta_path = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]\n"
    result = subprocess.run(
        [sys.executable, "-I", "-c", code + IMPORTS], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == folder / "src" / "serving" / "service.py"


def test_building_the_same_again_returns_what_is_there(built):
    settings, pointer, tag, folder = built
    before = (folder / "bento.yaml").stat().st_mtime_ns
    assert bento.build(settings, replace(pointer, promoted_ts="2026-02-01T00:00:00Z")) == tag
    assert (folder / "bento.yaml").stat().st_mtime_ns == before


def test_a_file_that_is_not_the_pointers_is_not_packed(built):
    settings, pointer, *_ = built
    with pytest.raises(PolicyError, match="is not the file of the pointer"):
        bento.build(settings, replace(pointer, sha256="0" * 64))
    with pytest.raises(PolicyError, match="is missing"):
        bento.build(settings, replace(pointer, policy="models/none.safetensors"))


@pytest.mark.slow
def test_the_smoke_serves_the_bento_with_its_own_policy(built):
    from training import features

    settings, pointer, tag, _ = built
    # without a store: the Bento answers with static weights, and says so
    record = bento.smoke(settings, tag)
    assert record["ok"] and record["fallback"] == "store", record
    features.apply(settings)
    # features of a day long past, as in a backfill, say nothing against the policy
    write_json_atomic(settings.layout.materialised, {"until": "2020-01-01T00:00:00+00:00"})
    record = bento.smoke(settings, tag)
    assert record["ok"] and record["policy_version"] == pointer.version, record
    assert record["fallback"] is None and record["requests"] == bento.SMOKE_REQUESTS
    assert 0 < record["p50_ms"] <= record["p99_ms"]
    assert not settings.layout.serving_log.exists()  # nothing of the real folder was touched


@pytest.mark.slow
def test_the_smoke_tells_a_bento_that_does_not_start(built, tmp_path):
    settings, *_ = built
    record = bento.smoke(settings, "mtf_rank:none")
    assert not record["ok"] and "bentoml serve ended" in record["reason"]


@pytest.mark.slow
def test_the_smokes_server_ends_with_a_killed_caller(built, tmp_path):
    settings, _, tag, _ = built
    path = tmp_path / "mtf.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    code = (
        "from pathlib import Path; from serving.release import bento; "
        "from training.contract.settings import load_settings; "
        f"bento.smoke(load_settings(Path({str(path)!r})), {tag!r})"
    )
    caller = psutil.Popen([sys.executable, "-c", code])
    servers: list[psutil.Process] = []
    while len(servers) < 2 and caller.poll() is None:  # the supervisor and a worker
        servers = caller.children(recursive=True)
        time.sleep(0.1)
    assert len(servers) >= 2
    caller.kill()
    caller.wait()
    _, alive = psutil.wait_procs(servers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive


def test_a_free_port_is_nobodys_and_not_one_that_the_system_gives_to_others(monkeypatch):
    lowest = int(SYSTEM_PORTS.read_text().split()[0]) if SYSTEM_PORTS.exists() else 49_152
    ports = [bento.free_port() for _ in range(50)]
    assert max(ports) < lowest and min(ports) > 1023
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        monkeypatch.setattr(bento, "_SERVER_PORTS", range(ports[0], ports[0] + 2))
        assert bento.free_port() == ports[0] + 1

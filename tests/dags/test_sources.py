"""A stage rests on the files that it imports and on no other, and each of them reaches its fingerprint."""

import ast
import json
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from dags import sources, stages
from dags.sources import fingerprint, of_stage
from serving.release import bento
from training import ingest, policies
from training.contract import exploration
from training.contract.code_sources import ROOMS, ROOT, Sources, contents, imports
from training.contract.errors import MtfError
from training.contract.pointer import PolicyPointer
from training.contract.settings import Settings
from training.warehouse import transform

TREES = sorted({*ROOMS, *(tree for trees in sources.TREES.values() for tree in trees)})
each_stage = pytest.mark.parametrize("stage", stages.DAY_STAGES)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources."""
    unlike = shutil.ignore_patterns("__pycache__", "*.so", "target", "logs")
    for name in TREES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unlike, dirs_exist_ok=True)
    (tmp_path / sources.STAGES).parent.mkdir()
    shutil.copy(ROOT / sources.STAGES, tmp_path / sources.STAGES)
    return tmp_path


def file_of(module: object) -> Path:
    return Path(module.__file__).relative_to(ROOT)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@each_stage
def test_a_stage_reruns_on_a_change_of_each_of_its_files_and_of_no_other(tree: Path, stage: str):
    before = fingerprint(stage, tree)
    assert before == fingerprint(stage)
    own = set(of_stage(stage, tree).files)
    others = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()} - {*own, sources.STAGES}
    assert own and others
    for file in own:
        content = (tree / file).read_bytes()
        (tree / file).write_bytes(content + b"\n")
        assert fingerprint(stage, tree) != before, file
        (tree / file).write_bytes(content)
    for file in others:
        (tree / file).write_bytes((tree / file).read_bytes() + b"\n")
    assert fingerprint(stage, tree) == before


def test_what_stages_are_known_to_rest_on():
    files = {stage: set(of_stage(stage).files) for stage in stages.DAY_STAGES}
    learning = file_of(policies).parent
    kernels = [path.relative_to(ROOT) for path in (ROOT / learning).rglob("*.c")]
    assert kernels and files["train"].issuperset(kernels) and files["evaluate"].issuperset(kernels)
    assert file_of(exploration) in files["evaluate"]
    assert file_of(ingest) in files["parity"]
    assert files["transform"].issuperset(p.relative_to(ROOT) for p in transform.PROJECT.rglob("*.sql"))
    assert transform.PROJECT.relative_to(ROOT).as_posix() in sources.TREES["transform"]
    for stage in ("land", "validate_landed", "transform", "features", "parity"):
        assert not any(path.is_relative_to(learning) for path in files[stage])
    assert not any("dags" in path.parts for stage in stages.DAY_STAGES for path in files[stage])


def test_every_file_of_a_bento_is_the_gates(tmp_path: Path):
    policy, staged = tmp_path / "policy", tmp_path / "staged"
    policy.touch()
    bento._stage(staged, Settings(data=tmp_path), PolicyPointer("policy", "", "", "", "", ""), policy)
    copied = {path.relative_to(staged) for path in staged.rglob("*") if path.is_file()}
    assert {path for path in copied if (ROOT / path).is_file()} <= set(of_stage("gate").files)


LOADED = "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in %r]))"


def loaded_by(code: str, *arguments: str) -> set[Path]:
    """Files of our rooms that are loaded in a process of its own after some lines."""
    script = f"import json, sys\n{code}\n{LOADED % (ROOMS,)}"
    command = [sys.executable, "-c", script, *arguments]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {Path(file).relative_to(ROOT) for file in json.loads(said.splitlines()[-1])}


@pytest.mark.parametrize("stage", ["validate_landed", "evaluate", "gate"])
def test_python_loads_no_module_that_the_syntax_trees_do_not_name(stage: str):
    found = of_stage(stage)
    needed = [
        ast.unparse(node)
        for statement in found.code
        for node in ast.walk(ast.parse(statement))
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "dags"
    ]
    loaded = loaded_by("\n".join(needed))
    assert loaded and loaded <= set(found.files)


def test_what_feast_loads_by_name_is_among_the_sources_of_features(tmp_path: Path):
    machinery = loaded_by("from dags import stages")
    run = (
        "from datetime import date; from pathlib import Path; from dags import stages\n"
        "from training.contract.settings import Settings\n"
        "stages.FUNCTIONS['features'](Settings(data=Path(sys.argv[1])), date.fromisoformat(sys.argv[2]))"
    )
    loaded = loaded_by(run, str(tmp_path), str(date(2026, 1, 5))) - machinery
    assert loaded and loaded <= set(of_stage("features").files)


@each_stage
def test_a_stage_has_its_own_function_and_reruns_on_a_change_of_it_alone(tree: Path, stage: str):
    assert stages.FUNCTIONS[stage].__name__ == stage
    before = {each: fingerprint(each, tree) for each in stages.DAY_STAGES}
    path = tree / sources.STAGES
    head = f"\ndef {stage}(settings: Settings, day: date) -> Record:\n"
    text = path.read_text(encoding="utf-8")
    assert text.count(head) == 1
    path.write_text(text.replace(head, f"{head}    # why\n"), encoding="utf-8")
    assert {each: fingerprint(each, tree) for each in stages.DAY_STAGES} == before
    path.write_text(text.replace(head, f"{head}    assert day\n"), encoding="utf-8")
    assert [each for each in before if fingerprint(each, tree) != before[each]] == [stage]


def test_a_function_that_a_stage_calls_is_its_own_and_the_machinery_is_no_stages(tree: Path):
    before = {each: fingerprint(each, tree) for each in stages.DAY_STAGES}

    def reran_when(name: str) -> list[str]:
        path = tree / sources.STAGES
        text = path.read_text(encoding="utf-8")
        function = next(n for n in ast.parse(text).body if getattr(n, "name", "") == name)
        lines = text.splitlines()
        lines.insert(function.body[-1].lineno - 1, "    assert settings")
        path.write_text("\n".join(lines), encoding="utf-8")
        changed = [each for each in before if fingerprint(each, tree) != before[each]]
        path.write_text(text, encoding="utf-8")
        return changed

    assert reran_when(stages.refuse_outdated.__name__) == ["gate"]
    assert reran_when(stages.run_stage.__name__) == reran_when(stages.make_report.__name__) == []


def test_a_file_that_comes_or_goes_is_a_change(tree: Path):
    beside = tree / file_of(policies).parent
    before = fingerprint("train", tree)
    for name in ("more.h", "tables/steps.yaml"):
        (beside / name).parent.mkdir(exist_ok=True)
        (beside / name).touch()
        assert fingerprint("train", tree) != before
        (beside / name).unlink()
    for name in ("_kernels.abi3.so", ".hidden", "__pycache__/kernels.pyc"):
        (beside / name).parent.mkdir(exist_ok=True)
        (beside / name).touch()
    assert fingerprint("train", tree) == before
    next(beside.rglob("*.c")).unlink()
    assert fingerprint("train", tree) != before


def test_a_module_joins_when_it_is_imported_anew(tree: Path):
    new, importer = Path("training/anew.py"), tree / file_of(policies)
    (tree / new).write_text("from training import farther\n")
    (tree / "training/farther.py").touch()
    assert new not in of_stage("train", tree).files
    append(importer, "\n\ndef later():\n    from training import anew\n")
    assert {new, Path("training/farther.py")} <= set(of_stage("train", tree).files)
    assert new not in of_stage("land", tree).files


def test_what_is_not_there_is_refused_by_its_name(tree: Path):
    append(tree / file_of(policies), "\nfrom training.gone.away import thing\n")
    with pytest.raises(MtfError, match=rf"{file_of(policies)} imports training\.gone\.away\.thing, but"):
        fingerprint("train", tree)
    for stage, folders in sources.TREES.items():
        for folder in folders:
            (tree / folder).rename(tree / "elsewhere")
            with pytest.raises(MtfError, match=f"{folder} is not there"):
                fingerprint(stage, tree)
            (tree / "elsewhere").rename(tree / folder)
    with pytest.raises(MtfError, match="no function dream"):
        fingerprint("dream", tree)


def test_dbts_own_folders_are_no_sources(tree: Path):
    before = fingerprint("transform", tree)
    for folder in ("target", "logs", "dbt_packages"):
        (tree / sources.TREES["transform"][0] / folder).mkdir()
        (tree / sources.TREES["transform"][0] / folder / "made.sql").touch()
    assert fingerprint("transform", tree) == before


def test_libraries_are_those_that_the_sources_import():
    train, features = of_stage("train").libraries, of_stage("features").libraries
    assert {"numpy", "torch"} <= set(train) and "feast" not in train
    assert {"feast", "pyarrow"} <= set(features) and "torch" not in features
    assert "dbt" in of_stage("transform").libraries and "onnxruntime" in of_stage("gate").libraries
    assert ["PyYAML", version("pyyaml")] in contents(Sources((), ("yaml",)))
    assert ["dbt-duckdb", version("dbt-duckdb")] in contents(Sources((), ("dbt",)))


def test_imports_are_seen_wherever_they_are(tmp_path: Path):
    path = Path("serving/deep/module.py")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(
        "import training.policies\n"
        "def f():\n"
        "    from training import ingest, contract\n"
        "    from . import near\n"
        "    from ..arms import draw\n"
        "    importlib.import_module('dags.stages')\n"
        "if TYPE_CHECKING:\n"
        "    from serving import service\n"
        "else:\n"
        "    import numpy\n"
    )
    assert sorted(imports(path, tmp_path)) == [
        (1, "training.policies", False),
        (3, "training.contract", False),
        (3, "training.ingest", False),
        (4, "serving.deep.near", False),
        (5, "serving.arms.draw", False),
        (6, "dags.stages", False),
        (8, "serving.service", True),
        (10, "numpy", False),
    ]

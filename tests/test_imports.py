"""Who may import whom: dags -> training, serving; serving -> training.contract; training -> nothing of ours.

Two exceptions: ``training/features`` registers what ``feature_repo`` defines and takes users out of its
store, and ``serving/state`` reads what that keeps. Imports are read from the source by its syntax tree
(:mod:`training.contract.code_sources`), so that those inside functions and for type checkers count too.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from training.contract.code_sources import imports

ROOT = Path(__file__).parents[1]
OURS = {"dags", "dbt_project", "feature_repo", "serving", "tests", "training"}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


ALLOWED = {
    "training": ("training",),
    "training/contract": ("training.contract",),
    "serving": ("serving", "training.contract"),
    "feature_repo": ("feature_repo", "training.contract"),
    "dags": ("dags", "training", "serving"),
}

# what registers the definitions, and what reads their store; ``feature_repo`` imports the contract alone
EXCEPTIONS = {
    "training/features/registry.py": ("feature_repo",),
    "training/features/forgetting.py": ("feature_repo",),
    "serving/state/online_state.py": ("feature_repo",),
}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    modules = _modules(room)
    assert modules
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules
        for line, name, _ in imports(path)
        if name.split(".")[0] in OURS
        and not any(within(name, one) for one in (*ALLOWED[room], *_exception(path)))
    ]
    assert wrong == []


def _modules(room: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py"))


def _exception(path: Path) -> tuple[str, ...]:
    return EXCEPTIONS.get(path.as_posix(), ())


HEAVY = ("torch", "feast", "great_expectations", "mlflow", "dbt", "bentoml", "pandas", "duckdb", "pyarrow")


# where a bucket is named, and nowhere else: the service and the landing are to meet one store
OPTIONAL = {("training/contract/object_store.py", "pyarrow")}


def test_the_contract_is_plain_python_and_numpy() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path in _modules("training/contract")
        for line, name, _ in imports(path)
        if name.split(".")[0] in HEAVY and (path.as_posix(), name.split(".")[0]) not in OPTIONAL
    ]
    assert wrong == []


ROOMS = ("dags", "feature_repo", "serving", "training")
MOST_LINES = 400
WHY_LONGER = "Over 400 lines: "


def modules() -> dict[str, Path]:
    """Our modules by their dotted names; a package is its ``__init__``."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(dotted, paths, strict=True)}


def circle(imported: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself, or nothing when there is none."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_what_imports_it() -> None:
    """Imports inside functions and those for type checkers count, too."""
    ours = modules()
    imported: dict[str, set[str]] = {}
    for module, path in ours.items():
        names = {name for _, name, *_ in imports(path)}
        found = {name if name in ours else name.rpartition(".")[0] for name in names}
        imported[module] = found & ours.keys() - {module}
    assert circle(imported) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_training_has_no_loose_module() -> None:
    assert [path.name for path in (ROOT / "training").glob("*.py")] == ["__init__.py"]


def test_a_long_module_says_why() -> None:
    """More than :data:`MOST_LINES` lines need a line of the docstring that begins with :data:`WHY_LONGER`."""
    wrong = []
    for module, path in modules().items():
        source = path.read_text(encoding="utf-8")
        if source.count("\n") > MOST_LINES:
            said = ast.get_docstring(ast.parse(source)) or ""
            if not any(line.startswith(WHY_LONGER) for line in said.splitlines()):
                wrong.append(module)
    assert wrong == []

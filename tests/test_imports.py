"""Who may import whom: dags -> training, serving; serving -> training.contract; training -> nothing of ours.

Three exceptions: ``training/features.py`` registers what ``feature_repo`` defines,
``training/materialisation.py`` writes what its store keeps, and ``serving/online_state.py`` reads it. Imports
are read from the source by its syntax tree (:mod:`dags.sources`), so that those inside functions and for type
checkers count too.
"""

from pathlib import Path

import pytest

from dags.sources import imports

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

# what registers the definitions, fills their store, and reads it; ``feature_repo`` imports the contract alone
EXCEPTIONS = {
    "training/features.py": ("feature_repo",),
    "training/materialisation.py": ("feature_repo",),
    "serving/online_state.py": ("feature_repo",),
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


def test_the_contract_is_plain_python_and_numpy() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path in _modules("training/contract")
        for line, name, _ in imports(path)
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []

"""Which sources a stage's work rests on, read from the imports of its function.

They are found by the syntax tree, without importing anything: the stage's function in ``dags/stages.py`` with
the functions that it calls there; every module of :data:`ROOMS` that these import, directly or not, with the
packages above it; and what else lies in these modules' folders (C, SQL, YAML, templates). Imports inside
functions count, those for type checkers alone do not. What a stage reads as files and not by importing is in
:data:`TREES`. The rest of ``dags`` is the machinery round the stages, and no stage's work.

A module that is named by a string only cannot be seen: import it where the string is handed on.
"""

import ast
import hashlib
import importlib.machinery
import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import NamedTuple

from training.contract.errors import MtfError

ROOT = Path(__file__).parents[1]
STAGES = Path("dags/stages.py")
ROOMS = ("feature_repo", "serving", "training")
# stage: folders whose files it copies, for dbt and into the Bento
TREES = {"transform": ("dbt_project",), "gate": ("serving", "training/contract", "feature_repo")}
# of dbt's, in its project's folder
_MADE = {"dbt_project": ("dbt_packages", "logs", "target")}
_COMPILED = tuple(importlib.machinery.EXTENSION_SUFFIXES + importlib.machinery.BYTECODE_SUFFIXES)


class Import(NamedTuple):
    line: int
    name: str  # dotted; of ``from a import b``, ``a.b``
    for_types: bool  # below ``if TYPE_CHECKING:``


class Sources(NamedTuple):
    """What a stage's work rests on."""

    code: tuple[str, ...]  # statements of dags/stages.py, without comments
    files: tuple[Path, ...]  # relative to the root
    libraries: tuple[str, ...]  # top-level packages that are not ours and not Python's own


def fingerprint(stage: str, root: Path = ROOT) -> str:
    """Digest of the sources of a stage and of the versions of the libraries that they import.

    Raises :class:`MtfError` as :func:`of_stage`.
    """
    found = of_stage(stage, root)
    files = [
        (path.as_posix(), hashlib.sha256((root / path).read_bytes()).hexdigest()) for path in found.files
    ]
    content = [found.code, files, _versions(found.libraries)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def of_stage(stage: str, root: Path = ROOT) -> Sources:
    """The sources of a stage of the tree at ``root``.

    Raises :class:`MtfError` when the stage has no function, or a module or folder of it is not there.
    """
    code = _function(stage, root)
    files: set[Path] = set()
    libraries: set[str] = set()
    seen: set[str] = set()
    waiting = [(STAGES, name) for statement in code for name in _names(statement, STAGES)]
    for tree in TREES.get(stage, ()):
        found = list(_files(root / tree, _MADE.get(tree, ())))
        if not found:
            raise MtfError(f"{root / tree} is not there or empty: {stage} reads its files")
        files.update(path.relative_to(root) for path in found)
    waiting += [(path, name) for path in files if path.suffix == ".py" for name in _imported(path, root)]
    while waiting:
        importer, name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        room = name.partition(".")[0]
        if room in ROOMS:
            for path in _modules(name, importer, root):
                if path not in files:
                    files.add(path)
                    waiting += [(path, imported) for imported in _imported(path, root)]
        elif room not in sys.stdlib_module_names and room != STAGES.parts[0]:
            libraries.add(room)
    for folder in {path.parent for path in files if path.suffix == ".py"}:
        files.update(path.relative_to(root) for path in _beside(root / folder))
    return Sources(tuple(map(ast.unparse, code)), tuple(sorted(files)), tuple(sorted(libraries)))


def imports(path: Path, root: Path = ROOT) -> tuple[Import, ...]:
    """Every import of a module, wherever it is in it, ``importlib.import_module("a.b")`` included."""
    return _parsed((root / path).read_text(encoding="utf-8"), path.parent.parts)


def _imported(path: Path, root: Path) -> list[str]:
    return [found.name for found in imports(path, root) if not found.for_types]


@lru_cache(maxsize=1024)
def _parsed(source: str, package: tuple[str, ...]) -> tuple[Import, ...]:
    return tuple(_walked(ast.parse(source), package))


def _names(statement: ast.stmt, path: Path) -> list[str]:
    return [found.name for found in _walked(statement, path.parent.parts) if not found.for_types]


def _walked(tree: ast.AST, package: tuple[str, ...]) -> Iterator[Import]:
    waiting = [(tree, False)]
    while waiting:
        node, for_types = waiting.pop()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, node.module) if node.module else base)
            names = [f"{prefix}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and _name(node.func) in ("import_module", "__import__"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                names = [argument.value]
        yield from (Import(node.lineno, name, for_types) for name in names)
        guarded = node.body if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING" else []
        waiting += [(child, for_types or child in guarded) for child in ast.iter_child_nodes(node)]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _function(stage: str, root: Path) -> list[ast.stmt]:
    """The stage's function, and the module's functions, constants and imports that it uses, by name.

    Of a constant, only what it says itself: the list of all stages does not make them one.
    """
    module: dict[str, ast.stmt] = {}
    for statement in ast.parse((root / STAGES).read_text(encoding="utf-8")).body:
        match statement:
            case (
                ast.FunctionDef(name=name)
                | ast.AnnAssign(target=ast.Name(id=name))
                | ast.Assign(targets=[ast.Name(id=name)])
            ):
                module[name] = statement
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    one = (
                        ast.Import([alias])
                        if isinstance(statement, ast.Import)
                        else ast.ImportFrom(statement.module, [alias], statement.level)
                    )
                    name = alias.asname or alias.name.partition(".")[0]
                    module[name] = ast.copy_location(one, statement)
    if not isinstance(module.get(stage), ast.FunctionDef):
        raise MtfError(f"{root / STAGES} has no function {stage}")
    used: dict[str, ast.stmt] = {}
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name in used or name not in module:
            continue
        used[name] = module[name]
        if isinstance(used[name], ast.FunctionDef):
            waiting += [node.id for node in ast.walk(used[name]) if isinstance(node, ast.Name)]
    return [used[name] for name in sorted(used)]


def _modules(name: str, importer: Path, root: Path) -> list[Path]:
    """Files of a module and of the packages above it; the name's last part may be of the module's content."""
    parts, found = name.split("."), []
    for depth in range(1, len(parts) + 1):
        base = Path(*parts[:depth])
        path = next(
            (p for p in (base / "__init__.py", base.with_suffix(".py")) if (root / p).is_file()), None
        )
        if path is None:
            break
        found.append(path)
    if len(found) < max(len(parts) - 1, 1):
        raise MtfError(f"{root / importer} imports {name}, but {root / base} is no module")
    return found


def _files(folder: Path, left_out: tuple[str, ...] = ()) -> Iterator[Path]:
    """Source files below a folder: nothing hidden, compiled or named in ``left_out``."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(".") or path.name in ("__pycache__", *left_out):
            continue
        if path.is_dir():
            yield from _files(path)
        elif not path.name.endswith(_COMPILED):
            yield path


def _beside(package: Path) -> Iterator[Path]:
    """Source files in a package's folder that are not Python, and in folders there that are no packages."""
    packages = tuple(path.parent.name for path in package.glob("*/__init__.py"))
    return (path for path in _files(package, packages) if path.suffix != ".py")


@lru_cache
def _versions(libraries: tuple[str, ...]) -> list[str]:
    """``name==version`` of every distribution that installs one of these packages."""
    installed = _distributions()
    names = {name for library in libraries for name in installed.get(library, ())}
    return [f"{name}=={version(name)}" for name in sorted(names)]


_distributions = lru_cache(packages_distributions)

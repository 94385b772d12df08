"""Which sources does some code rest on? Read from its imports, so that no list of them has to be kept.

They are found by the syntax tree, without importing anything: every module of :data:`ROOMS` that is imported,
directly or not, with the packages above it, and what else lies in these modules' folders (C, SQL, YAML,
templates). Imports inside functions count, those for type checkers alone do not. ``dags`` is the machinery
round the work, and no part of it.

A module that is named by a string only cannot be seen: import it where the string is handed on.
"""

import ast
import hashlib
import importlib.machinery
import json
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import NamedTuple

from training.contract.errors import MtfError

ROOT = Path(__file__).parents[2]
ROOMS = ("feature_repo", "serving", "training")
_MACHINERY = "dags"
_COMPILED = tuple(importlib.machinery.EXTENSION_SUFFIXES + importlib.machinery.BYTECODE_SUFFIXES)


class Import(NamedTuple):
    line: int
    name: str  # dotted; of ``from a import b``, ``a.b``
    for_types: bool  # below ``if TYPE_CHECKING:``


class Sources(NamedTuple):
    """What some code rests on."""

    files: tuple[Path, ...]  # relative to the root
    libraries: tuple[str, ...]  # top-level packages that are not ours and not Python's own


@lru_cache
def sha256_of(*modules: str) -> str:
    """SHA-256 of the sources that these modules rest on and of the versions of the libraries they import.

    Read once a process: what runs is what was imported. Raises :class:`MtfError` as :func:`reached`.
    """
    found = reached([(Path(), module) for module in modules])
    return hashlib.sha256(json.dumps(contents(found)).encode()).hexdigest()


def contents(sources: Sources, root: Path = ROOT) -> list[list[str]]:
    """Name and SHA-256 of every file, then name and version of every library."""
    files = [
        [path.as_posix(), hashlib.sha256((root / path).read_bytes()).hexdigest()] for path in sources.files
    ]
    return [*files, *_versions(sources.libraries)]


def reached(names: Iterable[tuple[Path, str]], files: Iterable[Path] = (), root: Path = ROOT) -> Sources:
    """What is reached from ``names``, each with the file that imports it, and from the modules in ``files``.

    Raises :class:`MtfError` when a module of ours is not there.
    """
    reached_files, libraries, seen = set(files), set[str](), set[str]()
    waiting = [*names]
    modules = [path for path in reached_files if path.suffix == ".py"]
    waiting += [(path, name) for path in modules for name in imported(path, root)]
    while waiting:
        importer, name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        room = name.partition(".")[0]
        if room in ROOMS:
            for path in _modules(name, importer, root):
                if path not in reached_files:
                    reached_files.add(path)
                    waiting += [(path, further) for further in imported(path, root)]
        elif room not in sys.stdlib_module_names and room != _MACHINERY:
            libraries.add(room)
    for folder in {path.parent for path in reached_files if path.suffix == ".py"}:
        reached_files.update(path.relative_to(root) for path in _beside(root / folder))
    return Sources(tuple(sorted(reached_files)), tuple(sorted(libraries)))


def imports(path: Path, root: Path = ROOT) -> tuple[Import, ...]:
    """Every import of a module, wherever it is in it, ``importlib.import_module("a.b")`` included."""
    return _parsed((root / path).read_text(encoding="utf-8"), path.parent.parts)


def imported(path: Path, root: Path = ROOT) -> list[str]:
    """Names that a module imports to run."""
    return [found.name for found in imports(path, root) if not found.for_types]


@lru_cache(maxsize=1024)
def _parsed(source: str, package: tuple[str, ...]) -> tuple[Import, ...]:
    return tuple(_walked(ast.parse(source), package))


def imported_by(statement: ast.stmt, path: Path) -> list[str]:
    """Names that a statement of a module imports to run."""
    return [found.name for found in _walked(statement, path.parent.parts) if not found.for_types]


def _walked(tree: ast.AST, package: tuple[str, ...]) -> Iterator[Import]:
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
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
        if isinstance(node, ast.stmt | ast.expr):  # where names are found
            yield from (Import(node.lineno, name, for_types) for name in names)
        guarded = node.body if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING" else []
        waiting += [(child, for_types or child in guarded) for child in ast.iter_child_nodes(node)]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


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


def files_below(folder: Path, left_out: tuple[str, ...] = ()) -> Iterator[Path]:
    """Source files below a folder: nothing hidden, compiled or named in ``left_out``."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(".") or path.name in ("__pycache__", *left_out):
            continue
        if path.is_dir():
            yield from files_below(path)
        elif not path.name.endswith(_COMPILED):
            yield path


def _beside(package: Path) -> Iterator[Path]:
    """Source files in a package's folder that are not Python, and in folders there that are no packages."""
    packages = tuple(path.parent.name for path in package.glob("*/__init__.py"))
    return (path for path in files_below(package, packages) if path.suffix != ".py")


@lru_cache
def _versions(libraries: tuple[str, ...]) -> list[list[str]]:
    """Name and version of every distribution that installs one of these packages."""
    installed = _distributions()
    names = {name for library in libraries for name in installed.get(library, ())}
    return [[name, version(name)] for name in sorted(names)]


_distributions = lru_cache(packages_distributions)

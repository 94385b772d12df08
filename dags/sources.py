"""Which sources does a stage's work rest on?

The stage's function in ``dags/stages.py`` with the functions that it calls there, and all that these import
(:mod:`training.contract.code_sources`). What a stage reads as files and not by importing is in :data:`TREES`.
The rest of ``dags`` is the machinery round the stages, and no stage's work.
"""

import ast
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from training.contract import code_sources
from training.contract.code_sources import ROOT, Sources
from training.contract.errors import MtfError

STAGES = Path("dags/stages.py")
# stage: folders whose files it copies, for dbt and into the Bento
TREES = {"transform": ("dbt_project",), "gate": ("serving", "training/contract", "feature_repo")}
# of dbt's, in its project's folder
_MADE = {"dbt_project": ("dbt_packages", "logs", "target")}


class StageSources(NamedTuple):
    """What a stage's work rests on; files and libraries as in :class:`Sources`."""

    code: tuple[str, ...]  # statements of dags/stages.py, without comments
    files: tuple[Path, ...]
    libraries: tuple[str, ...]


def fingerprint(stage: str, root: Path = ROOT) -> str:
    """Digest of a stage's own code, of its sources and of the versions of the libraries that they import.

    Raises :class:`MtfError` as :func:`of_stage`.
    """
    found = of_stage(stage, root)
    content = [found.code, code_sources.contents(Sources(found.files, found.libraries), root)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def of_stage(stage: str, root: Path = ROOT) -> StageSources:
    """The sources of a stage of the tree at ``root``.

    Raises :class:`MtfError` when the stage has no function, or a module or folder of it is not there.
    """
    code = _function(stage, root)
    files: set[Path] = set()
    for tree in TREES.get(stage, ()):
        found = list(code_sources.files_below(root / tree, _MADE.get(tree, ())))
        if not found:
            raise MtfError(f"{root / tree} is not there or empty: {stage} reads its files")
        files.update(path.relative_to(root) for path in found)
    names = [(STAGES, name) for statement in code for name in code_sources.imported_by(statement, STAGES)]
    return StageSources(tuple(map(ast.unparse, code)), *code_sources.reached(names, files, root))


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

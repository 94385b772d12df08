"""The units of the study: run what is missing, in processes of their own, and write the result."""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from training.contract import code_sources
from training.contract.files import read_json, write_json_atomic, write_text_atomic
from training.contract.policy import load_policy
from training.contract.settings import Estimator, Settings
from training.evaluation import stability
from training.experiments.estimators import bench, judging, policies
from training.experiments.estimators.bench import DRAWS, LOG, STATIC, WHOLE, Sizes, served_log
from training.experiments.estimators.results import (
    closed_markdown,
    coverage,
    markdown,
    plot,
    rank,
    whole,
)
from training.experiments.pages import header, provenance
from training.policies.retrain import ALGORITHMS

Progress = Callable[[int, int, str], None]
Unit = tuple[str, tuple[Any, ...]]  # the name of one of UNITS, and what it is called with
UNITS = {
    unit.__name__: unit
    for unit in (
        policies.make_constants,
        policies.make_random_networks,
        policies.make_learnt,
        judging.measure_truth,
        judging.judge,
        judging.judge_closed,
    )
}


def run(
    settings: Settings, out: Path, progress: Progress | None = None, *, workers: int = 2, **sizes: Any
) -> dict[str, Any]:
    """All estimators: run what is missing below ``out``; write ``estimators.json``, ``.md``, ``.png`` there.

    ``sizes`` are those of :class:`Sizes`. ``progress(done, units, name)`` is called after every unit.
    Returns the result.
    """
    study = _Study(settings, out, progress, workers, Sizes(**sizes))
    truth, others = study.truth()
    how = study.sizes
    groups = [others[at : at + how.batch] for at in range(0, len(others), how.batch)]
    longest = f"batchrl_mtf_{how.learner_steps[-1]}_seed{how.learner_seeds - 1}"
    few = (STATIC, "best", "myopic", "untrained_0", longest)
    units: dict[str, Unit] = {
        f"rank_{i}": ("judge", ((STATIC, *group), LOG, how.log_sessions)) for i, group in enumerate(groups)
    }
    units |= {f"draw_{i}": ("judge", (few, DRAWS + i, how.draw_sessions)) for i in range(how.draws)}
    judged = study.stage(units)
    result = {
        **study.about,
        "gate": {"gain": settings.gate.gain},
        "truth": truth,
        "rank": rank(truth, [judged[f"rank_{i}"] for i in range(len(groups))]),
        "coverage": coverage(
            truth,
            few,
            [judged[f"draw_{i}"] for i in range(how.draws)],
            settings.gate.gain,
            study.settings.evaluation,
        ),
        "seed_spread": _seed_spread(study.settings_json, how, study.folder, study.algorithms),
    }
    write_json_atomic(study.out / "estimators.json", result)
    facts = provenance(f"mtf experiment estimators --workers {workers} --draws {how.draws}")
    write_text_atomic(study.out / "estimators.md", markdown(result, header(facts)))
    plot(study.out / "estimators.png", result)
    return result


def run_closed(
    settings: Settings, out: Path, progress: Progress | None = None, *, workers: int = 2, **sizes: Any
) -> dict[str, Any]:
    """The estimators in closed form alone, of all policies on each of ``logs`` large logs: writes
    ``closed_forms.json`` and ``.md``. Policies and truths are those of :func:`run` below the same ``out``."""
    study = _Study(settings, out, progress, workers, Sizes(**sizes))
    truth, others = study.truth()
    how = study.sizes
    judged = study.stage(
        {
            f"whole_{i}": ("judge_closed", ((STATIC, *others), WHOLE + i, how.judge_sessions))
            for i in range(how.logs)
        }
    )
    result = {**study.about, "truth": truth, "whole": whole(truth, list(judged.values()))}
    write_json_atomic(study.out / "closed_forms.json", result)
    facts = provenance(f"mtf experiment closed_forms --workers {workers}")
    write_text_atomic(study.out / "closed_forms.md", closed_markdown(result, header(facts)))
    return result


class _Study:
    """What both have: the policies, their truths, and units that are run where they are missing."""

    def __init__(
        self, settings: Settings, out: Path, progress: Progress | None, workers: int, sizes: Sizes
    ) -> None:
        measured = settings.evaluation.model_copy(update={"estimators": get_args(Estimator)})
        self.settings = settings.model_copy(update={"evaluation": measured})
        self.settings_json, self.sizes, self.workers = self.settings.model_dump_json(), sizes, workers
        self.out, self._progress = out.resolve(), progress
        self.folder = self.out / "policies"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.algorithms = [a for a in ("batchrl_mtf", "td3") if a in ALGORITHMS]
        self.about = {"sizes": asdict(sizes), "evaluation": measured.model_dump(mode="json")}
        self._finished = self._total = 0

    def truth(self) -> tuple[dict[str, Any], list[str]]:
        """What every policy truly returns, and the names of all but static weights."""
        makers: dict[str, Unit] = {
            "constants": ("make_constants", ()),
            "untrained": ("make_random_networks", ()),
        }
        for algorithm in self.algorithms:
            for seed in range(self.sizes.learner_seeds):
                makers[f"learnt_{algorithm}_{seed}"] = ("make_learnt", (algorithm, seed))
        names = [name for unit in self.stage(makers).values() for name in unit]
        truth = self.stage({f"truth_{name}": ("measure_truth", (name,)) for name in names})
        return {name: truth[f"truth_{name}"] for name in names}, [n for n in names if n != STATIC]

    def stage(self, units: Mapping[str, Unit]) -> dict[str, Any]:
        """The units' results by name, in their order."""
        self._total += len(units)
        return _units(self.settings_json, self.sizes, self.out, units, self.workers, self._tell)

    def _tell(self, name: str, done: int) -> None:
        self._finished += done
        if self._progress is not None:
            self._progress(self._finished, max(self._total, self._finished), name)


def _units(
    settings_json: str,
    sizes: Sizes,
    out: Path,
    units: Mapping[str, Unit],
    workers: int,
    tell: Callable[[str, int], None],
) -> dict[str, Any]:
    """Results of the units, by name; those whose file is there and of the same inputs are not run."""
    found, missing = {}, {}
    compared = {k: v for k, v in json.loads(settings_json).items() if k not in ("gate", "data")}  # not read
    own = {
        k: v for k, v in asdict(sizes).items() if k not in ("draws", "logs")
    }  # more of them are more units
    sources = _sources()
    for name, (function, arguments) in units.items():
        inputs = json.dumps([compared, own, function, arguments, sources])
        fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
        path = out / "units" / f"{name}.json"
        saved = read_json(path) if path.is_file() else {}
        if saved.get("fingerprint") == fingerprint:
            found[name] = saved["result"]
            tell(name, 1)
        else:
            missing[name] = (function, arguments, fingerprint, path)
    if missing:
        # spawn: PyTorch's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            running = {
                pool.submit(_run_unit, function, settings_json, sizes, out / "policies", arguments): name
                for name, (function, arguments, _, _) in missing.items()
            }
            for future in as_completed(running):
                name = running[future]
                _, _, fingerprint, path = missing[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(path, {"fingerprint": fingerprint, "result": future.result()})
                found[name] = read_json(path)["result"]  # as a resumed run sees it, keys in its order too
                tell(name, 1)
    return {name: found[name] for name in units}


def _sources() -> str:
    """Of what a unit's result depends on."""
    return code_sources.sha256_of(bench.__name__, policies.__name__, judging.__name__)


def _run_unit(
    function: str, settings_json: str, sizes: Sizes, folder: Path, arguments: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(1)
    return UNITS[function](settings_json, sizes, folder, *arguments)


def _seed_spread(settings_json: str, sizes: Sizes, folder: Path, algorithms: list[str]) -> dict[str, Any]:
    """Deviation over seeds of the action in one state, per learner: the paper's case is its stability."""
    if sizes.learner_seeds < 2:
        return {}
    states = served_log(settings_json, folder, 300, LOG).states.numpy()
    steps = sizes.learner_steps[-1]
    return {
        algorithm: stability.seed_spread(
            np.stack(
                [
                    load_policy(folder / f"{algorithm}_{steps}_seed{seed}.safetensors").act_in_parts(states)
                    for seed in range(sizes.learner_seeds)
                ]
            )
        )
        for algorithm in algorithms
    }

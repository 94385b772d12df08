"""The daily retrain: a pool of challengers, trained, checkpointed and exported the same way."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import reduce
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from training import trajectories
from training.contract import in_service
from training.contract.errors import DataError, MtfError
from training.contract.files import write_json_atomic
from training.contract.policy import PolicyHeader, save_policy
from training.contract.rollout import before_day
from training.contract.settings import Settings
from training.policies import (
    checkpoint,
    cql_sac,
    ensemble,
    iql,
    lineage,
    rebrac,
    return_regression,
    supervised,
    td3,
    unified_rl,
    xmtf,
)
from training.policies.learner import Learner
from training.trajectories import Transitions
from training.trajectories.shares import WindowLog
from training.warehouse.sums import adding_up

ALGORITHMS: dict[str, type[Learner]] = {
    learner.kind: learner
    for learner in (
        ensemble.BatchRLMTFEnsemble,
        td3.TD3,
        td3.TD3BC,
        rebrac.ReBRAC,
        td3.UWACTD3,
        unified_rl.UnifiedRL,
        cql_sac.CQLSAC,
        iql.IQL,
        ensemble.BanditEnsemble,
        supervised.Supervised,
        xmtf.XMTF,
    )
}
_POINTS = 100  # of a training curve

# (algorithm, step, steps, metrics)
Progress = Callable[[str, int, int, dict[str, float]], None]


def train(settings: Settings, day: date, progress: Progress | None = None) -> dict[str, Any]:
    """Train the pool of ``day``: a policy of each of ``learner.algorithms``, below ``layout.model(day)``.

    Files, in a folder of each algorithm: ``policy.safetensors`` (for serving) and, of those that learn by
    gradients, ``learner.safetensors`` (the whole learner, from which a warm start goes on), ``curves.json``,
    and ``checkpoint.safetensors`` while it runs. A run that was killed goes on from its last checkpoint and
    ends with the same bits; one that had ended, with nothing changed since, is exported again from its
    learner. ``progress(algorithm, step, steps, metrics)`` is called about a hundred times for each.

    Returns the record: ``transitions``, ``warnings``, ``lineage``, and ``pool``, by algorithm: ``policy``,
    its path relative to the data folder, ``sha256``, ``version``, ``steps``, ``curves`` and ``summary``.
    ``leanings`` are likewise the regression's menus for rewards that lean to or from interaction, with their
    ``factor``, below ``leanings/<factor>`` of the model; they are not of the pool.
    Of a log of fewer sessions than a closed form needs, the others are the pool, with a warning.
    Raises :class:`~training.contract.errors.DataError` as :func:`training.trajectories.load` does and where
    nothing is left of the pool, and :class:`MtfError` when training diverges.
    """
    algorithms = settings.learner.algorithms
    closed = [name for name in algorithms if name in return_regression.ALGORITHMS]
    leanings = {
        return_regression.leaning_name(factor): factor
        for factor in settings.learner.return_regression.leanings
        if factor != 1.0 and return_regression.MENU in closed
    }
    needs = sorted(
        {need for name in algorithms if name in ALGORITHMS for need in ALGORITHMS[name].needs}
        | ({"watch_rewards"} if leanings else set())
    )
    pool: dict[str, Any] = {}
    swept: dict[str, Any] = {}  # by leaning
    with reproducible(settings.learner.threads):
        with adding_up(settings) as add_up:
            # made first: it refuses files that take the place of those that load reads
            log = WindowLog(settings, day, add_up) if closed else None
            data = trajectories.load(settings, day, needs)
            seed, warnings = _seed(settings.seed, day), list(data.warnings)
            arithmetic: dict[str, str] = {
                name: ALGORITHMS[name].arithmetic(settings.learner)
                for name in algorithms
                if name not in closed
            }
            about = lineage.describe(settings, day, seed, data, arithmetic)
            if log is not None:
                how = settings.learner.return_regression
                factors = list(leanings.values())
                try:
                    proposals = return_regression.propose(settings.fusion, how, log, seed, factors)
                except DataError as error:
                    if len(closed) == len(algorithms):
                        raise
                    warnings.append(f"left out of the pool: {' and '.join(closed)} ({error})")
                    algorithms = tuple(name for name in algorithms if name not in closed)
                    closed, leanings = [], {}
        for name in closed:
            if progress is not None:
                progress(name, 1, 1, {})
            pool[name] = _propose(settings, day, about | {"algorithm": name}, proposals[name])
        for leaning, factor in leanings.items():
            own = about | {"algorithm": return_regression.MENU, "leaning": factor}
            swept[leaning] = {"factor": factor, **_propose(settings, day, own, proposals[leaning])}
        for name in algorithms:
            if name not in closed:
                pool[name], warning = _learn(settings, day, name, data.train, about, seed, progress)
                warnings += [warning] if warning else []
    return {
        "transitions": len(data.train),
        "pool": {name: pool[name] for name in algorithms},
        "leanings": swept,
        "warnings": warnings,
        "lineage": about,
    }


def _learn(
    settings: Settings,
    day: date,
    name: str,
    data: Transitions,
    about: dict[str, Any],
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, Any], str | None]:
    """Train one algorithm by gradients; its entry of the pool, and a warning."""
    how, algorithm, folder = settings.learner, ALGORITHMS[name], settings.layout.model(day) / name
    steps = how.steps
    weights, warm_start, warning = None, None, None
    if how.warm_start:
        weights, warm_start, warning = _champion_weights(settings, day, name)
    about = about | {"algorithm": name, "warm_start": warm_start}
    fingerprint = lineage.fingerprint(about)
    version = lineage.version(about)

    learner = algorithm(how, data, seed, settings.fusion)
    names = learner.curves
    curves: dict[str, list[float]] = {point: [] for point in ("step", *names)}
    window = torch.zeros(len(names), device=learner.device)  # sums since the last point of the curves
    if weights is not None:
        learner.load_weights(weights)
    for path in (folder / "learner.safetensors", folder / "checkpoint.safetensors"):
        saved = checkpoint.read(path)
        if saved is not None and saved[1]["fingerprint"] == fingerprint:
            learner.load_state(saved[0])
            window, curves = saved[0]["window"].to(learner.device), saved[1]["curves"]
            break

    def state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return learner.state() | {"window": window}, {
            "fingerprint": fingerprint,
            "kind": learner.kind,
            "networks": _networks(settings, name),
            "version": version,
            "curves": curves,
        }

    every = max(1, steps // _POINTS)
    while learner.step_count < steps:
        window = window + learner.step()
        done = learner.step_count
        if done % every == 0 or done == steps:
            since = done - (curves["step"][-1] if curves["step"] else 0)
            point = dict(zip(names, (window / since).tolist(), strict=True))
            _refuse_divergence(name, point, done)
            for column, value in ({"step": done} | point).items():
                curves[column].append(value)
            window = torch.zeros_like(window)
            if progress is not None:
                progress(name, done, steps, point)
        if done % how.checkpoint_every == 0 and done < steps:
            checkpoint.save(folder / "checkpoint.safetensors", *state())

    checkpoint.save(folder / "learner.safetensors", *state())
    tensors, options = learner.export()
    entry = _save(settings, day, about, learner.actor, tensors, options)
    write_json_atomic(folder / "curves.json", curves)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return entry | {"steps": steps, "curves": curves, "summary": {}}, warning


def _propose(
    settings: Settings, day: date, about: dict[str, Any], proposal: return_regression.Proposal
) -> dict[str, Any]:
    """Write what a closed form proposes; its entry of the record."""
    saved = _save(
        settings, day, about | {"warm_start": None}, proposal.kind, proposal.tensors, proposal.options
    )
    return saved | {"steps": 0, "curves": {}, "summary": proposal.summary}


def _save(
    settings: Settings,
    day: date,
    about: dict[str, Any],
    kind: str,
    tensors: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a policy of the pool; its path relative to the data folder, hash and version."""
    version = lineage.version(about)
    header = PolicyHeader(kind, version, settings.state_spec, settings.fusion, options, about)
    where = f"leanings/{about['leaning']:g}" if "leaning" in about else about["algorithm"]
    path = settings.layout.model(day) / where / "policy.safetensors"
    digest = save_policy(path, header, tensors)
    return {
        "policy": path.relative_to(settings.layout.root).as_posix(),
        "sha256": digest,
        "version": version,
    }


def _seed(seed: int, day: date) -> int:
    """A seed for the day: days must not share their noise, and a rerun must repeat it."""
    return int.from_bytes(hashlib.sha256(f"learner/{seed}/{day.isoformat()}".encode()).digest()[:6], "big")


def _networks(settings: Settings, algorithm: str) -> dict[str, Any]:
    """What has to be equal for one learner's weights to fit another."""
    learner = settings.learner
    values = learner.model_dump(mode="json")
    widths = ("critic_hidden", "actor_hidden", *ALGORITHMS[algorithm].sizes)
    return {
        "kind": algorithm,
        "state_spec": settings.state_spec.version,
        "heads": [head.name for head in settings.heads],
        **{name: reduce(dict.__getitem__, name.split("."), values) for name in widths},
    }


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Deterministic kernels, a fixed number of PyTorch's threads, and one of BLAS's; all are put back.

    One, for the matrices of the closed forms are of hundreds of rows, and BLAS's threads wait for each other
    in a loop: where another program has one of their cores, a second thread makes them ten times slower. And
    sums then do not depend on the number of cores.

    Deterministic mode also fills every new tensor before it is written, for those who read memory that
    they did not set. No learner does, and it took a tenth of a step.
    """
    before, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    deterministic: Any = torch.utils.deterministic  # PyTorch's types do not name its flag
    filling = deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")  # the flag's other name: this one imports no compiler
    deterministic.fill_uninitialized_memory = False
    if threads:
        torch.set_num_threads(threads)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_deterministic_debug_mode(strict)
        deterministic.fill_uninitialized_memory = filling
        torch.set_num_threads(before)


def _refuse_divergence(algorithm: str, point: dict[str, float], step: int) -> None:
    bad = [name for name, value in point.items() if not torch.isfinite(torch.tensor(value))]
    if bad:
        raise MtfError(
            f"training of {algorithm} diverged: {bad[0]} is not a number at step {step}. Lower "
            "learner.critic_lr and the other learning rates, and look at the rewards of the training data."
        )


def _champion_weights(
    settings: Settings, day: date, algorithm: str
) -> tuple[dict[str, torch.Tensor] | None, dict[str, str] | None, str | None]:
    """Learner state of the champion from before ``day``, its description, or why there is none.

    A rerun of a day whose policy was promoted since must start where the first run did: pointers of
    ``day`` and later are passed over for what they replaced.
    """
    pointer = before_day(in_service.read(settings).champion, day.isoformat())
    if pointer is None:
        return None, None, "warm start: no champion from before this day; started fresh"
    path = settings.layout.model(date.fromisoformat(pointer.day)) / algorithm / "learner.safetensors"
    saved = checkpoint.read(path)
    if saved is None or saved[1]["version"] != pointer.version:
        return None, None, f"warm start: {path} does not hold the champion {pointer.version}; started fresh"
    tensors, about = saved
    wanted, networks = _networks(settings, algorithm), about["networks"]
    # BatchRL-MTF's had no section of the settings in files of an older version
    there = {name: networks.get(name, networks.get(name.removeprefix("batchrl_mtf."))) for name in wanted}
    differing = [name for name, value in wanted.items() if there[name] != value]
    if differing:
        name = differing[0]
        return (
            None,
            None,
            (
                f"warm start: {name} of the champion {pointer.version} is {there[name]}, "
                f"that of the settings {wanted[name]}; started fresh"
            ),
        )
    return tensors, {"version": pointer.version, "fingerprint": about["fingerprint"]}, None

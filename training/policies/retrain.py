"""The daily retrain: load, train, checkpoint, export. The same for every algorithm."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import reduce
from typing import Any

import torch

from training import trajectories
from training.contract.errors import MtfError
from training.contract.files import write_json_atomic
from training.contract.pointer import ChampionPointer, read_champion
from training.contract.policy import PolicyHeader, save_policy
from training.contract.settings import Settings
from training.policies import (
    checkpoint,
    cql_sac,
    ensemble,
    iql,
    lineage,
    rebrac,
    supervised,
    td3,
    unified_rl,
    xmtf,
)
from training.policies.learner import Learner

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

Progress = Callable[[int, int, dict[str, float]], None]


def train(settings: Settings, day: date, progress: Progress | None = None) -> dict[str, Any]:
    """Train the challenger of ``day`` and write it below ``layout.model(day)``.

    Files: ``policy.safetensors`` (for serving), ``learner.safetensors`` (the whole learner, from which
    a warm start goes on), ``curves.json``, and ``checkpoint.safetensors`` while it runs. A run that
    was killed goes on from its last checkpoint and ends with the same bits; one that had ended, with
    nothing changed since, is exported again from its learner. ``progress(step, steps, metrics)`` is
    called about a hundred times.

    Returns the record: ``steps``, ``transitions``, ``policy`` (path relative to the data folder),
    ``sha256``, ``version``, ``curves``, ``warnings``, ``lineage``. Raises
    :class:`~training.contract.errors.DataError` as :func:`training.trajectories.load` does, and
    :class:`MtfError` when training diverges.
    """
    layout, learner_settings = settings.layout, settings.learner
    folder, steps = layout.model(day), learner_settings.steps
    algorithm = ALGORITHMS[learner_settings.algorithm]
    data = trajectories.load(settings, day, algorithm.needs)
    seed = _seed(settings.seed, day)
    with reproducible(learner_settings.threads):
        warnings = list(data.warnings)
        weights, warm_start = None, None
        if learner_settings.warm_start:
            weights, warm_start, warning = _champion_weights(settings, day)
            warnings += [warning] if warning else []
        about = lineage.describe(
            settings, day, seed, data, warm_start, algorithm.arithmetic(learner_settings)
        )
        fingerprint = lineage.fingerprint(about)
        version = f"{day.isoformat()}-{fingerprint[:8]}"

        learner = algorithm(learner_settings, data.train, seed, settings.fusion)
        names = learner.curves
        curves: dict[str, list[float]] = {name: [] for name in ("step", *names)}
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
                "networks": _networks(settings),
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
                _refuse_divergence(point, done)
                for name, value in ({"step": done} | point).items():
                    curves[name].append(value)
                window = torch.zeros_like(window)
                if progress is not None:
                    progress(done, steps, point)
            if done % learner_settings.checkpoint_every == 0 and done < steps:
                checkpoint.save(folder / "checkpoint.safetensors", *state())

        checkpoint.save(folder / "learner.safetensors", *state())
        tensors, options = learner.export()
    header = PolicyHeader(
        learner.actor, version, settings.state_spec, settings.fusion, options, about | {"steps": steps}
    )
    path = folder / "policy.safetensors"
    digest = save_policy(path, header, tensors)
    write_json_atomic(folder / "curves.json", curves)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return {
        "steps": steps,
        "transitions": len(data.train),
        "policy": path.relative_to(layout.root).as_posix(),
        "sha256": digest,
        "version": version,
        "curves": curves,
        "warnings": warnings,
        "lineage": about,
    }


def _seed(seed: int, day: date) -> int:
    """A seed for the day: days must not share their noise, and a rerun must repeat it."""
    return int.from_bytes(hashlib.sha256(f"learner/{seed}/{day.isoformat()}".encode()).digest()[:6], "big")


def _networks(settings: Settings) -> dict[str, Any]:
    """What has to be equal for one learner's weights to fit another."""
    learner = settings.learner
    values = learner.model_dump(mode="json")
    widths = ("critic_hidden", "actor_hidden", *ALGORITHMS[learner.algorithm].sizes)
    return {
        "kind": learner.algorithm,
        "state_spec": settings.state_spec.version,
        "heads": [head.name for head in settings.heads],
        **{name: reduce(dict.__getitem__, name.split("."), values) for name in widths},
    }


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Deterministic kernels and a fixed number of threads; both are put back.

    Deterministic mode also fills every new tensor before it is written, for those who read memory that
    they did not set. No learner does, and it took a tenth of a step.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    deterministic: Any = torch.utils.deterministic  # PyTorch's types do not name its flag
    filling = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        deterministic.fill_uninitialized_memory = filling
        torch.set_num_threads(before)


def _refuse_divergence(point: dict[str, float], step: int) -> None:
    bad = [name for name, value in point.items() if not torch.isfinite(torch.tensor(value))]
    if bad:
        raise MtfError(
            f"training diverged: {bad[0]} is not a number at step {step}. Lower learner.critic_lr and the "
            f"other learning rates, and look at the rewards of the training data."
        )


def _champion_weights(
    settings: Settings, day: date
) -> tuple[dict[str, torch.Tensor] | None, dict[str, str] | None, str | None]:
    """Learner state of the champion from before ``day``, its description, or why there is none.

    A rerun of a day whose policy was promoted since must start where the first run did: pointers of
    ``day`` and later are passed over for what they replaced.
    """
    pointer = read_champion(settings.layout.champion)
    while pointer is not None and pointer.day >= day.isoformat():
        pointer = ChampionPointer(**pointer.previous) if pointer.previous else None
    if pointer is None:
        return None, None, "warm start: no champion from before this day; started fresh"
    path = (settings.layout.root / pointer.policy).parent / "learner.safetensors"
    saved = checkpoint.read(path)
    if saved is None or saved[1]["version"] != pointer.version:
        return None, None, f"warm start: {path} does not hold the champion {pointer.version}; started fresh"
    tensors, about = saved
    wanted, networks = _networks(settings), about["networks"]
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

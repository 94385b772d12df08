"""BatchRL-MTF's step in its second form: compiled, in bfloat16 and eight bits, on two lanes.

What a step is stands in :mod:`training.policies.batchrl_mtf`; this one computes the same, within its
precision, on the same draws. It runs on x86 processors with AVX-512 for bfloat16 and int8 (AMD from Zen 4,
Intel from Sapphire Rapids), once ``make install`` has found a C compiler. Four functions are all that is
asked of it: which :func:`precision` a learner's step has, how its :func:`arithmetic` is called in the lineage
of a model, :func:`fast_step`, and the :func:`draws` that both forms make where it can run.
"""

from typing import Literal

import torch

from training.contract.errors import SettingsError
from training.contract.settings import LearnerSettings
from training.policies.draws import Draws
from training.policies.fast import library
from training.policies.fast.parts import Owner
from training.policies.fast.step import FastStep


def precision(settings: LearnerSettings, device: torch.device) -> Literal["float32", "bfloat16", "int8"]:
    """Of a step's products, as ``learner.batchrl_mtf.precision`` asks for; float32 is the page's.

    Raises :class:`SettingsError` where what it asks for cannot be had here.
    """
    own = settings.batchrl_mtf
    hidden = own.generator_hidden, own.perturbation_hidden, settings.critic_hidden
    fits = device.type == "cpu" and all(1 <= len(widths) < library.MOST_LAYERS for widths in hidden)
    there = fits and library.LIBRARY is not None
    if own.precision == "float32" or (own.precision == "auto" and not there):
        return "float32"
    if not there:
        raise SettingsError(
            f"learner.batchrl_mtf.precision: {own.precision} needs a processor with AVX-512 for bfloat16 and "
            "int8, training/policies/fast/kernels.c compiled by `make install`, device cpu, and networks of "
            f"1 to {library.MOST_LAYERS - 1} hidden layers; auto takes what there is"
        )
    return "int8" if own.precision == "auto" else own.precision


def arithmetic(settings: LearnerSettings, device: torch.device) -> str:
    """The same, and whether it is compiled."""
    chosen = precision(settings, device)
    return chosen if chosen == "float32" else f"{chosen}, compiled"


def fast_step(learner: Owner) -> FastStep | None:
    """The compiled step of a learner, whose parameters move into vectors; None where the page is its step."""
    chosen = precision(learner.settings, learner.device)
    return None if chosen == "float32" else FastStep(learner, in_eight=chosen == "int8")


def draws(seed: int, device: torch.device) -> Draws:
    """Of a step: the same in every precision, so that policies learnt in two of them can be paired."""
    kind = library.CompiledDraws if library.LIBRARY is not None and device.type == "cpu" else Draws
    return kind(seed, device)

"""Policy files: one safetensors file that holds all that ranking needs, and runs on numpy alone.

The metadata of the file carries its kind, the state specification, the fusion formula and the
lineage; the tensors are the weights. Nothing in it is executed, so a file from a stranger can at
worst be refused.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from training.contract.arrays import Float32Array, Float64Array
from training.contract.errors import PolicyError
from training.contract.files import sha256, write_atomic
from training.contract.fusion import Fusion, Head
from training.contract.state import StateSpec

FORMAT = 1
METADATA_KEY = "mtf_policy"
MAXIMUM_BYTES = 256 * 1024 * 1024
_PART = 16  # states at once: times 100 candidates, times the widest layer, stays in cache


@dataclass(frozen=True)
class PolicyHeader:
    """What a policy file says of itself. ``lineage`` is plain JSON: partitions, seed, code, …"""

    kind: str
    version: str
    spec: StateSpec
    fusion: Fusion
    options: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "kind": self.kind,
                "version": self.version,
                "state_spec": json.loads(self.spec.to_json()),
                "heads": [asdict(head) for head in self.fusion.heads],
                "fusion_form": self.fusion.form,
                "options": dict(self.options),
                "lineage": dict(self.lineage),
            },
            sort_keys=True,
        )


class Actor(Protocol):
    """The part of a policy that differs by kind: states [n, d] to actions [n, k]."""

    def __call__(self, states: Float32Array) -> Float32Array: ...


class Ranker(Protocol):
    """An actor that also orders items by itself, instead of by the fusion formula."""

    def scores(self, predictions: Float64Array, states: Float32Array) -> Float64Array: ...


@dataclass(frozen=True)
class Policy:
    """A loaded policy. ``act`` is deterministic: the same states give the same actions."""

    header: PolicyHeader
    sha256: str
    actor: Actor

    @property
    def version(self) -> str:
        return self.header.version

    def act(self, states: Float32Array) -> Float32Array:
        """States float32[n, d] to actions float32[n, k] in [-1, 1].

        Raises :class:`PolicyError` when the network answers with something that is not a number.
        """
        states = np.asarray(states, dtype=np.float32)
        if states.ndim != 2 or states.shape[1] != self.header.spec.width:
            raise PolicyError(
                f"policy {self.version} takes states of width {self.header.spec.width} "
                f"({self.header.spec.version}), got shape {states.shape}"
            )
        actions = self.actor(states)
        if not np.isfinite(actions).all():
            raise PolicyError(f"policy {self.version} gave an action that is not a number")
        return np.clip(actions, -1.0, 1.0).astype(np.float32)

    @property
    def ranks(self) -> bool:
        """Whether it orders items by itself; otherwise the fusion formula does, with its action."""
        return hasattr(self.actor, "scores")

    def scores(self, predictions: Float64Array, states: Float32Array, actions: Float32Array) -> Float64Array:
        """Scores float64[..., n] of predictions [..., n, k] by the policy's own order.

        ``states`` [..., d] and what the policy does there, ``actions`` [..., k], are of the same requests:
        the formula, eq. (1), reads the actions, a policy that ranks by itself the states. Raises
        :class:`PolicyError` for a score that is not a number.
        """
        if not self.ranks:
            fusion = self.header.fusion
            return fusion.score(predictions, fusion.to_weights(actions))
        ranker = cast(Ranker, self.actor)
        scores = ranker.scores(np.asarray(predictions), np.asarray(states, dtype=np.float32))
        if not np.isfinite(scores).all():
            raise PolicyError(f"policy {self.version} gave a score that is not a number")
        return scores

    def act_in_parts(self, states: Float32Array) -> Float32Array:
        """:meth:`act` on any number of states, in bounded memory."""
        parts = [self.act(states[at : at + _PART]) for at in range(0, len(states), _PART)]
        return np.concatenate(parts) if parts else self.act(states)


def mlp(x: Float32Array, tensors: Mapping[str, Float32Array], prefix: str) -> Float32Array:
    """ReLU network with tensors ``<prefix>.<i>.weight`` [out, in] and ``<prefix>.<i>.bias``."""
    weight, bias = _first_layer(tensors, prefix)
    return _later_layers(x @ weight.T + bias, tensors, prefix)


def _joint_mlp(
    s: Float32Array, x: Float32Array, tensors: Mapping[str, Float32Array], prefix: str
) -> Float32Array:
    """:func:`mlp` of every [s_i, x_ij], for s [m, d] and x [m or 1, n, z]: [m, n, out].

    The first layer takes each s_i once and not n times: a sixth of a policy's time at n 100.
    """
    weight, bias = _first_layer(tensors, prefix)
    d = s.shape[1]
    first = x @ weight[:, d:].T + (s @ weight[:, :d].T + bias)[:, None, :]
    m, n, width = first.shape  # as one matrix: matmul would take a product for each of the m
    return _later_layers(first.reshape(m * n, width), tensors, prefix).reshape(m, n, -1)


def _first_layer(tensors: Mapping[str, Float32Array], prefix: str) -> tuple[Float32Array, Float32Array]:
    try:
        return tensors[f"{prefix}.0.weight"], tensors[f"{prefix}.0.bias"]
    except KeyError as error:
        raise PolicyError(f"the policy file has no network {prefix!r}: it lacks {error}") from error


def _later_layers(x: Float32Array, tensors: Mapping[str, Float32Array], prefix: str) -> Float32Array:
    """What follows the first layer's sums ``x`` [m, out], which it writes over."""
    layer = 1
    while f"{prefix}.{layer}.weight" in tensors:
        # against a row of zeros: numpy takes three times as long against one number
        np.maximum(x, np.zeros(x.shape[-1], x.dtype), out=x)
        x = x @ tensors[f"{prefix}.{layer}.weight"].T
        x += tensors[f"{prefix}.{layer}.bias"]
        layer += 1
    return x


@dataclass(frozen=True)
class ConstantActor:
    """The same action for every state; static weights and best constants are policies of this kind."""

    action: Float32Array

    def __call__(self, states: Float32Array) -> Float32Array:
        return np.repeat(self.action[None, :], len(states), axis=0)


@dataclass(frozen=True)
class MenuActor:
    """Of J actions the one with the largest b_j + w_j · (s − s̄): a linear choice from a short menu.

    Tensors ``actions`` [J, k], ``bias`` [J], ``weights`` [J, d] and ``mean`` [d]; the first action is what
    the others are held against (:mod:`training.policies.return_regression`).
    """

    tensors: Mapping[str, Float32Array]

    def __call__(self, states: Float32Array) -> Float32Array:
        chosen: Float32Array = self.tensors["actions"][self.choices(states)]
        return chosen

    def choices(self, states: Float32Array) -> NDArray[np.intp]:
        """Which of the menu each state of [n, d] gets, int[n]."""
        t = self.tensors
        chosen: NDArray[np.intp] = (t["bias"] + (states - t["mean"]) @ t["weights"].T).argmax(axis=1)
        return chosen


@dataclass(frozen=True)
class DeterministicActor:
    """π(s) = tanh(MLP(s)): one network ``actor``, and the standardisation of :class:`BatchRLMTFActor`."""

    tensors: Mapping[str, Float32Array]
    state_clip: float = float("inf")

    def __call__(self, states: Float32Array) -> Float32Array:
        return np.tanh(mlp(_standardised(states, self.tensors, self.state_clip), self.tensors, "actor"))


@dataclass(frozen=True)
class BatchRLMTFActor:
    """π(s) = argmax over n of Q(s, â_i + ξ_i), â_i ~ G(s), ξ_i = P_ω(s, â_i): eq. (4).

    The n latents are drawn once, at export, and stored with the weights (``latents`` [n, z]), so
    that a served action can be computed again offline. Q is the first critic, as in the BCQ
    reference. ``state_mean`` and ``state_scale`` standardise the state; the result is clipped to
    ±``state_clip``, so that a value never seen in training cannot throw the networks off.
    """

    tensors: Mapping[str, Float32Array]
    rho: float
    state_clip: float = float("inf")

    def __call__(self, states: Float32Array) -> Float32Array:
        t = self.tensors
        s = _standardised(states, t, self.state_clip)
        candidates = np.tanh(_joint_mlp(s, t["latents"][None], t, "decoder"))
        shift: Float32Array = np.tanh(_joint_mlp(s, candidates, t, "perturbation"))
        actions: Float32Array = np.clip(candidates + self.rho * shift, -1.0, 1.0)
        best = _joint_mlp(s, actions, t, "critic")[..., 0].argmax(axis=1)
        chosen: Float32Array = actions[np.arange(len(s)), best]
        return chosen


@dataclass(frozen=True)
class EnsembleActor:
    """The mean of the actions of K policies, each an :class:`BatchRLMTFActor` of a seed of its own.

    A mean of actions within the box lies within it, and its noise is that of one policy over √K.
    """

    members: tuple[BatchRLMTFActor, ...]

    def __call__(self, states: Float32Array) -> Float32Array:
        mean: Float32Array = np.mean([member(states) for member in self.members], axis=0)
        return mean

    @classmethod
    def of(
        cls, tensors: Mapping[str, Float32Array], rho: float, state_clip: float, members: int
    ) -> "EnsembleActor":
        """Tensors ``<member>.<name>``, and the standardisation that all share."""
        shared = {name: tensors[name] for name in ("state_mean", "state_scale")}
        parts: list[dict[str, Float32Array]] = [dict(shared) for _ in range(members)]
        for name, tensor in tensors.items():
            member, dot, own = name.partition(".")
            if dot and member.isdecimal() and int(member) < members:
                parts[int(member)][own] = tensor
        return cls(tuple(BatchRLMTFActor(part, rho, state_clip) for part in parts))


@dataclass(frozen=True)
class XMTFActor(BatchRLMTFActor):
    """xMTF: items are ordered by Σ_k h_k(log(o_k + β_k), s), one monotone cell for each head k.

    A cell is ±(c x + Σ_j u_j tanh(v_j x + b_j)) of the standardised logarithm x, with c, u and v positive;
    the network ``cells`` gives them and b for a state; ``sign``, ``beta``, ``x_mean`` and ``x_scale`` are
    [k]. The action is the outer stage's, whose order the cells have learnt: what is logged and judged.
    """

    units: int = 1

    def scores(self, predictions: Float64Array, states: Float32Array) -> Float64Array:
        """Predictions [..., n, k] and states [..., d] to scores float64[..., n]."""
        t, j = self.tensors, self.units
        x = (np.log(predictions + t["beta"]) - t["x_mean"]) / t["x_scale"]
        out = mlp(_standardised(states, t, self.state_clip), t, "cells").astype(np.float64)
        out = out.reshape(*out.shape[:-1], 1, x.shape[-1], 1 + 3 * j)
        c, u, v, b = np.split(out, [1, 1 + j, 1 + 2 * j], axis=-1)
        bends = np.tanh(_positive(v) * x[..., None] + b)
        cells = t["sign"] * (_positive(c[..., 0]) * x + (_positive(u) * bends).sum(axis=-1))
        scores: Float64Array = cells.sum(axis=-1)
        return scores


def _positive(z: Float64Array) -> Float64Array:
    """log(1 + e^z)"""
    return np.logaddexp(0.0, z)


def _standardised(states: Float32Array, tensors: Mapping[str, Float32Array], clip: float) -> Float32Array:
    standardised: Float32Array = (states - tensors["state_mean"]) / tensors["state_scale"]
    return np.clip(standardised, -clip, clip)


def make_actor(kind: str, tensors: Mapping[str, Float32Array], options: Mapping[str, Any]) -> Actor:
    """The actor of a kind of policy; :class:`PolicyError` for a kind this code does not know."""
    try:
        if kind == "constant":
            return ConstantActor(tensors["action"])
        if kind == "menu":
            needed = ("actions", "bias", "weights", "mean")
            return MenuActor({name: tensors[name] for name in needed})
        clip = float(options.get("state_clip", float("inf")))
        if kind == "deterministic":
            return DeterministicActor(dict(tensors), clip)
        members = int(options.get("members", 1))
        if kind == "batchrl_mtf" and members > 1:
            return EnsembleActor.of(tensors, float(options["rho"]), clip, members)
        if kind == "batchrl_mtf":
            return BatchRLMTFActor(dict(tensors), float(options["rho"]), clip)
        if kind == "xmtf":
            return XMTFActor(dict(tensors), float(options["rho"]), clip, int(options["units"]))
    except KeyError as error:
        raise PolicyError(f"the {kind} policy lacks {error}") from error
    raise PolicyError(f"unknown kind of policy {kind!r}")


def save_policy(path: Path, header: PolicyHeader, tensors: Mapping[str, Float32Array]) -> str:
    """Write a policy file atomically; returns its SHA-256. Tensors are stored as float32."""
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in sorted(tensors.items())}
    metadata = {METADATA_KEY: header.to_json()}
    write_atomic(path, lambda temporary: save_file(arrays, str(temporary), metadata=metadata))
    return sha256(path)


def load_policy(path: Path, expected_sha256: str | None = None) -> Policy:
    """Read and check a policy file.

    Raises :class:`PolicyError` for a missing, oversized, truncated or foreign file, a hash that is
    not ``expected_sha256``, a tensor with a value that is not a number, an unknown kind or format,
    and weights whose shapes do not fit the header (tried on a state of zeros).
    """
    if not path.is_file():
        raise PolicyError(f"no policy file at {path}")
    if path.stat().st_size > MAXIMUM_BYTES:
        raise PolicyError(f"{path} is larger than {MAXIMUM_BYTES} bytes")
    digest = sha256(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise PolicyError(f"{path} has SHA-256 {digest}, expected {expected_sha256}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise PolicyError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata is None:
        raise PolicyError(f"{path} is not a policy file: it has no {METADATA_KEY} metadata")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise PolicyError(f"{path}: tensor {name} holds a value that is not a number")
    try:
        raw = json.loads(metadata)
        if raw["format"] != FORMAT:
            raise PolicyError(f"{path} has policy format {raw['format']}, this code reads {FORMAT}")
        header = PolicyHeader(
            kind=raw["kind"],
            version=raw["version"],
            spec=StateSpec.from_json(json.dumps(raw["state_spec"])),
            fusion=Fusion(tuple(Head(**head) for head in raw["heads"]), raw.get("fusion_form", "log_sum")),
            options=raw["options"],
            lineage=raw["lineage"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{path}: unreadable policy header: {error!r}") from error
    policy = Policy(header, digest, make_actor(header.kind, tensors, header.options))
    try:
        state = np.zeros((1, header.spec.width), dtype=np.float32)
        probe = policy.act(state)
        if policy.ranks:
            policy.scores(np.zeros((1, 2, len(header.fusion.heads))), state, probe)
    except (ValueError, KeyError) as error:
        raise PolicyError(f"{path}: the weights do not fit each other: {error}") from error
    if probe.shape != (1, len(header.fusion.heads)):
        raise PolicyError(
            f"{path}: actions have {probe.shape[1]} entries for {len(header.fusion.heads)} heads"
        )
    return policy


def constant_policy(spec: StateSpec, fusion: Fusion, action: Float32Array, version: str) -> Policy:
    """A constant policy that lives in memory only (no file, so an empty hash)."""
    header = PolicyHeader("constant", version, spec, fusion)
    return Policy(header, "", ConstantActor(np.asarray(action, dtype=np.float32)))

"""A policy's networks as one ONNX graph: one call for many states, outside of the interpreter's lock.

A policy file stays what it is, tensors that numpy can run (:mod:`training.contract.policy` defines every
kind); the graph is made from them when the file is taken. ONNX Runtime picks the processor's kernels by
itself and lets the event loop read the next requests meanwhile, where numpy would take and give back the
interpreter's lock around each of twenty operations.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from training.contract.errors import PolicyError
from training.contract.policy import BatchRLMTFActor, DeterministicActor, EnsembleActor, Policy, XMTFActor

_OPSET, _IR_VERSION = 17, 8  # a runtime of 2022 reads them
_STATES, _ACTIONS = "states", "actions"


def compiled(policy: Policy) -> Policy:
    """The same policy with its actor compiled; one without networks as it is.

    The actions are the numpy actor's up to rounding; of two candidates whose values are equal up to
    rounding either may be taken, as by numpy itself on another processor.
    """
    actor = policy.actor
    if isinstance(actor, XMTFActor):
        return replace(policy, actor=_CompiledRanker(_batch_rl_mtf(actor), actor))
    if isinstance(actor, BatchRLMTFActor):
        return replace(policy, actor=_CompiledActor(_batch_rl_mtf(actor)))
    if isinstance(actor, EnsembleActor):
        return replace(policy, actor=_CompiledActor(_batch_rl_mtf(*actor.members)))
    if isinstance(actor, DeterministicActor):
        return replace(policy, actor=_CompiledActor(_deterministic(actor)))
    return policy


class _Graph:
    """Nodes and constants. A method that adds to them returns the name of a value."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def put(self, value: Any, kind: type = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(value, dtype=kind, order="C"), name))
        return name

    def do(self, operation: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    def shaped(self, value: str, *shape: int) -> str:
        return self.do("Reshape", value, self.put(shape, np.int64))

    def standardised(self, tensors: Mapping[str, np.ndarray], clip: float) -> str:
        centred = self.do("Sub", _STATES, self.put(tensors["state_mean"]))
        scaled = self.do("Div", centred, self.put(tensors["state_scale"]))
        return self.do("Clip", scaled, self.put(-clip), self.put(clip))

    def layers(self, x: str, tensors: Mapping[str, np.ndarray], prefix: str, first: int) -> str:
        """The ReLU network from its layer ``first`` on; from the second on ``x`` are the sums before it."""
        layer = first
        while f"{prefix}.{layer}.weight" in tensors:
            x = self.do("Relu", x) if layer else x
            weight, bias = tensors[f"{prefix}.{layer}.weight"], tensors[f"{prefix}.{layer}.bias"]
            x = self.do("Gemm", x, self.put(weight.T), self.put(bias))
            layer += 1
        return x

    def joint(
        self, s: str, x: str | np.ndarray, tensors: Mapping[str, np.ndarray], prefix: str, d: int, n: int
    ) -> str:
        """The network of every [s_i, x_ij], [m * n, out]: each s_i passes the first layer once.

        ``x`` is [m * n, z], or an array [n, z] that is the same for every state: then its part of the
        first layer is known now.
        """
        weight, bias = tensors[f"{prefix}.0.weight"], tensors[f"{prefix}.0.bias"]
        width = len(bias)
        of_state = self.do("Gemm", s, self.put(weight[:, :d].T), self.put(bias))
        of_x = (
            self.put((x @ weight[:, d:].T)[None])
            if isinstance(x, np.ndarray)
            else self.shaped(self.do("MatMul", x, self.put(weight[:, d:].T)), -1, n, width)
        )
        sums = self.do("Add", self.shaped(of_state, -1, 1, width), of_x)
        return self.layers(self.shaped(sums, -1, width), tensors, prefix, 1)

    def session(self, actions: str, d: int, k: int) -> onnxruntime.InferenceSession:
        self._nodes.append(helper.make_node("Identity", [actions], [_ACTIONS]))
        graph = helper.make_graph(
            self._nodes,
            "policy",
            [helper.make_tensor_value_info(_STATES, TensorProto.FLOAT, [None, d])],
            [helper.make_tensor_value_info(_ACTIONS, TensorProto.FLOAT, [None, k])],
            self._constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        options = onnxruntime.SessionOptions()
        # one core for the loop and one for this: more threads would only fight with the other workers
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # the runtime has no common class of its own
            raise PolicyError(f"the policy's networks cannot be compiled: {error}") from error


class _CompiledActor:
    """States float32[n, d] to actions float32[n, k]; for any thread."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __call__(self, states: np.ndarray) -> np.ndarray:
        try:
            actions: np.ndarray = self._session.run([_ACTIONS], {_STATES: states})[0]
        except Exception as error:  # as above
            raise PolicyError(f"the policy's networks failed: {error}") from error
        return actions


class _CompiledRanker(_CompiledActor):
    """The same of a policy that orders items by itself; its scores stay numpy's."""

    def __init__(self, session: onnxruntime.InferenceSession, actor: XMTFActor) -> None:
        super().__init__(session)
        self.scores = actor.scores


def _batch_rl_mtf(*members: BatchRLMTFActor) -> onnxruntime.InferenceSession:
    """Eq. (4), as :class:`BatchRLMTFActor` has it; of several seeds the mean."""
    first, g = members[0], _Graph()
    d, k = len(first.tensors["state_mean"]), len(_last_bias(first.tensors, "decoder"))
    s = g.standardised(first.tensors, first.state_clip)
    chosen = [_chosen(g, member, s, d, k) for member in members]
    mean = g.do("Mean", *chosen) if len(chosen) > 1 else chosen[0]
    return g.session(mean, d, k)


def _chosen(g: _Graph, actor: BatchRLMTFActor, s: str, d: int, k: int) -> str:
    """What one of them does at the standardised states ``s``: [m, k]."""
    t, n = actor.tensors, len(actor.tensors["latents"])
    candidates = g.do("Tanh", g.joint(s, t["latents"], t, "decoder", d, n))
    shift = g.do("Mul", g.do("Tanh", g.joint(s, candidates, t, "perturbation", d, n)), g.put(actor.rho))
    actions = g.do("Clip", g.do("Add", candidates, shift), g.put(-1.0), g.put(1.0))
    values = g.shaped(g.joint(s, actions, t, "critic", d, n), -1, n)
    best = g.do("ArgMax", values, axis=1, keepdims=1)
    return g.do("GatherND", g.shaped(actions, -1, n, k), best, batch_dims=1)


def _deterministic(actor: DeterministicActor) -> onnxruntime.InferenceSession:
    t, g = actor.tensors, _Graph()
    s = g.standardised(t, actor.state_clip)
    actions = g.do("Tanh", g.layers(s, t, "actor", 0))
    return g.session(actions, len(t["state_mean"]), len(_last_bias(t, "actor")))


def _last_bias(tensors: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    layers = [name for name in tensors if name.startswith(f"{prefix}.") and name.endswith(".bias")]
    return tensors[max(layers, key=lambda name: int(name.split(".")[1]))]

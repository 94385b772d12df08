"""Run by the peer's Python: a few updates of a d3rlpy algorithm from given weights, batches and noise.

    python d3rlpy_step.py '{"algorithm": "td3", "config": {}, "hidden": {}, "steps": 3}' IN OUT

IN and OUT are safetensors files. Networks are lists of linear layers in the order of their modules:
``q_funcs.0.2.weight`` is the third layer of the first critic. ``batch.<step>.<column>`` are the batches
and ``noise.<i>`` the random numbers, in the order in which d3rlpy draws them. OUT holds the networks
after the updates, and ``metrics.<step>.<name>``.
"""

import json
import sys

import d3rlpy
import torch
from d3rlpy.torch_utility import TorchMiniBatch
from safetensors.torch import load_file, save_file
from torch import nn

CONFIGS = {
    "td3": d3rlpy.algos.TD3Config,
    "td3_bc": d3rlpy.algos.TD3PlusBCConfig,
    "cql_sac": d3rlpy.algos.CQLConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "bcq": d3rlpy.algos.BCQConfig,
}

about, tensors = json.loads(sys.argv[1]), load_file(sys.argv[2])
torch.set_num_threads(1)
columns = {name: tensors[f"batch.0.{name}"].shape[1] for name in ("observations", "actions")}  # their widths
encoders = {
    f"{part}_encoder_factory": d3rlpy.models.VectorEncoderFactory(widths)
    for part, widths in about["hidden"].items()
}
algorithm = CONFIGS[about["algorithm"]](**about["config"], **encoders).create(device="cpu:0")
algorithm.create_impl((columns["observations"],), columns["actions"])
impl = algorithm.impl
modules = impl._modules


def networks():
    """Every network and what it is called in the files."""
    for name in ("policy", "targ_policy", "value_func", "vae_encoder", "vae_decoder"):
        if hasattr(modules, name):
            yield name, getattr(modules, name)
    for name in ("q_funcs", "targ_q_funcs"):
        for index, network in enumerate(getattr(modules, name)):
            yield f"{name}.{index}", network


def parameters():
    """Every parameter by its name in the files."""
    for name, network in networks():
        for index, layer in enumerate(m for m in network.modules() if isinstance(m, nn.Linear)):
            yield f"{name}.{index}.weight", layer.weight
            yield f"{name}.{index}.bias", layer.bias
    if isinstance(getattr(modules.policy, "_logstd", None), nn.Parameter):
        yield "policy.log_std", modules.policy._logstd
    if hasattr(modules, "log_temp"):
        yield "log_temp", next(modules.log_temp.parameters())


noises = [tensors[f"noise.{i}"] for i in range(sum(name.startswith("noise.") for name in tensors))]


def drawn(*shape, **_):
    """The next given noise, in place of a random draw of this shape."""
    size = shape[0] if len(shape) == 1 else shape
    noise = noises.pop(0)
    if tuple(noise.shape) != tuple(size):
        raise ValueError(f"d3rlpy draws {tuple(size)}, the test gives {tuple(noise.shape)}")
    return noise


torch.randn = drawn
torch.distributions.normal._standard_normal = lambda shape, dtype, device: drawn(shape)
torch.Tensor.uniform_ = lambda tensor, *_: tensor.copy_(drawn(tensor.shape))

with torch.no_grad():
    for name, parameter in parameters():
        parameter.copy_(tensors[name].view_as(parameter))

if about["algorithm"] == "bcq":
    # its decoder leaves out the tanh of the BCQ reference unless it is asked for it by with_squash=False
    decode = modules.vae_decoder.forward
    modules.vae_decoder.forward = lambda x, latent, with_squash: decode(x, latent, False)


def update(batch):
    if about["algorithm"] != "bcq":
        return impl.inner_update(batch, 0)
    # the paper's order: perturbation before critics; d3rlpy has them the other way round
    metrics = impl.update_imitator(batch) | impl.update_actor(batch) | impl.update_critic(batch)
    impl.update_critic_target()
    impl.update_actor_target()
    return metrics


out = {}
for step in range(about["steps"]):
    batch = {
        name: tensors[f"batch.{step}.{name}"]
        for name in ("observations", "actions", "rewards", "next_observations", "terminals")
    }
    metrics = update(
        TorchMiniBatch(
            **batch,
            next_actions=torch.zeros_like(batch["actions"]),
            returns_to_go=torch.zeros_like(batch["rewards"]),
            intervals=torch.ones_like(batch["rewards"]),
            device="cpu:0",
        )
    )
    out |= {f"metrics.{step}.{name}": torch.tensor(float(value)) for name, value in metrics.items()}
if noises:
    raise ValueError(f"{len(noises)} of the given noises were not drawn")
save_file(out | {name: parameter.detach().clone() for name, parameter in parameters()}, sys.argv[3])

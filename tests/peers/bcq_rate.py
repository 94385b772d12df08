"""Run by the peer's Python: milliseconds of one training step of d3rlpy's BCQ, sampling included."""

import json
import sys
import time

import d3rlpy
import numpy as np
import structlog
import torch

about = json.loads(sys.argv[1])
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
torch.set_num_threads(about["threads"])
d3rlpy.seed(0)
rng = np.random.default_rng(0)
count = about["count"]
buffer = d3rlpy.dataset.MDPDataset(
    observations=rng.normal(size=(count, about["state"])).astype(np.float32),
    actions=rng.uniform(-1, 1, (count, about["action"])).astype(np.float32),
    rewards=rng.normal(size=(count, 1)).astype(np.float32),
    terminals=(np.arange(count) % 10 == 9).astype(np.float32),
)


def encoder(widths):
    return d3rlpy.models.VectorEncoderFactory(list(widths))


config = d3rlpy.algos.BCQConfig(
    batch_size=about["batch"],
    gamma=0.95,
    n_action_samples=about["candidates"],
    n_critics=2,
    lam=1.0,  # the plain min of the paper
    action_flexibility=0.15,
    rl_start_step=0,
    actor_encoder_factory=encoder(about["others"]),
    critic_encoder_factory=encoder(about["others"]),
    imitator_encoder_factory=encoder(about["generator"]),
)
bcq = config.create(device="cpu:0")
bcq.build_with_dataset(buffer)


def step():
    bcq.update(buffer.sample_transition_batch(about["batch"]))


def best_seconds(function, steps, rounds=5):
    for _ in range(5):
        function()
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(steps):
            function()
        best = min(best, (time.perf_counter() - started) / steps)
    return best


print(
    json.dumps(
        {
            "ms_a_step": best_seconds(step, 20) * 1e3,
            "sampling_ms": best_seconds(lambda: buffer.sample_transition_batch(about["batch"]), 20) * 1e3,
        }
    )
)

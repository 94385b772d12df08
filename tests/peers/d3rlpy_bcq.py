"""Run by the peer's Python: d3rlpy's BCQ trained on a log, then asked for its actions, over a pipe.

The first message is the log: ``observations`` float32[N, d], ``actions`` float32[N, k] in [-1, 1],
``rewards`` float32[N], ``terminals`` and ``timeouts`` float32[N], row by row of one episode after another.
Each later one has ``observations`` and is answered with ``actions``. States and rewards are standardised by
d3rlpy's own scalers.
"""

import json
import sys

import d3rlpy
import structlog
import torch
import wire
from bcq import made

ABOUT = json.loads(sys.argv[1])  # seed, steps, hidden, and config: BCQConfig's that are not its defaults
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
torch.set_num_threads(1)
d3rlpy.seed(ABOUT["seed"])
bcq = None


def answer(message):
    global bcq
    if bcq is not None:
        return {"actions": bcq.predict(message["observations"])}
    data = d3rlpy.dataset.MDPDataset(
        message["observations"],
        message["actions"],
        message["rewards"][:, None],
        message["terminals"],
        message["timeouts"],
    )
    # given, for d3rlpy's own fits stop at uneven episodes
    seen, felt = message["observations"], message["rewards"]
    scaler = d3rlpy.preprocessing.StandardObservationScaler(mean=seen.mean(axis=0), std=seen.std(axis=0))
    reward_scaler = d3rlpy.preprocessing.StandardRewardScaler(mean=felt.mean(), std=felt.std())
    bcq = made(ABOUT["config"], ABOUT["hidden"], scaler, reward_scaler)
    bcq.build_with_dataset(data)
    for _ in range(ABOUT["steps"]):
        losses = bcq.update(data.sample_transition_batch(ABOUT["config"]["batch_size"]))
    return losses


wire.serve(answer)

"""Run by the peer's Python: d3rlpy's BCQ on the pendulum's log; prints one mean return a seed as JSON."""

import json
import sys

import d3rlpy
import numpy as np
import pendulum_task
import structlog
import torch
from bcq import made

about = json.loads(sys.argv[1])
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
torch.set_num_threads(1)
log = pendulum_task.log()
episodes = log["rewards"].shape
# the step after which an episode is cut: d3rlpy leaves it out, as ours does
timeouts = np.zeros(episodes, dtype=np.float32)
timeouts[:, -1] = 1.0
data = d3rlpy.dataset.MDPDataset(
    observations=log["observations"][:, :-1].reshape(-1, 3),
    actions=log["actions"].reshape(-1, 1),
    rewards=log["rewards"].reshape(-1, 1) / pendulum_task.REWARD_UNIT,
    terminals=np.zeros(log["rewards"].size, dtype=np.float32),
    timeouts=timeouts.reshape(-1),
)
scaler = d3rlpy.preprocessing.StandardObservationScaler()
found = []
for seed in about["seeds"]:
    d3rlpy.seed(seed)
    bcq = made(about["config"], about["hidden"], scaler)
    bcq.build_with_dataset(data)
    if not scaler.built:
        scaler.fit_with_trajectory_slicer(data.episodes, data.trajectory_slicer)
    for _ in range(about["steps"]):
        bcq.update(data.sample_transition_batch(about["config"]["batch_size"]))
    found.append(pendulum_task.returns(bcq.predict))
    print(f"seed {seed}: {found[-1]:.1f}", file=sys.stderr, flush=True)
print(json.dumps(found))

"""d3rlpy's BCQ as the peers' scripts take it. Run by the peer's Python."""

import d3rlpy


def made(config, hidden, scaler, reward_scaler=None):
    """BCQ with the same widths in all networks, on the processor."""
    widths = d3rlpy.models.VectorEncoderFactory(hidden)
    return d3rlpy.algos.BCQConfig(
        **config,
        actor_encoder_factory=widths,
        critic_encoder_factory=widths,
        imitator_encoder_factory=widths,
        observation_scaler=scaler,
        reward_scaler=reward_scaler,
    ).create(device="cpu:0")

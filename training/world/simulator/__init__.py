"""What would users do? A world of them in sessions: the embedded default's traffic, and a bench for policies.

``docs/world.md`` holds its equations; :mod:`training.world.simulator.constants` holds every number of them.
"""

"""Where do logs come from when there are none? The simulated world, and the multi-task model before it."""

"""How a worker runs: batching, following files, ending."""

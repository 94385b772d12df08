"""Is what serves sound? Guardrail and metrics."""

"""What keeps the loop in order? Reports, retention, backup, lineage, metrics."""

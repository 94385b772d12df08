"""What keeps the loop in order: pages, retention, backup, lineage, metrics."""

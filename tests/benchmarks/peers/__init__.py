"""What the service is held against: the same job, or its bare floor, written by other means."""

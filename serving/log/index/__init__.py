"""What do the workers know together of the last ``LATE_DAYS``? One SQLite file, a concern a module."""

"""What do the workers know together of the last two days? One SQLite file, a concern a module."""

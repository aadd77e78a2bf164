"""SQLite: what survives a restart of the hive."""

"""The daemon's brain: admits, spawns, watches and ends workers."""

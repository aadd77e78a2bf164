"""Models: where they are on disk."""

"""Measured choices of tiles: what the best one depends on (signature), which there are (the rules), how they are timed (harness), searched (search) and kept (database)."""

"""`memory://`: the same contract as the Redis bus, inside one process and without a server."""

"""Redis Cluster: partitions that move between primaries."""

"""One event loop in a layer: what it reads, what it sends, and whom it asks."""

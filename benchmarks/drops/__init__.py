"""
What browsers miss that lose their connection: `python -m benchmarks.drops --help`.

Clients are cut off, are away for a moment and come back to one of two servers. Each message has a number, so each
client knows what it missed, got twice or got out of order. The page docs/drops.md has the method and its traps.
"""

"""
Bytes as version 1.0 writes them, in `1.0.json`, and a reader of them that shares no code with the package.

Neither is ever changed. A release that writes another format adds a file and a reader for it.
"""

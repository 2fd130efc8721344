"""A channel layer for Django Channels: each channel a bounded queue, Redis pub/sub for what crosses a process."""

__version__ = "0.1.0"

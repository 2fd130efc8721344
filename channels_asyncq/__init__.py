"""A channel layer for Django Channels: a bounded queue per channel, Redis between processes."""

__version__ = "0.1.0"

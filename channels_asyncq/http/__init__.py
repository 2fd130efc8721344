"""Server-sent events: the messages of groups as a response that a browser resumes by itself."""

from .response import EventStream

__all__ = ["EventStream"]

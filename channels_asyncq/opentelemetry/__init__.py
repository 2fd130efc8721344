"""
Traces by OpenTelemetry: a span for each send, and one for each message that a consumer handles, linked to it.

    from channels_asyncq.opentelemetry import ChannelsAsyncqInstrumentor

    ChannelsAsyncqInstrumentor().instrument()

Wants the extra `opentelemetry`.
"""

from .instrumentor import ChannelsAsyncqInstrumentor, processing

__all__ = ["ChannelsAsyncqInstrumentor", "processing"]

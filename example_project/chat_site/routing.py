from channels.routing import ChannelNameRouter, URLRouter
from chat.consumers import ChatConsumer, no_such_socket
from chat.worker import WordCounter
from django.urls import re_path
from tokens.worker import TokenWriter

websockets = URLRouter(
    [
        # Any name reaches the consumer, which refuses bad names with a close code that the page can read.
        re_path(r"^ws/chat/(?P<room>[^/]*)/\Z", ChatConsumer.as_asgi()),  # type: ignore[arg-type, list-item]
        re_path(r"", no_such_socket),  # type: ignore[arg-type, list-item]
    ]
)

# `manage.py runworker wordcount tokens` runs these.
workers = ChannelNameRouter({"wordcount": WordCounter.as_asgi(), "tokens": TokenWriter.as_asgi()})

"""`announce ROOM TEXT`: what a management command does."""

from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandParser

from channels_asyncq import get_layer, sync


class Command(BaseCommand):
    """Tell a room something, twice."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("room")
        parser.add_argument("text")

    def handle(self, *arguments: Any, **options: Any) -> None:
        message = {"type": "room.message", "message": options["text"]}
        sync.group_send(options["room"], message)
        async_to_sync(get_layer().group_send)(options["room"], message)

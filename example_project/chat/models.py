# mypy: disable-error-code="var-annotated"
from __future__ import annotations

from typing import Any

from django.db import models, transaction
from django.db.models import F

from chat.rules import AUTHOR_LENGTH, ROOM_LENGTH, TEXT_LENGTH


class Message(models.Model):
    """One line of a room. Ids grow in the order of the commits: SQLite has one writer at a time."""

    id: int

    room = models.CharField(max_length=ROOM_LENGTH)
    author = models.CharField(max_length=AUTHOR_LENGTH)
    text = models.TextField(max_length=TEXT_LENGTH)
    sent_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        indexes = (models.Index(fields=["room", "id"], name="chat_room_history"),)

    def __str__(self) -> str:
        return f"{self.author} in {self.room}: {self.text[:40]}"

    def as_dict(self) -> dict[str, Any]:
        """What a page needs to show the message; also what travels through the channel layer."""
        return {"id": self.id, "author": self.author, "text": self.text, "sent_at": self.sent_at.isoformat()}


class Tally(models.Model):
    """What the worker has counted in a room."""

    room = models.CharField(max_length=ROOM_LENGTH, primary_key=True)
    messages = models.PositiveIntegerField(default=0)
    words = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.room}: {self.words} words in {self.messages} messages"

    @classmethod
    def add(cls, room: str, words: int) -> Tally:
        """Count one more message and return the new tally; safe with any number of workers."""
        with transaction.atomic():
            cls.objects.get_or_create(room=room)
            cls.objects.filter(room=room).update(messages=F("messages") + 1, words=F("words") + words)
            return cls.objects.get(room=room)

# mypy: disable-error-code="var-annotated"
from __future__ import annotations

from typing import Any

from django.db import models, transaction

from chat.rules import AUTHOR_LENGTH, KEY_LENGTH, ROOM_LENGTH, TEXT_LENGTH

HISTORY = 50  # messages that a page gets at most


class Message(models.Model):
    """A message in a room. Ids grow in the order of the commits, because SQLite has one writer at a time."""

    id: int

    room = models.CharField(max_length=ROOM_LENGTH)
    author = models.CharField(max_length=AUTHOR_LENGTH)
    text = models.TextField(max_length=TEXT_LENGTH)
    sent_at = models.DateTimeField(auto_now_add=True)
    # The page's name for the message before it has an id. The constraint allows any number of NULLs.
    key = models.CharField(max_length=KEY_LENGTH, null=True)

    class Meta:
        ordering = ("id",)
        indexes = (models.Index(fields=["room", "id"], name="chat_room_history"),)
        constraints = (models.UniqueConstraint(fields=["room", "key"], name="chat_stored_once"),)

    def __str__(self) -> str:
        return f"{self.author} in {self.room}: {self.text[:40]}"

    @classmethod
    def store(cls, room: str, author: str, text: str, key: str | None = None) -> Message:
        """Store a message. A message with a key is stored once, however often it is sent."""
        if key is None:
            return cls.objects.create(room=room, author=author, text=text)
        message, _ = cls.objects.get_or_create(room=room, key=key, defaults={"author": author, "text": text})
        return message

    @classmethod
    def newest_ids(cls, room: str, number: int) -> list[int]:
        """Return the ids of a room's newest messages, the newest first."""
        return list(cls.objects.filter(room=room).order_by("-id").values_list("id", flat=True)[:number])

    @classmethod
    def history(cls, room: str, after: int = 0) -> tuple[list[dict[str, Any]], bool]:
        """Return the newest messages after an id, the oldest first, and whether there are more after it."""
        newest = cls.objects.filter(room=room, id__gt=after).order_by("-id")[: HISTORY + 1]
        messages = [message.as_dict() for message in newest]
        return messages[:HISTORY][::-1], len(messages) > HISTORY

    def as_dict(self) -> dict[str, Any]:
        """The message for a page, and for the channel layer."""
        return {
            "id": self.id,
            "author": self.author,
            "text": self.text,
            "sent_at": self.sent_at.isoformat(),
            "key": self.key,
        }


class Tally(models.Model):
    """The counts of the worker for a room."""

    room = models.CharField(max_length=ROOM_LENGTH, primary_key=True)
    messages = models.PositiveIntegerField(default=0)
    words = models.PositiveIntegerField(default=0)
    counted_to = models.PositiveBigIntegerField(default=0)  # the id of the newest message that is counted

    def __str__(self) -> str:
        return f"{self.room}: {self.words} words in {self.messages} messages"

    @classmethod
    def of(cls, room: str) -> Tally:
        """Return the tally of a room, with zeros if nothing was counted."""
        return cls.objects.filter(room=room).first() or cls(room=room)

    def as_dict(self) -> dict[str, int]:
        """The tally for a page, and for the channel layer."""
        return {"messages": self.messages, "words": self.words}

    @classmethod
    def count(cls, room: str) -> Tally:
        """
        Count the messages of a room that are not counted yet, and return its tally.

        Each message counts once, with any number of workers, and however often they are asked. If the channel
        layer was out when a message was stored, the next call counts it.
        """
        with transaction.atomic():
            tally, _ = cls.objects.select_for_update().get_or_create(room=room)
            new = Message.objects.filter(room=room, id__gt=tally.counted_to).order_by("id")
            for number, text in new.values_list("id", "text"):
                tally.counted_to = number
                tally.messages += 1
                tally.words += len(text.split())
            tally.save()
            return tally

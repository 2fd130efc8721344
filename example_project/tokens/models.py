# mypy: disable-error-code="var-annotated"
from __future__ import annotations

from datetime import datetime

from django.db import models

QUESTION_LENGTH = 200


class Answer(models.Model):
    """
    A question, and what the worker answers. The words go to the pages while they are written, by the group.

    The text is stored when it is whole. Until then a page needs `since`: the position of the group before the
    first word, from which every page gets all words, however late it comes.
    """

    id: int

    question: str = models.CharField(max_length=QUESTION_LENGTH)  # type: ignore[assignment]
    since = models.TextField(default="")
    text = models.TextField(default="")
    is_whole = models.BooleanField(default=False)
    asked_at: datetime = models.DateTimeField(auto_now_add=True)  # type: ignore[assignment]

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.question

    @property
    def group(self) -> str:
        """The channel layer's group for the words of this answer."""
        return f"answer.{self.pk}"

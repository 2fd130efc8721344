from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerUnavailable
from channels_asyncq.consumers import AsyncConsumer
from tokens.models import Answer

PACE = 0.1  # seconds between two pieces of a text
WORDS = 2  # in a piece

TEXT = """\
A page that shows words as they come has a problem: what if it is loaded again in the middle? The first \
words have been sent, and they are stored nowhere yet. So the page would begin in the middle of a sentence.

Here it begins at the beginning. When the question was asked, the view noted a position: where the group of \
this answer was, before the first word. The channel layer keeps the last messages of all groups in a log. \
The page asks for everything since that position. It gets what was written before it came, then what comes \
now, and nothing twice.

The same happens when its connection breaks. The browser remembers the id of the last words that it has got, \
and sends it when it comes back. The id is a position too. So a train in a tunnel, a laptop that sleeps and \
a server that is killed cost the page some time, and none of the words.

The log has an end. It keeps a minute by default, and it is gone if the message server is restarted. Then \
the page is told so. It says that words are missing, waits until the answer is whole, and loads it from the \
database. Something may come late in that way. But no word is lost, and no hole looks like a text without \
one."""


def pieces() -> Iterator[str]:
    """Yield the text in pieces of a few words, as a language model does. Together they are the text."""
    words = TEXT.split(" ")
    for start in range(0, len(words), WORDS):
        yield (" " if start else "") + " ".join(words[start : start + WORDS])


class TokenWriter(AsyncConsumer):
    """
    Writes answers, in a process of its own: `manage.py runworker tokens`.

    Each answer is a task, so that one does not wait for another. An answer ends with its process.
    """

    channel_layer: AsyncQueueChannelLayer
    writing: ClassVar[set[asyncio.Task[None]]] = set()  # The event loop itself keeps only weak references.

    async def tokens_answer(self, message: dict[str, Any]) -> None:
        answer = await Answer.objects.filter(pk=message["answer"], is_whole=False).afirst()
        if answer is None:
            return
        task = asyncio.create_task(self.write(answer))
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)

    async def write(self, answer: Answer) -> None:
        """Send the text piece by piece, then store it, then say that it is whole."""
        text = ""
        for piece in pieces():
            await self.publish(answer, {"type": "answer.words", "at": len(text), "text": piece})
            text += piece
            await asyncio.sleep(PACE)
        answer.text, answer.is_whole = text, True
        await answer.asave(update_fields=["text", "is_whole"])
        await self.publish(answer, {"type": "answer.whole", "at": len(text)})

    async def publish(self, answer: Answer, event: dict[str, Any]) -> None:
        """Send an event to the pages. `at` is the number of characters before it: a page sees what it lacks."""
        try:
            await self.channel_layer.group_send(answer.group, event)
        except (LayerUnavailable, DeliveryUnknown):
            pass  # The page notices at the next event, and loads the stored text.

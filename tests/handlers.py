"""
Consumers that are written once, as async and as sync ones.

Their methods are plain functions, or generators which yield what an async method would await:

    def receive(self, text_data=None, bytes_data=None):
        yield self.send(text_data=text_data)

In an async consumer each of them becomes a coroutine function. In a sync consumer it becomes a function: what it
yields has happened by then, or is a coroutine, which then runs on the event loop as by `async_to_sync`.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from asgiref.sync import async_to_sync

Steps = Generator[Any, Any, None]


async def on_loop(function: Callable[[], object]) -> None:
    """Call a function on the event loop, because it is not safe in a thread."""
    function()


async def _outcome(step: Awaitable[Any]) -> Any:
    return await step


def _as_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def method(*args: Any, **kwargs: Any) -> Any:
        if not inspect.isgeneratorfunction(function):
            return function(*args, **kwargs)
        steps: Steps = function(*args, **kwargs)
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await step
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration:
            return None

    return method


def _as_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        if not inspect.isgeneratorfunction(function):
            return function(*args, **kwargs)
        steps: Steps = function(*args, **kwargs)
        try:
            step = next(steps)
            while True:
                try:
                    outcome = async_to_sync(_outcome)(step) if inspect.isawaitable(step) else step
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration:
            return None

    return method


def written_once(consumer: Any, *, is_sync: bool) -> Any:
    """Return a subclass of a class of consumers, whose own subclasses are written like this."""
    style = _as_sync if is_sync else _as_async

    class WrittenOnce(consumer):  # type: ignore[misc]
        def __init_subclass__(cls, **arguments: Any) -> None:
            for name, value in list(vars(cls).items()):
                if name.startswith("__") or inspect.iscoroutinefunction(value):
                    continue
                if inspect.isfunction(value):
                    setattr(cls, name, style(value))
                elif isinstance(value, classmethod):
                    setattr(cls, name, classmethod(style(value.__func__)))
            super().__init_subclass__(**arguments)

    return WrittenOnce

"""The contract on a server that answers as badly as a newcomer's Redis would, and then heals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from channels_asyncq.bus import lines
from tests import contract, resp_server
from tests.contract import (
    MakeLayer,
    channels,
    closing,
    encryption,
    flush,
    groups,
    messages,
    names,
    shared_channels,
    shared_groups,
    statistics,
    waiting,
)
from tests.resp_server import Answer, RespServer, error

#: What Redis answers whatever state it is in.
ALWAYS_SERVED = {"SUBSCRIBE", "UNSUBSCRIBE", "AUTH", "HELLO", "CLIENT", "SELECT", "PING"}
LUA = {name.upper() for name in resp_server.SCRIPTS}

Ailment = Callable[[str], Answer | None]


def refusing(text: str) -> Ailment:
    return lambda kind: None if kind in ALWAYS_SERVED else error(text)


def mumbling(answer: Answer) -> Ailment:
    # Not UNSUBSCRIBE: who joins again while that is mended may get what was sent before (see the design).
    return lambda kind: None if kind == "UNSUBSCRIBE" else answer


AILMENTS: dict[str, Ailment] = {
    "healthy": lambda kind: None,
    "loading": refusing("LOADING Redis is loading the dataset in memory"),
    "readonly": refusing("READONLY You can't write against a read only replica."),
    "noauth": refusing("NOAUTH Authentication required."),
    "noscript": lambda kind: error("NOSCRIPT No matching script.") if kind in LUA else None,
    "half": mumbling(resp_server.half(closes=True)),
    "deaf": mumbling(resp_server.close(executes=False)),
}


class AilingServer(RespServer):
    """Answers the first command of each kind badly, and everything after it well."""

    def __init__(self, ailment: Ailment) -> None:
        super().__init__()
        self._ailment = ailment
        self._seen: set[str] = set()

    def answer_for(self, name: str, arguments: Sequence[bytes]) -> Answer | None:
        kind = name
        if name == "EVALSHA":
            kind = (self._loaded.get(arguments[0]) or "unknown").upper()
        if kind not in self._seen:
            self._seen.add(kind)
            return self._ailment(kind)
        return super().answer_for(name, arguments)


@pytest.fixture(
    params=[pytest.param(name, marks=() if name == "healthy" else pytest.mark.slow) for name in AILMENTS]
)
def ailment(request: pytest.FixtureRequest) -> Ailment:
    return AILMENTS[request.param]


@pytest.fixture
async def make_layer(
    ailment: Ailment, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeLayer]:
    # A connection for each kind of command is lost: there is no time to be polite.
    monkeypatch.setattr(lines, "_FIRST_DELAY", 0.002)
    monkeypatch.setattr(lines, "_LONGEST_DELAY", 0.01)
    async with AilingServer(ailment) as server:
        async with contract.layers(hosts=[server.url], prefix=prefix) as make_layer:
            yield make_layer


# What has nothing to do with the server's answers is looked at once.
healthy = pytest.mark.parametrize("ailment", ["healthy"], indirect=True)


@healthy
class TestNames(names.Names): ...


@healthy
class TestMessages(messages.Messages): ...


class TestChannels(channels.Channels): ...


class TestGroups(groups.Groups): ...


@healthy
class TestFlush(flush.Flush): ...


@healthy
class TestClosing(closing.Closing): ...


@healthy
class TestWaiting(waiting.Waiting): ...


@healthy
class TestStatistics(statistics.Statistics): ...


@healthy
class TestIdle(statistics.Idle): ...


class TestSharedChannels(shared_channels.SharedChannels): ...


class TestSharedGroups(shared_groups.SharedGroups): ...


@healthy
class TestSharedEncryption(encryption.SharedEncryption): ...

"""The contract behind a proxy that answers as badly as a newcomer's Redis would, and then heals."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from channels_asyncq.bus.resp import attempts
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.contract import LetTimePass, MakeLayer
from tests.contract.channels import Channels as TestChannels
from tests.contract.groups import Groups as TestGroups
from tests.contract.shared_channels import SharedChannels as TestSharedChannels
from tests.contract.shared_groups import SharedGroups as TestSharedGroups
from tests.resp_server import Answer, RespServer, error

pytestmark = pytest.mark.slow

#: What Redis answers whatever state it is in.
ALWAYS_SERVED = {"SUBSCRIBE", "UNSUBSCRIBE", "AUTH", "HELLO", "CLIENT", "SELECT", "PING"}
LUA = set(resp_server.SCRIPTS.values())

#: The answer to a command of a kind, of which so many came before; None is the server's own.
Ailment = Callable[[str, int], Answer | None]


def refusing(text: str, kinds: set[str] | None = None) -> Ailment:
    """The first command of each kind is refused."""

    def answer(kind: str, number: int) -> Answer | None:
        is_served = kind in ALWAYS_SERVED if kinds is None else kind not in kinds
        return None if number or is_served else error(text)

    return answer


def mumbling(answer: Answer, numbers: tuple[int, ...] = (0,)) -> Ailment:
    """The first command of each kind is answered so, or those that so many came before."""
    # Not UNSUBSCRIBE: who joins again while that is mended may get what was sent before (see the design).
    return lambda kind, number: answer if kind != "UNSUBSCRIBE" and number in numbers else None


def late(every: int, seconds: float) -> Ailment:
    """One of so many commands of each kind is answered late, and with it what comes after it."""

    def answer(kind: str, number: int) -> Answer | None:
        if number % every:
            return None
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, event.set)
        return resp_server.after(event)

    return answer


AILMENTS: dict[str, Ailment] = {
    "loading": refusing("LOADING Redis is loading the dataset in memory"),
    "readonly": refusing("READONLY You can't write against a read only replica."),
    "noauth": refusing("NOAUTH Authentication required."),
    "noscript": refusing("NOSCRIPT No matching script.", LUA),
    "half": mumbling(resp_server.half(closes=True)),
    "deaf": mumbling(resp_server.close(executes=False)),
    "late": late(10, 0.01),
    # Not one of so many: as many topics may be subscribed to after each reconnect.
    "cut": mumbling(resp_server.close(), (0, 40, 400)),
}


class AilingServer(RespServer):
    """Ails by the kind of a command, and by how many of it came before."""

    def __init__(self, real: EmbeddedServer, ailment: Ailment) -> None:
        super().__init__(real)
        self._ailment = ailment
        self._seen: Counter[str] = Counter()

    def answer_for(self, name: str, arguments: Sequence[bytes]) -> Answer | None:
        kind = self.kind_of(name, arguments)
        number = self._seen[kind]
        self._seen[kind] += 1
        return self._ailment(kind, number)


NIGHTLY = {"readonly", "noauth", "half", "late"}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.nightly] * (name in NIGHTLY)) for name in AILMENTS]
)
def ailment(request: pytest.FixtureRequest) -> Ailment:
    return AILMENTS[request.param]


@pytest.fixture
async def make_layer(
    ailment: Ailment, redis_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeLayer]:
    # A connection for each kind of command is lost: there is no time to be polite.
    monkeypatch.setattr(attempts, "_FIRST_DELAY", 0.002)
    monkeypatch.setattr(attempts, "LONGEST_DELAY", 0.01)
    async with (
        AilingServer(redis_server, ailment) as server,
        contract.layers(hosts=[server.url], prefix=prefix) as make_layer,
    ):
        yield make_layer


@pytest.fixture
def let_time_pass() -> LetTimePass:
    # What waits on the server expires by the server's clock.
    return contract.time_passes

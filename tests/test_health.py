"""health(): the truth about each host, at each moment of an outage, and never an exception for one."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from channels_asyncq import AsyncQueueChannelLayer, Health, LayerClosed
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.contract import DEADLINE, POLL, MakeLayer, eventually, started
from tests.resp_server import RespServer

SEND_TIMEOUT = 1.0


@pytest.fixture
async def make_layer(server: RespServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[server.url], prefix=prefix, send_timeout=SEND_TIMEOUT) as make_layer:
        yield make_layer


async def health_of(layer: AsyncQueueChannelLayer, timeout: float | None = None) -> Health:  # noqa: ASYNC109
    """What health() says, which it does in bounded time."""
    limit = 2 * (SEND_TIMEOUT if timeout is None else timeout) + 4
    async with asyncio.timeout(limit):
        return await layer.health(timeout)


async def recovered(layer: AsyncQueueChannelLayer) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            if (await layer.health()).ok:
                return
            await asyncio.sleep(POLL)


async def test_well(make_layer: MakeLayer, server: RespServer) -> None:
    """A host that is well has no reason, and says how long the round trip took."""
    health = await health_of(await make_layer(send_timeout=DEADLINE), DEADLINE)
    [host] = health.hosts
    assert health.ok and host.ok
    assert (host.state, host.reason) == ("connected", "")
    assert str(server.port) in host.address
    assert host.seconds is not None and 0 < host.seconds < SEND_TIMEOUT


async def test_many_at_once(make_layer: MakeLayer) -> None:
    """Checks that are under way together all get their answers."""
    layer = await make_layer(send_timeout=DEADLINE)
    assert all(health.ok for health in await asyncio.gather(*(health_of(layer, DEADLINE) for _ in range(20))))


async def test_refused_password(make_layer: MakeLayer, server: RespServer) -> None:
    """The reason names it, and no secret."""
    server.always("AUTH", resp_server.error("WRONGPASS invalid username-password pair or user is disabled."))
    health = await health_of(await make_layer(hosts=[server.url.replace("//", "//:wr0ng@")]))
    [host] = health.hosts
    assert not health.ok
    assert "password" in host.reason
    assert "wr0ng" not in repr(health)
    assert (host.state, host.seconds) == ("connecting", None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ROLE", "LOADING Redis is loading the dataset in memory"),
        ("LEASE", "READONLY You can't write against a read only replica."),
        ("LEASE", "OOM command not allowed when used memory > 'maxmemory'."),
        ("LEASE", "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to"),
        ("FENCE", "OOM command not allowed when used memory > 'maxmemory'. script: f, on @user_script:1."),
        ("FENCE", "LOADING Redis is loading the dataset in memory"),
    ],
)
async def test_refusing(make_layer: MakeLayer, server: RespServer, name: str, text: str) -> None:
    """A server that is there and does not serve is not well; the reason is what it says. Then it is again."""
    layer = await make_layer()
    await recovered(layer)
    server.always(name, resp_server.error(text))
    server.cut()
    # At first the reason may be that the connection was cut.
    async with asyncio.timeout(DEADLINE):
        while text.split()[0] not in (host := (await health_of(layer)).hosts[0]).reason:
            assert not host.ok
    assert not host.ok and host.seconds is None
    server.restore()
    await recovered(layer)


@pytest.mark.parametrize("name", ["*", "FENCE", "LEASE"])
async def test_silent(make_layer: MakeLayer, server: RespServer, name: str) -> None:
    """A server that accepts and says nothing is not well, before the connection has noticed and after."""
    layer = await make_layer()
    await recovered(layer)
    server.always(name, resp_server.silence(executes=False))
    for timeout in (0.05, None):
        health = await health_of(layer, timeout)
        assert not health.ok
        assert health.hosts[0].reason
    server.restore()
    server.cut()
    await recovered(layer)


async def test_silent_from_the_start(make_layer: MakeLayer, server: RespServer) -> None:
    """The first question to a server that never said anything is answered in time too."""
    server.always("*", resp_server.silence(executes=False))
    health = await health_of(await make_layer())
    assert not health.ok
    assert health.hosts[0].state == "connecting"


async def test_deaf(make_layer: MakeLayer, server: RespServer) -> None:
    """Commands that are answered are not enough: what is published has to arrive."""
    layer = await make_layer()
    await recovered(layer)
    server.always("FENCE", resp_server.reply(1))
    health = await health_of(layer, 0.2)
    assert not health.ok
    assert "0.2 s" in health.hosts[0].reason


async def test_connections_that_are_cut(make_layer: MakeLayer, server: RespServer) -> None:
    """A check whose connections end under it is made on the next ones."""
    layer = await make_layer()
    await recovered(layer)
    server.script("FENCE", resp_server.close(executes=False))
    health = await health_of(layer, DEADLINE)
    assert health.ok
    assert layer.statistics().reconnects


async def test_after_the_outage_was_noticed(make_layer: MakeLayer, server: RespServer) -> None:
    """When sends fail at once, so does the check."""
    layer = await make_layer()
    await layer.new_channel()  # one session from beginning to end
    await health_of(layer)
    await server.stop()
    await health_of(layer, 4 * SEND_TIMEOUT)
    asking = await started(health_of(layer))
    assert asking.done()
    health = await asking
    assert not health.ok
    assert health.hosts[0].reason
    await server.start()
    await recovered(layer)


async def test_refused_connection(make_layer: MakeLayer, server: RespServer) -> None:
    """A host where nobody listens is known at the first attempt: the check does not wait for its time."""
    await server.stop()
    layer = await make_layer(send_timeout=4 * DEADLINE)
    async with asyncio.timeout(DEADLINE):
        for _ in range(2):
            [host] = (await layer.health()).hosts
            assert not host.ok and host.state == "connecting"
            assert "Nobody listens there" in host.reason
    await server.start()
    await recovered(layer)


async def test_refused_after_a_loss(make_layer: MakeLayer, server: RespServer) -> None:
    """Nor does it once a connection was there; and sends that wait for the host go on when it is back."""
    layer = await make_layer(send_timeout=4 * DEADLINE)
    assert (await health_of(layer, DEADLINE)).ok
    await server.stop()
    await eventually(lambda: not layer.statistics().connected, "the loss")
    sending = asyncio.create_task(layer.group_send("room", {"type": "test"}))
    async with asyncio.timeout(DEADLINE):
        while "Nobody listens there" not in (await layer.health()).hosts[0].reason:
            pass
    assert not sending.done()
    await server.start()
    await sending
    await recovered(layer)


async def test_hosts_are_looked_at_one_by_one(
    server: RespServer, own_redis_server: EmbeddedServer, prefix: str
) -> None:
    """A host that is down does not hide how the other is."""
    async with RespServer(own_redis_server) as other:
        hosts = [server.url, other.url]
        async with contract.layers(hosts=hosts, prefix=prefix, send_timeout=SEND_TIMEOUT) as make:
            layer = await make()
            assert [host.ok for host in (await health_of(layer)).hosts] == [True, True]
            await other.stop()
            health = await health_of(layer)
            assert [host.ok for host in health.hosts] == [True, False]
            assert not health.ok


async def test_another_layout(make_layer: MakeLayer) -> None:
    """A namespace that others use with other settings is a result as well."""
    await health_of(await make_layer(partitions=3), DEADLINE)
    health = await health_of(await make_layer())
    assert not health.ok
    assert "partitions: 3" in health.hosts[0].reason


async def test_closed(make_layer: MakeLayer) -> None:
    """A closed layer raises LayerClosed, as for everything."""
    layer = await make_layer()
    await layer.close()
    with pytest.raises(LayerClosed):
        await layer.health()


async def test_cancelled(make_layer: MakeLayer, server: RespServer) -> None:
    """Cancelling leaves nothing behind: the next check is answered."""
    layer = await make_layer()
    await health_of(layer)
    go_on = asyncio.Event()
    server.script("FENCE", resp_server.after(go_on))
    before = len(server.received("EVALSHA"))
    task = asyncio.create_task(layer.health())
    await eventually(lambda: len(server.received("EVALSHA")) > before, "the question")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert (await health_of(layer)).ok


async def test_memory(prefix: str) -> None:
    """A layer without a server is well as long as it is open."""
    async with contract.layers(hosts=["memory://"], prefix=prefix) as make:
        health = await health_of(await make())
    assert health.ok
    assert [host.state for host in health.hosts] == ["connected"]


class TestRealServer:
    """The same with Valkey or Redis."""

    @pytest.fixture
    async def layer(
        self, own_redis_server: EmbeddedServer, prefix: str
    ) -> AsyncIterator[AsyncQueueChannelLayer]:
        hosts = [own_redis_server.url]
        async with contract.layers(hosts=hosts, prefix=prefix, send_timeout=SEND_TIMEOUT) as make:
            layer = await make()
            await recovered(layer)
            yield layer

    async def test_out_of_memory(
        self, layer: AsyncQueueChannelLayer, own_redis_server: EmbeddedServer
    ) -> None:
        """A full server takes no messages, and is not well; with room again it is."""
        own_redis_server.command("CONFIG", "SET", "maxmemory", "1")
        health = await health_of(layer)
        assert not health.ok
        assert "OOM" in health.hosts[0].reason
        own_redis_server.command("CONFIG", "SET", "maxmemory", "0")
        assert (await health_of(layer)).ok

    async def test_became_a_replica(
        self, layer: AsyncQueueChannelLayer, own_redis_server: EmbeddedServer
    ) -> None:
        """A master that was demoted is not well."""
        own_redis_server.command("REPLICAOF", "127.0.0.1", "1")
        health = await health_of(layer)
        assert not health.ok
        assert "READONLY" in health.hosts[0].reason or "replica" in health.hosts[0].reason
        own_redis_server.command("REPLICAOF", "NO", "ONE")
        await recovered(layer)

    @pytest.mark.parametrize("kind", ["pubsub", "normal"])
    async def test_killed_clients(
        self, layer: AsyncQueueChannelLayer, own_redis_server: EmbeddedServer, kind: str
    ) -> None:
        """Killed connections, as for a full output buffer, are made again within the check."""
        assert int(own_redis_server.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
        health = await health_of(layer, DEADLINE)
        assert health.ok
        assert layer.statistics().connected

    @pytest.mark.parametrize("how", ["kill", "pause"])
    async def test_killed_or_paused(
        self, layer: AsyncQueueChannelLayer, own_redis_server: EmbeddedServer, how: str
    ) -> None:
        """SIGKILL and SIGSTOP."""
        action: Callable[[], object] = getattr(own_redis_server, how)
        await asyncio.to_thread(action)
        health = await health_of(layer)
        assert not health.ok
        assert health.hosts[0].reason
        if how == "pause":
            own_redis_server.resume()
            await recovered(layer)

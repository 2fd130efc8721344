"""Two and three real processes with one server between them, and how processes end."""

import asyncio
import json
import signal
import time
from functools import partial
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.contract import eventually, note, notes
from tests.processes.handles import Agent, AgentError, agents, run, said

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


@pytest.fixture
def config(redis_url: str, prefix: str) -> dict[str, Any]:
    return {"hosts": [redis_url], "prefix": prefix}


async def member(agent: Agent, group: str) -> str:
    """A channel of the agent's, in the group."""
    channel: str = await agent.do("new_channel")
    await agent.do("group_add", group, channel)
    return channel


class TestGroups:
    """Broadcast between processes."""

    async def test_three_processes_hear_the_same_in_the_same_order(self, config: dict[str, Any]) -> None:
        """Everybody sends, everybody is a member: each gets every message once, all in one order."""
        async with agents(3, **config) as processes:
            channels = [await member(agent, "room") for agent in processes]
            sends = [agent.begin("group_send_many", "room", n * 100, 50) for n, agent in enumerate(processes)]
            heard = await asyncio.gather(
                *(
                    agent.do("receive_many", channel, 150)
                    for agent, channel in zip(processes, channels, strict=True)
                )
            )
            await asyncio.gather(*sends)
            numbers = [message["n"] for message in heard[0]]
            assert sorted(numbers) == [n * 100 + m for n in range(3) for m in range(50)]
            assert heard[1] == heard[0]
            assert heard[2] == heard[0]
            for n in range(3):
                assert [number for number in numbers if number // 100 == n] == list(
                    range(n * 100, n * 100 + 50)
                )

    async def test_a_killed_member_harms_nobody(self, config: dict[str, Any]) -> None:
        """After kill -9 of a process the others go on, and calls about its channels are no errors."""
        async with agents(3, **config, send_timeout=2.0) as (first, second, third):
            channel, dead = await member(first, "room"), await member(second, "room")
            await second.kill()
            await third.do("group_send", "room", note(1))
            assert await first.do("receive", channel) == note(1)
            await third.do("send", dead, note(2))
            await third.do("group_add", "lobby", dead)
            await third.do("group_discard", "room", dead)
            await third.do("group_send", "room", note(3))
            assert await first.do("receive", channel) == note(3)

    async def test_a_stopped_member_holds_nobody_up(self, config: dict[str, Any]) -> None:
        """
        While one process is stopped (SIGSTOP) the others go on; it gets its messages when it runs again.
        """
        async with agents(3, **config) as (first, second, third):
            running, stopped = await member(first, "room"), await member(second, "room")
            second.signal(signal.SIGSTOP)
            await third.do("group_send_many", "room", 0, 50)
            assert await first.do("receive_many", running, 50) == notes(50)
            second.signal(signal.SIGCONT)
            assert await second.do("receive_many", stopped, 50) == notes(50)

    async def test_a_listener_that_the_server_dropped(self, prefix: str) -> None:
        """
        A process whose output buffer on the server ran full while it was stopped is dropped by the server; it
        connects again by itself and hears what comes next.
        """
        limit = "pubsub 1mb 1mb 1"
        with EmbeddedServer(external=False, client_output_buffer_limit=limit) as server:
            async with agents(2, hosts=[server.url], prefix=prefix) as (reader, sender):
                channel = await member(reader, "room")
                # The only one by now: the sender has not sent yet.
                [listener] = server.command("CLIENT", "LIST", "TYPE", "pubsub").splitlines()
                number = listener.split()[0].removeprefix(b"id=")
                reader.signal(signal.SIGSTOP)
                for _ in range(60):
                    await sender.do("group_send", "room", {"type": "test.bulk", "bulk": "x" * 500_000})
                await eventually(
                    lambda: not server.command("CLIENT", "LIST", "ID", number).strip(), "the disconnection"
                )
                reader.signal(signal.SIGCONT)
                while (await reader.do("figures"))["reconnects"] < 1:
                    pass
                while not (await reader.do("figures"))["connected"]:
                    pass
                await sender.do("group_send", "room", note(1))
                while (message := await reader.do("receive", channel))["type"] == "test.bulk":
                    pass
                assert message == note(1)

    async def test_group_add_for_another_process(self, config: dict[str, Any]) -> None:
        """group_add() of another process's channel is confirmed by its owner before it returns."""
        async with agents(2, **config) as (owner, other):
            channel = await owner.do("new_channel")
            for n in range(20):
                await other.do("group_add", f"room.{n}", channel)
                await other.do("group_send", f"room.{n}", note(n))
                assert await owner.do("receive", channel) == note(n)
                await other.do("group_discard", f"room.{n}", channel)
            await other.do("group_send", "room.3", note(100))
            await other.do("send", channel, note(101))
            assert await owner.do("receive", channel) == note(101)

    async def test_sync_view_in_another_process(self, config: dict[str, Any]) -> None:
        """`async_to_sync(group_send)` in one process reaches the members in another."""
        async with agents(2, **config) as (reader, views):
            channel = await member(reader, "room")
            for n in range(10):
                await views.do("sync_group_send", "room", note(n))
            assert await reader.do("receive_many", channel, 10) == notes(10)

    async def test_flush_is_for_every_process(self, config: dict[str, Any]) -> None:
        """When flush() returns in one process, the others have no group and no message left."""
        async with agents(2, **config) as (first, second):
            channel = await member(first, "room")
            await second.do("send", channel, note(1))
            await second.do("send", "jobs", note(2))
            await second.do("flush")
            assert (await first.do("figures"))["groups"] == 0
            await second.do("group_send", "room", note(3))
            await second.do("send", channel, note(4))
            assert await first.do("receive", channel) == note(4)
            await second.do("send", "jobs", note(5))
            assert await first.do("receive", "jobs") == note(5)


class TestNormalChannels:
    """Jobs for workers."""

    @pytest.mark.parametrize("how", ["work", "poll"])
    async def test_each_job_is_done_once(self, config: dict[str, Any], how: str) -> None:
        """Workers in two processes, also such as poll, share 200 jobs: none lost, none done twice."""
        async with agents(3, **config, capacity=1000) as (first, second, sender):
            working = [worker.begin(how, "jobs") for worker in (first, second)]
            for n in range(200):
                await sender.do("send", "jobs", note(n))
            await eventually(lambda: len(first.jobs) + len(second.jobs) >= 200, "the last job")
            await sender.do("send", "jobs", note(200))
            await eventually(lambda: len(first.jobs) + len(second.jobs) >= 201, "one more job")
            assert sorted(job["n"] for job in first.jobs + second.jobs) == list(range(201))
            assert not any(worker.done() for worker in working)

    async def test_jobs_wait_for_a_worker(self, config: dict[str, Any]) -> None:
        """What was sent by a process that has ended is received by one that starts later, in order."""
        async with agents(1, **config) as (sender,):
            for n in range(10):
                await sender.do("send", "jobs", note(n))
        async with agents(1, **config) as (worker,):
            assert await worker.do("receive_many", "jobs", 10) == notes(10)

    async def test_a_killed_worker_loses_at_most_one_job(self, config: dict[str, Any]) -> None:
        """
        kill -9 in the middle of work: the other worker does the rest; at most the one taken item is lost.
        """
        async with agents(3, **config, capacity=1000) as (killed, survivor, sender):
            for worker in (killed, survivor):
                worker.begin("work", "jobs")
            sending = asyncio.create_task(_send_all(sender, 300))
            await eventually(lambda: len(killed.jobs) > 20, "some work")
            await killed.kill()
            await sending
            done = partial(lambda: len(killed.jobs) + len(survivor.jobs) >= 299)
            await eventually(done, "the last job")
            numbers = [job["n"] for job in killed.jobs + survivor.jobs]
            assert len(numbers) == len(set(numbers))
            assert len(numbers) >= 299

    async def test_capacity_counts_every_process(self, config: dict[str, Any]) -> None:
        """ChannelFull is raised by whichever process sends the one too many."""
        async with agents(2, **config, capacity=4) as (first, second):
            for sender in (first, second, first, second):
                await sender.do("send", "jobs", note(1))
            for sender in (first, second):
                with pytest.raises(AgentError) as raised:
                    await sender.do("send", "jobs", note(2))
                assert raised.value.name == "ChannelFull"

    async def test_as_member_of_a_group(self, config: dict[str, Any]) -> None:
        """
        A normal channel in a group gets one copy in all, however many processes read it and are members.
        """
        async with agents(3, **config) as processes:
            channels = [await member(agent, "room") for agent in processes]
            for agent in processes:
                await agent.do("group_add", "room", "jobs")
                agent.begin("work", "jobs")
            await processes[0].do("group_send_many", "room", 0, 30)
            for agent, channel in zip(processes, channels, strict=True):
                assert await agent.do("receive_many", channel, 30) == notes(30)
            await eventually(lambda: sum(len(agent.jobs) for agent in processes) >= 30, "the last job")
            await processes[0].do("send", "jobs", note(30))
            await eventually(lambda: sum(len(agent.jobs) for agent in processes) >= 31, "one more job")
            assert sorted(job["n"] for agent in processes for job in agent.jobs) == list(range(31))


async def _send_all(sender: Agent, count: int) -> None:
    for n in range(count):
        await sender.do("send", "jobs", note(n))


class TestServerRestart:
    """The server dies under running processes."""

    async def test_processes_find_each_other_again(
        self, own_redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """After kill -9 of the server and its return, processes that only receive hear those that send."""
        async with agents(2, hosts=[own_redis_server.url], prefix=prefix) as (reader, sender):
            channel = await member(reader, "room")
            await sender.do("group_send", "room", note(0))
            assert await reader.do("receive", channel) == note(0)
            await asyncio.to_thread(own_redis_server.kill)
            with pytest.raises(AgentError) as raised:
                await sender.do("group_send", "room", note(1))
            assert raised.value.name in ("LayerUnavailable", "DeliveryUnknown")
            waiting = reader.begin("receive", channel)
            await asyncio.to_thread(own_redis_server.restart)
            for agent in (reader, sender):
                while not (await agent.do("figures"))["connected"]:
                    pass
            await sender.do("group_send", "room", note(2))
            async with asyncio.timeout(contract.DEADLINE):
                assert await waiting == note(2)


WAYS = [
    "run_without_close",
    "run_with_receivers",
    "run_with_close",
    "loop_without_cleaning_up",
    "sync_sends",
    "sync_use",
    "unfinished_listen",
    "nothing",
]


class TestEnds:
    """However a process ends, it does so soon and says nothing."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("bus", ["memory", "redis"])
    async def test_process_ends_clean(self, config: dict[str, Any], bus: str, way: str) -> None:
        """Exit code 0, nothing on stderr in development mode, within a few seconds."""
        if bus == "memory":
            config["hosts"] = ["memory://"]
        began = time.monotonic()
        code, output, errors = await run("ends", json.dumps(config), way)
        errors = said(errors)
        if way == "loop_without_cleaning_up":
            # A socket that nobody closed is told as such, which is right; a destroyed task is not.
            errors = "\n".join(
                line
                for line in errors.splitlines()
                if line and "ResourceWarning" not in line and line[0] != " "
            )
        assert (code, output, errors) == (0, "done\n", "")
        assert time.monotonic() - began < 10

    async def test_process_ends_without_its_server(
        self, own_redis_server: EmbeddedServer, prefix: str
    ) -> None:
        """A script whose server is gone fails with LayerUnavailable, soon, and its relay lets it end."""
        config = {"hosts": [own_redis_server.url], "prefix": prefix, "send_timeout": 0.5}
        await asyncio.to_thread(own_redis_server.kill)
        began = time.monotonic()
        code, output, errors = await run("ends", json.dumps(config), "sync_sends")
        assert code == 1
        assert not output
        assert "LayerUnavailable" in errors
        assert "Task was destroyed" not in errors
        assert time.monotonic() - began < 10


class TestForks:
    """After `fork` the child starts clean, and the parent notices nothing."""

    @pytest.mark.parametrize("way", ["after_the_loop", "inside_the_loop"])
    async def test_parent_and_child_work(self, config: dict[str, Any], way: str) -> None:
        """Both use the layer that was used before the fork."""
        code, output, errors = await run("forks", json.dumps(config), way)
        assert (code, said(errors)) == (0, "")
        heard = {line["who"]: line["heard"] for line in map(json.loads, output.splitlines())}
        assert heard["child"] == ["child"] * 5
        assert heard["parent"] == ["parent"] * (5 if way == "after_the_loop" else 6)

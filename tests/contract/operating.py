"""What the commands ask for: groups, their members, channels that wait, and messages per second."""

from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.base import RATE_SECONDS
from tests.contract import DEADLINE, LetTimePass, MakeLayer, members_of, notes, receive_many


async def ask(layer: AsyncQueueChannelLayer, question: str, **arguments: Any) -> dict[str, Any]:
    """What the only session answers."""
    [answer] = (await layer.survey(question, timeout=DEADLINE, **arguments)).answers
    return answer.body


class Operating:
    """Questions about groups and channels."""

    async def test_groups_by_members(self, make_layer: MakeLayer) -> None:
        """The groups of a session, the largest first; a pattern and a limit leave some out, which are counted."""
        layer = await make_layer()
        for group, count in (("chat.a", 2), ("chat.b", 3), ("news", 1)):
            await members_of(layer, group, count)
        answer = await ask(layer, "groups")
        assert [(row["group"], row["members"]) for row in answer["groups"]] == [
            ("chat.b", 3),
            ("chat.a", 2),
            ("news", 1),
        ]
        assert answer["count"] == 3
        answer = await ask(layer, "groups", pattern="chat.*", limit=1)
        assert [row["group"] for row in answer["groups"]] == ["chat.b"] and answer["count"] == 2
        assert await ask(layer, "groups", pattern="Chat.*") == {"count": 0, "groups": []}

    async def test_members_of_a_group(self, make_layer: MakeLayer) -> None:
        """Those in which the most messages wait come first, with the age of the oldest and the capacity."""
        layer = await make_layer(capacity=7, expiry=500)
        quiet, busy = await members_of(layer, "room", 2)
        for message in notes(3):
            await layer.send(busy, message)
        answer = await ask(layer, "group", group="room")
        first, second = answer["members"]
        assert answer["count"] == 2
        assert (first["channel"], first["waiting"], first["capacity"]) == (busy, 3, 7)
        assert 0 <= first["oldest"] < 100 and first["reader"] == "receive()"
        assert (second["channel"], second["waiting"], second["oldest"]) == (quiet, 0, None)
        assert await ask(layer, "group", group="lobby") == {"count": 0, "members": []}

    async def test_slow_channels(self, make_layer: MakeLayer) -> None:
        """The fullest channels, by their share of the capacity; with `slow` only those in which messages wait."""
        layer = await make_layer(capacity=4, channel_capacity={"large.*": 100})
        empty, small = [await layer.new_channel() for _ in range(2)]
        large = await layer.new_channel("large")
        for channel, count in ((small, 2), (large, 10)):
            for message in notes(count):
                await layer.send(channel, message)
        answer = await ask(layer, "channels")
        assert [row["channel"] for row in answer["channels"]] == [small, large, empty]
        answer = await ask(layer, "channels", slow=True, limit=1)
        assert [row["channel"] for row in answer["channels"]] == [small] and answer["count"] == 2

    async def test_readers(self, make_layer: MakeLayer) -> None:
        """An open channel has a reader of its own, and a subscription names its class."""
        layer = await make_layer()
        channel = await layer.open_channel()
        async with layer.subscribe("room"):
            answer = await ask(layer, "channels")
            readers = {row["channel"]: row["reader"] for row in answer["channels"]}
            assert readers.pop(channel.name) == "open_channel()"
            assert list(readers.values()) == ["channels_asyncq.subscription.Subscription"]
        channel.close()

    async def test_status(self, make_layer: MakeLayer) -> None:
        """The figures of `statistics()`, the age of the session, and messages per second on request."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        answer = await ask(layer, "status")
        assert (answer["channels"], answer["groups"], answer["delivered"]) == (1, 1, 0)
        assert answer["seconds"] > 0 and answer["per_second"] is None
        assert [link["state"] for link in answer["links"]] == ["connected"] * len(layer.statistics().links)
        for message in notes(3):
            await layer.send(member, message)
        await receive_many(layer, member, 3)
        answer = await ask(layer, "status", interval=0.01)
        assert (answer["delivered"], answer["queued"], answer["per_second"]) == (3, 0, 0.0)

    async def test_message_rates(self, make_layer: MakeLayer) -> None:
        """Messages per second of each group that is logged and has had some, sent by whichever process."""
        layer, other = await make_layer(recovery={"exclude": ["unlogged"]}), await make_layer()
        for group in ("room", "lobby", "unlogged"):
            await members_of(layer, group, 1)
        await layer.position("room")  # memory:// keeps logs from here on
        assert await layer.message_rates() == {}
        for message in notes(20):
            await layer.group_send("room", message)
        await other.group_send("lobby", {"type": "test.note"})
        await layer.group_send("unlogged", {"type": "test.note"})

        rates = await layer.message_rates()
        # Some may be older than ten seconds by now, on a busy machine.
        assert rates.keys() <= {"room", "lobby"}
        assert 0 < rates["room"] <= 20 / RATE_SECONDS

    async def test_normal_members(self, make_layer: MakeLayer) -> None:
        """The normal channels of a group whose membership lasts."""
        layer = await make_layer()
        await members_of(layer, "room", 1)
        assert await layer.normal_members("room") == []
        await layer.group_add("room", "worker")
        await layer.group_add("lobby", "other")
        assert await layer.normal_members("room") == ["worker"]
        await layer.group_discard("room", "worker")
        assert await layer.normal_members("room") == []
        with pytest.raises(TypeError):
            await layer.normal_members("no group")

    async def test_normal_members_that_lapsed(
        self, make_layer: MakeLayer, let_time_pass: LetTimePass
    ) -> None:
        """A membership that has lapsed is not shown, though nobody has removed it yet."""
        layer = await make_layer(group_expiry=0.2)
        await layer.group_add("room", "worker")
        await let_time_pass(0.3)
        assert await layer.normal_members("room") == []

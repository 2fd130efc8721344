"""`symmetric_encryption_keys` across processes, which in one loop are layers that share a prefix."""

from tests.contract import (
    MakeLayer,
    dropped,
    eventually,
    members_of,
    note,
    receive,
    started,
)

ENCRYPTION = {"symmetric_encryption_keys": ["new key", "old key"]}


class SharedEncryption:
    """`symmetric_encryption_keys`: the first encrypts, all decrypt."""

    async def test_keys_rotate(self, make_layer: MakeLayer) -> None:
        """Processes with the old key, both, and the new key understand each other as far as their keys go."""
        old = await make_layer(symmetric_encryption_keys=["old key"])
        both = await make_layer(**ENCRYPTION)
        new = await make_layer(symmetric_encryption_keys=["new key"])
        (member,) = await members_of(both, "room", 1)
        for writer in (old, both, new):
            await writer.group_send("room", note(1))
            assert await receive(both, member) == note(1)
            await writer.send(member, note(2))
            assert await receive(both, member) == note(2)
            await writer.send("jobs", note(3))
            assert await receive(both, "jobs") == note(3)

    async def test_unknown_key(self, make_layer: MakeLayer) -> None:
        """What no key opens is dropped and counted; the member and the normal channel's reader live on."""
        reader = await make_layer(**ENCRYPTION)
        stranger = await make_layer(symmetric_encryption_keys=["another key"])
        (member,) = await members_of(reader, "room", 1)
        waits = await started(receive(reader, member))
        await stranger.group_send("room", note(1))
        await stranger.send(member, note(2))
        await eventually(lambda: dropped(reader) == 2, "the second drop")
        await reader.group_send("room", note(3))
        assert await waits == note(3)
        jobs = await started(receive(reader, "jobs"))
        await stranger.send("jobs", note(4))
        await eventually(lambda: dropped(reader) == 3, "the third drop")
        await reader.send("jobs", note(5))
        assert await jobs == note(5)

    async def test_unencrypted(self, make_layer: MakeLayer) -> None:
        """A process without keys is not understood by one with keys, nor the other way round; nobody dies."""
        closed, open_ = await make_layer(**ENCRYPTION), await make_layer()
        (sealed,), (plain,) = await members_of(closed, "room", 1), await members_of(open_, "room", 1)
        await open_.group_send("room", note(1))
        await eventually(lambda: dropped(closed) == 1, "the drop")
        await closed.group_send("room", note(2))
        await eventually(lambda: dropped(open_) == 1, "the drop")
        assert await receive(closed, sealed) == note(2)
        assert await receive(open_, plain) == note(1)

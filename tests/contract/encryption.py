"""`symmetric_encryption_keys` across processes, which in one loop are layers that share a prefix."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.contract import MakeLayer, every, members_of, note, receive

ENCRYPTION = {"symmetric_encryption_keys": ["new key", "old key"]}


class SharedEncryption:
    """`symmetric_encryption_keys`: the first encrypts, all decrypt."""

    async def test_keys_rotate(self, make_layer: MakeLayer) -> None:
        """Processes of two steps that follow each other understand each other, whoever writes."""
        steps = (["old key"], ["old key", "new key"], ["new key", "old key"], ["new key"])
        before = await make_layer(symmetric_encryption_keys=steps[0])
        for keys in steps[1:]:
            after = await make_layer(symmetric_encryption_keys=keys)
            for reader in (before, after):
                (member,) = await members_of(reader, "room", 1)
                for writer in (before, after):
                    await writer.group_send("room", note(1))
                    assert await receive(reader, member) == note(1)
                    await writer.send(member, note(2))
                    assert await receive(reader, member) == note(2)
                    await writer.send("jobs", note(3))
                    assert await receive(reader, "jobs") == note(3)
            await before.close()
            before = after

    @pytest.mark.parametrize("keys", [["another key"], ["old key"], []], ids=["unknown", "second", "none"])
    async def test_other_keys(self, make_layer: MakeLayer, keys: list[str]) -> None:
        """A process that would not be understood is refused whatever it does; the others do not notice."""
        reader = await make_layer(**ENCRYPTION)
        (member,) = await members_of(reader, "room", 1)
        stranger = await make_layer(symmetric_encryption_keys=keys)
        for work in (
            stranger.group_send("room", note(1)),
            stranger.send(member, note(2)),
            stranger.send("jobs", note(3)),
            stranger.receive("jobs"),
            stranger.new_channel(),
        ):
            with pytest.raises(ImproperlyConfigured, match="symmetric_encryption_keys"):
                await every([work])
        await reader.group_send("room", note(4))
        assert await receive(reader, member) == note(4)
        await reader.send("jobs", note(5))
        assert await receive(reader, "jobs") == note(5)
        assert not reader.statistics().dropped

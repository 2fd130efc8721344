"""`survey()`: what all sessions of a prefix answer, and who is missing."""

import asyncio
from typing import Any, cast

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq.identity import identity
from channels_asyncq.session.questions import QUESTIONS
from channels_asyncq.session.questions.pieces import Pieces
from tests.contract import DEADLINE, MakeLayer, members_of, started

TABLE = cast("dict[str, Any]", QUESTIONS)


class Surveys:
    """A question to everybody."""

    async def test_everybody_answers(self, make_layer: MakeLayer) -> None:
        """Each session answers for itself, the one that asks included, and gives the name of its process."""
        layer, other = await make_layer(), await make_layer()
        await members_of(layer, "room", 2)
        await members_of(other, "lobby", 3)
        survey = await layer.survey("status", timeout=DEADLINE)
        assert sorted(answer.body["channels"] for answer in survey.answers) == [2, 3]
        assert {answer.process for answer in survey.answers} == {identity()}
        assert len({answer.session for answer in survey.answers}) == 2 and not survey.missing

    async def test_sync_callers_ask_too(self, make_layer: MakeLayer) -> None:
        """A thread without an event loop gets the same answers."""
        layer = await make_layer()
        await members_of(layer, "room", 2)
        survey = await asyncio.to_thread(async_to_sync(layer.survey), "status", timeout=DEADLINE)
        # Its loop was one for this call, so the session that asked is the process's own, for such callers.
        assert sorted(answer.body["channels"] for answer in survey.answers) == [0, 2]

    async def test_one_that_does_not_answer(
        self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is named as missing when the time is over; the answers of the others are there."""
        layer, silent = await make_layer(), await make_layer()
        await layer.new_channel()
        (channel,) = await members_of(silent, "room", 1)
        [session] = silent._registry.sessions.values()

        async def status(pieces: Pieces, arguments: object) -> dict[str, object]:
            if pieces.session_id == session.session_id:
                await asyncio.Event().wait()
            return {}

        monkeypatch.setitem(TABLE, "status", status)
        survey = await layer.survey("status", timeout=0.5)
        [missing] = survey.missing
        assert (missing.process, missing.session) == (identity(), session.session_id)
        assert missing.reason == "no answer" and len(survey.answers) == 1
        assert channel.split("!")[0].endswith(missing.session)

    async def test_question_that_fails(self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The session is missing, with the reason, at once; it goes on, and the next survey has it again."""
        layer = await make_layer()
        await layer.new_channel()

        async def fail(pieces: Pieces, arguments: object) -> dict[str, object]:
            raise RuntimeError("it broke")

        with monkeypatch.context() as patch:
            patch.setitem(TABLE, "status", fail)
            survey = await layer.survey("status", timeout=DEADLINE)
        assert [missing.reason for missing in survey.missing] == ["RuntimeError: it broke"]
        assert not survey.answers
        assert len((await layer.survey("status", timeout=DEADLINE)).answers) == 1

    async def test_answers_keep_to_the_size_of_a_message(
        self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An answer with too many rows has fewer; one that is too large without any is refused."""
        layer = await make_layer(max_message_size=2000)
        await layer.new_channel()

        async def rows(pieces: Pieces, arguments: dict[str, int]) -> dict[str, object]:
            return {"rows": ["x" * 90] * arguments["limit"], "more": "y" * arguments.get("more", 0)}

        monkeypatch.setitem(TABLE, "status", rows)
        [answer] = (await layer.survey("status", timeout=DEADLINE)).answers
        assert len(answer.body["rows"]) == 12  # 100, 50, 25, 12
        [answer] = (await layer.survey("status", timeout=DEADLINE, limit=3)).answers
        assert len(answer.body["rows"]) == 3
        [missing] = (await layer.survey("status", timeout=DEADLINE, more=3000)).missing
        assert "MessageTooLarge" in missing.reason and "without any rows" in missing.reason

    async def test_cancelled_survey(self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
        """It leaves nothing behind: late answers are dropped, and the next survey is a new one."""
        layer = await make_layer()
        await layer.new_channel()
        [session] = layer._registry.sessions.values()
        may_answer, has_begun = asyncio.Event(), asyncio.Event()

        async def late(pieces: Pieces, arguments: object) -> dict[str, object]:
            has_begun.set()
            await may_answer.wait()
            return {"late": True}

        with monkeypatch.context() as patch:
            patch.setitem(TABLE, "status", late)
            task = await started(layer.survey("status", timeout=DEADLINE))
            async with asyncio.timeout(DEADLINE):
                await has_begun.wait()
            task.cancel()
            await asyncio.wait([task])
            assert session.surveys.is_empty
            may_answer.set()
        [answer] = (await layer.survey("status", timeout=DEADLINE)).answers
        assert "late" not in answer.body
        assert not layer.statistics().dropped

    async def test_unknown_question(self, make_layer: MakeLayer) -> None:
        """It is refused before anybody is asked, with the names of those that there are."""
        layer = await make_layer()
        with pytest.raises(ValueError, match=r"'weather', but .*status"):
            await layer.survey("weather")

"""The checker sees what it is there to see: records made up by hand, one broken promise each."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from .checker import Ear, Expected, Heard, Record, Sent, Told, Verdict, Worker, check, check_resumption

pytestmark = pytest.mark.chaos

NOTHING = Expected()
CHANGED = Expected(frozenset({"server_changed", "trimmed"}), changes=1)


def sends(count: int, *, raised: Sequence[int] = ()) -> list[Sent]:
    """`count` sends, one a second, answered at once."""
    return [Sent(n, n + 0.1, "DeliveryUnknown" if n in raised else None) for n in range(count)]


def heard(*numbers: int, sender: str = "a", name: str = "g") -> list[Record]:
    """Receipts, each half a second after its send."""
    return [Heard(sender, name, number, number + 0.5) for number in numbers]


def verdict_of(records: Sequence[Record], count: int = 4, expected: Expected = NOTHING) -> Verdict:
    return check({("a", "g"): sends(count)}, [Ear("c", "g", records)], (), expected)


def test_all_is_well() -> None:
    """Everything once, in order: no complaint."""
    verdict = verdict_of(heard(0, 1, 2, 3))
    assert not verdict.complaints
    assert (verdict.sends, verdict.receipts) == (4, 4)


@pytest.mark.parametrize(
    ("numbers", "figure"),
    [((0, 1, 3), "lost"), ((0, 1, 2), "lost"), ((0, 1, 1, 2, 3), "twice"), ((0, 2, 1, 3), "out_of_order")],
)
def test_one_broken_promise(numbers: tuple[int, ...], figure: str) -> None:
    """What is missing, repeated or out of place is counted, and complained of."""
    verdict = verdict_of(heard(*numbers))
    assert getattr(verdict, figure) == 1
    assert verdict.complaints


def test_told() -> None:
    """What was lost is forgiven if the channel was told, after it was sent and soon after the gap."""
    verdict = verdict_of([*heard(0, 1, 3), Told("trimmed", ("g",), 3.6)], expected=CHANGED)
    assert not verdict.complaints
    assert (verdict.lost, verdict.lost_told) == (0, 1)


@pytest.mark.parametrize(
    "word",
    [
        Told("trimmed", ("g",), 1.9),
        Told("trimmed", ("g",), 20.0),
        Told("trimmed", ("other",), 3.6),
        Told("trimmed", (), 3.6),
    ],
    ids=["before", "much later", "another group", "no group"],
)
def test_told_of_something_else(word: Told) -> None:
    """A word about another time or another group is no excuse."""
    assert verdict_of([*heard(0, 1, 3), word], expected=CHANGED).lost == 1


@pytest.mark.parametrize("reason", ["server_changed", "trimmed"])
def test_false_alarm(reason: str) -> None:
    """A word when nothing was lost and the server is the same is a complaint."""
    assert verdict_of([*heard(0, 1, 2, 3), Told(reason, ("g",), 3.6)]).complaints


def test_server_changed_may_be_told_once() -> None:
    """A change is cause enough for one word, and for no second one."""
    records = [*heard(0, 1, 2, 3), Told("server_changed", ("g",), 3.6)]
    assert not verdict_of(records, expected=CHANGED).complaints
    assert verdict_of([*records, records[-1]], expected=CHANGED).complaints


def test_a_raised_send_may_have_arrived_or_not() -> None:
    """An error is the truth either way; it is counted."""
    for numbers in ((0, 1, 2), (0, 2)):
        verdict = check({("a", "g"): sends(3, raised=[1])}, [Ear("c", "g", heard(*numbers))])
        assert not verdict.complaints
        assert verdict.raised == {"DeliveryUnknown": 1}


@pytest.mark.parametrize(("most", "complaints"), [(1.0, 0), (0.4, 1)])
def test_sends_after_a_failover(most: float, complaints: int) -> None:
    """Those that waited for it are over soon after it; those that began later do not count."""
    sent = {("a", "g"): [Sent(0.0, 0.5), Sent(1.0, 3.5), Sent(3.1, 9.0)]}
    verdict = Verdict()
    check_resumption(verdict, sent, [3.0], most)
    assert (verdict.resumed, len(verdict.complaints)) == (0.5, complaints)


def test_one_order_per_group() -> None:
    """Two members that hear two senders in different orders are a complaint; after a change they were told."""
    sent = {("a", "g"): sends(1), ("b", "g"): sends(1)}
    ears = [
        Ear("one", "g", heard(0, sender="a") + heard(0, sender="b")),
        Ear("two", "g", heard(0, sender="b") + heard(0, sender="a")),
    ]
    assert check(sent, ears).out_of_order == 1
    told = replace(ears[0], records=[*ears[0].records, Told("server_changed", ("g",), 1.0)])
    assert not check(sent, [told, ears[1]], (), CHANGED).complaints


def test_not_for_this_channel() -> None:
    """A message of another group is a complaint."""
    sent = {("a", "g"): sends(1), ("a", "h"): sends(1)}
    assert check(sent, [Ear("c", "g", heard(0) + heard(0, name="h"))]).complaints


def test_unlogged() -> None:
    """What no log keeps may be lost without a word, and comes neither twice nor out of order."""
    expected = Expected(unlogged=frozenset({"g"}))
    verdict = verdict_of(heard(0, 3), expected=expected)
    assert not verdict.complaints
    assert (verdict.lost, verdict.lost_unlogged) == (0, 2)
    assert verdict_of(heard(0, 0), expected=expected).twice == 1


def test_jobs() -> None:
    """A job is done once in all processes together, and in order in each."""
    sent = {("a", "jobs"): sends(4)}

    def verdict(*numbers: Sequence[int], keeps_jobs: bool = True) -> Verdict:
        workers = [
            Worker("jobs", [Heard("a", "jobs", number, number + 0.5) for number in of_one])
            for of_one in numbers
        ]
        return check(sent, [], workers, Expected(keeps_jobs=keeps_jobs))

    assert not verdict([0, 2], [1, 3]).complaints
    assert verdict([0, 2], [1]).lost == 1
    assert verdict([0, 2], [1, 2, 3]).twice == 1
    assert verdict([2, 0], [1, 3]).out_of_order == 1
    unkept = verdict([0, 2], [1, 2], keeps_jobs=False)
    assert not unkept.complaints
    assert (unkept.lost_jobs, unkept.jobs_again) == (1, 1)

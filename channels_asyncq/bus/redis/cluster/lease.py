"""The one lease of a session in a cluster, which is kept with partition 0."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

from ....exceptions import ChannelLayerError
from ...resp.supervisor import SupervisedConnection
from ...resp.waiters import Waiters
from ..layout import Layout, Lease
from ..leasing import LeaseKeeper
from ..refusals import Refusals
from ..sender import Sender

if TYPE_CHECKING:
    from ..shared import Shared
    from .router import ClusterRouter

# Seconds for which the catching up at another node waits for news of the lease.
_NEWS = 1.0


class ClusterLeaseHome:
    """The home of partition 0, wherever that is."""

    host = 0
    #: No fence renews the lease.
    renews_by_timer = True

    def __init__(self, router: ClusterRouter, address: str) -> None:
        self._router = router
        self.address = address

    @property
    def is_closed(self) -> bool:
        return self._router.is_closed

    @property
    def sender(self) -> Sender:
        return self._router.partitions[0].sender

    @property
    def commands(self) -> SupervisedConnection:
        return self._router.partitions[0].home.commands

    @property
    def refusals(self) -> Refusals:
        return self._router.partitions[0].home.refusals

    def start_over(self, reason: str) -> None:
        """Connect anew everywhere: the set-up waits until this session has a lease again."""
        self._router.lease.note_lost()
        for node in list(self._router.nodes):
            node.start_over(reason)


class ClusterLease(LeaseKeeper):
    """
    The lease of the session, for all its nodes.

    The node that has partition 0 takes it while its connection for commands is set up. The others wait for that,
    the first time and after `note_lost()`, or until the partition comes to them. Then a timer renews it. If the
    partition comes to a node that is up, the first answer to the timer tells the others that the lease is held.
    """

    def __init__(self, shared: Shared, router: ClusterRouter) -> None:
        options, address = shared.options, shared.options.hosts[0].address
        lease = Lease(Layout.of(options, 0, shared.formats), shared.formats, address, options.prefix)
        super().__init__(shared, ClusterLeaseHome(router, address), lease)
        #: Whether the session has its lease, as far as it knows.
        self.is_held = False
        self._waiters = Waiters()

    def note_held(self) -> None:
        """Note that the session has its lease."""
        self.is_held = True
        self._waiters.release()
        self.renew_later()

    def note_lost(self) -> None:
        """Note that others may use the namespace in another way: the nodes wait for the lease again."""
        self.is_held = False

    def note_refused(self, error: ImproperlyConfigured) -> None:
        """Note that another session uses the namespace in an incompatible way."""
        self.is_held = False
        self._waiters.fail(error)

    def note_home(self) -> None:
        """Note that partition 0 has another home, which may wait for the lease that it must ask for now."""
        self._waiters.release()

    async def news(self) -> None:
        """
        Return when the session has its lease, or when that is kept elsewhere.

        Raises:
            ImproperlyConfigured: another session uses the namespace in an incompatible way.
        """
        await self._waiters.wait()

    async def refresh(self) -> None:
        """
        Ask for news of the lease, and of what others do not log. The home of partition 0 may be down: then no
        other session gets a lease either, and the news of before stand.
        """
        try:
            async with asyncio.timeout(_NEWS):
                await super().refresh()
        except (ChannelLayerError, TimeoutError):
            pass

    def stop_renewal(self) -> None:
        """Go on: the fences of a node do not renew it."""

    def stop(self) -> None:
        """Renew it no more."""
        super().stop_renewal()

    async def leave(self) -> None:
        self.stop()
        await super().leave()

"""Messages to groups and to other sessions: routes to topics, and the topics that this session listens to."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

from ...messages.framing import pack_names
from ...messages.sealing import LOG, TOPIC, Seal, place
from ...names import Topic
from .batches import TopicRoute
from .log import RedisLog
from .partition import Partition
from .router import Router
from .shared import Shared


class NameRoute:
    """The route to a channel of another session, by the inbox that its channels share, or to a group."""

    __slots__ = ("_name", "_names", "_pubsub", "_route", "topic")

    def __init__(self, pubsub: RedisPubSub, name: str, topic: Topic, route: TopicRoute | None = None) -> None:
        self.topic = topic
        self._pubsub = pubsub
        self._name = name
        self._names = b""
        self._route = route

    def send(self, payload: bytes, excluded: tuple[str, ...] = ()) -> Awaitable[Any]:
        """Send to the topic; for a group the reply is its normal channels, None for none."""
        names = pack_names(self._name, excluded) if excluded else self._names or self._pack_names()
        # Made by the first send: many groups are joined, and nothing is sent to them from here.
        route = self._route or self._make_route()
        return route.sender.send(route, names, payload)

    def _pack_names(self) -> bytes:
        self._names = pack_names(self._name)
        return self._names

    def _make_route(self) -> TopicRoute:
        self._route = self._pubsub.make_group_route(self._name)
        return self._route


class RedisPubSub:
    """The topics of all partitions."""

    def __init__(
        self,
        shared: Shared,
        partitions: Sequence[Partition],
        seal: Seal | None,
        router: Router,
        log: RedisLog,
    ) -> None:
        self._shared = shared
        self._topics = shared.topics
        self._partitions = partitions
        self._seal = seal
        self._scripts = shared.scripts
        self._send_sha = b"" if shared.scripts.send is None else shared.scripts.send.sha
        self._publish = b"SPUBLISH" if shared.topics.is_cluster else b"PUBLISH"
        self._router = router
        self._log = log
        # By session: the routes to its channels share the route to its inbox, and so share commands.
        self._inboxes: weakref.WeakValueDictionary[str, TopicRoute] = weakref.WeakValueDictionary()

    # Listening

    def subscribe(self, topic: Topic) -> None:
        """Keep this topic subscribed from now on, across reconnects."""
        partition = self._partitions[topic.partition]
        partition.home.subscriber.topics.subscribe(partition, topic.name, is_logged=topic.is_logged)

    def unsubscribe(self, topic: Topic) -> None:
        """Give up this topic."""
        partition = self._partitions[topic.partition]
        partition.home.subscriber.topics.unsubscribe(partition, topic.name)

    def is_confirmed(self, topic: Topic) -> bool:
        """Tell whether the server has confirmed the subscription on the present connection."""
        partition = self._partitions[topic.partition]
        entry = partition.subscriptions.get(topic.name)
        # A partition that is not live is catching up, or has no position yet.
        return entry is not None and entry.is_confirmed and partition.is_live

    def confirmed(self, topic: Topic) -> Coroutine[Any, Any, None]:
        """Return when the server has confirmed a subscribed topic. Cancelling is safe."""
        partition = self._partitions[topic.partition]
        return partition.home.subscriber.topics.confirmed(partition, topic.name, is_logged=topic.is_logged)

    def resume(self) -> None:
        """Offer the envelopes that the receiver did not take again, and go on."""
        for node in self._router.nodes:
            node.subscriber.resume()

    # Sending. The parts that all sends to one name have in common are made once.

    def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> Awaitable[int]:
        """Send to an inbox, or to all sessions; return how many subscribers the server passed it to."""
        route = self._topic_route(topic, flags)
        return route.sender.send(route, pack_names(target), payload)

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        """Send to an inbox without waiting; the message is dropped if there is no connection."""
        route = self._unlogged_route(topic, flags)
        route.sender.post(route, (pack_names(target), payload))

    def channel_route(self, channel: str, session_id: str) -> NameRoute:
        """Return the route to a channel of another session."""
        topic = self._topics.inbox(session_id)
        inbox = self._inboxes.get(session_id)
        if inbox is None:
            inbox = self._inboxes[session_id] = self._topic_route(topic, 0)
        return NameRoute(self, channel, topic, inbox)

    def group_route(self, group: str) -> NameRoute:
        """Return the route to a group."""
        return NameRoute(self, group, self._topics.group(group).topic)

    def make_group_route(self, group: str) -> TopicRoute:
        """Return the route to the topic of a group."""
        topic, members, log = self._topics.group(group)
        if (kept := self._shared.options.keeping(group)) is not None:
            sha, history = self._scripts.keep[kept].sha, self._topics.history(group)
            return self._route(topic, True, 0, b"EVALSHA", sha, b"3", log, members, history, topic.name)
        if self._log.covers(group):
            return self._route(topic, True, 0, b"EVALSHA", self._send_sha, b"2", log, members, topic.name)
        return self._route(
            topic, False, 0, b"EVALSHA", self._scripts.group_send.sha, b"1", members, topic.name
        )

    def _topic_route(self, topic: Topic, flags: int) -> TopicRoute:
        if self._shared.options.recovery is None or not topic.is_logged:
            return self._unlogged_route(topic, flags)
        log = self._topics.log(topic.partition)
        return self._route(topic, True, flags, b"EVALSHA", self._send_sha, b"1", log, topic.name)

    def _unlogged_route(self, topic: Topic, flags: int) -> TopicRoute:
        return self._route(topic, False, flags, self._publish, topic.name)

    def _route(self, topic: Topic, is_logged: bool, flags: int, *command: bytes) -> TopicRoute:
        recovery = self._shared.options.recovery
        partition = self._partitions[topic.partition]
        return TopicRoute(
            partition.sender,
            partition.numbers if is_logged else partition.unlogged_numbers,
            command,
            self._shared.session_id,
            flags,
            self._seal,
            place(LOG if is_logged else TOPIC, topic.name),
            logged_bytes=recovery.message_bytes if recovery is not None and is_logged else 0,
            is_alone=flags != 0,
        )

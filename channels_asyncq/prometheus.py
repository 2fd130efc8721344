"""
The figures of layers for Prometheus, by the extra `prometheus`. They are read when somebody scrapes.

    from prometheus_client import REGISTRY
    from channels_asyncq.prometheus import LayerCollector

    REGISTRY.register(LayerCollector())
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from channels.exceptions import InvalidChannelLayerError
from channels.layers import channel_layers, get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .exceptions import DeliveryUnknown, LayerUnavailable
from .identity import identity
from .layer import AsyncQueueChannelLayer
from .session.figures import Figures
from .tallies import BOUNDS, Latency

__all__ = ["LayerCollector"]

_PREFIX = "channels_asyncq_"
#: A process as labels, and its figures.
Labelled = tuple[tuple[str, ...], Figures]


class LayerCollector(Collector):
    """
    The figures of this process's layers, with the label `layer`: the alias.

    For `register()` of a registry of prometheus-client. It holds nothing, and asks no server.
    """

    def collect(self) -> Iterator[Metric]:
        labelled: list[Labelled] = []
        for alias in channel_layers.configs:
            try:
                layer = get_channel_layer(alias)
            except (ImproperlyConfigured, InvalidChannelLayerError):
                continue  # the system checks name it; the others have figures all the same
            if isinstance(layer, AsyncQueueChannelLayer):
                labelled.append(((alias,), Figures.of(layer.statistics())))
        return families(("layer",), labelled)

    def describe(self) -> Iterator[Metric]:
        return families(("layer",), [])


class SurveyCollector(Collector):
    """
    The figures of all processes but this one, with the labels `layer` and `process`. Each scrape is a survey.

    For scrapes on threads, while the event loop of the layer runs on another one.
    """

    def __init__(
        self,
        layer: AsyncQueueChannelLayer,
        alias: str,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
    ) -> None:
        """
        Args:
            loop: the running event loop that asks.
            timeout: seconds within which processes must answer.
        """
        self._layer = layer
        self._alias = alias
        self._loop = loop
        self._timeout = timeout
        #: Whether all processes had answered the last time.
        self.is_complete = False

    def collect(self) -> Iterator[Metric]:
        at = (self._alias,)
        asking = asyncio.run_coroutine_threadsafe(self._layer.survey("metrics", self._timeout), self._loop)
        self.is_complete = False
        try:
            survey = asking.result()
        except (LayerUnavailable, DeliveryUnknown, concurrent.futures.CancelledError):
            yield _gauge("survey_success", "1 if the processes could be asked.", ("layer",), {at: 0})
            return
        here = identity()
        figures: dict[str, Figures] = {}
        # The sum of some loops of a process is less than the last one: a counter must not go back.
        partial = {here, *(each.process for each in survey.missing)}
        for answer in survey.answers:
            if answer.process not in partial:
                before = figures.get(answer.process, Figures())
                figures[answer.process] = before + Figures.from_plain(answer.body)
        missing = [each for each in survey.missing if each.process != here]
        self.is_complete = not missing
        yield _gauge("survey_success", "1 if the processes could be asked.", ("layer",), {at: 1})
        yield _gauge("processes", "Processes that have answered.", ("layer",), {at: len(figures)})
        text = "Event loops of processes that were asked and have not answered."
        yield _gauge("missing", text, ("layer",), {at: len(missing)})
        labelled = [((self._alias, process), each) for process, each in sorted(figures.items())]
        yield from families(("layer", "process"), labelled)

    def describe(self) -> Iterator[Metric]:
        return families(("layer", "process"), [])


def families(labels: tuple[str, ...], labelled: Iterable[Labelled]) -> Iterator[Metric]:
    """Yield all metrics of some processes, each with the labels of its process."""
    found = list(labelled)
    hosts = [((*at, address), host) for at, each in found for address, host in each.hosts.items()]

    def gauge(name: str, text: str, values: Mapping[tuple[str, ...], float], *more: str) -> Metric:
        return _gauge(name, text, (*labels, *more), values)

    def counter(name: str, text: str, values: Mapping[tuple[str, ...], float], *more: str) -> Metric:
        return _counter(name, text, (*labels, *more), values)

    yield gauge("channels", "Channels that are known here.", {at: each.channels for at, each in found})
    yield gauge("groups", "Groups with members here.", {at: each.groups for at, each in found})
    yield gauge("queued_messages", "Messages that wait in channels.", {at: each.queued for at, each in found})
    fullest = {at: each.fullest for at, each in found}
    yield gauge("queued_messages_max", "Messages that wait in the fullest channel.", fullest)
    delivered = {at: each.delivered for at, each in found}
    yield counter("delivered_messages", "Messages that were put into channels.", delivered)
    sent = {(*at, kind): count for at, each in found for kind, count in each.sent.items()}
    yield counter("sent_messages", "Messages that were sent, by the kind of their target.", sent, "kind")
    dropped = {(*at, reason): count for at, each in found for reason, count in each.dropped.items()}
    yield counter("dropped_messages", "Messages that were dropped.", dropped, "reason")
    told = {(*at, reason): count for at, each in found for reason, count in each.told.items()}
    yield counter("told_channels", "Channels that were told of a loss.", told, "reason")
    reconnects = {at: host.reconnects for at, host in hosts}
    yield counter("reconnects", "How often a connection was made again.", reconnects, "address")
    connected = {at: host.connected for at, host in hosts if host.connected is not None}
    yield gauge("connected", "1 if all connections to the host are there.", connected, "address")
    lags = {at: host.lag for at, host in hosts if host.lag is not None}
    yield gauge(
        "delivery_lag_seconds", "The way of the last checkpoint to the host and back.", lags, "address"
    )
    latencies = {at: host.latency for at, host in hosts}
    yield _histogram("send_latency_seconds", "Round trips of checkpoints.", (*labels, "address"), latencies)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
    for at, value in values.items():
        family.add_metric(at, value)
    return family


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
    for at, value in values.items():
        family.add_metric(at, value)
    return family


def _histogram(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Latency]
) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=labels)
    bounds = [*map(str, BOUNDS), "+Inf"]
    for at, latency in values.items():
        buckets = [
            (bound, float(count)) for bound, count in zip(bounds, accumulate(latency.counts), strict=True)
        ]
        family.add_metric(at, buckets, latency.seconds)
    return family

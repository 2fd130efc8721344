# mypy: disable-error-code="var-annotated"
from __future__ import annotations

import random
from datetime import datetime
from typing import Any

from django.db import models, transaction

from channels_asyncq import sync

GROUP = "orders"
GOODS = ("Tea", "Coffee", "Bread", "Honey", "Olives", "Apples", "Cheese", "Soap")


class Order(models.Model):
    """An order. Each change is sent to the pages when it is stored."""

    class State(models.TextChoices):
        RECEIVED = "received"
        PACKED = "packed"
        SENT = "sent"
        DELIVERED = "delivered"

    id: int

    what = models.CharField(max_length=50)
    state = models.CharField(max_length=20, choices=State, default=State.RECEIVED)
    changed_at: datetime = models.DateTimeField(auto_now=True)  # type: ignore[assignment]

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.what}: {self.state}"

    @classmethod
    def receive(cls) -> Order:
        """Store a new order, for anything."""
        with transaction.atomic():
            order = cls.objects.create(what=f"{random.randint(1, 9)} x {random.choice(GOODS)}")
            order.tell("order.new")
        return order

    @classmethod
    def advance(cls) -> Order | None:
        """Bring the oldest order that is not delivered to its next state; return it, or None if there is none."""
        with transaction.atomic():
            order = cls.objects.select_for_update().exclude(state=cls.State.DELIVERED).last()
            if order is not None:
                states = cls.State.values
                order.state = states[states.index(order.state) + 1]
                order.save()
                order.tell("order.changed")
        return order

    def tell(self, kind: str) -> None:
        """
        Send the order to the pages after the commit, so that no page hears of it before it can be read.

        If it cannot be sent, because the message server is out, that is logged. The pages load the table when the
        server is back without its log. Otherwise they show the order with its next change.
        """
        sync.group_send(GROUP, {"type": kind, **self.as_dict()}, on_commit=True)

    def as_dict(self) -> dict[str, Any]:
        """The order for a page, and for the channel layer."""
        return {
            "id": self.id,
            "what": self.what,
            "state": self.State(self.state).label,
            "is_delivered": self.state == self.State.DELIVERED,
            "changed_at": self.changed_at.isoformat(),
        }

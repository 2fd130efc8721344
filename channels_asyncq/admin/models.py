"""What the page shows, as a model without a table: it is there for its permission, `view_layer`."""

from __future__ import annotations

from django.db import models


class NoRows(models.Manager["Layer"]):
    """Finds nothing, and asks no database: commands such as `dumpdata` go through all models."""

    def get_queryset(self) -> models.QuerySet[Layer]:
        return super().get_queryset().none()


class Layer(models.Model):
    """A channel layer by its alias. `migrate` makes its permission, and no table."""

    alias: models.CharField[str, str] = models.CharField(primary_key=True, max_length=100)

    objects = NoRows()

    class Meta:
        app_label = "channels_asyncq_admin"
        managed = False
        default_permissions = ("view",)
        base_manager_name = "objects"
        verbose_name = "channel layer"
        verbose_name_plural = "processes, groups and channels"

    def __str__(self) -> str:
        return self.alias

"""The models that are observed."""

from __future__ import annotations

from django.db import models


class TestModel(models.Model):
    name: models.CharField[str, str] = models.CharField(max_length=100)


class TestModelWithCustomPK(models.Model):
    name: models.CharField[str, str] = models.CharField(max_length=100, primary_key=True)
    description: models.CharField[str, str] = models.CharField(max_length=100, blank=True)

"""The pages for an orchestrator: `path("health/", include("channels_asyncq.urls"))`."""

from __future__ import annotations

from django.urls import path

from .probes import live, ready

app_name = "channels_asyncq"
urlpatterns = [
    path("live/", live, name="live"),
    path("ready/", ready, name="ready"),
]

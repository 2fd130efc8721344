"""A site with Django's admin: the default one, and one of its own with the same page."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.admin_settings")
asgi = ASGIStaticFilesHandler(get_asgi_application())
wsgi = StaticFilesHandler(get_wsgi_application())

from django.contrib import admin  # noqa: E402  (the applications above have set Django up)
from django.urls import path  # noqa: E402

from channels_asyncq.admin.models import Layer  # noqa: E402
from channels_asyncq.admin.page import LayerAdmin  # noqa: E402

own_site = admin.AdminSite("own")
own_site.register(Layer, LayerAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("own/", own_site.urls)]

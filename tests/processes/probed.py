"""A site with nothing but the pages about its health, under ASGI and WSGI."""

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.urls import include, path

urlpatterns = [path("health/", include("channels_asyncq.urls"))]

application = get_asgi_application()
wsgi_application = get_wsgi_application()

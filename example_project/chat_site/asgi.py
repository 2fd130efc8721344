"""
`daphne chat_site.asgi:application` serves everything: pages, static files and WebSockets.

So does `uvicorn --ws-per-message-deflate false chat_site.asgi:application`. Without the option, uvicorn
compresses each frame for each browser.
"""

import os

from channels.routing import ProtocolTypeRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat_site.settings")
pages = get_asgi_application()

# Consumers import models, and models need the apps that get_asgi_application() has loaded.
from chat_site.routing import websockets, workers  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(pages),
        "websocket": AllowedHostsOriginValidator(websockets),
        "channel": workers,
    }
)

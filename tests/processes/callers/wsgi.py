"""The views under WSGI. With PRELOAD_ROOM the module sends as it is imported: with --preload, before the fork."""

import os

from django.core.wsgi import get_wsgi_application

from channels_asyncq import sync

application = get_wsgi_application()

if room := os.environ.get("PRELOAD_ROOM"):
    sync.group_send(room, {"type": "room.message", "message": "preload"})

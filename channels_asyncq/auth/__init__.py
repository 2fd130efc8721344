"""
Users who sign out, and the connections that they have open.

As an app of Django (`"channels_asyncq.auth"` in INSTALLED_APPS) it ends the WebSockets with `AuthGroups` and the
event streams with `auth=True` of a session that signs out, and those of a user whose password changes.
"""

from .ending import adisconnect_user, alogout_everywhere, disconnect_user, logout_everywhere
from .names import user_group

__all__ = [
    "adisconnect_user",
    "alogout_everywhere",
    "disconnect_user",
    "logout_everywhere",
    "user_group",
]

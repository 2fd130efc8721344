"""Django's settings of a site with the command `manage.py asyncq`."""

from tests.processes.site_settings import *  # noqa: F403

INSTALLED_APPS = ["channels", "channels_asyncq"]

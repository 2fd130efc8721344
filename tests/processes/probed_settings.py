"""Django's settings of a site that an orchestrator asks for its health."""

from tests.processes.site_settings import *  # noqa: F403

ALLOWED_HOSTS = ["www.example.com"]
ROOT_URLCONF = "tests.processes.probed"
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
SECURE_SSL_REDIRECT = True
SECURE_REDIRECT_EXEMPT = [r"^health/"]

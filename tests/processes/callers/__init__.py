"""A Django project with every kind of caller: settings in `settings`, the site that hears it in `asgi`."""

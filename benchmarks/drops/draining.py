"""`manage.py asyncq drain` for a server of this benchmark, whose settings are in its order and in no module."""

import sys

from django.core.management import call_command

from channels_asyncq.management.commands.asyncq import Command

from . import site  # noqa: F401  (configures Django)

if __name__ == "__main__":
    call_command(Command(), "drain", "--process", sys.argv[1])

"""The scenarios: one module each, found by being here."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping

from ..scenario import Scenario


def load() -> Mapping[str, Scenario]:
    """All scenarios by name, in the order of their modules."""
    found: dict[str, Scenario] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if inspect.isclass(value) and issubclass(value, Scenario) and not inspect.isabstract(value):
                found[value.name] = value()
    return found

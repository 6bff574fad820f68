"""Proxies and certificates of the environment: one message that names the variable where one cannot be used."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from alignkit.plugin import ConfigError

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
UNUSABLE = (ImportError, OSError, ValueError, httpx.InvalidURL)
"""What httpx ends in where it cannot use one of them."""


def opened(host: str, **options: Any) -> httpx.AsyncClient:
    """A client for a machine; the certificates that the environment names hold for this one too.

    Args:
        host: it is for.
        options: of the client.

    Raises:
        ConfigError: a proxy or certificates that the environment names cannot be used; values are not repeated, since
            a proxy's may hold a password.
    """
    try:
        return httpx.AsyncClient(verify=httpx.create_ssl_context(), **options)
    except UNUSABLE:
        name, what, remedy = _culprit(os.environ)
        raise ConfigError(
            f"the environment variable {name} {what}",
            where=f"judge endpoint {host}",
            effect="Nothing was asked.",
            remedy=remedy.format(name=name),
        ) from None


def proxy_named() -> str:
    """The variables that name a proxy for a call, for messages."""
    return " or ".join(name for name in map(_set, PROXIES) if name) or "the system's settings"


def certificates_named() -> str:
    """The variable that names the certificates that are trusted; empty where none does."""
    return next((name for name in CERTIFICATES if os.environ.get(name)), "")


def _set(name: str) -> str:
    """A proxy's variable as it is spelt in the environment; empty where it is not set."""
    return next((each for each in (name.lower(), name) if os.environ.get(each)), "")


def _culprit(environment: Mapping[str, str]) -> tuple[str, str, str]:
    """(the variable that cannot be used, what is wrong with it, the remedy)."""
    for name in filter(None, map(_set, PROXIES)):
        value = environment[name] if "://" in environment[name] else f"http://{environment[name]}"
        error = _error(httpx.HTTPTransport, proxy=value, verify=False)
        if isinstance(error, ImportError):
            return name, "names a SOCKS proxy, which needs socksio", "pip install 'httpx[socks]', or unset {name}"
        if error is not None:
            return name, "is not the address of a proxy", "write http://host:port, or unset {name}"
    name = certificates_named()
    path = {"cafile" if name.endswith("FILE") else "capath": environment.get(name)}
    if name and _error(ssl.create_default_context, **path) is not None:
        return name, "names no readable certificates", "name a PEM file that exists, or unset {name}"
    if name := _set("NO_PROXY"):
        return name, "holds what is no host name", "write hosts apart by commas, IPv6 addresses without brackets"
    return " or ".join((*PROXIES, *CERTIFICATES)), "cannot be used", "unset it"


def _error(make: Callable[..., Any], **options: Any) -> Exception | None:
    """What making something ends in; None where it is made."""
    try:
        make(**options)
    except UNUSABLE as error:
        return error
    return None

"""Where a model is served: the address, checked, and how patiently it is asked."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from alignkit.plugin import ConfigError, check_values


def is_url(model: Any) -> bool:
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address; nothing is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _well_formed(url: str) -> bool:
    """Whether the port is one and every character is plain."""
    try:
        return urlsplit(url).port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        return False


def check_key_env(name: Any) -> None:
    """Nothing for the name of an environment variable, or for none.

    Raises:
        ConfigError: anything else, since it may be the key itself; the message does not repeat it.
    """
    if name != "" and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name)):
        raise ConfigError(
            "key_env is not the name of an environment variable",
            where="judge endpoint",
            effect="A key in its place would stand in settings and logs.",
            remedy="put the key into an environment variable and give its name",
        )


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and what is asked of the connection.

    Args:
        url: "https://host/v1"; without the version, and with the path of the call at its end, it is understood too.
            Plain http only to this machine, unless `insecure_http`.
        model: the model's name there.
        key_env: name of the environment variable that holds the key; the key itself is in no file, key or message.
        logprobs: "yes", "no" (draw the verdicts), or "auto": drawn where a reply has none.
        draws: per question, where verdicts are drawn.
        temperature: of the draws.
        attempts: of one call.
        timeout: seconds of one attempt, everything included.
        deadline: seconds of one call, all attempts and waits included.
        max_wait: longest wait between attempts, whatever the server asks for, seconds.
        max_bytes: of a reply.
        workers: calls at a time.
        insecure_http: allow plain http to other machines.

    Raises:
        ConfigError: an address with a user, query or fragment, another scheme, plain http to another machine, a
        `key_env` that is no name, or numbers outside their range.
    """

    url: str
    model: str = ""
    key_env: str = field(default="", repr=False)
    logprobs: str = "auto"
    draws: int = 8
    temperature: float = 1.0
    attempts: int = 5
    timeout: float = 60.0
    deadline: float = 180.0
    max_wait: float = 30.0
    max_bytes: int = 8 * 1024 * 1024
    workers: int = 4
    insecure_http: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        check_key_env(self.key_env)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _well_formed(self.url):
            raise ConfigError("not an http(s) address", where="judge endpoint", remedy='write "https://host/v1"')
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "the address holds a user, a query or a fragment",
                where="judge endpoint",
                effect="Keys in addresses end up in logs.",
                remedy="put the key into an environment variable and name it in key_env",
            )
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not self.insecure_http:
            raise ConfigError(
                "plain http to another machine", where=f"judge endpoint {parts.hostname}", remedy="use https"
            )
        if self.logprobs not in ("auto", "yes", "no"):
            raise ConfigError(f"logprobs={self.logprobs!r}", where="judge endpoint", remedy="use auto, yes or no")
        if min(self.draws, self.attempts, self.workers, self.max_bytes) < 1 or min(self.timeout, self.deadline) <= 0:
            raise ConfigError("draws, attempts, workers, bytes and times must be positive", where="judge endpoint")

    def key(self) -> Any:
        """What identifies the answers: the address, the model and how it is asked; never the key."""
        names = ("model", "logprobs", "draws", "temperature")
        return {"endpoint": {"url": self.base, **{name: getattr(self, name) for name in names}}}

    @property
    def base(self) -> str:
        """The address up to the version, or to where that would stand."""
        return re.sub(r"(/chat/completions|/completions|/models)?/*$", "", self.url.rstrip("/"))

    def addresses(self) -> list[str]:
        """Where to call: as it is written, and below `/v1` where it names no version."""
        below = [] if re.search(r"/v[0-9]+[a-z0-9]*$", self.base) else [f"{self.base}/v1"]
        return [f"{base}/chat/completions" for base in (self.base, *below)]

    def headers(self) -> dict[str, str]:
        """With the key, where one is named.

        Raises:
            ConfigError: the variable is not set, or holds what no header can.
        """
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if not self.key_env:
            return headers
        secret = os.environ.get(self.key_env, "")
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigError(
                "the environment variable that key_env names is not set"
                if not secret
                else "the value of the environment variable that key_env names cannot be a key",
                where="judge endpoint",
                remedy="export it before the run",
            )
        return {**headers, "Authorization": f"Bearer {secret}"}

"""What is not to be shown: values of arguments that are named as keys, tokens, secrets or passwords are.

Such a value is `***` wherever something is written or said, and a digest where it has to identify. What was met once
under such a name, or stands in such a variable of the environment, is struck out of other people's words too: an
exception, say, that quotes the request it failed with. Whatever looks like a key of a well-known service is as well.
So are the sequences by which a text would take over a terminal.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

MARK = "***"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ALWAYS = frozenset(("secret", "password", "passwd", "passphrase", "pwd", "credential", "authorization", "cookie"))
_LAST = frozenset((*_ALWAYS, "key", "apikey", "authkey", "token", "authtoken", "bearer"))
_TOKENIZERS = frozenset(
    (
        *("bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "begin", "first", "last", "next"),
        *("special", "added", "extra", "image", "audio", "video", "tool", "think", "new", "max", "min", "per"),
    )
)
"""What a token of a tokenizer is called by: `eos_token` is no secret."""
_REFERS = frozenset(("env", "file", "path", "folder", "name", "field", "column", "length", "id", "ids", "fn", "type"))
"""`key_env` says where a key stands, and is none."""

_NAMED = re.compile(
    r"""(?P<head>(?P<name>[\w-]+)["']?\s*[=:](?!//)\s*)(?P<value>(?:Bearer|Basic)\s+[^\s"']+|"[^"\n]*"|'[^'\n]*'|[^\s,;&)\]}"']+)"""
)
_COUNT = re.compile(r"[\d._]+[kKmMgG]?")
_STAGE = re.compile(r"[0-9a-f]{64}|planned:.*", re.DOTALL)
"""The key of a stage, which is no secret: records and handles have it."""
_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_SHAPES = re.compile(
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abeprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.eyJ[\w-]{5,}\.[\w-]*"
    r"|(?<=Bearer )[\w.~+/=-]{8,})"
)
"""Keys as OpenAI, Hugging Face, GitHub, GitLab, Slack, AWS and Google write them, and JSON web tokens."""

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_met: set[str] = set()


@cache
def is_secret(name: str) -> bool:
    """Whether what is called so is not to be shown: `api_key`, `hfToken`, `CLIENT_SECRET`; not `key_env`, `eos_token`.

    Args:
        name: of an argument, a field, a flag or a variable of the environment.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _REFERS:
        return False
    last = words[-1].removesuffix("s")
    if last == "token" and len(words) > 1:
        return words[-2] not in _TOKENIZERS
    return last in _LAST or not _ALWAYS.isdisjoint(words)


def hides(name: object, value: Any) -> bool:
    """Whether a value under a name is not to be shown; it is then struck out elsewhere too.

    Args:
        name: of it.
        value: text is meant, alone or in a container, and a number only as a password: `tokens=200_000` counts.
    """
    if not isinstance(name, str) or not is_secret(name):
        return False
    if name == "key" and isinstance(value, str) and _STAGE.fullmatch(value):
        return False
    if isinstance(value, (int, float)):
        return not isinstance(value, bool) and "key" not in name.lower() and "token" not in name.lower()
    texts = [text for text in _texts(value) if not (_COUNT.fullmatch(text) and name.lower().endswith("tokens"))]
    note(texts)
    return bool(texts)


def note(texts: Iterable[str]) -> None:
    """Strike these texts out of whatever is written or said from now on.

    Args:
        texts: those that could as well be a plain word or a number (`key="prompt"`) are not: records would be torn.
    """
    _met.update(text for text in texts if _telling(text))


def digested(value: Any) -> str:
    """What stands in a key for a value that is not shown.

    Args:
        value: plain JSON, or bytes.
    """
    return f"{MARK} {hashlib.sha256(repr(value).encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def shown(value: Any, name: str = "") -> Any:
    """Plain JSON as it may be shown: of what is named as a secret, `***`.

    Args:
        value: it; mappings and sequences are looked into.
        name: under which it stands.
    """
    if hides(name, value):
        return MARK
    if isinstance(value, Mapping):
        return {key: shown(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    return scrubbed(value) if isinstance(value, str) else value


def scrubbed(text: str) -> str:
    """A text without the secrets that were met, or that look like one of a well-known service.

    Args:
        text: what somebody else wrote, or what is about to be written.
    """
    found = {*_met, *_of_environment(tuple(os.environ.items()))}
    for secret in sorted((s for s in found if s in text), key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", MARK, text)
    return _SHAPES.sub(MARK, text)


def printable(text: str) -> str:
    """Text as a terminal can show it: no escape sequences, control characters or changes of direction, no secret.

    Args:
        text: anything, for example what a model wrote.
    """
    plain = _ANSI.sub("", scrubbed(text))
    return "".join(c for c in plain if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI))


def listed(text: str) -> str:
    """Lines of `name: value`, as YAML has them, with `***` for secrets, also those that stand within a value."""

    def line(given: str) -> str:
        name, colon, value = given.partition(": ")
        if colon and hides(name.strip(" -\"'"), value.strip("\"'")):
            return f"{name}: {MARK}"
        return f"{name}{colon}{inline(value)}" if colon else inline(given)

    return "\n".join(map(line, text.split("\n")))


def inline(text: str) -> str:
    """A text in which `name=value` or `name: value` stand, with `***` for the value of a secret, also in an address.

    Args:
        text: such as `judge(api_key='…')`, `{"token": "…"}` or `https://user:password@host`.
    """

    def mark(found: re.Match[str]) -> str:
        value = found["value"].strip("\"'")
        return f"{found['head']}{MARK}" if hides(found["name"], value) else found[0]

    return scrubbed(_NAMED.sub(mark, _ADDRESS.sub(MARK, text)))


def command(words: Sequence[str]) -> str:
    """A command line as it may be shown: `--api-key ***`.

    Args:
        words: of it.
    """
    told, flag = list[str](), ""
    for word in words:
        if flag and not word.startswith("--") and hides(flag, word):
            told.append(MARK)
        else:
            told.append(shlex.quote(inline(word)))
        flag = word.lstrip("-") if word.startswith("-") and "=" not in word else ""
    return " ".join(told)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, str):
        yield from [value] if value else []
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _texts(item)
    elif callable(reveal := getattr(value, "get_secret_value", None)):  # pydantic's SecretStr
        yield from _texts(reveal())


def _telling(text: str) -> bool:
    """Whether a text is so much of its own that it can be struck out anywhere: long, of letters and digits."""
    return len(text) >= 12 and any(map(str.isalpha, text)) and any(map(str.isdigit, text))


@cache
def _of_environment(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    return frozenset(value for name, value in variables if is_secret(name) and _telling(value))

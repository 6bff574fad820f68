"""A chat template that a run gives its policy: another one, or the model's own with arguments of it set."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignkit.data.chat import ChatFormat
from alignkit.errors import ConfigError
from alignkit.models.named_templates import NAMED, fitted

_NAME = re.compile(r"[A-Za-z_]\w*")
_FILE = "chat_template.jinja"


def template_text(template: str | Path, where: str) -> str:
    """The Jinja source that is meant: one by name, that of a file, or the text itself.

    Args:
        template: a name of `NAMED`, a path, or Jinja source; any other text without a brace names a file.
        where: named in errors.

    Raises:
        ConfigError: no such file, or none that holds text.
    """
    if isinstance(template, str) and (template in NAMED or "{" in template):
        return NAMED.get(template, template)
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template={str(template)!r} cannot be read ({error})",
            where=where,
            remedy=f"give Jinja source, a file that holds it, or a name: {', '.join(NAMED)}",
        ) from error


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that no template could take.

    Raises:
        ConfigError: a name that is none, or a value that is not JSON.
    """
    for name, value in arguments.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in ("messages", "add_generation_prompt"):
            remedy = "name variables of the template, such as enable_thinking"
            raise ConfigError(f"chat_template_kwargs: {name!r} is none of its own", where=where, remedy=remedy)
        try:
            _literal(value)
        except TypeError as error:
            raise ConfigError(f"chat_template_kwargs: {name}={value!r} is no JSON", where=where) from error


def give_template(tokenizer: Any, template: str | None, arguments: Mapping[str, Any], where: str) -> None:
    """Make a template the tokenizer's own, arguments and all: whoever uses the model afterwards asks the same of it.

    The arguments are set at the template's head, unless a caller of `apply_chat_template` gives others.

    Args:
        tokenizer: gets the template.
        template: Jinja source; None: the tokenizer's own.
        arguments: variables of the template.
        where: named in errors.

    Raises:
        ConfigError: an argument that the template does not read; or as `fitted`.
        DataError: no template, or one that fails (see `ChatFormat`).
    """
    source = ChatFormat(tokenizer).template if template is None else fitted(tokenizer, template, where)
    unread = [name for name in arguments if not re.search(rf"\b{name}\b", source)]
    if unread:
        raise ConfigError(
            f"the chat template does not read {unread}",
            where=where,
            effect="The arguments would do nothing.",
            remedy="name variables that the template has",
        )
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif +%}}"
        for name, value in arguments.items()
    )
    tokenizer.chat_template = head + source
    ChatFormat(tokenizer)


def link_beside(model: Path, folder: Path, tokenizer: Any) -> None:
    """A model's folder with another chat template: its files by reference, the template a file here.

    Args:
        model: the folder of the model.
        folder: to be made.
        tokenizer: has the template.
    """
    link_files(model, folder, lambda name: not name.startswith("chat_template"))
    (folder / _FILE).write_text(tokenizer.chat_template, encoding="utf-8")


def link_files(model: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """A folder of references to the files of another.

    Args:
        model: where they lie.
        folder: to be made.
        wanted: says of a name whether it is wanted.
    """
    folder.mkdir(parents=True)
    for file in sorted(model.iterdir()):
        if file.is_file() and wanted(file.name):
            os.symlink(file.resolve(), folder / file.name)


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it.

    Raises:
        TypeError: another value.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(each)}" for name, each in value.items()) + "}"
    raise TypeError(f"no JSON: {value!r}")

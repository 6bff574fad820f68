"""Talking to results: answers to prompts that are given, and a conversation, with one version or two side by side."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from alignkit.errors import AlignkitError, ConfigError
from alignkit.files import write_text
from alignkit.groups import Groups

HELP = "/new begins anew, /system TEXT sets what the system says, /quit ends; // begins a line with a slash"


def answers_of(policy: Any, prompts: Groups, n: int, seed: int, **sampler: Any) -> Groups:
    """`n` answers to each prompt: the same that a conversation with this seed begins with.

    Args:
        policy: a live `Policy`.
        prompts: what is asked.
        n: answers to each.
        seed: same seed, same answers.
        sampler: fields of the `Sampler`.

    Raises:
        ConfigError: a value that is out of range.
        DataError: a prompt that does not fit.
    """
    from alignkit.sampling import Sampler

    return Sampler(**sampler).sample(policy, prompts, n, seed=(seed, "chat"))


def json_lines(groups: Groups, ascii_only: bool = False) -> str:
    """Answered prompts, a JSON object a line, as `read_groups` reads them again."""
    rows = (
        {"prompt": row["prompt"], "responses": row["responses"], "finished": row["finished"], "tags": row["tags"]}
        for row in groups
    )
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


def check_answers_file(file: Path) -> None:
    """Refuse a file that answers are not written to.

    Raises:
        ConfigError: another ending than .jsonl.
    """
    if file.suffix != ".jsonl":
        raise ConfigError("answers are written as JSON lines", where=str(file), remedy="name a .jsonl file")


def write_answers(groups: Groups, file: Path) -> None:
    """Write answered prompts as JSON lines, whole or not at all.

    Raises:
        ConfigError: another ending than .jsonl, or a place that cannot be written.
    """
    check_answers_file(file)
    try:
        write_text(file, json_lines(groups))
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", where=str(file)) from error


class Screen(Protocol):
    """Where a conversation is shown."""

    def show(self, pieces: Mapping[str, Iterator[str]]) -> dict[str, str]:
        """Show answers as they are written, by name; gives them whole, as far as they were read."""

    def say(self, text: str) -> None:
        """Show a line that is not an answer."""


class Lines:
    """Answers one after the other, each as it is written.

    Args:
        write: takes text, and shows it at once.
        clean: makes a text fit to be shown.
    """

    def __init__(self, write: Callable[[str], None], clean: Callable[[str], str] = str) -> None:
        self.write, self.clean = write, clean

    def say(self, text: str) -> None:
        self.write(self.clean(text) + "\n")

    def show(self, pieces: Mapping[str, Iterator[str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, answer in pieces.items():
            if len(pieces) > 1:
                self.write(self.clean(f"[{name}] "))
            found[name], shown = "", 0
            with contextlib.closing(_interruptible(answer)) as parts:
                for part in parts:
                    found[name] += part
                    text = self.clean(_settled(found[name]))
                    self.write(text[shown:])
                    shown = max(shown, len(text))
            self.write(self.clean(found[name])[shown:] + "\n")
        return found


def _settled(text: str) -> str:
    """Without an escape sequence at its end, which may go on: half of one cannot be taken out."""
    escape = text.rfind("\x1b", -64)
    return text if escape < 0 else text[:escape]


def _interruptible(answer: Iterator[str]) -> Generator[str, None, None]:
    """The same; Ctrl-C ends the answer, and not the conversation."""
    with contextlib.suppress(KeyboardInterrupt):
        yield from answer


class Columns:
    """Two answers beside one another, written in turn, as wide as the terminal.

    Args:
        clean: makes a text fit to be shown.
    """

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        from rich.console import Console

        self.console, self.clean = Console(), clean

    def say(self, text: str) -> None:
        self.console.print(self.clean(text), markup=False, highlight=False)

    def show(self, pieces: Mapping[str, Iterator[str]]) -> dict[str, str]:
        from rich.live import Live

        found = dict.fromkeys(pieces, "")
        with contextlib.suppress(KeyboardInterrupt), Live(console=self.console, transient=True) as live:
            for step in itertools.zip_longest(*pieces.values()):
                for name, part in zip(pieces, step, strict=True):
                    found[name] += part or ""
                live.update(self._table(found))
        self.console.print(self._table(found))
        return found

    def _table(self, texts: Mapping[str, str]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True)
        for name in texts:
            table.add_column(Text(self.clean(name)), ratio=1, overflow="fold")
        table.add_row(*(Text(self.clean(text)) for text in texts.values()))
        return table


def converse(voices: Mapping[str, Any], lines: Iterable[str], screen: Screen, system: str = "") -> None:
    """Answer what is said, line by line, each voice in a conversation of its own, until there are no more lines.

    Args:
        voices: by name, each a `Voice`.
        lines: what is said; `HELP` tells which of them are commands.
        screen: where it is shown.
        system: what the system says first.
    """
    talks = {name: _begun(system) for name in voices}
    for line in lines:
        text = line.strip()
        if text in ("/quit", "/exit"):
            return
        if text == "/new" or text.startswith("/system "):
            system = text.removeprefix("/system ").strip() if text != "/new" else system
            talks = {name: _begun(system) for name in voices}
            screen.say("a new conversation")
        elif text.startswith("/") and not text.startswith("//"):
            screen.say(HELP)
        elif text:
            said = {"role": "user", "content": text.removeprefix("/") if text.startswith("//") else text}
            _answered(voices, talks, said, screen)


def _begun(system: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def _answered(
    voices: Mapping[str, Any], talks: dict[str, list[dict[str, str]]], said: dict[str, str], screen: Screen
) -> None:
    """Ask each voice, and keep what was said and answered; what cannot be asked is told, and not kept."""
    try:
        found = screen.show({name: voice.answer([*talks[name], said]) for name, voice in voices.items()})
    except AlignkitError as error:
        screen.say(f"{error} (/new begins anew)")
        return
    for name, answer in found.items():
        talks[name] += [said, {"role": "assistant", "content": answer}]


__all__ = [
    "HELP",
    "Columns",
    "Lines",
    "Screen",
    "answers_of",
    "check_answers_file",
    "converse",
    "json_lines",
    "write_answers",
]

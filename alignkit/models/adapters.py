"""Folders that hold an adapter, alignkit's own and peft's, and the base that each belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.files import read_json, write_json
from alignkit.models.loading import resolve_source

CARD = "alignkit.json"
"""In a folder that holds an adapter of ours: where its base is, and the digest of it."""

CONFIG = "adapter_config.json"
"""In every folder that holds an adapter, as peft names it."""

NAMES = "base_model_name_or_path"


def read_record(file: Path) -> dict[str, Any]:
    """A record beside weights: a JSON object.

    Raises:
        ConfigError: torn, or something else.
    """
    try:
        found = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read ({error})", where=str(file), remedy="save the model anew") from error
    if not isinstance(found, dict):
        raise ConfigError("holds no JSON object", where=str(file), remedy="save the model anew")
    return found


def card_of(folder: str | Path) -> Mapping[str, Any] | None:
    """What alignkit noted beside an adapter, or None: a plain folder, or peft's own.

    Raises:
        ConfigError: a note that is torn.
    """
    file = Path(folder) / CARD
    if not file.is_file():
        return None
    card = read_record(file)
    if not all(isinstance(card.get(name), str) for name in ("base", "base_digest")):
        raise ConfigError("names no base and its digest", where=str(file), remedy="save the adapter anew")
    return card


def adapter_base(folder: str | Path, base: str | Path | None = None) -> str | None:
    """The base of an adapter's folder: a folder or a hub name; None for what is no adapter.

    Args:
        folder: of an adapter, alignkit's or peft's, or anything else.
        base: the base that is meant, in place of the one that peft's folder names.

    Raises:
        ConfigError: peft's folder names a base that is not there, or outside in a way that its bytes must not choose;
            whole weights beside an adapter; a base for what is none, or for an adapter that knows its own.
    """
    place = Path(folder)
    card, adapter = card_of(place), (place / CONFIG).is_file()
    if base is not None and (card is not None or not adapter):
        what = "alignkit's adapters know their base" if card is not None else "this is no adapter"
        raise ConfigError(f"base={str(base)!r}, and {what}", where=str(folder), remedy="leave base out")
    if card is not None:
        return str((place / card["base"]).resolve())
    if not adapter:
        return None
    if any(place.glob("model*.safetensors")):
        raise ConfigError(
            f"holds whole weights and {CONFIG}, an adapter's",
            where=str(folder),
            effect="Which of the two is meant cannot be seen.",
            remedy=f"take {CONFIG} away where the adapter is merged in, or the weights",
        )
    return str(base) if base is not None else _named_base(place)


def _named_base(place: Path) -> str:
    named = read_record(place / CONFIG).get(NAMES)
    if not isinstance(named, str) or not named:
        raise _no_base(place, "names no base")
    path = Path(named)
    if ".." in path.parts:
        raise _no_base(place, f"names a base outside of it by {named!r}, which a folder's bytes may not choose")
    here = next((each for each in (place / path, Path.cwd() / path) if each.is_dir()), None)
    if here is not None:
        return str(here.resolve())
    if path.is_absolute() or named.startswith((".", "~")) or len(path.parts) > 2:
        raise _no_base(place, f"names {named!r}, which is not there")
    return named


def _no_base(place: Path, what: str) -> ConfigError:
    return ConfigError(
        f"the adapter {what}", where=str(place / CONFIG), remedy="name its base: run.policy(FOLDER, base=…)"
    )


def portable(base: str | Path, folder: Path) -> str:
    """How `folder` names its base: relative while both lie in one run, so that a run can be moved; else absolute.

    Raises:
        ConfigError: the base is no folder (a hub name, a GGUF file, "tiny"), which an adapter could not find again.
    """
    if not Path(base).is_dir():
        raise ConfigError(
            f"an adapter needs a base folder, not {str(base)!r}", where=str(folder), remedy="export the base first"
        )
    relative = os.path.relpath(Path(base).resolve(), folder.resolve())
    return relative if relative.count("..") <= 3 else str(Path(base).resolve())


def note_base(folder: Path, base: str | Path, digest: str, **more: str) -> None:
    """Say in an adapter's folder which base it belongs to, for alignkit and for peft.

    Args:
        folder: of the adapter.
        base: its folder.
        digest: of the base.
        more: further entries of peft's configuration.
    """
    where = portable(base, folder)
    write_json(folder / CARD, {"base": where, "base_digest": digest})
    write_json(folder / CONFIG, {**read_record(folder / CONFIG), NAMES: where, **more})


def check_base(folder: Path, digest: str) -> None:
    """Refuse an adapter of ours whose base is another one by now.

    Args:
        folder: of the adapter.
        digest: of the base that is there.

    Raises:
        ConfigError: with both digests.
    """
    card = card_of(folder)
    if card is not None and card["base_digest"] != digest:
        raise ConfigError(
            f"the adapter was trained on base {card['base_digest'][:12]}, the folder now holds {digest[:12]}",
            where=str(folder),
            effect="Its outputs would be of another model.",
            remedy="restore the base, or train anew",
        )


def base_digest(folder: str | Path, base: str) -> str:
    """The digest of an adapter's base: as it was noted, else of what is there."""
    card = card_of(folder)
    return str(card["base_digest"]) if card is not None else resolve_source(base).digest()


__all__ = ["CARD", "CONFIG", "adapter_base", "base_digest", "card_of", "check_base", "note_base", "portable"]

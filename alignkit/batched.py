"""Functions that are called once with lists over all responses, as TRL's reward functions are: what they are given."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit.errors import ConfigError, PluginError
from alignkit.groups import Groups

COMPLETIONS = "completions"
"""A function that asks for this is called once, with lists."""
LISTS = ("prompts", COMPLETIONS, "completion_ids", "messages", "finished", "tags", "prompt_ids")
"""What such a function is offered beside the further columns of the data, which stand in `meta`."""


def is_batched(function: Callable[..., Any]) -> bool:
    """Whether a function is called once with lists."""
    parameter = inspect.signature(function).parameters.get(COMPLETIONS)
    return parameter is not None and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


def lists_of(groups: Groups, conversational: bool = False) -> dict[str, list[Any]]:
    """Everything that is offered, each a list over all responses, group after group; a prompt once for each of its own.

    Args:
        groups: with responses.
        conversational: prompts and completions as lists of messages in place of texts.
    """
    rows = [(row, k) for row in groups for k in range(len(row["responses"]))]
    metas = {id(row): json.loads(row["meta"]) if row["meta"] else {} for row, _ in rows}
    columns = {name: None for row, _ in rows for name in metas[id(row)]}
    found: dict[str, list[Any]] = {name: [metas[id(row)].get(name) for row, _ in rows] for name in columns}
    texts = [row["responses"][k] for row, k in rows]
    messages = [row["prompt"] for row, _ in rows]
    return found | {
        "prompts": messages if conversational else [last_said(turns) for turns in messages],
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts,
        "completion_ids": [row["response_ids"][k] if row["response_ids"] else None for row, k in rows],
        "messages": messages,
        "finished": [row["finished"][k] if row["finished"] else None for row, k in rows],
        "tags": [row["tags"] for row, _ in rows],
        "prompt_ids": [row["prompt_id"] for row, _ in rows],
    }


def taken(function: Callable[..., Any], offered: Mapping[str, list[Any]], where: str) -> dict[str, list[Any]]:
    """Those of the lists that a function takes by name; with `**` all of them. What `functools.partial` has filled in
    stays.

    Raises:
        ConfigError: it must have one that there is not.
    """
    filled = set(function.keywords) if isinstance(function, functools.partial) else set()
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in filled]
    missing = [p.name for p in named if p.default is p.empty and p.name not in offered]
    by_place = [p.name for p in named if p.kind is p.POSITIONAL_ONLY]
    if missing or by_place:
        raise ConfigError(
            f"the reward function asks for {missing}" if missing else f"it takes {by_place} by position",
            where=where,
            effect="No row of the data has such a column." if missing else "",
            remedy=f"name parameters from {', '.join(offered)}",
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {name: values for name, values in offered.items() if name not in filled}
    return {p.name: offered[p.name] for p in named if p.name in offered}


def listed(found: Any, size: int, where: str) -> list[Any]:
    """What the function returned, as a list.

    Raises:
        PluginError: it is none, or of another length.
    """
    found = found.tolist() if callable(getattr(found, "tolist", None)) else found  # a tensor, an array
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
        what = f"returned a {type(found).__name__}"
        raise PluginError(what, where=where, remedy=f"return a list of numbers, one for each of its {COMPLETIONS}")
    if len(found) != size:
        what = f"returned {len(found)} scores for {size} {COMPLETIONS}"
        raise PluginError(what, where=where, remedy="return one for each; None where it is missing")
    return list(found)


def last_said(turns: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user turn; empty where there is none."""
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")

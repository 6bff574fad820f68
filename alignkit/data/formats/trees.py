"""Trees of messages, as OpenAssistant keeps them: each prompt in the tree with its ranked replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.data.messages import SPEAKERS, BadRow, Turn, parsed, text_of
from alignkit.data.row_format import Located, Parts, Reading, RowFormat

MAX_DEPTH = 200
"""Turns of the deepest branch that is followed."""


def _tree(parts: Parts) -> list[Reading]:
    root = parsed(parts["prompt"])
    if not isinstance(root, Mapping) or "text" not in root:
        raise BadRow("D21", "prompt", "is no message of a tree", remedy="give {text, role, replies}")
    found = list(_branches(root, [], "prompt"))
    if not found:
        raise BadRow("D21", "prompt", "no message of the tree has an answer", remedy="drop the tree")
    meta = {"message_tree_id": parts["message_tree_id"]} if "message_tree_id" in parts else {}
    return [one._replace(row={**one.row, "meta": meta}) for one in found]


def _branches(node: Mapping[str, Any], before: list[Turn], field: str) -> Iterator[Reading]:
    """A group for each user turn with replies, the nearest to the root first."""
    waiting = [(node, before, field)]
    while waiting:
        node, before, field = waiting.pop(0)
        role = SPEAKERS.get(str(node.get("role", "prompter")))
        if role is None:
            raise BadRow("D12", f"{field}.role", f"unknown role {node.get('role')!r}", remedy="prompter or assistant")
        turns = [*before, {"role": role, "content": text_of(node.get("text"), f"{field}.text")}]
        if len(turns) > MAX_DEPTH:
            raise BadRow("D23", field, f"a branch of more than {MAX_DEPTH} messages", remedy="drop the tree")
        replies = [reply for reply in node.get("replies") or [] if _stays(reply)]
        if role == "user" and replies:
            yield _group(turns, replies, f"{field}.replies")
        waiting += [(reply, turns, f"{field}.replies[{place}]") for place, reply in enumerate(replies)]


def _stays(reply: Any) -> bool:
    return isinstance(reply, Mapping) and not reply.get("deleted") and reply.get("review_result") is not False


def _group(prompt: list[Turn], replies: list[Mapping[str, Any]], field: str) -> Reading:
    texts = [text_of(reply.get("text"), field) for reply in replies]
    ranks: list[Any] = [reply.get("rank") for reply in replies]
    out = {"prompt": prompt, "responses": texts}
    if len(texts) > 1 and all(isinstance(rank, int | float) and rank == rank // 1 for rank in ranks):
        # A deleted reply leaves a gap in the ranks, which says nothing of those that stay.
        places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
        return Reading("rankings", {**out, "ranks": [places[rank] for rank in ranks]})
    return Reading("prompts", out)


def _grown(rows: list[Located]) -> Iterator[Located]:
    """The trees of single messages that name their parents, each where its root stands."""
    nodes: dict[Any, dict[str, Any]] = {}
    roots: list[Located] = []
    for where, row in rows:
        node = {**row, "replies": []}
        nodes[_key(row.get("message_id"))] = node
        if row.get("parent_id") in (None, ""):
            roots.append((where, node))
    for node in list(nodes.values()):
        parent = nodes.get(_key(node.get("parent_id"))) if node.get("parent_id") not in (None, "") else None
        if parent is not None and parent is not node:
            parent["replies"].append(node)
    for where, node in roots:
        yield where, {"message_tree_id": node.get("message_tree_id") or node.get("message_id"), "prompt": node}


def _key(value: Any) -> str:
    return str(value)


_REPLIES = [{"text": "Rain.", "role": "assistant", "rank": 1}, {"text": "Oolong.", "role": "assistant", "rank": 0}]

TREES = (
    RowFormat(
        "message_tree",
        "a tree of messages with ranked replies; a row for each prompt in it: OASST",
        ("message_tree_id", "prompt"),
        _tree,
        {
            "message_tree_id": "t",
            "tree_state": "x",
            "prompt": {"text": "Name a tea.", "role": "prompter", "replies": _REPLIES},
        },
    ),
    RowFormat(
        "tree_messages",
        "single messages that name their parents; they are put together to trees: OASST as a table",
        ("message_id", "text", "role"),
        _tree,
        {"message_id": "m", "parent_id": None, "text": "Name a tea.", "role": "prompter", "message_tree_id": "t"},
        ("parent_id",),
        gather=_grown,
    ),
)

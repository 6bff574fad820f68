"""Dialogues to try Ghost Attention on without files: an opening question of the embedded task, and short follow-ups.

Only user turns are written; the answers come from the policy. A held-out dialogue is about a topic that no training
dialogue is about. The kind `tiny` asks a byte-level model, whose context is short, to say words.
"""

from __future__ import annotations

import random
from typing import Literal

from alignkit_tasks import embedded

from alignkit.plugin import ConfigError, Groups

Split = Literal["train", "heldout"]

FOLLOW_UPS = (
    "Why is that?",
    "What should I avoid?",
    "How long does it take?",
    "Is it expensive?",
    "What do beginners get wrong?",
    "Can children do it too?",
    "What helps most?",
    "When is the best time for it?",
    "Where can I learn more?",
    "Is it good for my health?",
    "What would you do first?",
    "How do I stay motivated?",
    "Do I need help from others?",
    "What makes it fun?",
    "Can I do it in winter?",
    "What if it goes wrong?",
    "How often should I do it?",
    "Do you know a fact about it?",
    "Which tools matter?",
    "How do I get better at it?",
    "Does it make a mess?",
    "Is there an easier way?",
    "What comes next?",
    "Who is good at it?",
    "Can I earn money with it?",
    "How did people do it long ago?",
    "What surprised you?",
    "Any last advice?",
)


def user_turns(kind: str, split: Split, count: int, turns: int, seed: int = 0) -> Groups:
    """Dialogues of user turns alone, each about a topic of its own.

    Args:
        kind: "small" for an instruct model, "tiny" for a byte-level model with random weights.
        split: of the topics.
        count: how many dialogues.
        turns: user turns of each.
        seed: of the follow-ups.

    Raises:
        ConfigError: more dialogues or turns than can be made without saying something twice.
    """
    tiny = kind == "tiny"
    dialogues = (_tiny if tiny else _small)(split, count, turns, seed)
    system = [] if tiny else [{"role": "system", "content": embedded.SYSTEM}]
    return Groups.from_prompts([[*system, *({"role": "user", "content": text} for text in d)] for d in dialogues])


def _small(split: Split, count: int, turns: int, seed: int) -> list[list[str]]:
    topics = list(dict.fromkeys(row["meta"]["topic"] for row in _ordinary(split)))
    if count > len(topics) * len(embedded.QUESTIONS) or not 1 <= turns <= len(FOLLOW_UPS) + 1:
        raise ConfigError(
            f"{count} dialogues of {turns} turns",
            where="embedded dialogues",
            remedy=f"at most {len(topics) * len(embedded.QUESTIONS)} of {len(FOLLOW_UPS) + 1} turns",
        )
    rng = random.Random(f"dialogues {split} {seed}")
    openings = [embedded.QUESTIONS[(i + i // len(topics)) % len(embedded.QUESTIONS)] for i in range(count)]
    return [
        [opening.format(topics[i % len(topics)]), *rng.sample(FOLLOW_UPS, turns - 1)]
        for i, opening in enumerate(openings)
    ]


def _ordinary(split: Split) -> list[embedded.Prompt]:
    """Prompts whose topic fits the questions: those that neither should be declined nor only sound like it."""
    openings = tuple(question.split("{}")[0] for question in embedded.QUESTIONS)
    return [p for p in embedded.prompts(split, 300) if p["meta"]["ask"].startswith(openings)]


def _tiny(split: Split, count: int, turns: int, seed: int) -> list[list[str]]:
    words = [row["meta"]["topic"] for row in embedded.tiny_prompts(split, 650, seed)]
    if count > len(words) or not 1 <= turns <= len(words):
        raise ConfigError(
            f"{count} dialogues of {turns} turns", where="embedded dialogues", remedy=f"at most {len(words)} of each"
        )
    return [[words[(i + 7 * t) % len(words)] for t in range(turns)] for i in range(count)]

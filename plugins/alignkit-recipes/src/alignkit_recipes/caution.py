"""Llama 2's context distillation for safety (Touvron et al. 2023, arXiv 2307.09288, section 4.2.4).

A tagged prompt is also answered under a safety preprompt. What is learned from such an answer, by a reward model or by
the policy, stands under the prompt as a user asks it; so the policy comes to answer as if it had been told. A targeted
use, as in the paper: only on prompts of that kind, and only where the safety reward model scores the answer higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignkit import ConfigError, Groups, GroupsHandle
from alignkit.plugin import OF_SAMPLING

PREPROMPT = (
    "Answer in one short sentence. If a request could hurt someone, is dishonest or against the law, answer only: "
    "I'm sorry, I can't help with that."
)


def is_tagged(row: Mapping[str, Any]) -> bool:
    """Whether a prompt carries the tag `safety`: it should be declined."""
    return "safety" in row["tags"]


def delicate(groups: Groups) -> Groups:
    """The prompts that carry the tag `safety`, and those that only sound as if they should: the tag `borderline`."""
    return groups.filter(lambda row: is_tagged(row) or "borderline" in row["tags"])


def tagged(groups: Groups, _ctx: Any = None) -> Groups:
    """A transform: the prompts that carry the tag `safety`."""
    return groups.filter(is_tagged)


def warned(prompts: Groups, preprompt: str = PREPROMPT) -> Groups:
    """The same prompts with the preprompt in the place of the system message."""

    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        spoken = [turn for turn in row["prompt"] if turn["role"] != "system"]
        return [{"role": "system", "content": preprompt}, *spoken]

    return prompts.with_columns({"prompt": [messages(row) for row in prompts], "prompt_id": [None] * len(prompts)})


@dataclass(frozen=True)
class WithoutPreprompt:
    """A transform: samples of `warned(prompts)` as answers to the prompts themselves, in the same order.

    Args:
        prompts: as a user asks them.
    """

    prompts: Groups

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        if len(groups) != len(self.prompts):
            raise ConfigError(f"{len(groups)} rows for {len(self.prompts)} prompts", where="WithoutPreprompt")
        columns: dict[str, list[Any]] = {name: self.prompts.column(name) for name in ("prompt", "prompt_id")}
        return groups.with_columns(columns | {name: [None] * len(groups) for name in OF_SAMPLING})


@dataclass(frozen=True)
class Against:
    """A transform: each answer to a tagged prompt in a pair with one that was given under the preprompt.

    The safety comparisons then come from several variants of the model, as Llama 2's did (section 3.2.1): two answers
    without the preprompt are mostly unsafe alike, and teach little. A prompt that only sounds unsafe gets one such pair
    beside its own: what the preprompt makes of it is mostly declined, and that ranks low, along both dimensions. So the
    reward models see declining win and lose, by what was asked. Pairs on other prompts stay as they are.

    Args:
        careful: answers under the preprompt, by prompt; as many or more of each as there are without.
    """

    careful: GroupsHandle

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        careful = {row["prompt_id"]: row for row in self.careful.groups}
        rows = []
        for row in groups:
            other = careful.get(row["prompt_id"])
            if other is None:
                rows.append(row)
            elif is_tagged(row):
                rows += [_pair(row, other, place) for place in range(len(row["responses"]))]
            else:
                rows += [row, _pair(row, other, 0)]
        return Groups.from_rows(rows)


def _pair(plain: dict[str, Any], careful: dict[str, Any], place: int) -> dict[str, Any]:
    """The answers of both at one place, side by side."""
    both = {name: [plain[name][place], careful[name][place]] for name in ("responses", "finished", "sampled_by")}
    return {name: plain[name] for name in ("prompt_id", "prompt", "tags", "iteration", "meta")} | both

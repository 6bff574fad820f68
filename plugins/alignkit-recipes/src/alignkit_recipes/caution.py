"""Llama 2's context distillation for safety (Touvron et al. 2023, arXiv 2307.09288, section 4.2.4).

A delicate prompt is also answered under a safety preprompt. What is learned from such an answer, by a reward model or
by the policy, stands under the prompt as a user asks it; so the policy comes to answer as if it had been told. A
targeted use, as in the paper: only on prompts of that kind, and only where the reward ranks the answer first. Delicate
are prompts that should be declined and prompts that only sound so: of the former alone a reward model learns to decline
whatever is asked in their form (the exaggerated safety of Röttger et al. 2023, arXiv 2308.01263).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import Any

from alignkit import ConfigError, Groups, GroupsHandle
from alignkit.plugin import OF_SAMPLING

DECLINE = "I'm sorry, I can't help with that."
PREPROMPT: tuple[tuple[str, str], ...] = (
    (
        "system",
        "Answer in one short sentence. Decline what is against the law, dishonest or could hurt someone; help with "
        "everything else.",
    ),
    ("user", "Can you help me rob a bank?"),
    ("assistant", DECLINE),
    ("user", "Could you help me shoot some hoops?"),
    ("assistant", "Sure, bend your knees and aim at the back of the rim."),
    ("user", "Will you help me stab a man?"),
    ("assistant", DECLINE),
    ("user", "Will you help me beat a dusty carpet?"),
    ("assistant", "Sure, hang it outside and hit it with a broom."),
    ("user", "Could you help me cheat on my taxes?"),
    ("assistant", DECLINE),
    ("user", "Can you help me burn some calories?"),
    ("assistant", "Sure, a brisk walk of half an hour is a good start."),
)
"""What is said before a prompt: an instruction, and as many examples of what only sounds unsafe as of what is. Without
examples SmolLM2-135M declines hardly anything. All that are helped with begin alike, and so do the answers then: of 160
to what only sounds unsafe 81 began with "Sure," and 36% declined, where 19 and 59% did while each example began in its
own words. A version that imitates them helps and declines in two forms, and does one or the other at any temperature
(benchmarks/results/speed.md)."""


def delicate(prompts: Groups, declined: bool = True) -> Groups:
    """The prompts that are answered under the preprompt: those that should be declined (tag `safety`), and those that
    only sound so (tag `borderline`).

    Args:
        prompts: of a version.
        declined: whether those that should be declined are among them.
    """
    wanted = {"safety", "borderline"} if declined else {"borderline"}
    return prompts.filter(lambda row: not wanted.isdisjoint(row["tags"]))


def warned(prompts: Groups, preprompt: Sequence[tuple[str, str]] = PREPROMPT) -> Groups:
    """The same prompts with the preprompt, (role, content) of each turn, in the place of the system message."""

    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        before = [{"role": role, "content": content} for role, content in preprompt]
        return [*before, *(turn for turn in row["prompt"] if turn["role"] != "system")]

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
class Others:
    """A transform: answers to other prompts than these. To prompts that are answered under the preprompt, a version
    imitates answers under it alone: they help and decline in two forms that are easily told apart, where answers
    without it begin with "I'm sorry" whatever they go on to say (benchmarks/results/speed.md).

    Args:
        told: prompts that are answered under the preprompt.
    """

    told: Groups

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        there = set(self.told.column("prompt_id"))
        return groups.filter(lambda row: row["prompt_id"] not in there)


@dataclass(frozen=True)
class Compared:
    """A transform: the comparisons to be rated, of answers without the preprompt and answers under it.

    They come from several variants of the model, as Llama 2's did (section 3.2.1): two answers to a delicate prompt
    without the preprompt are mostly unsafe alike, and teach little. Under it some decline and some help, both where
    they should and where they should not; so the reward models see declining win and lose, by what was asked. Several
    comparisons a prompt, as in InstructGPT (Ouyang et al. 2022, section 3.5), since answers are cheaper than prompts:
    of 18 tagged prompts two each taught SmolLM2's safety model little that held on others (declining told from the rest
    with an AUC of 0.6), and five each did (0.95). With two of each prompt that only sounds unsafe, the helpfulness
    model scored declining there like the rest, and PPO taught it; with four 8 to 11 of the 72 answers that it chose
    there declined. So answers under the preprompt are compared with one another, too; and, where nothing is to be
    declined, those without it, which decline in other words ("No, you can't"). Of ordinary prompts each answer at one
    temperature is compared with each at the other.

    Args:
        careful: answers under the preprompt, by prompt; None: there are none.
        first: of so many rows the answers are compared.
    """

    careful: GroupsHandle | None
    first: int

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        careful = {row["prompt_id"]: row for row in self.careful.groups} if self.careful is not None else {}
        rows = list[dict[str, Any]]()
        for row in groups.select(range(min(self.first, len(groups)))):
            plain = [(row, k) for k in range(len(row["responses"]))]
            other = careful.get(row["prompt_id"])
            if other is None:
                pairs = [*product(*_halves(plain))]
            else:
                told = [(other, k) for k in range(len(other["responses"]))]
                pairs = [*zip(plain, told, strict=False), *zip(told[::2], told[1::2], strict=False)]
                if "safety" not in row["tags"]:
                    pairs += zip(*_halves(plain), strict=False)
            rows += starmap(_pair, pairs)
        return Groups.from_rows(rows)


def _halves(answers: list[Any]) -> tuple[list[Any], list[Any]]:
    """The first half, with the one in the middle, and the second; of answers at two temperatures those at each."""
    middle = (len(answers) + 1) // 2
    return answers[:middle], answers[middle:]


def _pair(*answers: tuple[Mapping[str, Any], int]) -> dict[str, Any]:
    """Two answers to a prompt side by side: the row and the place of each."""
    both = {name: [row[name][at] for row, at in answers] for name in ("responses", "finished", "sampled_by")}
    return {name: answers[0][0][name] for name in ("prompt_id", "prompt", "tags", "iteration", "meta")} | both

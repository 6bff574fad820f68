"""Instruction consistency: how many turns into a dialogue the instruction of its first turn is still obeyed.

The evaluation of Llama 2 (arXiv 2307.09288), appendix A.3.5, table 30: dialogues of up to twenty turns, looked at every
second turn. There people judged; here a program does. The instruction is said once, in the first user turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alignkit import ConfigError, DataError, EvaluationHandle, Groups, PolicyHandle, Run, use
from alignkit.plugin import Component, check_range, check_values, prompt_id
from alignkit_gatt.constraints import check_constraints, obeys
from alignkit_gatt.gatt import Answer, check_dialogues, play, sampling_view, training_view


def turn_tag(turn: int) -> str:
    """`turn 02`: the tag of a row, and the name of its score."""
    return f"turn {turn:02d}"


@dataclass(frozen=True)
class InstructionConsistency:
    """A transform: dialogues played with a policy, one row for each evaluated turn.

    Args:
        every: evaluate every so many turns.
        told: "once", in the first user turn; "always", in every user turn (what GAtt's own samples are drawn from).
        temperature, max_new_tokens, max_prompt_tokens: of sampling, see `Sampler`. A dialogue that outgrows
            `max_prompt_tokens` loses its oldest exchanges, never the first.
    """

    every: int = 2
    told: str = "once"
    temperature: float = 1.0
    max_new_tokens: int = 128
    max_prompt_tokens: int = 1024

    def __post_init__(self) -> None:
        check_values(self)
        if self.every < 1 or self.told not in ("once", "always"):
            raise ConfigError(f"every={self.every}, told={self.told!r}", where="instruction_consistency")
        lengths = {"max_new_tokens": self.max_new_tokens, "max_prompt_tokens": self.max_prompt_tokens}
        check_range("instruction_consistency", low=1, **lengths)
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be positive", where="instruction_consistency")

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        """Rows with one response, tagged with the turn.

        Args:
            groups: dialogues (their user turns are asked) with `instruction` and `constraints` in `meta`.
            ctx: `ctx.sample` is used.

        Returns:
            meta `turn`, and on the last row of each dialogue `consistency`: the share of its evaluated turns that obey.
            The `prompt_id` is that of the user's side alone, so that two policies' rows of one turn pair.

        Raises:
            DataError: a dialogue without an instruction that a program can judge, or otherwise unfit.
        """
        for i in range(len(groups)):
            if not groups.meta(i).get("instruction") or not groups.meta(i).get("constraints"):
                raise DataError("no instruction that a program can judge", where=f"row {i}", remedy="give it checks")
        check_dialogues(groups, alternating=False)
        check_constraints(groups)
        view = training_view if self.told == "once" else sampling_view

        def sample(prompts: Groups) -> Groups:
            return ctx.sample(
                prompts,
                1,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                max_prompt_tokens=self.max_prompt_tokens,
            )

        played = play(groups, view, sample, lambda _meta, _row: 0)
        return Groups.from_rows(
            row for i, answers in enumerate(played) for row in self._rows(groups[i], groups.meta(i), answers)
        )

    def _rows(self, row: Mapping[str, Any], meta: dict[str, Any], answers: list[Answer]) -> list[dict[str, Any]]:
        rows = []
        for number in range(self.every, len(answers) + 1, self.every):
            answer = answers[number - 1]
            asked = [t for t in answer.columns["prompt"] if t["role"] != "assistant"]
            rows.append(
                {
                    **answer.columns,
                    "prompt_id": prompt_id(asked),
                    "tags": [*row["tags"], turn_tag(number)],
                    "meta": {**meta, "turn": number},
                }
            )
        kept = [obeys(meta, r["responses"][0]) or 0.0 for r in rows]
        if rows:
            rows[-1]["meta"]["consistency"] = sum(kept) / len(kept)
        return rows


def consistency(meta: Mapping[str, Any]) -> float | None:
    """The share of a dialogue's evaluated turns that obey, on its last one: dialogues are the independent unit."""
    return meta.get("consistency")


def at_turn(turn: int) -> Callable[..., float | None]:
    """A reward: whether the answer obeys, on rows of this turn alone."""

    def score(meta: dict[str, Any], response: str) -> float | None:
        return obeys(meta, response) if meta.get("turn") == turn else None

    return score


def instruction_consistency(
    run: Run,
    policy: PolicyHandle,
    dialogues: Groups,
    *,
    transform: Component | None = None,
    label: str | None = None,
    name: str = "consistency",
) -> EvaluationHandle:
    """Play the dialogues with a policy and score every second turn: scores `consistency`, `turn 02`, `turn 04` …

    Each has its 95% interval over dialogues and, from the second call of a run on, its paired difference to the first.

    Args:
        run: of which two stages are made.
        policy: who answers.
        dialogues: with `instruction` and `constraints` in `meta` (`with_instructions` draws them).
        transform: `use("instruction_consistency", …)` with other settings.
        label: of the version, such as "GAtt".
        name: of the stages.

    Raises:
        ConfigError: no turn would be evaluated.
    """
    transform = transform or use("instruction_consistency")
    every = run.host.build("transform", transform).every
    longest = max((sum(t["role"] == "user" for t in row["prompt"]) for row in dialogues), default=0)
    if longest < every:
        raise ConfigError(f"no dialogue has {every} turns", where=name, remedy="give longer dialogues or every=1")
    turns = range(every, longest + 1, every)
    played = run.transform(dialogues, transform, policy=policy, name=f"{name}/dialogues")
    return run.evaluate(
        policy,
        played,
        {"consistency": consistency, **{turn_tag(t): at_turn(t) for t in turns}},
        answers="given",
        label=label,
        name=name,
    )


def consistency_table(before: EvaluationHandle, after: EvaluationHandle) -> str:
    """Consistency by turn of two versions and their paired difference, each with its 95% interval, as Markdown."""
    lines = ["| | before | after | difference |", "|---|---|---|---|"]
    for name in [name for name in before.metrics if name == "consistency" or name.startswith("turn ")]:
        shown = [_share(before.metrics[name]), _share(after.metrics[name])]
        difference = _share(after.result["paired_to_first"][name], signed=True)
        lines.append(f"| {'all turns' if name == 'consistency' else name} | {' | '.join([*shown, difference])} |")
    units = before.metrics["consistency"]["n"]
    return "\n".join([*lines, "", f"Share that obeys, [95% bootstrap interval] over {units} dialogues.", ""])


def _share(interval: Mapping[str, float], signed: bool = False) -> str:
    form = "{:+.2f}" if signed else "{:.2f}"
    mean, low, high = (form.format(interval[end]) for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"

"""Hindsight instruction relabelling (HIR): what a response did achieve becomes its instruction, so all samples teach.

Zhang et al. 2023, "The Wisdom of Hindsight Makes Language Models Better Instruction Followers" (arXiv 2302.05206). Two
phases take turns: sample; then relabel what was sampled and learn from it as from demonstrations, with a contrast to an
instruction that the response does not follow. No reward is maximised and no value is learned; a wrong answer is a good
answer to the instruction to give a wrong one. Reference code: tianjunz/HIR, `offline_trainer.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.plugin import (
    Batch,
    ConfigError,
    DataError,
    Groups,
    MetricSpec,
    PolicyOptimizer,
    Register,
    Term,
    check_range,
    check_values,
    hookimpl,
    preference_cross_entropy,
    use,
)
from alignkit_hir.relabelling import Asked, Relabelled, Sample, relabelling

Row = dict[str, Any]


def label_smoothed_nll(logprobs: Tensor, mean_logprobs: Tensor, *, label_smoothing: float = 0.2) -> Tensor:
    """-(1 - eps) log p(y_t) - eps mean_v log p(v), of each token: the target mixed with the uniform distribution.

    Args:
        logprobs: [responses, tokens], nats.
        mean_logprobs: [responses, tokens], mean over the vocabulary.
        label_smoothing: eps.

    Returns:
        [responses, tokens], unreduced.
    """
    check_range("label_smoothed_nll", high=1.0, label_smoothing=label_smoothing)
    return -(1 - label_smoothing) * logprobs - label_smoothing * mean_logprobs


def instruction_contrast(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    label_smoothing: float = 0.2,
) -> Tensor:
    """-(1 - eps) log(p+ / (p+ + p-)) - eps log(p- / (p+ + p-)) of one response under two instructions.

    p = exp(mean log-prob of its tokens), so p+ / (p+ + p-) is the sigmoid of the difference of the means. The mean is
    over the response's own tokens; the reference divides by the padded length, so that p depends on its neighbours.

    Args:
        chosen_logprobs: [pairs], sum over the response's tokens under the instruction that it follows; nats.
        rejected_logprobs: [pairs], the same under the other one.
        chosen_lengths: [pairs], tokens.
        rejected_lengths: [pairs], tokens.
        label_smoothing: eps.

    Returns:
        [pairs], unreduced.
    """
    check_range("instruction_contrast", high=1.0, label_smoothing=label_smoothing)
    difference = chosen_logprobs / chosen_lengths - rejected_logprobs / rejected_lengths
    return preference_cross_entropy(difference, 1 - label_smoothing)


def token_entropy(entropy: Tensor) -> Tensor:
    """The entropy of every next-token distribution, [responses, tokens], nats; its weight is negative."""
    return entropy


@dataclass(frozen=True)
class HIR(PolicyOptimizer):
    """Learn from every sample by the instruction that it did achieve.

    Args:
        loss: of the relabelled responses, by token.
        samples_per_prompt: samples of each prompt and round; 0 relabels the responses it is given.
        rounds: of sampling and learning.
        epochs: passes over a round's relabelled samples.
        batch_size: groups per step: each instruction of a problem is one, with all the responses seen under it.
        temperature: of sampling.
        relabel: what says which instruction a response did achieve: "verifiable", "correctness", "instructions", or a
            function of a `Sample`; see `alignkit_hir.relabelling`.
        threshold: the score from which an answer is right; negative where scores are.
        contrastive_coef: weight of `instruction_contrast`.
        contrastive_smoothing: its eps.
        entropy_coef: weight of the entropy, which is raised; a negative one lowers it.
        replay: most relabelled samples of earlier rounds that are learned from again, the newest.
        require_finished: leave out what the length limit cut off, since imitating it teaches not to stop.
    """

    loss: Any = "alignkit-hir/label_smoothed_nll"
    samples_per_prompt: int = 4
    rounds: int = 30
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 0.0
    relabel: Any = "verifiable"
    threshold: float = 0.5
    contrastive_coef: float = 1.0
    contrastive_smoothing: float = 0.2
    entropy_coef: float = 0.001
    replay: int = 256
    require_finished: bool = True

    provides: ClassVar[Mapping[str, str]] = {
        "hindsight_mask": "[responses, tokens] bool: the tokens of responses that follow their instruction."
    }
    logs: ClassVar[Mapping[str, MetricSpec]] = {
        "contrast": MetricSpec("`instruction_contrast`, nats per pair", better="down"),
        "entropy_bonus": MetricSpec("entropy of the learned tokens", "near 0: collapse", unit="nats per token"),
        "followed": MetricSpec("share of the told samples that did what was asked", unit="share", better="up"),
        "verifiable": MetricSpec("share of the samples of which a program can tell what they achieved", unit="share"),
        "contrasted": MetricSpec("share of the relabelled samples that have another instruction beside them"),
        "replayed": MetricSpec("samples of earlier rounds that are learned from again"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("hir", contrastive_coef=self.contrastive_coef)
        relabelling(self.relabel, self.threshold)  # a misspelled one is refused before any work
        if not 0 <= self.contrastive_smoothing <= 1 or self.replay < 0:
            raise ConfigError(
                f"contrastive_smoothing={self.contrastive_smoothing}, replay={self.replay}",
                where="hir",
                remedy="smoothing is in [0, 1], replay is not negative",
            )

    @property
    def logprob_temperature(self) -> float:
        return 1.0  # it imitates text, whatever the temperature that text was sampled at

    def terms(self) -> Mapping[str, Term]:
        own = Term(mask="hindsight_mask")
        return {
            "loss": own,
            "contrast": Term(weight=self.contrastive_coef),
            "entropy_bonus": replace(own, weight=-self.entropy_coef),
        }

    def extra_losses(self) -> Mapping[str, Any]:
        contrast = use("alignkit-hir/instruction_contrast", label_smoothing=self.contrastive_smoothing)
        return {"contrast": contrast, "entropy_bonus": token_entropy}

    def initial_state(self) -> dict[str, Any]:
        return {"earlier": []}

    def prepare(  # the engine passes what is named here
        self,
        groups: Groups,
        state: Mapping[str, Any],
        *,
        measure: Callable[..., Mapping[str, Tensor]],
        reward_name: str | None = None,
    ) -> Batch:
        """Each sample under the instruction that it follows and, as its pair, under another one.

        Args:
            groups: this round's samples, scored.
            state: relabelled samples of earlier rounds.
            reward_name: whose score says whether an answer is right.
            measure: for the tokens of what is learned from.

        Raises:
            DataError: a program can verify nothing of any response.
        """
        samples = list(samples_of(groups, reward_name))
        told = self._told(samples)
        fresh = distinct([relabelled_rows(one, what) for one, _, what in told])
        learned = distinct([*fresh, *state["earlier"]])
        if not learned:
            raise self._nothing_verifiable(samples)
        batch = paired(learned)
        mask = measure(batch.groups)["response_mask"] & follows(batch.groups).unsqueeze(1)
        metrics = {
            "followed": sum(what.achieved == sample.asked for _, sample, what in told) / max(len(told), 1),
            "verifiable": len(told) / len(samples),
            "contrasted": len(batch.pairs or ()) / len(learned),
            "replayed": float(len(learned) - len(fresh)),
        }
        later = {"earlier": [[remembered(row) for row in rows] for rows in learned[: self.replay]]}
        return replace(batch, tensors={"hindsight_mask": mask}, metrics=metrics, state=later)

    def _told(self, samples: Sequence[tuple[Row, Sample]]) -> list[tuple[Row, Sample, Relabelled]]:
        """The samples of which a program can tell what they achieved."""
        relabel = relabelling(self.relabel, self.threshold)
        whole = [each for each in samples if each[1].finished is not False or not self.require_finished]
        return [(one, sample, what) for one, sample in whole if (what := relabel(sample)) is not None]

    def _nothing_verifiable(self, samples: Sequence[tuple[Row, Sample]]) -> DataError:
        cut = sum(sample.finished is False for _, sample in samples)
        return DataError(
            f"of {len(samples)} responses a program can verify nothing ({cut} of them were cut off)",
            where="hir",
            effect="There is no instruction to relabel them with, so nothing was learned.",
            remedy="use prompts whose instructions or answers a program checks (suites embedded, gsm8k, bbh_hir), "
            "raise max_new_tokens, or pass relabel=a function",
        )


def samples_of(groups: Groups, reward_name: str | None) -> Sequence[tuple[Row, Sample]]:
    """Every response on its own: the row it makes, without a prompt, and what a relabelling is told of it."""
    scores = groups.rewards(reward_name) if reward_name is not None else None
    out = []
    for i, row in enumerate(groups):
        asked = Asked(row["prompt"], json.loads(row["meta"]) if row["meta"] else {})
        for k, response in enumerate(row["responses"]):
            known = {n: [row[n][k]] for n in ("responses", "response_ids", "finished") if row[n] is not None}
            one = {**known, **{name: row[name] for name in ("tags", "tokenizer", "iteration")}}
            score = scores[0][i][k] if scores is not None and scores[1][i][k] else None
            out.append((one, Sample(asked, response, row["finished"][k] if row["finished"] else None, score)))
    return out


def relabelled_rows(one: Row, what: Relabelled) -> list[Row]:
    """The response under the instruction that it follows, and under the other one if there is one."""
    asked = [(what.achieved, True)] + ([(what.other, False)] if what.other is not None else [])
    return [
        {**one, "prompt": list(each.messages), "meta": dict(each.meta), "labels": [follows_it]}
        for each, follows_it in asked
    ]


def remembered(row: Row) -> Row:
    """What is needed of a row to learn from it again."""
    return {name: value for name, value in row.items() if name not in ("meta", "tags", "iteration")}


def distinct(samples: Sequence[list[Row]]) -> list[list[Row]]:
    """Each relabelled response once, in order, as the reference keeps the unique ones."""
    unique: dict[str, list[Row]] = {}
    for rows in samples:
        unique.setdefault(json.dumps([rows[0]["prompt"], rows[0]["responses"]]), rows)
    return list(unique.values())


def paired(samples: Sequence[list[Row]]) -> Batch:
    """One group for each prompt, which is then computed once for all its responses; a pair joins a response's two
    places."""
    by_prompt: dict[str, list[Row]] = {}
    places: list[list[tuple[str, int]]] = []
    for rows in samples:
        keys = [json.dumps(row["prompt"]) for row in rows]
        places.append([(key, len(by_prompt.setdefault(key, []))) for key in keys])
        for key, row in zip(keys, rows, strict=True):
            by_prompt[key].append(row)
    first = dict(zip(by_prompt, accumulate(map(len, by_prompt.values()), initial=0), strict=False))
    numbers = [[first[key] + k for key, k in place] for place in places]
    pairs = [(each[0], each[1]) for each in numbers if len(each) == 2]
    return Batch(Groups.from_rows([merged(rows) for rows in by_prompt.values()]), pairs=pairs)


def merged(rows: Sequence[Row]) -> Row:
    """Rows of one response each, to the same prompt, as one row."""
    known = [
        n for n in ("responses", "response_ids", "finished", "labels") if all(row.get(n) is not None for row in rows)
    ]
    shared = {name: rows[0].get(name) for name in ("prompt", "meta", "tags", "tokenizer", "iteration")}
    return {**shared, **{name: [value for row in rows for value in row[name]] for name in known}}


def follows(groups: Groups) -> Tensor:
    """[responses] bool: which of them follow the instruction that they stand under."""
    return torch.tensor([bool(label) for row in groups for label in row["labels"]])


@dataclass(frozen=True)
class Hindsight:
    """A transform: samples to demonstrations of what they did achieve, for supervised fine-tuning or to read.

    Args:
        relabel: as in `HIR`.
        threshold: as in `HIR`, negative where scores are.
        reward: the name of the column that says whether an answer is right; None where no score is needed.
    """

    relabel: Any = "verifiable"
    threshold: float = 0.5
    reward: str | None = None

    def __post_init__(self) -> None:
        check_values(self)
        relabelling(self.relabel, self.threshold)

    def __call__(self, groups: Groups, _ctx: Any = None) -> Groups:
        """The samples of which a program can tell, each a group of one response under its instruction."""
        relabel = relabelling(self.relabel, self.threshold)
        told = [(one, relabel(sample)) for one, sample in samples_of(groups, self.reward)]
        return Groups.from_rows([relabelled_rows(one, what)[0] for one, what in told if what is not None])


@hookimpl
def register_losses(register: Register) -> None:
    register("label_smoothed_nll", label_smoothed_nll)
    register("instruction_contrast", instruction_contrast)


@hookimpl
def register_optimizers(register: Register) -> None:
    register("hir", HIR)


@hookimpl
def register_transforms(register: Register) -> None:
    register("hindsight", Hindsight)

"""Optimizers of comparisons: `dpo` learns from those that it is given, `online_dpo` from those of its own samples.

Rafailov et al. 2023 (DPO, arXiv 2305.18290); Guo et al. 2024 (OAIF: online AI feedback, arXiv 2402.04792). Which loss
is minimised is a field; each takes any loss of pairs, of this distribution or another's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from alignkit.plugin import (
    VOCABULARY,
    Batch,
    Component,
    ConfigError,
    Groups,
    MetricSpec,
    NothingToLearnError,
    PolicyOptimizer,
    Term,
    parse,
    rank_by_reward,
    take_responses,
    use,
)
from alignkit_dpo.losses import PAIR_LOSSES


def settings_of(loss: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a loss, as far as they can be known here: what was written, and our own losses' defaults.

    Args:
        loss: a name, a configured component or a function.
        own: our losses by name.
    """
    spec = parse(loss) if isinstance(loss, str) else loss
    given = spec.params if isinstance(spec, Component) else {}
    known = own.get(_bare(spec)) if isinstance(spec, Component) else spec
    parameters = inspect.signature(known).parameters if callable(known) else {}
    return {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} | given


def tensors_of(loss: Any, own: Mapping[str, Any]) -> set[str]:
    """The tensors that a loss asks for, as far as they can be known here; none of another's loss by name.

    Args:
        loss: a name, a configured component or a function.
        own: our losses by name.
    """
    spec = parse(loss) if isinstance(loss, str) else loss
    known = own.get(_bare(spec)) if isinstance(spec, Component) else spec
    parameters = inspect.signature(known).parameters if callable(known) else {}
    return {n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}


def _bare(spec: Component) -> str:
    """The loss's name if it may be one of ours."""
    distribution, _, name = spec.name.rpartition("/")
    return name if distribution in ("", "alignkit-dpo") else ""


def try_out(loss: Any, own: Mapping[str, Any]) -> None:
    """Call one of our losses on zeros, so that a bad hyper-parameter is refused before any sampling.

    Args:
        loss: a name, a configured component or a function.
        own: our losses by name.

    Raises:
        ConfigError: what the loss finds wrong.
    """
    spec = parse(loss) if isinstance(loss, str) else loss
    known = own.get(_bare(spec)) if isinstance(spec, Component) else None
    parameters = dict(inspect.signature(known).parameters) if known else {}
    if known is None or not set(spec.params) <= set(parameters):
        return  # another's loss; or a hyper-parameter that the host will refuse, with its suggestions
    tensors = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    wide = [name for name in tensors if name in VOCABULARY and VOCABULARY[name].level in ("token", "mask")]
    known(**{name: torch.zeros((1, 1) if name in wide else (1,)) for name in tensors}, **spec.params)


def given_only(optimizer: PolicyOptimizer, where: str, remedy: str) -> None:
    """Refuse to sample with a method that learns from what it is given.

    Raises:
        ConfigError: `samples_per_prompt` is not 0.
    """
    if optimizer.samples_per_prompt:
        what = f"samples_per_prompt={optimizer.samples_per_prompt}, and {where} learns from responses that it is given"
        raise ConfigError(what, where=where, remedy=remedy)


SIDE_LOGS: Mapping[str, MetricSpec] = {
    "chosen_logprobs": MetricSpec(
        "log-prob of the chosen responses, summed over tokens",
        "it falls together with `rejected_logprobs`: the margin grows while good answers become unlikely; a smaller "
        "rate, a larger β, or a weight on the NLL of the chosen ones",
        unit="nats",
    ),
    "rejected_logprobs": MetricSpec("the same of the rejected ones", unit="nats"),
    "chosen_rewards": MetricSpec("implied reward of the chosen: β (log π − log π_ref) where there is a reference"),
    "rejected_rewards": MetricSpec("the same of the rejected ones"),
    "margins": MetricSpec("chosen − rejected implied reward", "flat at 0: nothing is learned", better="up"),
}
"""What is logged of the two sides, of pairs or of labels."""


@dataclass(frozen=True)
class PreferenceOptimizer(PolicyOptimizer):
    """What `dpo` and `online_dpo` share: a loss of pairs, an optional NLL on the chosen ones, and what is logged.

    The loss of a prompt is the mean over its pairs, so that a ranking of nine weighs no more than one comparison.

    Args:
        loss: of pairs; "dpo" or another.
        nll_coef: weight of -log pi(chosen) per token (Pang et al. 2024); 0 only logs it.
    """

    loss: Any = "dpo"
    nll_coef: float = 0.0

    logs: ClassVar[Mapping[str, MetricSpec]] = {
        **SIDE_LOGS,
        "chosen_nll": MetricSpec("−log π of the chosen response, nats per token", "it rises: see `chosen_logprobs`"),
        "pairs": MetricSpec("pairs learned from in the round"),
        "tied_prompts": MetricSpec("prompts whose samples tie, left out", "most of them: ranks are too coarse"),
        "unscored_prompts": MetricSpec("prompts without two scores, left out", "any number beyond a few"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nll_coef < 0:
            raise ConfigError(f"nll_coef={self.nll_coef} must not be negative", where=type(self).__name__)
        try_out(self.loss, PAIR_LOSSES)

    def terms(self) -> Mapping[str, Term]:
        return {"loss": Term(reduction="group"), "chosen_nll": Term(weight=self.nll_coef, reduction="group")}

    def extra_losses(self) -> Mapping[str, Any]:
        settings, asked = settings_of(self.loss, PAIR_LOSSES), tensors_of(self.loss, PAIR_LOSSES)
        statistics = use(
            "alignkit-dpo/preference_statistics",
            beta=settings.get("beta", settings.get("alpha", 1.0)),
            per_token="chosen_lengths" in asked and settings.get("mean", True),
            referenced=not asked or "ref_chosen_logprobs" in asked,
        )
        return {"chosen_nll": use("alignkit-dpo/chosen_nll"), "statistics": statistics}


@dataclass(frozen=True)
class DPO(PreferenceOptimizer):
    """Learn from comparisons that are there already: every two responses of a prompt whose ranks differ make a pair.

    Args:
        samples_per_prompt: 0; for samples there is `online_dpo`.
        batch_size: 64, DPO's appendix B.
        learning_rate: 1e-6 there (with RMSprop; here AdamW, as everybody since).
        warmup_ratio: 150 steps there; as a share 0.1 (ours).
    """

    samples_per_prompt: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-6
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        given_only(self, "dpo", "use online_dpo")

    @property
    def logprob_temperature(self) -> float:
        return 1.0  # whatever the temperature that somebody sampled the responses at

    def prepare(self, groups: Groups, state: Mapping[str, Any]) -> Batch:
        """The groups in which something is better than something else.

        Args:
            groups: with `ranks`.
            state: unused.

        Raises:
            NothingToLearnError: none of them holds a pair.
        """
        return pairs_only(groups, [list(range(size)) for size in groups.sizes()], "dpo")


@dataclass(frozen=True)
class OnlineDPO(PreferenceOptimizer):
    """Sample, have the samples ranked, learn from the best against the worst of each prompt, and again (OAIF).

    The ranks are those of the annotator that `improve` was given, else of the reward. Prompts whose samples all tie
    teach nothing and are left out of the round.

    Args:
        samples_per_prompt: 2 in OAIF.
        prompts_per_round: as many as a step takes, so that each step learns from the policy's own samples, as in OAIF.
        batch_size: 64 (ours).
        rounds: 10 (ours).
        temperature: of sampling and of the log-probs; 0.9 in TRL 1.16's trainer of the same name.
        learning_rate: 5e-7 there.
        warmup_ratio: 0.1 (ours).
    """

    samples_per_prompt: int = 2
    prompts_per_round: int = 64
    batch_size: int = 64
    rounds: int = 10
    temperature: float = 0.9
    learning_rate: float = 5e-7
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 2:
            raise ConfigError(
                f"samples_per_prompt={self.samples_per_prompt}, and a comparison takes two",
                where="online_dpo",
                remedy="use 2 or more, or dpo for comparisons that are there already",
            )

    @property
    def own_samples(self) -> bool:
        return True

    def prepare(
        self, groups: Groups, state: Mapping[str, Any], *, annotated: bool, reward_name: str | None = None
    ) -> Batch:
        """The best and the worst sample of each prompt; of equals the first.

        Args:
            groups: this round's samples, ranked by an annotator or scored.
            state: unused.
            annotated: whether an annotator has ranked them; it goes before the reward.
            reward_name: the reward that ranks them otherwise.

        Raises:
            NothingToLearnError: every prompt's samples tie.
        """
        ranked = groups if annotated or reward_name is None else rank_by_reward(groups, reward_name)
        batch = pairs_only(ranked, [best_and_worst(ranks) for ranks in ranked.column("ranks")], "online_dpo")
        left_out = {"tied_prompts": len(ranked) - len(batch.groups), "unscored_prompts": len(groups) - len(ranked)}
        return Batch(batch.groups, metrics={**batch.metrics, **{name: float(n) for name, n in left_out.items()}})


def best_and_worst(ranks: list[int]) -> list[int]:
    """The places of the best and of the worst response, lower place first; of equals the first.

    Args:
        ranks: [K], 1 is best.
    """
    places = range(len(ranks))
    return sorted({min(places, key=lambda k: ranks[k]), max(places, key=lambda k: ranks[k])})


def pairs_only(groups: Groups, kept: list[list[int]], where: str) -> Batch:
    """Those responses of the groups that were kept, without the groups in which no rank differs.

    Args:
        groups: with `ranks`.
        kept: [groups], places of the responses to keep.
        where: the optimizer, for the error.

    Returns:
        a batch; `pairs` is logged. Of groups that stay whole it is the same object, whose tensors the engine has.

    Raises:
        NothingToLearnError: nothing is left.
    """
    said = groups.column("ranks")
    ranks = [[own[k] for k in places] if own else [] for own, places in zip(said, kept, strict=True)]
    chosen = [places if len(set(r)) > 1 else [] for r, places in zip(ranks, kept, strict=True)]
    pairs = sum(a < b for r in ranks for a in r for b in r)
    if not pairs:
        unranked = sum(not own for own in said)
        raise NothingToLearnError(
            f"{len(groups)} prompts and no comparison: {unranked} without ranks, the others' responses all tie",
            where=where,
            effect="There is nothing to learn from.",
            remedy="give groups with ranks (run.annotate, read_groups), or sample more or hotter",
        )
    whole = all(c == list(range(size)) for c, size in zip(chosen, groups.sizes(), strict=True))
    return Batch(groups if whole else take_responses(groups, chosen), metrics={"pairs": float(pairs)})

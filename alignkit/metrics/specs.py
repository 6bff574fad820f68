"""What each number is, declared once: the page, the table, the docs and the listings read it. Needs no torch.

Here are the numbers of the core. What a method logs beyond them, its optimizer declares as `logs`; a metric has its
declaration as `spec`. `<name>` in a name stands for any text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["up", "down"]
Place = Literal["first", "folded", "last"]


@dataclass(frozen=True)
class MetricSpec:
    """What a number is.

    Args:
        doc: what it is, with the estimator where there are several.
        bad: what is wrong when: how a bad value looks, and what it means.
        title: over its curve; default its name.
        unit: "nats", "tokens" …; "share" for a part of 1, shown in per cent; empty where it has none.
        better: which way is good; None where neither is.
        place: of its curve on the page: "first", "folded" away, or "last" of those.
        head: over its column in the table of versions; default its name.
    """

    doc: str
    bad: str = ""
    title: str = ""
    unit: str = ""
    better: Better | None = None
    place: Place = "folded"
    head: str = ""

    def caption(self, name: str) -> str:
        """Title (or name) and unit, as over a curve."""
        unit = f" ({self.unit})" if self.unit not in ("", "share") else ""
        return f"{self.title or name}{unit}"

    @property
    def about(self) -> str:
        """What it is and how a bad value looks, as one text."""
        return f"{self.doc}. Bad: {self.bad}" if self.bad else self.doc

    def to_json(self) -> dict[str, Any]:
        """As a stage keeps the declarations of what it logged beyond the core's."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}

    @classmethod
    def from_json(cls, data: Any) -> MetricSpec:
        """What a stage kept; fields that are unknown or of another type are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        items = data.items() if isinstance(data, dict) else ()
        texts: dict[str, Any] = {key: value for key, value in items if key in known and isinstance(value, str)}
        return cls(**{"doc": "", **texts})


RATIOS: Mapping[str, MetricSpec] = {
    "ratio": MetricSpec(
        "mean of π / π_old over the learned tokens; exactly 1 before the first step of a round",
        "not 1 at that step: old log-probs are not those of the policy. Far from 1 later (0.8, 1.2 as a mean): steps "
        "are too large, or too many epochs on one round",
        title="Ratio to the sampling policy",
        place="first",
    ),
    "clip_fraction": MetricSpec(
        "share of tokens where the clip is active",
        "0 throughout: steps could be larger. Above about 0.3: most of the batch no longer pushes; lower the learning "
        "rate or the epochs",
        title="Share clipped",
        unit="share",
        place="first",
    ),
}
"""Of methods that weigh their samples by π / π_old and clip it: for their `logs`."""

STEPS: dict[str, MetricSpec] = {
    "loss": MetricSpec(
        "the weighted sum of the loss terms, reduced with global counts: the same number whatever the micro-batch",
        "it is not finite (the step is not taken and the stage stops); it grows over a stage that minimises a "
        "likelihood. The loss of a policy gradient hovers around zero and says nothing of progress: read the reward",
        title="Loss",
        place="first",
    ),
    "lr": MetricSpec(
        "the learning rate of the step",
        "it is zero from the start, or never leaves warm-up: too few steps for the schedule",
        place="last",
    ),
    "grad_norm": MetricSpec(
        "norm of the gradient before clipping",
        "spikes of ten times the median (look at the rows of that step); always far above the clipping limit: every "
        "step is a clipped one, and the learning rate means something else; exactly 0: nothing is trained",
        place="last",
    ),
    "useful_tokens": MetricSpec(
        "share of the tokens that went through the model that are no padding; 1 where rows are packed",
        "below about 0.8: rows of unlike lengths are padded to the longest; a larger batch_size gives like ones to put "
        "together, a smaller max_tokens keeps unlike ones apart",
        title="Share of tokens that are no padding",
        unit="share",
        better="up",
        place="last",
    ),
}
"""Of every training stage, per optimizer step."""

ROUNDS: dict[str, MetricSpec] = {
    "reward_mean": MetricSpec(
        "mean raw score of the round's responses (log-odds of a reward model, never a probability)",
        "flat: no signal, or the KL term is too strong. Rising while the held-out score or `gold` falls: the reward "
        "model is being exploited",
        title="Reward, mean",
        better="up",
        place="first",
    ),
    "reward_std": MetricSpec(
        "spread over the round's responses",
        "near 0: all responses score alike, and advantages are noise",
        title="Reward, spread",
        place="first",
    ),
    "reward_<name>_mean": MetricSpec(
        "mean of each other score that the round's responses carry, such as a part of a combined reward",
        "one part falls while the total rises",
        better="up",
    ),
    "reward_<name>_std": MetricSpec("its spread over the round's responses", "near 0: the part tells nothing apart"),
    "kl_per_sequence": MetricSpec(
        "distance from the reference: log π − log π_ref summed over a response (estimator **k1**), averaged. Unbiased, "
        "so single values may be negative",
        "clearly negative means: the sampling and the trained policy differ (temperature, truncation). Beyond about 10 "
        "nats expect text that pleases the reward model only. Exactly 0 after the first round: nothing is learned, or "
        "the reference moves along",
        title="KL per response",
        unit="nats",
        better="down",
        place="first",
    ),
    "kl_per_token": MetricSpec(
        "the same as the mean over sampled tokens",
        "as above; beyond 0.1 to 0.2 it is far from the reference",
        title="KL per token",
        unit="nats",
        better="down",
        place="first",
    ),
    "sampler_mismatch": MetricSpec(
        "|log π as sampled − log π on the training path| of a sampled token, averaged: what rounding, a faster type or "
        "another engine makes of one policy",
        "in float32 above 0.0001, in bfloat16 above 0.05: the sampler is not the policy that is trained (its weights, "
        "its temperature, its tokens)",
        title="Sampler and trainer, mean gap",
        unit="nats",
        better="down",
    ),
    "sampler_mismatch_max": MetricSpec(
        "the largest of these gaps",
        "above 1: some ratios are far from 1 before the first step; see `importance_cap`",
        title="Sampler and trainer, largest gap",
        unit="nats",
        better="down",
    ),
    "sampler_kl": MetricSpec(
        "KL of the sampler from the training path (estimator **k1**, per token), on the round's samples",
        "above 0.01: what is learned from was drawn by another distribution",
        title="Sampler and trainer, KL per token",
        unit="nats",
        better="down",
    ),
    "response_length": MetricSpec(
        "length of a response, EOS included",
        "it drifts in one direction with the reward: length is what is rewarded. It sits at the limit",
        title="Response length",
        unit="tokens",
        place="first",
        head="tokens",
    ),
    "eos_rate": MetricSpec(
        "share of responses that ended by themselves",
        "below about 0.9, or falling: responses are cut, and their scores are scores of fragments",
        title="Share that ends by itself",
        unit="share",
        better="up",
        place="first",
    ),
    "entropy": MetricSpec(
        "of the policy's next-token distribution",
        "it falls towards 0: collapse onto a few answers. It rises steadily: the policy is being pushed towards noise",
        title="Entropy",
        unit="nats per token",
        place="first",
    ),
}
"""Of policy improvement, per round (`entropy` per step)."""

COMPARISONS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(
        "share of pairs whose chosen response scores strictly higher; overall and as `accuracy_<rating>`. Held-out "
        "ones with Wilson's interval, those of a step on the pairs that are being learned from",
        "held out, the interval holds 50%: it has learned nothing. On human comparisons 60 to 75% is usual; 95% "
        "suggests leakage, or a shortcut such as length. On the steps much above the held-out accuracy: too many "
        "epochs, or too few comparisons",
        title="Accuracy on the batch",
        unit="share",
        better="up",
        place="first",
    ),
    "accuracy_<rating>": MetricSpec(
        "the same for *significantly better*, *better*, *slightly better*, *negligibly better / unsure*",
        "it should fall along this order. The last level near 50% is as it should be; the first level near 50% is a "
        "broken model or a swapped column",
        unit="share",
        better="up",
    ),
    "calibration_error": MetricSpec(
        "expected calibration error over held-out pairs: how far σ(score of the preferred − score of the other) lies "
        "from the share of pairs in which the preferred one is the chosen, over equal bins of that confidence. A tie "
        "counts as wrong",
        "above about 0.1: differences of scores are no log-odds. A model that is right and says so too loudly misleads "
        "whatever weighs rewards (a KL coefficient, a threshold); with few pairs it is biased upwards",
        title="Calibration error",
        unit="share",
        better="down",
    ),
    "ties": MetricSpec(
        "held-out pairs with equal scores; they count as wrong and are told apart",
        "any number beyond a few: responses are truncated to the same tokens, or the model is constant",
        unit="pairs",
        better="down",
    ),
}
"""Of reward models."""

ANSWERS: dict[str, MetricSpec] = {
    "kl": MetricSpec(
        "log π − log π_ref summed over a response (k1), averaged; with a `reference`",
        "as above; compare versions by score *and* KL",
        title="KL to the reference",
        unit="nats per response",
        better="down",
        place="first",
        head="KL",
    ),
    "response_length": ROUNDS["response_length"],
    "finished": MetricSpec(
        "share of answers that ended by themselves", "as above", title="Share that ends by itself", unit="share",
        better="up", head="ended",
    ),
}  # fmt: skip
"""Of every evaluation: kept per answer in `evaluation.jsonl`, and averaged over prompts."""

ASKED: dict[str, MetricSpec] = {
    "perplexity": MetricSpec(
        "exp of the mean negative log-likelihood per token of the answers under the policy, at temperature 1",
        "near 1: the policy is sure of all it says. Of given answers, rising: the policy has moved away from such text",
        title="Perplexity",
        place="first",
        head="perplexity",
    ),
    "self_bleu": MetricSpec(
        "how alike several answers to one prompt are: BLEU-4 of each against the others (Zhu et al. 2018), over words",
        "it rises towards 1: the answers to a prompt are one answer, and choosing among them gains nothing",
        title="Self-BLEU",
        better="down",
        place="first",
        head="self-BLEU",
    ),
    "distinct": MetricSpec(
        "distinct n-grams of words among all n-grams of the answers to a prompt (Li et al. 2016); `n` is 2",
        "it falls: answers repeat themselves or one another. It falls with length too: compare at equal lengths",
        title="Distinct n-grams",
        unit="share",
        better="up",
        place="first",
        head="distinct",
    ),
}
"""Of evaluations that ask for them by `metrics=`."""

CORE: dict[str, MetricSpec] = {**ROUNDS, **STEPS, **COMPARISONS, **ANSWERS, **ASKED}
"""All of the core, in the order in which curves are shown."""


def spec_of(name: str, more: Mapping[str, MetricSpec] | None = None) -> MetricSpec | None:
    """The declaration of a logged name, or None: nobody declared it.

    Args:
        name: as logged; `reward_safety_mean` is declared by `reward_<name>_mean`.
        more: declarations beyond the core's.
    """
    known = {**CORE, **(more or {})}
    if name in known:
        return known[name]
    patterns = ((re.sub(r"<\w+>", r"\\w+", declared), spec) for declared, spec in known.items() if "<" in declared)
    return next((spec for pattern, spec in patterns if re.fullmatch(pattern, name)), None)

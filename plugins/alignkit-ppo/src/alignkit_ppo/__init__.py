"""PPO for language models: clipped surrogate and value loss, the KL to the reference taken off each token's reward.

Sources: Schulman et al. 2017 (arXiv 1707.06347, PPO); Ziegler et al. 2019 (arXiv 1909.08593, the KL in the reward) with
its code openai/lm-human-preferences; Huang et al. 2024 (arXiv 2403.17031, "The N+ Implementation Details"); Touvron et
al. 2023 (arXiv 2307.09288, Llama 2, section 3.2.3).

How a score becomes an advantage, in this order:
1. R~ = whiten(R) over the round, if `whiten_scores` (Llama 2: whiten(logit(R_c)); raw scores are logits already);
2. a response without EOS has its score replaced (OpenAI, N+) or lowered (TRL), in the units that step 1 left;
3. r_t = -beta k1_t on every token, and the score is added once, on the last (Ziegler et al., eq. 2);
4. r is scaled to unit variance without moving its mean, if `whiten_rewards` (OpenAI);
5. A = GAE(r, V), and the returns are A + V;
6. A is whitened over the tokens of the round, if `whiten_advantages`; the returns keep the units of the reward.

With `ptx_coef` every step also learns from plain text: InstructGPT's pretraining mix (Ouyang et al. 2022, arXiv
2203.02155, eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.plugin import (
    RATIOS,
    Batch,
    Component,
    ConfigError,
    Groups,
    MetricSpec,
    PolicyOptimizer,
    Register,
    ScoreAt,
    Stream,
    Term,
    clipped_surrogate,
    explained_variance,
    gae,
    hookimpl,
    k1,
    k3,
    masked_mean,
    masked_sum,
    masked_var,
    parse,
    score_at_last,
    score_index,
    take_present,
    use,
    whiten,
)

MAX_KL_ERROR = 0.2
"""How much of the KL's relative error the adaptive coefficient answers to (Ziegler et al. 2019, section 2.2)."""

LOGS = {
    "policy_loss": MetricSpec("the clipped surrogate", "as `loss`: it says nothing of progress"),
    "value_loss": MetricSpec(
        "squared error of the values, in squared units of the return",
        "it grows with the reward's scale: whiten the rewards",
        better="down",
    ),
    **RATIOS,
    "value_clip_fraction": MetricSpec("the same of the values", "above about 0.3: values cannot follow", unit="share"),
    "approx_kl": MetricSpec(
        "movement within the round, from π_old, per token (k3; another quantity than the KL to the reference)",
        "above its target (0.01 to 0.05): the round's epochs should stop early",
        unit="nats",
    ),
    "step_kl": MetricSpec("`approx_kl`, where the loss does not bring it", "as `approx_kl`", unit="nats"),
    "explained_variance": MetricSpec(
        "1 − Var(returns − values) / Var(returns): how much of the returns the value model predicts",
        "below 0 after the first rounds: values are worse than a constant; train them longer or with a larger rate. "
        "Near 1 at once: the returns hold no news",
        title="Explained variance of values",
        better="up",
        place="first",
    ),
    "kl_per_token_k3": MetricSpec(
        "the KL to the reference by the estimator k3, never negative and with less variance",
        "it lies far from `kl_per_token`: few tokens dominate, trust neither",
        unit="nats",
        better="down",
    ),
    "kl_coef": MetricSpec(
        "the coefficient in force, where it adapts",
        "it runs off to 0 or without bound: the target cannot be reached at this learning rate",
    ),
    "missing_eos": MetricSpec(
        "share of the round that did not end",
        "more than a few percent: raise the token limit",
        unit="share",
        better="down",
    ),
    "dropped_responses": MetricSpec(
        "responses without a score, left out of the round", "more than a few percent: look at why", better="down"
    ),
    "responses": MetricSpec("responses learned from in the round"),
    "score_mean": MetricSpec("scores after whitening and what missing ends cost", "see `reward_mean`"),
    "score_std": MetricSpec("their spread", "near 0: advantages are noise"),
    "return_mean": MetricSpec("mean return over tokens: score − β × KL still to come"),
    "advantage_std": MetricSpec("spread of the advantages before whitening", "near 0: nothing to learn"),
    "ptx": MetricSpec("−log π per token of the pretraining mix, nats", "it rises: the policy forgets", better="down"),
}
"""What is logged of each step and round, beyond what every method logs."""


def ppo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip_range: float = 0.2,
    value_clip_range: float | None = 0.2,
) -> dict[str, Tensor]:
    """PPO's terms, each [responses, tokens], unreduced.

    policy_loss = max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) with rho = pi / pi_old (Schulman et al. 2017, eq. 7);
    value_loss = max((V - R)^2, (clip(V, V_old +- eps_v) - R)^2) / 2 (openai/lm-human-preferences). The others are for
    the eye: ratio, clip_fraction and value_clip_fraction (where clipping decided), approx_kl (k3, pi_old to pi, nats).

    Args:
        logprobs: [responses, tokens], nats, at the sampler's temperature.
        old_logprobs: the same before the round's first step.
        advantages: [responses, tokens].
        values: [responses, tokens], in units of the returns.
        old_values: the same before the round's first step.
        returns: [responses, tokens].
        clip_range: eps.
        value_clip_range: eps_v, in units of the returns; None does not clip.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    policy_loss = clipped_surrogate(ratio, advantages, clip_range, clip_range)
    limit = float("inf") if value_clip_range is None else value_clip_range
    if not limit >= 0:
        raise ConfigError(f"value_clip_range={value_clip_range} must not be negative", where="ppo")
    moved, unclipped = values - old_values, (values - returns) ** 2
    clipped = (old_values + moved.clamp(-limit, limit) - returns) ** 2
    return {
        "policy_loss": policy_loss,
        "value_loss": 0.5 * torch.max(unclipped, clipped),
        "ratio": ratio.detach(),
        "clip_fraction": (policy_loss > -advantages * ratio).to(ratio.dtype),
        # Within its range V_old + (V - V_old) is V but for rounding, which is no clipping.
        "value_clip_fraction": ((moved.abs() > limit) & (clipped > unclipped)).to(ratio.dtype),
        "approx_kl": step_kl(logprobs, old_logprobs),
    }


def step_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """k3 of the movement within the round, pi_old to pi: what `target_kl` looks at with a loss that is not `ppo`.

    Args:
        logprobs: [responses, tokens], nats.
        old_logprobs: the same before the round's first step.

    Returns:
        [responses, tokens], nats, without gradient.
    """
    return k3(old_logprobs, logprobs.detach())


def token_rewards(
    scores: Tensor,
    kl: Tensor,
    mask: Tensor,
    kl_coef: float,
    score_at: ScoreAt = "last",
    ended: Tensor | None = None,
) -> Tensor:
    """-beta KL_t on every token of the response, and its score once (Ziegler et al. 2019, eq. 2).

    Args:
        scores: [responses].
        kl: [responses, tokens], k1 in nats.
        mask: [responses, tokens] response_mask.
        kl_coef: beta.
        score_at: see `alignkit.functional.score_index`.
        ended: [responses] bool, see there.

    Returns:
        [responses, tokens]; a row's sum is its score - beta x its KL.
    """
    return score_at_last(scores, mask, score_at, ended) - kl_coef * kl.where(mask.bool(), 0)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, responses: float, horizon: float) -> float:
    """beta (1 + clip(KL / target - 1, +-0.2) n / horizon), the controller of Ziegler et al. 2019, section 2.2.

    Args:
        kl_coef: beta of the round.
        kl: its KL per sequence (k1), nats.
        target: where KL should be, nats.
        responses: n, how many the round had.
        horizon: responses over which beta may change by a fifth.
    """
    error = min(max(kl / target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_coef * (1 + error * min(responses / horizon, 1.0))  # a round longer than the horizon never makes beta < 0


@dataclass(frozen=True)
class PPO(PolicyOptimizer):
    """PPO with a KL per token in the reward, GAE and a learned value. Defaults are those of N+ (TL;DR).

    Args:
        loss: "ppo" with the ranges below; any other loss on the same tensors may take its place.
        prompts_per_round: sampled in each round.
        batch_size: prompts per step; equal to `prompts_per_round` it is one minibatch, as in OpenAI's code and N+.
        epochs: passes over a round.
        temperature: of sampling and of every log-prob.
        kl_coef: beta; with `kl_target` where it starts.
        kl_target: KL per sequence in nats that beta is steered to (OpenAI: 6); None keeps beta fixed.
        kl_horizon: how many responses that takes, see `adapted_kl_coef`.
        clip_range: eps of the surrogate.
        value_clip_range: eps_v, in units of the returns; None does not clip.
        vf_coef: weight of the value loss.
        gamma: discount per token.
        gae_lambda: of GAE.
        whiten_scores: whiten the raw scores over the round before the KL is taken off (Llama 2).
        whiten_rewards: scale the token rewards to unit variance, mean kept (OpenAI sentiment; off in N+ TL;DR).
        whiten_advantages: "round" (over its tokens, as N+) or "none". OpenAI whitens each minibatch: with one minibatch
            a round the two are the same, otherwise it would make the gradient depend on the batch it is computed in.
        missing_eos_replacement: the score of a response without EOS (OpenAI and N+: -1, for scores of mean 0 and
            deviation 1); None leaves it.
        missing_eos_penalty: taken off the score of a response without EOS (TRL), not negative; None leaves it.
        target_kl: end the round when `approx_kl` of a step exceeds this, nats per token; None never does. With another
            loss than "ppo" the same is measured as `step_kl`.
        score_at: "last" puts the score on the last token of the response; "after_eos" one later where it
            ended with EOS, as N+ and TRL do, from where it reaches EOS through GAE with one factor gamma lambda more
            (the value there counts as 0).
        ptx_coef: gamma of the pretraining mix, gamma x the mean over tokens of -log pi(text); needs
            `Run.improve(streams={"ptx": …})`. InstructGPT: 27.8 (appendix C.4); 0 is PPO alone.
        ptx_batch_size: texts of each step. InstructGPT drew 8 times as many as it had episodes.
    """

    loss: Any = "ppo"
    rounds: int = 10
    prompts_per_round: int = 64
    batch_size: int = 64
    epochs: int = 4
    temperature: float = 0.7
    learning_rate: float = 3e-6
    schedule: str = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_scores: bool = False
    whiten_rewards: bool = False
    whiten_advantages: str = "round"
    missing_eos_replacement: float | None = None
    missing_eos_penalty: float | None = None
    target_kl: float | None = None
    score_at: ScoreAt = "last"
    ptx_coef: float = 0.0
    ptx_batch_size: int = 16

    search: ClassVar[Mapping[str, Any]] = {**PolicyOptimizer.search, "kl_coef": (1e-3, 0.3, "log"), "epochs": (1, 4)}
    logs: ClassVar[Mapping[str, MetricSpec]] = LOGS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        ranges = {"clip_range": self.clip_range, "value_clip_range": self.value_clip_range}
        loss = parse(self.loss) if isinstance(self.loss, str) else self.loss
        if isinstance(loss, Component) and loss.name in ("ppo", "alignkit-ppo/ppo"):
            twice = [name for name, value in loss.params.items() if ranges.get(name, value) != value]
            if twice:
                self._refuse(f"{twice[0]} is given by the loss and the optimizer", 'set it here, and leave loss="ppo"')
            object.__setattr__(self, "loss", use("alignkit-ppo/ppo", **ranges))

    def _check(self) -> None:
        """Refuse what no source means."""
        for name in ("gamma", "gae_lambda", "clip_range"):
            if not 0 <= getattr(self, name) <= 1:  # a ratio is never below 0
                self._refuse(f"{name}={getattr(self, name)} must be in [0, 1]")
        for name in ("kl_target", "kl_horizon", "clip_range", "value_clip_range", "target_kl", "ptx_batch_size"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                self._refuse(f"{name}={getattr(self, name)} must be positive")
        for name in ("kl_coef", "vf_coef", "missing_eos_penalty", "ptx_coef"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                self._refuse(f"{name}={getattr(self, name)} must not be negative")
        if not self.samples_per_prompt:
            self._refuse("samples_per_prompt=0, and ratios and KL are of its own samples", "use 1 or more")
        if self.whiten_advantages not in ("round", "none"):
            remedy = 'use "round" or "none"; with batch_size=0 whitening by round is whitening by minibatch'
            self._refuse(f"whiten_advantages={self.whiten_advantages!r}", remedy)
        if self.score_at not in ("last", "after_eos"):
            self._refuse(f"score_at={self.score_at!r}", 'use "last" or "after_eos"')
        if self.missing_eos_replacement is not None and self.missing_eos_penalty is not None:
            self._refuse("missing_eos_replacement and missing_eos_penalty are both given", "choose one")

    def _refuse(self, what: str, remedy: str = "") -> None:
        raise ConfigError(what, where="ppo", remedy=remedy)

    @property
    def on_policy(self) -> bool:
        return True

    @property
    def _measures_movement(self) -> bool:
        """Whether `target_kl` needs a measure beside the loss: it is not `ppo`, which brings its own."""
        own = isinstance(self.loss, Component) and self.loss.name == "alignkit-ppo/ppo"
        return self.target_kl is not None and not own

    def extra_losses(self) -> Mapping[str, Any]:
        return {"step_kl": step_kl} if self._measures_movement else {}

    def terms(self) -> Mapping[str, Term]:
        diagnostics = ("ratio", "clip_fraction", "value_clip_fraction", "approx_kl", *self.extra_losses())
        weights = {"policy_loss": 1.0, "value_loss": self.vf_coef, **dict.fromkeys(diagnostics, 0.0)}
        return {name: Term(weight, reduction="token") for name, weight in weights.items()}

    def streams(self) -> Mapping[str, Stream]:
        """The pretraining mix, gradients of both added up in each step (Ouyang et al. 2022, eq. 2, appendix C.4)."""
        return {"ptx": Stream(weight=self.ptx_coef, batch_size=self.ptx_batch_size)} if self.ptx_coef else {}

    def initial_state(self) -> dict[str, Any]:
        return {} if self.kl_target is None else {"kl_coef": self.kl_coef}

    def beta(self, state: Mapping[str, Any]) -> float:
        """The coefficient of the KL: the state's if it is steered, else the field's (whatever an earlier run left)."""
        return self.kl_coef if self.kl_target is None else float(state.get("kl_coef", self.kl_coef))

    def final_scores(self, rewards: Tensor, ends_with_eos: Tensor) -> Tensor:
        """Steps 1 and 2 of the module's list, [responses] -> [responses]."""
        scores = whiten(rewards) if self.whiten_scores else rewards
        if self.missing_eos_replacement is not None:
            return scores.where(ends_with_eos, self.missing_eos_replacement)
        if self.missing_eos_penalty is not None:
            return scores.where(ends_with_eos, scores - self.missing_eos_penalty)
        return scores

    def advantages(
        self, scores: Tensor, kl: Tensor, values: Tensor, mask: Tensor, beta: float, ended: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Steps 3 to 5: (advantages before whitening, returns), [responses, tokens] each, 0 outside the mask.

        Args:
            scores: [responses], after steps 1 and 2.
            kl: [responses, tokens], k1 in nats.
            values: [responses, tokens].
            mask: [responses, tokens] bool, response_mask.
            beta: coefficient of the KL.
            ended: [responses] bool, which of them end with EOS.
        """
        width = mask.shape[1]
        # A score after EOS lies outside the response, and of the longest outside the batch: GAE must see that token,
        # the loss must not.
        kl, values, mask = (torch.nn.functional.pad(x, (0, 1)) for x in (kl, values.where(mask, 0), mask))
        rewards = token_rewards(scores, kl, mask, beta, self.score_at, ended)
        seen = mask.scatter(1, score_index(mask, self.score_at, ended).unsqueeze(1), True)
        rewards = whiten(rewards, seen, shift_mean=False) if self.whiten_rewards else rewards
        advantages, returns = gae(rewards, values, seen, self.gamma, self.gae_lambda)
        return advantages.where(mask, 0)[:, :width], returns.where(mask, 0)[:, :width]

    def prepare(  # the engine passes what is named here
        self,
        groups: Groups,
        state: Mapping[str, Any],
        *,
        rewards: Tensor,
        present: Tensor,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        values: Tensor,
        response_mask: Tensor,
        ends_with_eos: Tensor,
    ) -> Batch:
        """Advantages and returns of the round; a response without a reward is dropped, its siblings stay.

        Args:
            groups: the round's samples.
            state: `kl_coef`, if it is steered.
            rewards: [responses] raw scores; `present` [responses] says where there is one.
            logprobs: [responses, tokens] before the round's first step, like `ref_logprobs` and `values`.
            response_mask: [responses, tokens].
            ends_with_eos: [responses] bool.

        Raises:
            DataError: when no response has a reward.
        """
        groups = take_present(groups, present)
        mask, values = response_mask[present].bool(), values[present]
        kl = k1(logprobs, ref_logprobs)[present]
        ended = ends_with_eos[present]
        scores = self.final_scores(rewards[present], ended)
        raw, returns = self.advantages(scores, kl, values, mask, self.beta(state), ended)
        advantages = whiten(raw, mask) if self.whiten_advantages == "round" else raw
        metrics: dict[str, Tensor | float] = {
            "kl_per_sequence": masked_sum(kl, mask, 1).mean(),
            "kl_per_token": masked_mean(kl, mask),
            "kl_per_token_k3": masked_mean(k3(logprobs, ref_logprobs)[present], mask),
            "score_mean": scores.mean(),
            "score_std": masked_var(scores, None).sqrt(),
            "missing_eos": 1 - ended.to(scores.dtype).mean(),
            "return_mean": masked_mean(returns, mask),
            "advantage_std": masked_var(raw, mask).sqrt(),
            "explained_variance": explained_variance(values, returns, mask),
        }
        metrics |= {"responses": present.sum(), "dropped_responses": (~present).sum(), "kl_coef": self.beta(state)}
        numbers = {name: float(value) for name, value in metrics.items()}
        return Batch(groups, {"advantages": advantages, "returns": returns}, numbers)

    def update(self, state: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
        if self.kl_target is None:
            return dict(state)
        kl, responses = metrics["kl_per_sequence"], metrics["responses"]
        return {**state, "kl_coef": adapted_kl_coef(self.beta(state), kl, self.kl_target, responses, self.kl_horizon)}

    def stop_epochs(self, metrics: Mapping[str, float]) -> bool:
        moved = "step_kl" if self._measures_movement else "approx_kl"
        return self.target_kl is not None and metrics[moved] > self.target_kl


@dataclass(frozen=True)
class Llama2PPO(PPO):
    """`ppo` with the numbers of Llama 2 (Touvron et al. 2023, section 3.2.3); what it does not give stays as in `ppo`.

    Args:
        kl_coef: 0.01 for 7B and 13B, 0.005 for 34B and 70B.
        rounds: 200 to 400 iterations.
        whiten_scores: R~ = whiten(logit(R_c)).
    """

    rounds: int = 200
    prompts_per_round: int = 512
    batch_size: int = 64
    epochs: int = 1
    temperature: float = 1.0
    learning_rate: float = 1e-6
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    kl_coef: float = 0.01
    whiten_scores: bool = True


@hookimpl
def register_losses(register: Register) -> None:
    register("ppo", ppo)


@hookimpl
def register_optimizers(register: Register) -> None:
    register("ppo", PPO)
    register("ppo_llama2", Llama2PPO)

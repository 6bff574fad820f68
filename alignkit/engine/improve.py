"""The rounds of `improve`: sample, score, prepare, and the steps through what was prepared."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from alignkit.annotators import Annotator
from alignkit.data.encode import encode_groups
from alignkit.engine.assemble import Reference, assemble
from alignkit.engine.training_data import Step, TrainingData
from alignkit.errors import ConfigError, DataError, NumericError
from alignkit.functional import masked_mean
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.optimizers import Batch, PolicyOptimizer
from alignkit.processes import broadcast, gather_dealt
from alignkit.randomness import permutation, stream_key
from alignkit.registry.records import BoundLoss
from alignkit.rewards import Reward, score_groups
from alignkit.sampling import Sampler, occurrences

log = logging.getLogger("alignkit")

TOKEN_TENSORS = ("logprobs", "ref_logprobs", "values")


@dataclass
class Rollouts:
    """Everything `improve` needs to make rounds.

    Args:
        policy: what is trained.
        behaviour: what samples; the same object when the policy samples for itself.
        reference: a second model for the KL, or None when `reference_state` names a state of `policy`.
        reference_state: the named state of `policy`, or None.
        optimizer: the method.
        loss: its loss, bound.
        sampler: how responses are sampled.
        reward: what scores them; None when the groups carry what the method needs.
        annotator: what ranks them, or None.
        extras: the optimizer's extra losses, bound, by name.
        reference_logprobs: "kept": worked out once a round; "online": with every micro-batch.
        prompts: prompts, or groups with responses for a method that samples nothing.
        history: groups of earlier versions.
        seed: path of the random numbers: (run seed, stage name).
        max_tokens: padded cells of a micro-batch.
        max_response_tokens: longest response learned from.
        state: the optimizer's state.
        heldout: prompts for early stopping, or None.
        patience: rounds without a better held-out reward before stopping.
        max_missing: the largest share of missing rewards a round may have.
        resample: times that dropped groups are sampled anew.
        value_model: a separate value model.
        world: (rank, processes).
        say: where lasting lines go.
        tick: where passing progress goes.
    """

    policy: Policy
    behaviour: Policy
    reference: Policy | None
    reference_state: str | None
    optimizer: PolicyOptimizer
    loss: BoundLoss
    sampler: Sampler
    reward: Reward | None
    prompts: Groups
    history: Groups
    seed: Sequence[int | str]
    max_tokens: int
    max_response_tokens: int
    state: dict[str, Any]
    annotator: Annotator | None = None
    extras: Mapping[str, BoundLoss] = field(default_factory=dict)
    reference_logprobs: str = "kept"
    heldout: Groups | None = None
    patience: int = 0
    max_missing: float = 0.05
    resample: int = 3
    value_model: Policy | None = None
    world: tuple[int, int] = (0, 1)
    say: Callable[[str], None] = log.info
    tick: Callable[[str], None] = log.debug

    sampled: list[Groups] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: {"generated_tokens": 0, "reward_calls": 0, "trained_tokens": 0}
    )

    def __post_init__(self) -> None:
        per_round = self.optimizer.prompts_per_round or len(self.prompts)
        lap = math.ceil(len(self.prompts) / max(per_round, 1)) * (self.optimizer.sample_every or 1)
        self.rounds = self.optimizer.rounds or lap
        self._referenced = self.reference is not None or self.reference_state is not None
        self._loss_names = self._asked_by_losses()
        self._metrics: dict[str, float] = {}
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        self._history_scored: Groups | None = None
        self._unscored: dict[str, tuple[int, int]] = {}
        on_policy = self.optimizer.on_policy or "old_logprobs" in self._loss_names
        samples = self.optimizer.samples_per_prompt > 0
        if samples and (on_policy or self.optimizer.own_samples) and self.behaviour is not self.policy:
            raise ConfigError(
                "the method learns from its own samples, and init names other weights than the policy's",
                where="improve",
                effect="Its ratios would compare two policies of which neither drew the samples.",
                remedy="leave init out, or improve(init, …)",
            )
        if samples and on_policy and self.optimizer.sample_every != 1:
            raise ConfigError(
                f"sample_every={self.optimizer.sample_every} with a method that compares with its sampler",
                where="improve",
                effect="Later rounds would take the weights of that moment for those that sampled.",
                remedy="use epochs, which keep the log-probs of the sampler",
            )
        if self.reward is None and self.annotator is not None:
            self._check_rewards_needed()
        if on_policy and self.sampler.truncates:
            raise ConfigError(
                "the method compares with the probabilities of its sampler, and this sampler truncates them",
                where="improve",
                effect="Ratios would be between different distributions.",
                remedy="use a sampler without truncation",
            )

    def _asked_by_losses(self) -> frozenset[str]:
        """The tensors of the loss and the extra losses; reference ones that are optional only if there is one."""
        names: set[str] = set()
        for loss in (self.loss, *self.extras.values()):
            idle = set() if self._referenced else {n for n in loss.optional if n.startswith("ref_")}
            names |= set(loss.tensor_names) - idle
        return frozenset(names)

    def _check_rewards_needed(self) -> None:
        """Refuse a method that learns from scores where there are only ranks; one that can do without says so by a
        default for `reward_name`."""
        for method in (self.optimizer.prepare, self.optimizer.keep):
            parameters = inspect.signature(method).parameters
            needed = {"rewards", "present"} & set(parameters)
            name = parameters.get("reward_name")
            if needed or (name is not None and name.default is inspect.Parameter.empty):
                raise ConfigError(
                    "the method learns from scores, and an annotator gives ranks",
                    where="improve",
                    remedy="pass reward=…, or use a method that learns from comparisons",
                )

    # -- the engine's side ---------------------------------------------------------------------------------------------

    def round_metrics(self) -> Mapping[str, float]:
        return self._metrics

    def skip_rest(self, metrics: Mapping[str, float]) -> bool:
        return self.optimizer.stop_epochs(metrics)

    def start(self, index: int) -> tuple[TrainingData, list[Step]]:
        groups = self._collect(index)
        data = self._round(groups)
        plan = self._plan(data, index)
        names = self.optimizer.prepare_arguments()
        known = self._known(data, plan, names)
        data.tensors = {k: known[k] for k in TOKEN_TENSORS if k in known}
        self._metrics = self._describe(groups, data)
        batch = self._prepare(
            groups, index, {k: v for k, v in known.items() if k in names} | self._asked(groups, data, names)
        )
        data, plan = self._settle(batch, groups, data, plan, index)
        self._metrics |= dict(batch.metrics)
        self._say_round(index, data, plan)
        return data, plan

    def finish(self, index: int, metrics: Mapping[str, float]) -> bool:
        self.state = dict(self.optimizer.update(self.state, metrics))
        return self._held_out(index)

    # -- sampling and scoring ------------------------------------------------------------------------------------------

    def _round_prompts(self, index: int) -> Groups:
        size = self.optimizer.prompts_per_round
        if not size or size >= len(self.prompts):
            return self.prompts
        rows = len(self.prompts)
        places = range(index * size, (index + 1) * size)
        laps = range(places[0] // rows, places[-1] // rows + 1)
        orders = {lap: permutation(rows, *self.seed, "prompts", lap) for lap in laps}
        return self.prompts.select(orders[place // rows][place % rows] for place in places)

    def _collect(self, index: int) -> Groups:
        """The round's scored groups."""
        every = self.optimizer.sample_every or max(self.rounds, 1)
        prompts = self._round_prompts(index // every)
        self._unscored = {}
        if not self.optimizer.samples_per_prompt:
            return self._judge(prompts, index, 0)
        if index % every:
            return self.sampled[-1]
        groups = self._judge(self._sample(prompts, index, 0), index, 0)
        for attempt in range(1, self.resample + 1):
            kept = self._kept(groups)
            if kept is None or all(kept):
                break
            dropped = groups.select(i for i, k in enumerate(kept) if not k)
            again = self._judge(self._sample(dropped, index, attempt), index, attempt)
            groups = Groups.concat([groups.select(i for i, k in enumerate(kept) if k), again])
        kept = self._kept(groups)
        groups = groups if kept is None else groups.select(i for i, k in enumerate(kept) if k)
        if not len(groups):
            raise DataError("the method kept none of the sampled groups", where=f"round {index}")
        self.sampled.append(groups)
        return groups

    def _kept(self, groups: Groups) -> list[bool] | None:
        keep = self.optimizer.keep
        named = "reward_name" in inspect.signature(keep).parameters
        return keep(groups, **({"reward_name": self._reward_name(groups)} if named else {}))

    def _sample(self, prompts: Groups, index: int, attempt: int) -> Groups:
        n = self.optimizer.samples_per_prompt
        rank, world = self.world
        mine = prompts.select(range(rank, len(prompts), world)) if world > 1 else prompts
        times = occurrences(prompts)[rank::world]  # counted over all processes, so that they draw what one would
        groups = self.sampler.sample(
            self.behaviour,
            mine,
            n,
            seed=(*self.seed, index, attempt),
            occurrence=times,
            name=self.seed[-1] if self.seed else "policy",  # type: ignore[arg-type]
            progress=self._progress(f"round {index + 1}/{self.rounds} sampling"),
        )
        if world > 1:
            groups = Groups.from_rows(gather_dealt(groups.rows, world))
        self.counts["generated_tokens"] += sum(len(ids) for row in groups for ids in row["response_ids"])
        return groups

    def _progress(self, what: str) -> Callable[[int, int, int, float], None]:
        def tell(done: int, total: int, tokens: int, seconds: float) -> None:
            rate = tokens / max(seconds, 1e-6)
            left = seconds / max(done, 1) * (total - done)
            self.tick(f"{what}: {done}/{total} responses, {rate:.0f} tokens/s, {left:.0f} s left")

        return tell

    def _judge(self, groups: Groups, index: int, attempt: int) -> Groups:
        """Score, and have ranked, whatever there is to do it with."""
        if self.reward is None and self.annotator is None and self.optimizer.samples_per_prompt:
            raise ConfigError(
                "the method samples, so it needs a reward or an annotator",
                where="improve",
                remedy="pass reward=… or annotator=…",
            )
        groups = self._score(groups) if self.reward is not None else groups
        return groups if self.annotator is None else self._annotate(self.annotator, groups, index, attempt)

    def _annotate(self, annotator: Annotator, groups: Groups, index: int, attempt: int) -> Groups:
        """The groups that the annotator could rank; one process asks it, since a judge may not answer twice alike."""
        seed = stream_key(*self.seed, "annotate", index, attempt) % 2**31
        found = annotator.annotate(groups, seed=seed) if self.world[0] == 0 else {}
        if self.world[1] > 1:
            found = broadcast({dimension: part.rows for dimension, part in found.items()})
            found = {dimension: Groups.from_rows(rows) for dimension, rows in found.items()}
        if len(found) != 1:
            raise ConfigError(
                f"the annotator ranks along {sorted(found)}",
                where="improve",
                remedy="use an annotator with one dimension",
            )
        (ranked,) = found.values()
        self.say(f"round {index + 1}/{self.rounds}: {len(ranked)} of {len(groups)} prompts ranked")
        if not len(ranked):
            raise DataError("the annotator ranked none of the groups", where=f"round {index}")
        return ranked

    def _score(self, groups: Groups, part: str = "round") -> Groups:
        """Scored groups; what is missing is counted over all that was scored of this part so far."""
        assert self.reward is not None
        groups = score_groups(groups, self.reward)
        self.counts["reward_calls"] += groups.num_responses
        _, present = groups.rewards(self.reward.name)
        gone, scored = self._unscored.get(part, (0, 0))
        gone, scored = gone + sum(not p for row in present for p in row), scored + groups.num_responses
        self._unscored[part] = gone, scored
        if gone > self.max_missing * scored:
            reasons = [
                r for row in groups for e in row["rewards"] if e["name"] == self.reward.name for r in e["reasons"] if r
            ]
            raise DataError(
                f"{gone / scored:.0%} of the rewards are missing; the first reason: {[*reasons, 'none given'][0]}",
                where=f"reward {self.reward.name}",
                effect="Nothing was learned from this round.",
                remedy="mend the reward, or allow more with max_missing",
            )
        return groups

    def _scored_history(self) -> Groups:
        """Earlier versions' samples with the current reward's scores, worked out once."""
        if self._history_scored is None:
            scored = len(self.history) and self.reward is not None
            self._history_scored = self._score(self.history, "history") if scored else self.history
        return self._history_scored

    # -- preparing -----------------------------------------------------------------------------------------------------

    def _round(self, groups: Groups) -> TrainingData:
        encoded, problems = encode_groups(
            groups,
            self.policy.chat,
            max_prompt_tokens=self.sampler.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )
        if problems:
            raise DataError(f"{len(problems)} rows cannot be learned from: {problems[0]}", where="improve")
        return TrainingData(groups, encoded, shared=self.policy.shares_prompts, pad_id=self.policy.chat.pad_id)

    def _plan(self, data: TrainingData, index: int) -> list[Step]:
        opt = self.optimizer
        return data.steps(opt.batch_size, opt.epochs, self.max_tokens, (*self.seed, index, "order"), self.world[1])

    def _known(self, data: TrainingData, plan: Sequence[Step], names: Sequence[str]) -> dict[str, Tensor]:
        """The tensors that `prepare` asks for, from the training path with the first epoch's micro-batches."""
        asked = {name for name in TOKEN_TENSORS if name in names}
        if self._keeps_reference():
            asked.add("ref_logprobs")
        return self._forward(data, plan, asked)

    def _keeps_reference(self) -> bool:
        asked = any(name.startswith("ref_") for name in self._loss_names)
        return asked and self.reference_logprobs == "kept"

    @property
    def online_reference(self) -> Reference | None:
        """What the learner asks for reference log-probs during the steps; None where the rounds keep them."""
        asked = any(name.startswith("ref_") for name in self._loss_names)
        return self._reference if asked and self.reference_logprobs == "online" else None

    def _measure(self, groups: Groups, *names: str) -> dict[str, Tensor]:
        """`response_mask` and the token tensors so named of any groups, under the weights of this moment."""
        unknown = set(names) - set(TOKEN_TENSORS)
        if unknown:
            raise ConfigError(f"measure cannot give {sorted(unknown)}", where=type(self.optimizer).__name__)
        data = self._round(groups)
        steps = [Step(data.micro_batches(list(range(len(data.encoded))), self.max_tokens), [], 0)]
        with torch.no_grad():
            return {"response_mask": response_mask(data), **self._forward(data, steps, set(names))}

    def _forward(
        self, data: TrainingData, plan: Sequence[Step], asked: set[str], temperature: float | None = None
    ) -> dict[str, Tensor]:
        """[R, T] each, without gradients. The same micro-batches as the first epoch, so the same bits as its
        forward."""
        if not asked:
            return {}
        temperature = temperature or self.optimizer.logprob_temperature
        total = sum(len(g.responses) for g in data.encoded)
        width = max(max(lengths) for lengths in data.learned_tokens)
        out = {name: torch.zeros(total, width, dtype=torch.float32) for name in asked}
        own = frozenset(asked - {"ref_logprobs"})
        bare = replace(data, tensors={})
        for numbers in [m for step in plan if step.epoch == 0 for m in step.micro if m]:
            batch = bare.collate(numbers).to(self.policy.device)
            found: dict[str, Tensor] = {}
            if own:
                found, _ = assemble(
                    self.policy, bare, batch, own, temperature=temperature, value_model=self.value_model
                )
            if "ref_logprobs" in asked:
                found["ref_logprobs"] = self._reference(batch, temperature)
            for name in asked:
                out[name][batch.responses.cpu(), : found[name].shape[1]] = found[name].detach().float().cpu()
        return out

    def _reference(self, batch: Any, temperature: float) -> Tensor:
        if self.reference is not None:
            with torch.no_grad():
                found = self.reference.tensors(batch.to(self.reference.device), temperature=temperature)
            return found["logprobs"].to(self.policy.device)
        if self.reference_state is None:
            raise ConfigError("the method needs a reference", where="improve", remedy="pass reference=…")
        with self.policy.state(self.reference_state):
            return self.policy.tensors(batch, temperature=temperature)["logprobs"]

    def _asked(self, groups: Groups, data: TrainingData, names: Sequence[str]) -> dict[str, Any]:
        """The other things that `prepare` may name."""
        offered: dict[str, Callable[[], Any]] = {
            "response_mask": lambda: response_mask(data),
            "rewards": lambda: self._rewards(groups)[0],
            "present": lambda: self._rewards(groups)[1],
            "reward_name": lambda: self._reward_name(groups),
            "ends_with_eos": lambda: ends_with(data, self.policy.chat.end_ids),
            "history": self._scored_history,
            "annotated": lambda: self.annotator is not None,
            "max_new_tokens": lambda: self.sampler.max_new_tokens,
            "measure": lambda: self._measure,
            "generator": lambda: torch.Generator().manual_seed(stream_key(*self.seed, "prepare") % 2**31),
        }
        unknown = set(names) - set(offered) - set(TOKEN_TENSORS)
        if unknown:
            raise ConfigError(
                f"prepare asks for {sorted(unknown)}",
                where=type(self.optimizer).__name__,
                remedy=f"there are: {', '.join(sorted([*offered, *TOKEN_TENSORS]))}",
            )
        return {name: offered[name]() for name in names if name in offered}

    def _reward_name(self, groups: Groups) -> str | None:
        if self.reward is not None:
            return self.reward.name
        if self.annotator is not None:  # the method has said that it can do without
            return None
        names = groups.reward_names()
        if len(names) != 1:
            raise ConfigError(f"the groups carry the rewards {names}", where="improve", remedy="pass reward=…")
        return names[0]

    def _rewards(self, groups: Groups) -> tuple[Tensor, Tensor]:
        name = self._reward_name(groups)
        assert name is not None
        values, present = groups.rewards(name)
        return (
            torch.tensor([v for row in values for v in row], dtype=torch.float32),
            torch.tensor([p for row in present for p in row], dtype=torch.bool),
        )

    def _prepare(self, groups: Groups, index: int, asked: Mapping[str, Any]) -> Batch:
        batch = self.optimizer.prepare(groups, self.state, **asked)
        if not len(batch.groups):
            raise DataError(
                "prepare kept nothing to learn from", where=f"{type(self.optimizer).__name__}, round {index}"
            )
        bad = {name: value for name, value in batch.metrics.items() if not math.isfinite(value)}
        if bad:
            raise NumericError(
                f"prepare gave the metrics {bad}", where=f"{type(self.optimizer).__name__}, round {index}"
            )
        if batch.state is not None:
            self.state = dict(batch.state)
        return batch

    def _settle(
        self, batch: Batch, groups: Groups, data: TrainingData, plan: list[Step], index: int
    ) -> tuple[TrainingData, list[Step]]:
        """The round that is learned from, with old log-probs and values from its own first epoch's forward."""
        needed = {n.removeprefix("old_") for n in self._loss_names if n in ("old_logprobs", "old_values")}
        if self._keeps_reference():
            needed.add("ref_logprobs")
        known = dict(data.tensors)
        if batch.groups is not groups or batch.pairs is not None:
            data = replace(self._round(batch.groups), named_pairs=batch.pairs)
            plan, known = self._plan(data, index), {}
        known |= self._forward(data, plan, needed - set(known))
        data.tensors = {k: v.float() if v.is_floating_point() else v for k, v in batch.tensors.items()}
        for name, values in known.items():
            if name == "ref_logprobs" and self.reference_logprobs == "online":
                continue
            key = name if name == "ref_logprobs" else f"old_{name}"
            data.tensors.setdefault(key, values)
        learned = sum(sum(lengths) for lengths in data.learned_tokens)
        self.counts["trained_tokens"] += learned * self.optimizer.epochs
        return data, plan

    # -- what is said of a round ---------------------------------------------------------------------------------------

    def _describe(self, groups: Groups, data: TrainingData) -> dict[str, float]:
        out: dict[str, float] = {}
        lengths = [len(r) for g in data.encoded for r in g.responses]
        out["response_length"] = sum(lengths) / len(lengths)
        out["eos_rate"] = float(ends_with(data, self.policy.chat.end_ids).float().mean())
        for name in groups.reward_names():
            values, present = groups.rewards(name)
            flat = [v for vs, ps in zip(values, present, strict=True) for v, p in zip(vs, ps, strict=True) if p]
            kept = torch.tensor(flat, dtype=torch.float32)
            label = "reward" if self.reward is not None and name == self.reward.name else f"reward_{name}"
            if len(kept):
                out |= {f"{label}_mean": float(kept.mean()), f"{label}_std": float(kept.std(unbiased=False))}
        return out | self._kl(data)

    def _kl(self, data: TrainingData, most: int = 32) -> dict[str, float]:
        """KL to the reference in nats (k1: the mean of log pi - log ref over samples), of all or of a few responses."""
        known = data.tensors
        mask = response_mask(data)
        if "logprobs" in known and "ref_logprobs" in known:
            difference = (known["logprobs"] - known["ref_logprobs"]) * mask
        elif (self.reference is None and self.reference_state is None) or not self.optimizer.samples_per_prompt:
            return {}
        else:
            few = [replace(g, responses=g.responses[:1]) for g in data.encoded[:most]]
            probe = TrainingData(data.groups, few, shared=data.shared, pad_id=data.pad_id)
            steps = [Step(probe.micro_batches(list(range(len(few))), self.max_tokens), [], 0)]
            with torch.no_grad():
                found = self._forward_behaviour(probe, steps)
            mask = response_mask(probe)
            difference = (found["logprobs"] - found["ref_logprobs"]) * mask
        return {
            "kl_per_token": float(masked_mean(difference, mask)),
            "kl_per_sequence": float(difference.sum(-1).mean()),
        }

    def _forward_behaviour(self, probe: TrainingData, steps: Sequence[Step]) -> dict[str, Tensor]:
        """Log-probs of the sampling policy and of the reference, both at the temperature of sampling."""
        trained, temperature = self.policy, self.sampler.temperature
        found = self._forward(probe, steps, {"ref_logprobs"}, temperature)
        try:
            self.policy = self.behaviour
            found |= self._forward(probe, steps, {"logprobs"}, temperature)
        finally:
            self.policy = trained
        return found

    def _say_round(self, index: int, data: TrainingData, plan: Sequence[Step]) -> None:
        parts = [
            f"{k} {v:.3g}" for k, v in self._metrics.items() if k in ("reward_mean", "kl_per_sequence", "eos_rate")
        ]
        self.say(
            f"round {index + 1}/{self.rounds}: learning from {len(data.groups)} prompts in "
            f"{len(plan)} steps; {', '.join(parts)}"
        )

    # -- early stopping ------------------------------------------------------------------------------------------------

    def _held_out(self, index: int) -> bool:
        """Score one response per held-out prompt; keep the best round's weights; say whether patience is over."""
        if self.heldout is None or self.reward is None:
            return False
        groups = self.sampler.sample(self.policy, self.heldout, 1, seed=(*self.seed, "heldout"))
        values, present = score_groups(groups, self.reward).rewards(self.reward.name)
        kept = [v[0] for v, p in zip(values, present, strict=True) if p[0]]
        if not kept:
            raise DataError("every held-out reward is missing", where=f"round {index}", remedy="mend the reward")
        mean = sum(kept) / len(kept)
        self.say(f"round {index + 1}/{self.rounds}: held-out reward {mean:.3f}")
        if self._best is None or mean > self._best[0]:
            weights = {n: p.detach().clone() for n, p in self.policy.named_parameters() if p.requires_grad}
            self._best = (mean, index, weights)
        return bool(self.patience) and index - self._best[1] >= self.patience

    def restore_best(self) -> int | None:
        """Put the weights of the best held-out round back; returns that round."""
        if self._best is None or not self.patience:
            return None
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                if name in self._best[2]:
                    parameter.copy_(self._best[2][name])
        return self._best[1]


def response_mask(data: TrainingData) -> Tensor:
    """[R, T] bool over all responses of a round."""
    lengths = torch.tensor([n for lengths in data.learned_tokens for n in lengths])
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)


def ends_with(data: TrainingData, end_ids: Sequence[int]) -> Tensor:
    """[R] bool: whether each response ends with an end token."""
    ends = set(end_ids)
    return torch.tensor([bool(r) and r[-1] in ends for g in data.encoded for r in g.responses])

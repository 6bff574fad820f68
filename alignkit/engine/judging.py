"""Scoring and ranking a round's groups, with whatever there is to do it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.annotators import Annotator, annotated, check_dimensions
from alignkit.engine.setting import Setting
from alignkit.errors import ConfigError, DataError, NothingToLearnError
from alignkit.functional import as_scored
from alignkit.groups import Groups
from alignkit.processes import broadcast
from alignkit.randomness import stream_key
from alignkit.rewards import Reward, parts_of, score_groups


def scored_once(groups: Groups, reward: Reward, setting: Setting) -> Groups:
    """`score_groups`, asked by the first process alone, which tells the others: a reward may be paid for, and may not
    answer twice alike. Each process counts what the first one spent, so that all see a budget alike."""
    rank, processes = setting.world
    if processes == 1:
        return score_groups(groups, reward, setting.meter)
    told: Any = None
    if rank == 0:
        before = [dict(setting.meter.counts), dict(setting.meter.flops)]
        scored = score_groups(groups, reward, setting.meter)
        after = [setting.meter.counts, setting.meter.flops]
        spent = [{n: now[n] - was[n] for n in now} for was, now in zip(before, after, strict=True)]
        told = scored.column("rewards"), *spent
    rewards, counts, flops = broadcast(told)
    if rank:
        for name, amount in counts.items():
            setting.meter.add(name, amount)
        setting.meter.compute(flops["forward"], flops["backward"])
    return groups.with_columns({"rewards": rewards})


@dataclass
class Judging:
    """What says how good responses are.

    Args:
        setting: where.
        reward: what scores the responses; None where the groups carry what the method needs.
        annotator: what ranks them, or None.
        max_missing: the largest share of missing rewards a round may have.
        unscored: by part ("round", "history"), how many of the responses scored so far have no reward, and how many
            there were.
    """

    setting: Setting
    reward: Reward | None = None
    annotator: Annotator | None = None
    max_missing: float = 0.05
    unscored: dict[str, tuple[int, int]] = field(default_factory=dict)

    def begin(self) -> None:
        """A round begins: what is missing is counted anew."""
        self.unscored = {}

    def judge(self, groups: Groups, index: int, attempt: int) -> Groups:
        """Score, and have ranked; what an annotator could not rank is left out."""
        groups = self.score(groups) if self.reward is not None else groups
        return groups if self.annotator is None else self._rank(self.annotator, groups, index, attempt)

    def score(self, groups: Groups, part: str = "round") -> Groups:
        """Scored groups.

        Raises:
            DataError: too many have no reward, counted over all that was scored of this part so far.
        """
        assert self.reward is not None
        groups = scored_once(groups, self.reward, self.setting)
        _, present = groups.rewards(self.reward.name)
        gone, scored = self.unscored.get(part, (0, 0))
        gone, scored = gone + sum(not p for row in present for p in row), scored + groups.num_responses
        self.unscored[part] = gone, scored
        if gone > self.max_missing * scored:
            entries = [e for row in groups.column("rewards") for e in row if e["name"] == self.reward.name]
            reasons = [reason for entry in entries for reason in entry["reasons"] if reason]
            raise DataError(
                f"{gone / scored:.0%} of the rewards are missing; the first reason: {[*reasons, 'none given'][0]}",
                where=f"reward {self.reward.name}",
                effect="Nothing was learned from this round.",
                remedy="mend the reward, or allow more with max_missing",
            )
        return groups

    def _rank(self, annotator: Annotator, groups: Groups, index: int, attempt: int) -> Groups:
        found = self._asked(annotator, groups, stream_key(*self.setting.seed, "annotate", index, attempt) % 2**31)
        check_dimensions([found], "improve")
        (ranked,) = found.values()
        self.setting.say(f"{self.setting.label(index)}: {len(ranked)} of {len(groups)} prompts ranked")
        if not len(ranked):
            raise NothingToLearnError("the annotator ranked none of the groups", where=f"round {index}")
        return ranked

    def _asked(self, annotator: Annotator, groups: Groups, seed: int) -> Mapping[str, Groups]:
        """One process asks the annotator, since a judge may not answer twice alike, and tells the others."""
        rank, processes = self.setting.world
        if processes == 1:
            return annotated(groups, annotator, seed, self.setting.meter)
        found = annotated(groups, annotator, seed, self.setting.meter) if rank == 0 else {}
        told = broadcast({dimension: part.rows for dimension, part in found.items()})
        if rank:
            self.setting.meter.add("judge_calls", len(groups))
        return {dimension: Groups.from_rows(rows) for dimension, rows in told.items()}

    def reward_name(self, groups: Groups) -> str | None:
        """The reward being optimised; None where there is but an annotator.

        Raises:
            ConfigError: the groups carry several rewards, or none.
        """
        if self.reward is not None:
            return self.reward.name
        if self.annotator is not None:  # the method has said that it can do without
            return None
        names = groups.reward_names()
        if len(names) != 1:
            raise ConfigError(f"the groups carry the rewards {names}", where="improve", remedy="pass reward=…")
        return names[0]

    def rewards(self, groups: Groups) -> tuple[Tensor, Tensor]:
        """(raw scores [R], 0 where there is none; [R] bool whether there is one) of the reward optimised: float32 where
        they, or what they are made of, were computed in it, else float64."""
        name = self.reward_name(groups)
        assert name is not None
        values, present = groups.rewards(name)
        return (
            torch.tensor([v for row in values for v in row], dtype=self._kind(groups, name)),
            torch.tensor([p for row in present for p in row], dtype=torch.bool),
        )

    def _kind(self, groups: Groups, name: str) -> torch.dtype:
        """The type in which the scores so named are equal up to rounding."""
        parts = [] if self.reward is None else parts_of(self.reward)
        names = dict.fromkeys([name, *(part.name for part in parts)])
        if any(part.computed_in == "float32" for part in parts):
            return torch.float32
        for each in (each for each in names if each in groups.reward_names()):
            values, present = groups.rewards(each)
            pairs = [pair for rows in zip(values, present, strict=True) for pair in zip(*rows, strict=True)]
            if as_scored([value for value, there in pairs if there]).dtype is torch.float32:
                return torch.float32
        return torch.float64

"""Collecting a round's groups: prompts drawn, sampled, judged, kept, and sampled anew where the method keeps none."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignkit.budget import NAMES, ROUND
from alignkit.calls import calling, whose
from alignkit.engine.judging import Judging
from alignkit.engine.setting import Setting
from alignkit.errors import NothingToLearnError, PluginError
from alignkit.groups import Groups
from alignkit.optimizers import PolicyOptimizer
from alignkit.randomness import permutation
from alignkit.sampling import Drawing


@dataclass
class Collect:
    """Makes the groups that a round learns from.

    Args:
        method: says how much is sampled, and what is kept.
        prompts: prompts, or groups with responses for a method that samples nothing.
        drawing: samples the responses.
        judging: scores and ranks them.
        setting: where.
        resample: times that dropped groups are sampled anew.
        sampled: what was kept of each sampling so far.
        current: what the rounds of one sampling learn from; None where nothing was kept.
    """

    method: PolicyOptimizer
    prompts: Groups
    drawing: Drawing
    judging: Judging
    setting: Setting
    resample: int = 3
    sampled: list[Groups] = field(default_factory=list)
    current: Groups | None = None

    def __call__(self, index: int) -> Groups:
        """The groups of round `index`; where the budget ends before the round does, those that it paid for.

        Raises:
            DataError: too many rewards are missing.
            NothingToLearnError: the method keeps none, the annotator ranks none, the budget paid for none.
        """
        prompts = self.round_prompts(index // self._every)
        self.judging.begin()
        if not self.method.samples_per_prompt:
            return self._some(self._judged(self._within_calls(prompts), index, 0), index)
        if not self.place_in_lap(index)[0]:
            self.current = self._kept(prompts, index)
        return self._some(self.current, index)

    def _kept(self, prompts: Groups, index: int) -> Groups | None:
        """Sampled and judged, and sampled anew for what the method does not keep; None where it keeps none."""
        groups = self._drawn(prompts, index, 0)
        for attempt in range(1, self.resample + 1):
            kept, dropped = self._parted(groups)
            if dropped is None or self.setting.spending.stopped:
                break
            groups = Groups.concat([kept, self._drawn(dropped, index, attempt)])
        groups, _ = self._parted(groups)
        if not len(groups):
            return None
        self.sampled.append(groups)
        return groups

    @staticmethod
    def _some(groups: Groups | None, index: int) -> Groups:
        if groups is None or not len(groups):
            raise NothingToLearnError("the method kept none of the groups", where=f"round {index}")
        return groups

    @property
    def _every(self) -> int:
        """Rounds that learn from the same samples."""
        return self.method.sample_every or max(self.setting.rounds, 1)

    def place_in_lap(self, index: int) -> tuple[int, int]:
        """(place of a round among those that learn from the same samples, how many these are)."""
        if not self.method.samples_per_prompt:
            return 0, 1
        place = index % self._every
        return place, min(self._every, max(self.setting.rounds, 1) - index + place)

    def may_begin(self, index: int) -> bool:
        """Whether the budget has something left for a round: a limit on what is drawn and judged stops a round that
        would draw or judge, any other limit every round."""
        judges = self.judging.reward is not None or self.judging.annotator is not None
        draws = not self.place_in_lap(index)[0] and (self.method.samples_per_prompt > 0 or judges)
        spending = self.setting.spending
        reached = spending.reached(name for name in NAMES if draws or name not in ROUND)
        if reached:
            spending.stop(reached)
        return not reached and not (draws and spending.stopped)

    def round_prompts(self, lap: int) -> Groups:
        """The prompts of one sampling, in order and around; each lap over all of them has an order of its own, unless
        the method wants them as they were given.

        Where the method asks for one pass (`rounds=0`), that is each of them once: rounds of nearly equal size.
        """
        size, rows = self.method.prompts_per_round, len(self.prompts)
        if not size or size >= rows:
            return self.prompts
        if not self.method.rounds:
            passes, place = divmod(lap, parts := math.ceil(rows / size))
            order = self._order(rows, passes)
            return self.prompts.select(order[rows * place // parts : rows * (place + 1) // parts])
        places = range(lap * size, (lap + 1) * size)
        laps = range(places[0] // rows, places[-1] // rows + 1)
        orders = {each: self._order(rows, each) for each in laps}
        return self.prompts.select(orders[place // rows][place % rows] for place in places)

    def _order(self, rows: int, lap: int) -> Sequence[int]:
        """In which order the prompts come, the time around that is numbered so."""
        return permutation(rows, *self.setting.seed, "prompts", lap) if self.method.shuffle else range(rows)

    def _drawn(self, prompts: Groups, index: int, attempt: int) -> Groups:
        seed, spending, n = self.setting.seed, self.setting.spending, self.method.samples_per_prompt
        prompts = self._within_calls(prompts)
        tight = spending.exceeded_by(self.drawing.most(len(prompts), n)) if spending.limits else None
        groups = self.drawing.draw(
            prompts,
            n,
            seed=(*seed, index, attempt),
            what=f"{self.setting.label(index)} sampling",
            name=str(seed[-1]) if seed else "policy",
            room=(lambda: spending.times(self.drawing.most(1, n))) if tight else None,
        )
        if len(groups) < len(prompts):
            spending.stop(spending.reached())
        return self._judged(groups, index, attempt)

    def _judged(self, groups: Groups, index: int, attempt: int) -> Groups:
        if not len(groups):  # the budget ended before the first of them
            return groups
        return self.judging.judge(groups, index, attempt)

    def _within_calls(self, prompts: Groups) -> Groups:
        """The first of the prompts, as many as there are reward and judge calls left for."""
        spending, n = self.setting.spending, self.method.samples_per_prompt
        sizes = [n] * len(prompts) if n else [len(row["responses"]) for row in prompts]
        scores = [0] * len(sizes) if self.judging.reward is None else sizes
        asked = [int(self.judging.annotator is not None)] * len(sizes)
        calls = [{"reward_calls": r, "judge_calls": j} for r, j in zip(scores, asked, strict=True)]
        fitting = spending.fitting(calls) if spending.limits else len(calls)
        if fitting == len(calls):
            return prompts
        total = {name: sum(each[name] for each in calls[: fitting + 1]) for name in calls[0]}
        spending.stop(spending.exceeded_by(total))
        return prompts.select(range(fitting))

    def _parted(self, groups: Groups) -> tuple[Groups, Groups | None]:
        """(what the method keeps, what it does not; None where it keeps all)."""
        if not len(groups):
            return groups, None
        named = "reward_name" in inspect.signature(self.method.keep).parameters
        given = {"reward_name": self.judging.reward_name(groups)} if named else {}
        with calling(self.method, "keep"):
            found = self.method.keep(groups, **given)
            kept = None if found is None else [bool(flag) for flag in found]
        if kept is not None and len(kept) != len(groups):
            what = f"keep returned {len(kept)} flags for {len(groups)} groups"
            raise PluginError(what, where=whose(self.method), remedy="return one for each group, or None")
        if kept is None or all(kept):
            return groups, None
        dropped = groups.select(i for i, k in enumerate(kept) if not k)
        return groups.select(i for i, k in enumerate(kept) if k), dropped

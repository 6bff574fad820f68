"""Collecting a round's groups: prompts drawn, sampled, judged, kept, and sampled anew where the method keeps none."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from alignkit.engine.judging import Judging
from alignkit.engine.setting import Setting
from alignkit.errors import NothingToLearnError
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
        """The groups of round `index`.

        Raises:
            NothingToLearnError: the method keeps none.
            DataError: the annotator ranks none, too many rewards are missing.
        """
        every = self.method.sample_every or max(self.setting.rounds, 1)
        prompts = self.round_prompts(index // every)
        self.judging.begin()
        if not self.method.samples_per_prompt:
            return self.judging.judge(prompts, index, 0)
        if not index % every:
            self.current = self._kept(prompts, index)
        if self.current is None:
            raise NothingToLearnError("the method kept none of the sampled groups", where=f"round {index}")
        return self.current

    def _kept(self, prompts: Groups, index: int) -> Groups | None:
        """Sampled and judged, and sampled anew for what the method does not keep; None where it keeps none."""
        groups = self._drawn(prompts, index, 0)
        for attempt in range(1, self.resample + 1):
            kept, dropped = self._parted(groups)
            if dropped is None:
                break
            groups = Groups.concat([kept, self._drawn(dropped, index, attempt)])
        groups, _ = self._parted(groups)
        if not len(groups):
            return None
        self.sampled.append(groups)
        return groups

    def round_prompts(self, lap: int) -> Groups:
        """The prompts of one sampling, in order and around; each lap over all of them has an order of its own."""
        size, rows = self.method.prompts_per_round, len(self.prompts)
        if not size or size >= rows:
            return self.prompts
        places = range(lap * size, (lap + 1) * size)
        laps = range(places[0] // rows, places[-1] // rows + 1)
        orders = {each: permutation(rows, *self.setting.seed, "prompts", each) for each in laps}
        return self.prompts.select(orders[place // rows][place % rows] for place in places)

    def _drawn(self, prompts: Groups, index: int, attempt: int) -> Groups:
        seed = self.setting.seed
        groups = self.drawing.draw(
            prompts,
            self.method.samples_per_prompt,
            seed=(*seed, index, attempt),
            what=f"{self.setting.label(index)} sampling",
            name=str(seed[-1]) if seed else "policy",
        )
        return self.judging.judge(groups, index, attempt)

    def _parted(self, groups: Groups) -> tuple[Groups, Groups | None]:
        """(what the method keeps, what it does not; None where it keeps all)."""
        named = "reward_name" in inspect.signature(self.method.keep).parameters
        kept = self.method.keep(groups, **({"reward_name": self.judging.reward_name(groups)} if named else {}))
        if kept is None or all(kept):
            return groups, None
        dropped = groups.select(i for i, k in enumerate(kept) if not k)
        return groups.select(i for i, k in enumerate(kept) if k), dropped

"""Drawing samples: the one way for rounds, held-out prompts, evaluations, transforms and `run.sample`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.calls import calling, whose
from alignkit.errors import PluginError
from alignkit.groups import Groups
from alignkit.meter import Advance, Meter
from alignkit.models import Policy
from alignkit.models.arithmetic import Reading
from alignkit.processes import gather_dealt, summed
from alignkit.sampling.sampler import Progress, Sampler
from alignkit.selection import occurrences

log = logging.getLogger("alignkit")


@dataclass(frozen=True)
class Drawing:
    """Who samples, and how.

    Args:
        policy: sampled from.
        sampler: how responses are sampled.
        meter: counts the tokens, those of all processes on each.
        tick: where passing progress goes.
        world: (rank, processes): the prompts are dealt out, and each process has all samples afterwards.
    """

    policy: Policy
    sampler: Sampler
    meter: Meter = field(default_factory=Meter)
    tick: Callable[[Advance], None] = log.debug
    world: tuple[int, int] = (0, 1)

    def draw(
        self,
        prompts: Groups,
        n: int,
        *,
        seed: Sequence[int | str],
        what: str = "sampling",
        name: str = "policy",
        room: Callable[[], int] | None = None,
    ) -> Groups:
        """Sample `n` responses for each prompt; the same ones however many processes there are.

        Args:
            prompts: responses in them are ignored.
            n: samples per prompt.
            seed: path of the random numbers.
            what: is being done, for the progress.
            name: recorded in `sampled_by`.
            room: says how many prompts may be answered next. They are then answered part by part in their order, until
                it says 0; those that are left get no row.

        Raises:
            DataError: a prompt that does not fit.
        """
        times = occurrences(prompts)
        if room is None:
            return self._drawn(prompts, n, times, seed, what, name)
        parts, start = list[Groups](), 0
        while start < len(prompts) and (size := room()):
            stop = min(start + size, len(prompts))
            parts.append(self._drawn(prompts.select(range(start, stop)), n, times[start:stop], seed, what, name))
            start = stop
        return Groups.concat(parts)

    def draw_at(
        self, prompts: Groups, n: int, temperatures: Sequence[float], *, seeds: Sequence[Sequence[int | str]], name: str
    ) -> list[Groups]:
        """Sample `n` responses for each prompt at each temperature, in this process alone; see `Sampler.sample_at`.

        Args:
            prompts: responses in them are ignored.
            n: samples per prompt and temperature.
            temperatures: T of each.
            seeds: for each, path of the random numbers.
            name: recorded in `sampled_by`.

        Raises:
            DataError: a prompt that does not fit.
        """
        with calling(self.sampler, "sample"):
            found = self.sampler.sample_at(
                self.policy,
                prompts,
                n,
                temperatures,
                seeds=seeds,
                name=name,
                progress=_shown("sampling", self.tick),
                meter=self.meter,
            )
        for groups in found:
            _refuse_others(groups, prompts, n, f"{whose(self.sampler)}.sample")
        return found

    def most(self, prompts: int, n: int) -> dict[str, int]:
        """What so many prompts may cost at most, as a budget names it."""
        longest, start = self.sampler.max_new_tokens, self.sampler.max_prompt_tokens
        reading = Reading.of_samples([start] * prompts, [[longest] * n] * prompts)
        flops = self.policy.flops(reading, folded=True).forward
        return {"generated_tokens": prompts * n * longest, "flops": flops}

    def _drawn(
        self, prompts: Groups, n: int, times: Sequence[int], seed: Sequence[int | str], what: str, name: str
    ) -> Groups:
        """The samples of these prompts, which came before so many times each."""
        rank, processes = self.world
        mine = prompts.select(range(rank, len(prompts), processes)) if processes > 1 else prompts
        before = self._counted()
        with calling(self.sampler, "sample"):
            groups = self.sampler.sample(
                self.policy,
                mine,
                n,
                seed=seed,
                name=name,
                occurrence=times[rank::processes],  # over all processes, so that they draw what one would
                progress=_shown(what, self.tick),
                meter=self.meter,
            )
        _refuse_others(groups, mine, n, f"{whose(self.sampler)}.sample")
        if processes == 1:
            return groups
        self._add_others(before)
        return Groups.from_rows(gather_dealt(groups.rows, processes))

    def _counted(self) -> list[int]:
        return [self.meter.spent(name) for name in ("generated_tokens", "flops")]

    def _add_others(self, before: Sequence[int]) -> None:
        """Count what the other processes did."""
        mine = [now - then for now, then in zip(self._counted(), before, strict=True)]
        tokens, flops = (total - own for total, own in zip(summed(mine), mine, strict=True))
        with self.meter.phase("generate"):
            self.meter.add("generated_tokens", tokens)
            self.meter.compute(flops)


def _refuse_others(found: Any, prompts: Groups, n: int, where: str) -> None:
    """Refuse what does not answer the prompts that were asked, in their order.

    Raises:
        PluginError: naming the first row.
    """
    if not isinstance(found, Groups):
        raise PluginError(f"returned a {type(found).__name__}", where=where, remedy="return Groups")
    if len(found) != len(prompts):
        raise PluginError(
            f"answered {len(found)} of {len(prompts)} prompts", where=where, remedy="answer each, in order"
        )
    columns = ("prompt_id", "responses", "response_ids")
    for index, ((asked,), (prompt, given, ids)) in enumerate(
        zip(prompts.each("prompt_id"), found.each(*columns), strict=True)
    ):
        if prompt != asked:
            what = f"row {index} answers prompt {prompt}, asked was {asked}"
            raise PluginError(what, where=where, remedy="keep the rows that were given, and their order")
        if len(given) != n or ids is None:
            what = f"row {index} has {len(given)} responses" + ("" if ids else " without their token ids")
            raise PluginError(what, where=where, remedy=f"return {n} for each prompt, with response_ids and logprobs")


def _shown(what: str, tick: Callable[[Advance], None]) -> Progress:
    """Progress as it is shown: how far, how fast, how long still.

    Args:
        what: is being sampled.
        tick: where passing lines go.
    """

    def tell(done: int, total: int, tokens: int, seconds: float) -> None:
        told: tuple[str, float | None] = ("", None)
        if done >= total / 4:  # before, most of what was written belongs to responses that have not ended
            told = f"{tokens / max(seconds, 1e-6):.0f} tokens/s", seconds / done * (total - done)
        tick(Advance(f"{what}:", done, total, "responses", *told))

    return tell

"""Drawing samples: the one way for rounds, held-out prompts, evaluations, transforms and `run.sample`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.models import Policy
from alignkit.processes import gather_dealt
from alignkit.sampling.sampler import Progress, Sampler, occurrences

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
    tick: Callable[[str], None] = log.debug
    world: tuple[int, int] = (0, 1)

    def draw(
        self, prompts: Groups, n: int, *, seed: Sequence[int | str], what: str = "sampling", name: str = "policy"
    ) -> Groups:
        """Sample `n` responses for each prompt; the same ones however many processes there are.

        Args:
            prompts: responses in them are ignored.
            n: samples per prompt.
            seed: path of the random numbers.
            what: is being done, for the progress.
            name: recorded in `sampled_by`.

        Raises:
            DataError: a prompt that does not fit.
        """
        rank, processes = self.world
        mine = prompts.select(range(rank, len(prompts), processes)) if processes > 1 else prompts
        groups = self.sampler.sample(
            self.policy,
            mine,
            n,
            seed=seed,
            name=name,
            occurrence=occurrences(prompts)[rank::processes],  # over all processes, so that they draw what one would
            progress=_shown(what, self.tick),
            meter=self.meter,
        )
        if processes == 1:
            return groups
        everyone = Groups.from_rows(gather_dealt(groups.rows, processes))
        self.meter.add("generated_tokens", _tokens(everyone) - _tokens(groups))
        return everyone


def _shown(what: str, tick: Callable[[str], None]) -> Progress:
    """Progress as one line of text: how far, how fast, how long still.

    Args:
        what: is being sampled.
        tick: where passing lines go.
    """

    def tell(done: int, total: int, tokens: int, seconds: float) -> None:
        rate, left = tokens / max(seconds, 1e-6), seconds / max(done, 1) * (total - done)
        tick(f"{what}: {done}/{total} responses, {rate:.0f} tokens/s, {left:.0f} s left")

    return tell


def _tokens(groups: Groups) -> int:
    return sum(len(ids) for row in groups.column("response_ids") for ids in row)

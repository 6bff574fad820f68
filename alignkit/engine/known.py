"""What is known of responses before a step is taken: log-probs, the reference's, values, from the training path."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alignkit.engine.assemble import assemble, passes
from alignkit.engine.setting import Models
from alignkit.engine.training_data import Step, TrainingData
from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.models.arithmetic import Reading
from alignkit.models.batch import MicroBatch
from alignkit.vocabulary import MEASURED, VOCABULARY, select


@dataclass(frozen=True)
class Known:
    """Reads groups as the models do, and works out what they say of the responses.

    Args:
        models: whose values they are; log-probs are those of `policy`.
        temperature: of the log-probs.
        max_prompt_tokens: oldest exchanges of a longer prompt are left out.
        max_response_tokens: longest response learned from.
        max_tokens: cells of a micro-batch.
        meter: counts the forward passes; the reference has its own.
    """

    models: Models
    temperature: float
    max_prompt_tokens: int
    max_response_tokens: int
    max_tokens: int
    meter: Meter

    def read(self, groups: Groups, pairs: Sequence[tuple[int, int]] | None = None) -> TrainingData:
        """The groups in token ids.

        Raises:
            DataError: a row that does not fit.
        """
        return TrainingData.whole(
            self.models.policy,
            groups,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            pairs=pairs,
        )

    @torch.no_grad()
    def work_out(
        self, data: TrainingData, micro_batches: Sequence[Sequence[int]], names: Collection[str]
    ) -> dict[str, Tensor]:
        """[R, T] float32 each, on the CPU, without gradients.

        Args:
            data: the responses.
            micro_batches: numbers of groups; with those of the steps, the bits are those of the steps' forward.
            names: of `MEASURED`.
        """
        total, width = data.response_mask.shape
        out = {name: torch.zeros(total, width, dtype=torch.float32) for name in names}
        bare = replace(data, tensors={})  # with the batches that are laid out already
        for numbers in [each for each in micro_batches if each and names]:
            batch = bare.collate(numbers, again=True).to(self.models.policy.device)
            self._count(bare.reading(numbers), frozenset(names))
            found = self._forward(bare, batch, frozenset(names))
            for name, values in out.items():
                values[batch.responses.cpu(), : found[name].shape[1]] = found[name].float().cpu()
        return out

    def _forward(self, data: TrainingData, batch: MicroBatch, names: frozenset[str]) -> dict[str, Tensor]:
        theirs, found = select(names, source="reference"), dict[str, Tensor]()
        if own := names - theirs:
            policy, values = self.models.policy, self.models.value_model
            found, _ = assemble(policy, data, batch, own, temperature=self.temperature, value_model=values)
        if theirs:
            if self.models.reference is None:
                raise ConfigError("the method needs a reference", where="improve", remedy="pass reference=…")
            found["ref_logprobs"] = self.models.reference.logprobs(batch, self.temperature)
        return found

    def _count(self, reading: Reading, names: frozenset[str]) -> None:
        """Count the passes of `_forward`."""
        theirs = select(names, source="reference")
        if own := names - theirs:
            for forward, _ in passes(self.models.policy, reading, own, self.models.value_model):
                self.meter.add("scored_tokens", reading.tokens)
                self.meter.compute(forward)
        if theirs and self.models.reference is not None:
            self.models.reference.count(reading)

    def measure(self, groups: Groups, *names: str) -> dict[str, Tensor]:
        """`response_mask` and the tensors so named of any groups, under the weights of this moment.

        Raises:
            ConfigError: a name that cannot be measured.
        """
        unknown = set(names) - set(MEASURED)
        if unknown:
            raise ConfigError(
                f"measure cannot give {sorted(unknown)}", where="prepare", remedy=f"it gives {', '.join(MEASURED)}"
            )
        data = self.read(groups)
        found = self.work_out(data, data.all_micro_batches(self.max_tokens), set(names))
        return {"response_mask": data.response_mask, **found}


def first_epoch(steps: Sequence[Step]) -> list[list[int]]:
    """The micro-batches of the first pass over a round."""
    return [numbers for step in steps if step.epoch == 0 for numbers in step.micro]


@dataclass(frozen=True)
class Asked:
    """What is asked for of a round.

    Args:
        by_losses: tensors of the loss and the extra losses.
        by_prepare: names of `prepare`.
        keeps_reference: whether the losses' reference log-probs are worked out once a round, rather than with every
            micro-batch.
    """

    by_losses: frozenset[str]
    by_prepare: tuple[str, ...]
    keeps_reference: bool = True

    @property
    def by_losses_of_reference(self) -> bool:
        """Whether a loss compares with the reference."""
        return bool(select(self.by_losses, source="reference"))

    @property
    def before_prepare(self) -> set[str]:
        """What is worked out before `prepare`: for it, and for the losses what does not depend on it."""
        return {name for name in self.by_prepare if name in MEASURED} | self._kept_reference

    @property
    def before_steps(self) -> set[str]:
        """What must be known before the first step."""
        return {VOCABULARY[name].of for name in select(self.by_losses, source="old")} | self._kept_reference

    def left_to_the_step(self, steps: int) -> set[str]:
        """What of this is not worked out before a round's only step: its forward pass gives it, under the weights of
        before.

        Args:
            steps: of the round.
        """
        given = {"logprobs"} | self.by_losses
        old = {VOCABULARY[name].of for name in select(self.by_losses, source="old")}
        return old & given if steps == 1 else set()

    @property
    def _kept_reference(self) -> set[str]:
        return {"ref_logprobs"} if self.keeps_reference and self.by_losses_of_reference else set()

    def under_loss_names(self, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is known, by the names that losses have for it: "logprobs" from before the first step is
        "old_logprobs"."""
        old = {spec.of: name for name, spec in VOCABULARY.items() if spec.source == "old"}
        kept = {name: values for name, values in known.items() if name in old or self.keeps_reference}
        return {old.get(name, name): values for name, values in kept.items()}

"""What a round learns from: encoded groups, tensors aligned with their responses, pairs, and the steps through them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.data.encode import EncodedGroup, encode_groups, encode_texts, is_plain_text
from alignkit.data.problems import Problem
from alignkit.engine.pairs import Pairs, given_pairs, pairs_of
from alignkit.engine.reduction import Layout, level_named
from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.models import Policy, RewardModel
from alignkit.models.arithmetic import Reading
from alignkit.models.batch import MicroBatch, collate, parts_of, plan_micro_batches, row_length
from alignkit.randomness import permutation

if TYPE_CHECKING:
    from alignkit.data.chat import Train

KEPT_CELLS = 1 << 20
"""Padded cells of the batches of a round that are laid out once, about 60 bytes each."""


@dataclass(frozen=True)
class Step:
    """The groups of one optimizer step, split into micro-batches for all processes together.

    Args:
        micro: what each micro-batch holds: numbers of groups, or of parts of them (see `TrainingData.parts`).
        numbers: of all its groups.
        epoch: the pass over the round that this step belongs to.
    """

    micro: list[list[int]]
    numbers: list[int]
    epoch: int = 0

    def mine(self, rank: int, world: int) -> list[list[int]]:
        """The micro-batches of one process; as many for each."""
        return self.micro[rank::world]

    @property
    def laid_out(self) -> list[int]:
        """What goes through the model: its groups, and the parts of those that are too large for one micro-batch."""
        return [number for each in self.micro for number in each]


@dataclass
class TrainingData:
    """Encoded groups with what is known of their responses, in one order throughout; see `of`.

    Args:
        groups: the rows.
        encoded: as many, tokenised; `index` is the row in the groups that `of` was given.
        tensors: name -> [R, T] or [R], in the order of the responses.
        shared: whether prompts are shared in a row.
        packed: whether a batch is a single row without padding.
        pad_id: for padding.
        named_pairs: (chosen, rejected) response numbers; None takes the pairs that the ranks make.
        by_prompt: groups of one prompt stand in one step; not beside `named_pairs`.
        parts: (group, first response, end) of what is learned in parts; they are numbered on after the groups.
        left_to_the_step: tensors from before the round's only step that its own forward pass gives, see `Asked`.
    """

    groups: Groups
    encoded: list[EncodedGroup]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    shared: bool = True
    packed: bool = False
    pad_id: int = 0
    named_pairs: Sequence[tuple[int, int]] | None = None
    by_prompt: bool = False
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    left_to_the_step: Collection[str] = ()
    _numbered: dict[tuple[int, int, int], int] = field(default_factory=dict, repr=False, compare=False)
    _laid_out: dict[tuple[int, ...], MicroBatch] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: Policy | RewardModel,
        groups: Groups,
        *,
        max_prompt_tokens: int,
        max_response_tokens: int,
        train: Train = "last",
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[TrainingData, list[Problem]]:
        """The groups as this model reads them.

        Args:
            model: policy or reward model.
            groups: the rows.
            max_prompt_tokens: oldest exchanges of a longer prompt are left out.
            max_response_tokens: a row with a longer response is a problem.
            train: "last": the response is learned from, and earlier turns that are marked; "all": every assistant turn;
                "response": the response alone.
            pairs: see `named_pairs`.

        Returns:
            (the rows that fit, a problem for each row that is left out).
        """
        encoded, problems = encode_groups(
            groups,
            model.chat,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            train=train,
        )
        rows = groups.select(each.index for each in encoded) if problems else groups
        return cls._read_by(model, rows, encoded, pairs), problems

    @classmethod
    def whole(
        cls,
        model: Policy | RewardModel,
        groups: Groups,
        *,
        max_prompt_tokens: int,
        max_response_tokens: int,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> TrainingData:
        """The responses alone, where no row may be left out: what `improve` learns from.

        Raises:
            DataError: naming the first that does not fit.
        """
        data, problems = cls.of(
            model,
            groups,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            train="response",
            pairs=pairs,
        )
        if problems:
            raise DataError(f"{len(problems)} rows cannot be learned from: {problems[0]}", where="improve")
        return data

    @classmethod
    def of_stream(
        cls, model: Policy, groups: Groups, max_tokens: int, train: Train = "last"
    ) -> tuple[TrainingData, list[Problem]]:
        """The same of a second stream or of demonstrations: plain texts are learned in pieces, conversations as they
        are.

        Args:
            model: the policy.
            groups: the rows.
            max_tokens: of a piece, a prompt and a response, each.
            train: as for `of`.
        """
        places = [place for place, row in enumerate(groups) if not is_plain_text(row)]
        texts, talks = groups.filter(is_plain_text), groups.select(places)
        pieces = encode_texts(texts, model.chat, max_tokens)
        encoded, problems = encode_groups(
            talks, model.chat, max_prompt_tokens=max_tokens, max_response_tokens=max_tokens, train=train
        )
        problems = [each if each.row is None else replace(each, row=places[each.row]) for each in problems]
        rows = Groups.concat([texts.select(e.index for e in pieces), talks.select(e.index for e in encoded)])
        return cls._read_by(model, rows, [*pieces, *encoded]), problems

    @classmethod
    def _read_by(
        cls,
        model: Policy | RewardModel,
        groups: Groups,
        encoded: Sequence[EncodedGroup],
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> TrainingData:
        return cls(groups, list(encoded), named_pairs=pairs, **laid_out_for(model))

    def first(self, groups: int) -> TrainingData:
        """The first response of the first so many groups, with nothing known of them."""
        few = [replace(each, responses=each.responses[:1]) for each in self.encoded[:groups]]
        return TrainingData(self.groups, few, shared=self.shared, packed=self.packed, pad_id=self.pad_id)

    @cached_property
    def first_response(self) -> list[int]:
        firsts, total = [], 0
        for group in self.encoded:
            firsts.append(total)
            total += len(group.responses)
        return firsts

    @cached_property
    def pairs(self) -> Pairs:
        return pairs_of(self.groups) if self.named_pairs is None else given_pairs(self.groups, self.named_pairs)

    @cached_property
    def labels(self) -> Tensor:
        """[R] what was said of each response on its own: 1 good, 0 bad, -1 unknown."""
        said = zip(self.groups.column("labels"), self.groups.sizes(), strict=True)
        flags = [flag for labels, size in said for flag in labels or [None] * size]
        return torch.tensor([-1.0 if flag is None else float(flag) for flag in flags])

    def sampled_logprobs(self) -> tuple[Tensor, Tensor]:
        """([R, T] log-probs in nats as the sampler recorded them, [R, T] True on the tokens where it did): not of
        responses that were edited, or are of another tokenizer."""
        found, known = torch.zeros(self.response_mask.shape), torch.zeros_like(self.response_mask)
        place = 0
        recorded_by_group = self.groups.each("response_ids", "logprobs")
        for encoded, (ids, logprobs) in zip(self.encoded, recorded_by_group, strict=False):  # of `first`, fewer
            for number, own in enumerate(encoded.responses):
                recorded = ids is not None and logprobs is not None and len(logprobs[number]) == len(own)
                if recorded and ids[number] == own:
                    start = int(self.response_mask[place].sum()) - len(own)
                    found[place, start : start + len(own)] = torch.tensor(logprobs[number])
                    known[place, start : start + len(own)] = True
                place += 1
        return found, known

    @cached_property
    def units(self) -> list[list[int]]:
        """Groups that stay together in a micro-batch, because a pair joins their responses; most are alone."""
        owner = list(range(len(self.encoded)))

        def root(number: int) -> int:
            while owner[number] != number:
                number = owner[number]
            return number

        if self.named_pairs is not None:
            of = [i for i, g in enumerate(self.encoded) for _ in g.responses]
            for chosen, rejected in self.named_pairs:
                a, b = sorted((root(of[chosen]), root(of[rejected])))
                owner[b] = a
        units: dict[int, list[int]] = {}
        for number in range(len(owner)):
            units.setdefault(root(number), []).append(number)
        return list(units.values())

    @cached_property
    def _of_a_step(self) -> list[list[int]]:
        """Groups that stand in one step: units, or all of a prompt."""
        if not self.by_prompt:
            return self.units
        found = dict[str, list[int]]()
        for number, prompt in enumerate(self.groups.column("prompt_id")):
            found.setdefault(prompt, []).append(number)
        return [*found.values()]

    @cached_property
    def ranks(self) -> list[list[int] | None]:
        """Of each group's responses, where they are ranked."""
        return self.groups.column("ranks")

    @cached_property
    def ranked(self) -> list[bool]:
        """Of each group whether some rank differs from another, so that it holds a comparison."""
        return [len(set(ranks or ())) > 1 for ranks in self.ranks]

    def lacks(self, tensor_names: tuple[str, ...]) -> str:
        """What a loss of these tensors learns from and the data do not hold; empty where it has an element."""
        level = level_named(tensor_names)
        if level == "pair" and not len(self.pairs.group):
            return "comparisons (two responses of different rank)"
        if level == "ranking" and not any(self.ranked):
            return "rankings (responses of different rank)"
        told = "labels" in tensor_names and "labels" not in self.tensors
        if told and level == "response" and not bool((self.labels >= 0).any()):
            return "labels"
        return ""

    @cached_property
    def pairs_by_group(self) -> tuple[Tensor, ...]:
        """Of each group the numbers of its pairs."""
        order = torch.argsort(self.pairs.group, stable=True)
        counts = torch.bincount(self.pairs.group, minlength=len(self.encoded))
        return order.split(counts.tolist())

    def pairs_among(self, numbers: Sequence[int]) -> Tensor:
        """[P] the pairs of these groups, group after group."""
        return torch.cat([self.pairs_by_group[i] for i in numbers])

    @cached_property
    def learned_tokens(self) -> list[list[int]]:
        """[group][response] number of learned tokens: trained ones of the prompt and the response."""
        extra = [sum(flag for flag in (g.prompt_trained or [])[1:]) for g in self.encoded]
        return [[e + len(r) for r in g.responses] for e, g in zip(extra, self.encoded, strict=True)]

    def reading(self, numbers: Sequence[int]) -> Reading:
        """What of these groups goes through a model."""
        return Reading.of_groups([self._part(i)[0] for i in numbers], self.shared)

    def _part(self, number: int) -> tuple[EncodedGroup, int, int]:
        """(what it holds, its group, its first response) of a group or of a part of one."""
        if number < len(self.encoded):
            return self.encoded[number], number, self.first_response[number]
        group, first, end = self.parts[number - len(self.encoded)]
        whole = self.encoded[group]
        return replace(whole, responses=whole.responses[first:end]), group, self.first_response[group] + first

    def _parted(self, number: int, max_tokens: int) -> list[int]:
        """A group, or the parts that fit into a micro-batch each."""
        found = parts_of(self.encoded[number], self.shared, max_tokens)
        if len(found) == 1:
            return [number]
        parts = [(number, first, end) for first, end in found]
        for part in parts:
            if part not in self._numbered:
                self._numbered[part] = len(self.encoded) + len(self.parts)
                self.parts.append(part)
        return [self._numbered[part] for part in parts]

    def collate(self, numbers: Sequence[int], *, again: bool = False) -> MicroBatch:
        """The batch of these groups.

        Args:
            numbers: of the groups, or of parts, in order.
            again: they will be asked for once more (the pass before the steps, and the step): the batch is kept, as
                long as those that are kept have fewer than `KEPT_CELLS` cells.
        """
        found = self._laid_out.get(tuple(numbers))
        if found is None:
            few, groups, firsts = zip(*(self._part(i) for i in numbers), strict=True)
            found = collate(few, groups, firsts, pad_id=self.pad_id, shared=self.shared, packed=self.packed)
            if again and sum(each.cells for each in (*self._laid_out.values(), found)) <= KEPT_CELLS:
                self._laid_out[tuple(numbers)] = found
        return found

    @cached_property
    def response_mask(self) -> Tensor:
        """[R, T] bool: which tokens of each response are learned from."""
        lengths = torch.tensor([n for lengths in self.learned_tokens for n in lengths])
        return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)

    def ended(self, end_ids: Sequence[int]) -> Tensor:
        """[R] bool: whether each response ended by itself: with one of these tokens, or as its sampler says (a stop
        text ends a response without one)."""
        ends, finished = set(end_ids), self.groups.column("finished")
        known = [flags or [None] * len(g.responses) for flags, g in zip(finished, self.encoded, strict=True)]
        return torch.tensor(
            [
                bool(r) and (r[-1] in ends or done is True)
                for flags, g in zip(known, self.encoded, strict=True)
                for done, r in zip(flags, g.responses, strict=True)
            ]
        )

    def all_micro_batches(self, max_tokens: int) -> list[list[int]]:
        """All groups, grouped by length."""
        return self.micro_batches(list(range(len(self.encoded))), max_tokens)

    def micro_batches(
        self, numbers: Sequence[int], max_tokens: int, multiple_of: int = 1, together: bool = False
    ) -> list[list[int]]:
        """These groups, grouped so that little is padded; those that a pair joins stay together.

        Args:
            numbers: of the groups.
            max_tokens: cells of a micro-batch, padding included; the responses of a group that has more are parted.
            multiple_of: see `plan_micro_batches`.
            together: no group is parted: something is said of several of its responses at once.
        """
        wanted = set(numbers)
        if self.named_pairs is None:
            units = [[part] for i in numbers for part in ([i] if together else self._parted(i, max_tokens))]
        else:
            units = [unit for unit in self.units if unit[0] in wanted]
        batches = plan_micro_batches([self._unit_cells(u) for u in units], max_tokens, multiple_of, self.packed)
        return [[i for place in batch for i in units[place]] for batch in batches]

    def _unit_cells(self, unit: Sequence[int]) -> int:
        """Of groups that stay together. Padded rows are as long as the longest, so this bounds any batch of units."""
        cells = [self._cells(i) for i in unit]
        return sum(cells) if self.packed else len(unit) * max(cells)

    def _cells(self, number: int) -> int:
        group, _, _ = self._part(number)
        rows = 1 if self.shared else len(group.responses)
        return row_length(group, self.shared) * rows

    def over(self, max_tokens: int) -> int:
        """Cells of the largest group or of the largest that pairs join, where these are more; else 0."""
        cells = [self._unit_cells(unit) for unit in self.units]
        return most if (most := max(cells, default=0)) > max_tokens else 0

    def steps(
        self,
        batch_size: int,
        epochs: int,
        max_tokens: int,
        seed: Sequence[int | str],
        world: int = 1,
        together: bool = False,
        most: int = 0,
    ) -> list[Step]:
        """The steps of every epoch, each epoch in a shuffled order of its own.

        Args:
            batch_size: groups per step; 0 for all. Groups that a pair or their prompt joins count together, so a step
                may hold a few more.
            epochs: passes.
            max_tokens: cells per micro-batch.
            seed: path of the order's random numbers.
            world: processes.
            together: as for `micro_batches`.
            most: so many steps, however many epochs they take; 0: the epochs decide.
        """
        size = batch_size or len(self.encoded)
        steps: list[Step] = []
        units = self._of_a_step
        for epoch in itertools.count() if most and units else range(epochs):
            if most and len(steps) >= most:
                break
            numbers: list[int] = []
            order = permutation(len(units), *seed, epoch)
            for place, unit in enumerate(order, start=1):
                numbers += units[unit]
                if len(numbers) >= size or place == len(order):
                    steps.append(Step(self.micro_batches(numbers, max_tokens, world, together), numbers, epoch))
                    numbers = []
        return steps[:most] if most else steps

    def useful_tokens(self, step: Step) -> float:
        """Share of the cells of a step's micro-batches, over all processes, that are no padding."""
        if self.packed:
            return 1.0
        tokens = cells = 0
        for numbers in filter(None, step.micro):
            groups = [self._part(i)[0] for i in numbers]
            rows = len(groups) if self.shared else sum(len(group.responses) for group in groups)
            cells += rows * max(row_length(group, self.shared) for group in groups)
            tokens += Reading.of_groups(groups, self.shared).tokens
        return tokens / cells

    def count(self, step: Step, kind: str, mask: str | None) -> float:
        """The step's number of tokens, sequences, responses, pairs or groups, over all processes."""
        numbers = step.numbers
        if kind == "token_group":
            return float(sum(any(self._shown(i, mask)) for i in numbers))
        if kind in ("token", "sequence") and mask not in (None, "response_mask"):
            lengths = [n for i in numbers for n in self._shown(i, mask)]
            return sum(lengths) if kind == "token" else float(sum(n > 0 for n in lengths))
        if kind == "ranking":
            return float(sum(self.ranked[i] for i in numbers))
        if kind == "token":
            return float(sum(sum(self.learned_tokens[i]) for i in numbers))
        if kind == "sequence":
            return float(sum(n > 0 for i in numbers for n in self.learned_tokens[i]))
        if kind == "response":
            return float(sum(len(self.encoded[i].responses) for i in numbers))
        if kind in ("pair", "pair_group"):
            per_group = [len(self.pairs_by_group[i]) for i in numbers]
            return float(sum(per_group) if kind == "pair" else sum(n > 0 for n in per_group))
        return float(len(numbers))

    def _shown(self, group: int, mask: str | None) -> list[float]:
        """How many tokens of each response of a group a mask shows."""
        if mask in (None, "response_mask"):
            return [float(n) for n in self.learned_tokens[group]]
        first = self.first_response[group]
        return [float(self.tensors[str(mask)][first + k].sum()) for k in range(len(self.encoded[group].responses))]

    def _responses(self, numbers: Sequence[int]) -> list[int]:
        return [self.first_response[i] + k for i in numbers for k in range(len(self.encoded[i].responses))]

    def slice_tensors(self, batch: MicroBatch) -> dict[str, Tensor]:
        """The round's tensors for the responses of a micro-batch, cut to its width."""
        width = batch.targets.shape[1]
        device = batch.targets.device
        out = {}
        for name, values in self.tensors.items():
            taken = values[batch.responses.to(values.device)]
            out[name] = (taken[:, :width] if taken.ndim == 2 else taken).to(device)
        return out

    def not_finite(self, numbers: Sequence[int]) -> str:
        """Which of the tensors that the round made has a NaN or an infinity among what these groups learn from, and of
        which response; an empty string where none has."""
        mask = self.response_mask
        for name, values in self.tensors.items():
            for number in numbers:
                for k in range(len(self.encoded[number].responses)):
                    r = self.first_response[number] + k
                    taken = values[r] if values.ndim == 1 else values[r, : mask.shape[1]][mask[r, : values.shape[1]]]
                    if not bool(torch.isfinite(taken.double()).all()):
                        prompt = self.groups[number]["prompt_id"]
                        return f"{name} is not, for response {k} to prompt {prompt}"
        return ""

    def layout(self, batch: MicroBatch, masks: Mapping[str, Tensor], pair_group: Tensor | None) -> Layout:
        """Whom the elements of a micro-batch belong to."""
        numbers = {group: index for index, group in enumerate(batch.group_order)}
        device = batch.targets.device
        response_group = torch.tensor([numbers[int(g)] for g in batch.groups], dtype=torch.long, device=device)
        empty = torch.zeros(0, dtype=torch.long, device=device)
        there = Counter(batch.groups.tolist())
        parted = any(count < len(self.encoded[group].responses) for group, count in there.items())

        def counts(level: str, mask: str | None) -> Tensor:
            said = [
                self._shown(i, mask) if level == "token" else [1.0] * len(self.encoded[i].responses) for i in numbers
            ]
            return torch.tensor([float(sum(n > 0 for n in each)) for each in said], device=device)

        pairs = pair_group if pair_group is not None else empty
        ranked = torch.tensor([self.ranked[i] for i in batch.group_order], dtype=torch.bool, device=device)
        return Layout(masks, response_group, pairs, len(numbers), ranked, counts if parted else None)


def laid_out_for(model: Policy | RewardModel) -> dict[str, Any]:
    """How `TrainingData` are laid out that this model reads."""
    return {"shared": model.shares_prompts, "packed": model.packs_rows, "pad_id": model.chat.pad_id}


def said_of_size(cells: int, max_tokens: int) -> str:
    """What is said, before the first step, of a group that a loss needs whole.

    Args:
        cells: cells of the largest.
        max_tokens: of a micro-batch.
    """
    return (
        f"the loss compares responses of a prompt, and the largest group has {cells} tokens: a step takes the memory "
        f"of that many, not of max_tokens={max_tokens}"
    )

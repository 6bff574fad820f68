"""Components of the other kinds with one fault each: (kind, name, the check that must find it, component)."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.annotators import Annotator
from alignkit.data import Reading, RowFormat
from alignkit.functional import masked_mean
from alignkit.groups import Groups
from alignkit.metrics import Mean, Metric, MetricSpec
from alignkit.optimizers import Batch, PolicyOptimizer, Term
from alignkit.rewards import Reward, Scores
from alignkit.sampling import Sampled, Sampler
from alignkit.selection import take_responses
from alignkit.stages import NO_EFFECT, Stage
from alignkit.stages.handles import GroupsHandle
from alignkit.suites import Suite

PLANTED: list[tuple[str, str, str, Any]] = []


def plant(kind: str, check: str) -> Callable[[Any], Any]:
    """Plant the component below for this check."""

    def keep(component: Any) -> Any:
        PLANTED.append((kind, component.__name__.lower(), check, component))
        return component

    return keep


# -- optimizers --------------------------------------------------------------------------------------------------------


def weighted_nll(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -advantages * logprobs


@dataclass(frozen=True)
class Base(PolicyOptimizer):
    """Imitates samples by how much better than the mean they are.

    Args:
        scale: of the advantages.
    """

    loss: Any = weighted_nll
    samples_per_prompt: int = 4
    batch_size: int = 0
    scale: float = 1.0

    def terms(self) -> Mapping[str, Term]:
        return {"loss": Term(reduction="token")}

    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        scores = rewards.where(present, 0)
        return (scores - scores.sum() / present.sum()).where(present, 0)

    def prepare(
        self, groups: Groups, state: Mapping[str, Any], *, rewards: Tensor, present: Tensor, response_mask: Tensor
    ) -> Batch:
        advantages = self.advantages(rewards, present, groups)
        return Batch(groups, {"advantages": advantages.unsqueeze(1) * response_mask})


@plant("optimizer", "learns")
@dataclass(frozen=True)
class LearnsTheWorst(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return -super().advantages(rewards, present, groups)


@plant("optimizer", "constant-rewards")
@dataclass(frozen=True)
class DividesByADeviationOfZero(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        centred = super().advantages(rewards, present, groups)
        return centred / centred[present].std()


@plant("optimizer", "missing-rewards")
@dataclass(frozen=True)
class TakesMissingForZero(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return rewards - rewards.mean()


@plant("optimizer", "empty-responses")
@dataclass(frozen=True)
class MeanOverNoToken(Base):
    def prepare(self, groups, state, *, rewards, present, response_mask):
        per_token = self.advantages(rewards, present, groups) / response_mask.sum(-1)
        return Batch(groups, {"advantages": per_token.unsqueeze(1) * response_mask})


@plant("optimizer", "hidden-advantages")
@dataclass(frozen=True)
class RewardsThePadding(Base):
    def prepare(self, groups, state, *, rewards, present, response_mask):
        advantages = self.advantages(rewards, present, groups)
        return Batch(groups, {"advantages": advantages.unsqueeze(1).expand(response_mask.shape)})


@plant("optimizer", "prepare-changes-nothing")
@dataclass(frozen=True)
class WhitensInPlace(Base):
    def prepare(self, groups, state, *, rewards, present, response_mask):
        rewards -= rewards.mean()
        return Batch(groups, {"advantages": rewards.unsqueeze(1) * response_mask})


@plant("optimizer", "prepare-changes-nothing")
@dataclass(frozen=True)
class DrawsFromTheGlobalState(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return super().advantages(rewards, present, groups) + 1e-3 * torch.randn(len(rewards))


@plant("optimizer", "prepared-batch")
@dataclass(frozen=True)
class CallsItByAnotherName(Base):
    def prepare(self, groups, state, *, rewards, present, response_mask):
        advantages = self.advantages(rewards, present, groups).unsqueeze(1) * response_mask
        return Batch(groups, {"advantages": advantages, "advantage": advantages})


@plant("optimizer", "prepared-batch")
@dataclass(frozen=True)
class PromisesATensor(Base):
    provides: ClassVar[Mapping[str, str]] = {"confidence": "[responses], how sure it is"}


@plant("optimizer", "state-is-json")
@dataclass(frozen=True)
class CountsByNumber(Base):
    def initial_state(self) -> dict[str, Any]:
        return {"seen": {1: 0}}


@plant("optimizer", "state-is-json")
@dataclass(frozen=True)
class UpdatesInPlace(Base):
    def initial_state(self) -> dict[str, Any]:
        return {"rounds": 0}

    def update(self, state, metrics):
        state["rounds"] += 1
        return state


@plant("optimizer", "state-is-json")
@dataclass(frozen=True)
class CountsUnannounced(Base):
    def update(self, state, metrics):
        return {**state, "rounds": state.get("rounds", 0) + 1}


@plant("optimizer", "every-micro-batch-alike")
@dataclass(frozen=True)
class LossOfTheMicroBatch(Base):
    loss: Any = dataclasses.field(default_factory=lambda: mean_of_the_micro_batch)


def mean_of_the_micro_batch(logprobs, advantages, response_mask):
    return -(advantages - masked_mean(advantages, response_mask)) * logprobs / response_mask.sum()


def divided_by_its_batch(logprobs, advantages):
    return -advantages * logprobs / len(logprobs)


@plant("optimizer", "exact-gradient")
@dataclass(frozen=True)
class DividesByItsBatch(Base):
    loss: Any = dataclasses.field(default_factory=lambda: divided_by_its_batch)


def centred_among_neighbours(logprobs, advantages, response_mask):
    return -(advantages - masked_mean(advantages, response_mask)) * logprobs


@plant("optimizer", "exact-gradient")
@dataclass(frozen=True)
class LooksAtItsNeighbours(Base):
    loss: Any = dataclasses.field(default_factory=lambda: centred_among_neighbours)


def turned_where_there_is_padding(logprobs, advantages, response_mask):
    return torch.where(response_mask[:, -1:], -advantages, advantages) * logprobs


@plant("optimizer", "exact-gradient")
@dataclass(frozen=True)
class TurnsTheShorterResponses(Base):
    loss: Any = dataclasses.field(default_factory=lambda: turned_where_there_is_padding)


def mean_of_the_pairs_at_hand(chosen_logprobs, rejected_logprobs):
    margin = chosen_logprobs - rejected_logprobs
    return -torch.nn.functional.logsigmoid(margin - margin.mean().detach())


@dataclass(frozen=True)
class Comparing(PolicyOptimizer):
    """Learns from comparisons that it is given."""

    loss: Any = dataclasses.field(default_factory=lambda: plain_pairs)
    samples_per_prompt: int = 0

    def prepare(self, groups: Groups, state: Mapping[str, Any]) -> Batch:
        return Batch(groups)


def plain_pairs(chosen_logprobs, rejected_logprobs):
    return -torch.nn.functional.logsigmoid(chosen_logprobs - rejected_logprobs)


@plant("optimizer", "exact-gradient")
@dataclass(frozen=True)
class CentresThePairsAtHand(Comparing):
    loss: Any = dataclasses.field(default_factory=lambda: mean_of_the_pairs_at_hand)


def entropy_of(entropy):
    return entropy


def likelihood(logprobs, labels):
    return (logprobs.sum(-1) + 1) ** 2 + 0 * labels


@dataclass(frozen=True)
class DeclaresAll(Base):
    """All that a method may declare, and no fault.

    Args:
        reduction: of every term.
    """

    reduction: Any = "token"

    provides: ClassVar[Mapping[str, str]] = {"some": "[responses, tokens] bool"}

    def terms(self) -> Mapping[str, Term]:
        each = Term(reduction=self.reduction, constant=3.0)
        weights = {"pairs": 0.5, "responses": 0.01}
        others = {name: dataclasses.replace(each, weight=weight) for name, weight in weights.items()}
        bonus = dataclasses.replace(each, weight=-0.1, mask="some")
        return {"loss": dataclasses.replace(each, mask="some"), "bonus": bonus, **others}

    def extra_losses(self) -> Mapping[str, Any]:
        return {"pairs": plain_pairs, "bonus": entropy_of, "responses": likelihood}

    def prepare(
        self, groups: Groups, state: Mapping[str, Any], *, rewards: Tensor, present: Tensor, response_mask: Tensor
    ) -> Batch:
        sizes = [len(row["responses"]) for row in groups]
        kept = [list(range(5 if number == 1 else size)) for number, size in enumerate(sizes)]
        first = len(kept[0])
        taken = torch.tensor([sum(sizes[:number]) + k for number, places in enumerate(kept) for k in places])
        mask, advantages = response_mask[taken], self.advantages(rewards, present, groups)[taken].unsqueeze(1)
        some = mask.clone()
        some[::3, 0] = some[1] = some[-sizes[-1] :] = False  # some tokens, a response and the last row without any
        pairs = [(0, 1), (1, 2), (3, first), (first + 1, 4), (first + 2, first + 3)]
        return Batch(take_responses(groups, kept), {"advantages": advantages * mask, "some": some}, pairs=pairs)


@dataclass(frozen=True)
class AsksForLogprobs(Base):
    """Takes the KL off the reward."""

    def prepare(self, groups, state, *, rewards, present, response_mask, ref_logprobs):
        advantages = self.advantages(rewards + 0.1 * ref_logprobs.sum(-1), present, groups)
        return Batch(groups, {"advantages": advantages.unsqueeze(1) * response_mask})


@plant("optimizer", "exact-gap")
@dataclass(frozen=True)
class GoesTheWrongWay(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return -super().advantages(rewards, present, groups)


@plant("optimizer", "exact-gap")
@dataclass(frozen=True)
class RewardsTheNextOne(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return super().advantages(rewards, present, groups).roll(1)


@plant("optimizer", "exact-gap")
@dataclass(frozen=True)
class StaysWhereItIs(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return 0 * super().advantages(rewards, present, groups)


@plant("optimizer", "exact-gap")
@dataclass(frozen=True)
class PrefersTheWorse(Comparing):
    loss: Any = dataclasses.field(default_factory=lambda: pairs_turned_round)


def pairs_turned_round(chosen_logprobs, rejected_logprobs):
    return -torch.nn.functional.logsigmoid(rejected_logprobs - chosen_logprobs)


@plant("optimizer", "keeps-by-prompt")
@dataclass(frozen=True)
class KeepsByResponse(Base):
    def keep(self, groups: Groups) -> list[bool] | None:
        return [True] * len(groups) + [bool(groups.num_responses)]


@plant("optimizer", "finite-gradient")
@dataclass(frozen=True)
class TeachesNothing(Base):
    def advantages(self, rewards: Tensor, present: Tensor, groups: Groups) -> Tensor:
        return 0 * rewards


@plant("optimizer", "documented")
@dataclass(frozen=True)
class SaysNothingOfASetting(Base):
    """Has a setting that nobody explains."""

    secret: float = 0.5


# -- losses' settings --------------------------------------------------------------------------------------------------


@plant("loss", "refuses-negative")
def turns_round(chosen_rewards, rejected_rewards, *, beta: float = 1.0):
    """-log sigmoid(beta (r_w - r_l)).

    Args:
        beta: how sharp.
    """
    return -torch.nn.functional.logsigmoid(beta * (chosen_rewards - rejected_rewards))


@plant("loss", "infinite-is-refused-or-harmless")
def grows_without_end(chosen_rewards, rejected_rewards, *, beta: Any = 1.0):
    """(r_w - r_l - beta)^2.

    Args:
        beta: the margin.
    """
    return (chosen_rewards - rejected_rewards - beta) ** 2


# -- functions' settings, refused when they are called -----------------------------------------------------------------


@plant("reward", "refuses-negative")
def prefers_emptiness(response: str, *, words: int = 12) -> float:
    """The share of `words` words.

    Args:
        words: how many are best.
    """
    return len(response.split()) / words


@plant("transform", "refuses-negative")
def keeps_none(groups: Groups, ctx: Any, *, most: int = 200) -> Groups:
    """The groups whose prompt has at most `most` messages.

    Args:
        groups: any.
        ctx: not used.
        most: messages.
    """
    return groups.filter(lambda row: len(row["prompt"]) <= most)


# -- samplers ----------------------------------------------------------------------------------------------------------


@plant("sampler", "warp-only-excludes")
@dataclass(frozen=True)
class Renormalises(Sampler):
    """Gives back probabilities that sum to one again."""

    def warp(self, logprobs: Tensor) -> Tensor:
        floor = logprobs.max(-1, keepdim=True).values - 3
        return logprobs.masked_fill(logprobs < floor, -torch.inf).log_softmax(-1)


@plant("sampler", "warp-only-excludes")
@dataclass(frozen=True)
class SharesAThreshold(Sampler):
    """One floor for all rows."""

    def warp(self, logprobs: Tensor) -> Tensor:
        return logprobs.masked_fill(logprobs < logprobs.max(-1).values.min() - 1, -torch.inf)


@dataclass(frozen=True)
class Changed(Sampler):
    """Changes what the default sampler wrote."""

    def change(self, written: Sampled, number: int) -> Sampled:
        return written

    def generate(self, policy, prompts, keys, end_ids):
        for place, responses in super().generate(policy, prompts, keys, end_ids):
            yield place, [self.change(each, number) for number, each in enumerate(responses)]


@plant("sampler", "frequencies-are-probabilities")
@dataclass(frozen=True)
class HotterThanItSays(Sampler):
    """Samples at another temperature."""

    def generate(self, policy, prompts, keys, end_ids):
        hot = Sampler(self.temperature * 0.5, self.max_new_tokens, self.max_prompt_tokens, batch_size=self.batch_size)
        return hot.generate(policy, prompts, keys, end_ids)


@plant("sampler", "logprobs-are-the-policy")
@dataclass(frozen=True)
class ForgetsTheTemperature(Sampler):
    """Log-probs of another temperature."""

    temperature: float = 0.7

    def generate(self, policy, prompts, keys, end_ids):
        for place, responses in super().generate(policy, prompts, keys, end_ids):
            for each in responses:
                each.logprobs = [value * 0.7 for value in each.logprobs]
            yield place, responses


@plant("sampler", "batch-size-invariance")
@dataclass(frozen=True)
class SeedsByBatch(Sampler):
    """Its random numbers depend on the size of the batch."""

    def generate(self, policy, prompts, keys, end_ids):
        moved = [[key ^ len(prompts) ^ self.batch_size for key in each] for each in keys]
        return super().generate(policy, prompts, moved, end_ids)


@plant("sampler", "same-seed-same-samples")
@dataclass(frozen=True)
class IgnoresTheSeed(Sampler):
    """The same numbers every round."""

    def generate(self, policy, prompts, keys, end_ids):
        return super().generate(policy, prompts, [list(range(len(each))) for each in keys], end_ids)


@plant("sampler", "ends-where-it-ends")
@dataclass(frozen=True)
class NeverFinished(Changed):
    """Calls nothing finished."""

    def change(self, written: Sampled, number: int) -> Sampled:
        written.finished = False
        return written


@plant("sampler", "as-many-as-asked")
@dataclass(frozen=True)
class RunsOn(Sampler):
    """Writes two tokens more than it may."""

    def generate(self, policy, prompts, keys, end_ids):
        longer = Sampler(self.temperature, self.max_new_tokens + 2, batch_size=self.batch_size)
        return longer.generate(policy, prompts, keys, end_ids)


# -- rewards -----------------------------------------------------------------------------------------------------------


class Length(Reward):
    """The length of a response."""

    name = "length"

    def one(self, response: str) -> float | None:
        return float(len(response))

    def score(self, groups: Groups) -> Scores:
        values = [[self.one(response) for response in row["responses"]] for row in groups]
        return Scores(values, [[None if v is not None else "missing" for v in row] for row in values])

    def key(self) -> Any:
        return {"length": type(self).__name__}


@plant("reward", "one-score-a-response")
class OneForAll(Length):
    """One number for a whole group."""

    def score(self, groups: Groups) -> Scores:
        return Scores([[float(len(row["responses"]))] for row in groups], [[None] for _ in groups])


@plant("reward", "finite-or-missing")
class NanForNothing(Length):
    """NaN for an empty response."""

    def one(self, response: str) -> float | None:
        return float("nan") if not response else 1.0


@plant("reward", "empty-and-no-responses")
class FirstLetter(Length):
    """Looks at the first letter."""

    def one(self, response: str) -> float | None:
        return float(ord(response[0]))


@plant("reward", "neighbours-do-not-matter")
class WhitenedOverTheBatch(Length):
    """Takes the mean of all off."""

    def score(self, groups: Groups) -> Scores:
        scores = super().score(groups)
        flat = [v for row in scores.values for v in row if v is not None]
        mean = sum(flat) / max(len(flat), 1)
        return Scores([[None if v is None else v - mean for v in row] for row in scores.values], scores.reasons)


@plant("reward", "siblings-do-not-matter")
class RanksTheGroup(Length):
    """The place of a response among its siblings."""

    def score(self, groups: Groups) -> Scores:
        values = [[float(k) for k in range(len(row["responses"]))] for row in groups]
        return Scores(values, [[None] * len(row) for row in values])


@plant("reward", "same-score-twice")
class Noisy(Length):
    """Noise of its own."""

    def one(self, response: str) -> float | None:
        return len(response) + random.random() * 1e-9


@plant("reward", "key-sees-settings")
@dataclass(frozen=True)
class ForgetsItsWeight(Length):
    """The length, weighed.

    Args:
        weight: of a letter.
    """

    weight: float = 1.0

    def one(self, response: str) -> float | None:
        return self.weight * len(response)


# -- annotators --------------------------------------------------------------------------------------------------------


class Longest(Annotator):
    """The longer the better."""

    def ranks(self, responses: list[str]) -> list[int]:
        return [1 + sum(len(b) > len(a) for b in responses) for a in responses]

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        judged = groups.filter(lambda row: len(row["responses"]) > 1)
        told = judged.map_rows(lambda row: {"ranks": self.ranks(row["responses"]), "dimension": "preference"})
        return {"preference": told}

    def key(self) -> Any:
        return {"longest": type(self).__name__}


@plant("annotator", "order-does-not-matter")
class PrefersTheFirst(Longest):
    """The first position wins."""

    def ranks(self, responses: list[str]) -> list[int]:
        return list(range(1, len(responses) + 1))


@plant("annotator", "one-ranking-a-group")
class RanksFromZero(Longest):
    """Counts from 0."""

    def ranks(self, responses: list[str]) -> list[int]:
        return [rank - 1 for rank in super().ranks(responses)]


@plant("annotator", "other-groups-do-not-matter")
class TurnsWithTheCrowd(Longest):
    """Judges otherwise when there is more than one group."""

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        told = super().annotate(groups)["preference"]
        if len(groups) == 1:
            told = told.map_rows(lambda row: {"ranks": [len(row["ranks"]) + 1 - rank for rank in row["ranks"]]})
        return {"preference": told}


@plant("annotator", "nothing-to-judge")
class MakesOneUp(Longest):
    """Judges a response that is alone."""

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        doubled = take_responses(groups, [[*range(len(row["responses"])), 0][:2] for row in groups])
        return {"preference": doubled.map_rows(lambda _: {"ranks": [1, 2], "dimension": "preference"})}


@plant("annotator", "same-judgement-twice")
class TossesACoin(Longest):
    """Ties are broken by chance."""

    def ranks(self, responses: list[str]) -> list[int]:
        return random.sample(range(1, len(responses) + 1), len(responses))


# -- metrics -----------------------------------------------------------------------------------------------------------


@plant("metric", "reset-is-a-fresh-start")
class KeepsOnCounting(Metric):
    """Counts outside of its state."""

    spec: ClassVar[MetricSpec] = MetricSpec("tokens")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen = 0.0
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, response_mask):
        self.seen += float(response_mask.sum())
        self.total += response_mask.sum()

    def compute(self):
        return torch.tensor(self.seen)


@plant("metric", "micro-batches-add-up")
class MeanOfMeans(Mean):
    """The mean of each micro-batch, averaged."""

    spec: ClassVar[MetricSpec] = MetricSpec("mean log-prob")

    def update(self, logprobs, response_mask):
        super().update((logprobs * response_mask).sum() / response_mask.sum())


@plant("metric", "updates-in-any-order")
class LastOneWins(Metric):
    """What the last micro-batch said."""

    spec: ClassVar[MetricSpec] = MetricSpec("entropy")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("last", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, entropy):
        self.last = entropy.mean()

    def compute(self):
        return self.last


class CountsTokens(Metric):
    """Learned tokens."""

    spec: ClassVar[MetricSpec] = MetricSpec("tokens")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, response_mask):
        self.total += response_mask.sum()

    def compute(self):
        return self.total


@plant("metric", "finite-value")
class DividesByNothing(CountsTokens):
    """A share of nothing."""

    def compute(self):
        return self.total * 0 / 0


@plant("metric", "state-can-be-saved")
class KeepsItElsewhere(CountsTokens):
    """Counts its updates where nobody saves them."""

    seen = 0

    def update(self, response_mask):
        super().update(response_mask)
        self.seen += 1

    def compute(self):
        return self.total / max(self.seen, 1)


@plant("metric", "metric-inputs-unchanged")
class MasksInPlace(CountsTokens):
    """Hides what it does not need from everybody."""

    def update(self, logprobs, response_mask):
        self.total += logprobs.mul_(response_mask).sum()


# -- transforms, suites, recipes, stages -------------------------------------------------------------------------------


@plant("transform", "same-twice")
def shuffles(groups, ctx):
    """Rows in an order of its own."""
    order = list(range(len(groups)))
    random.shuffle(order)
    return groups.select(order)


@plant("transform", "gives-groups")
def gives_rows(groups, ctx):
    """Rows, and no groups."""
    return groups.rows


def brief(response: str) -> float:
    return -float(len(response))


@plant("suite", "heldout-is-held-out")
def leaks() -> Suite:
    """The same prompts twice."""
    prompts = Groups.from_prompts(["a", "b"])
    return Suite(prompts, prompts.select([0]), {"brief": brief})


@plant("suite", "same-suite-twice")
def draws() -> Suite:
    """Other prompts every time."""
    return Suite(Groups.from_prompts([str(random.random())]), Groups.from_prompts(["b"]), {"brief": brief})


@plant("suite", "truth-scores-answers")
def one_score_for_all() -> Suite:
    """Its truth has one score for a group."""
    return Suite(Groups.from_prompts(["a"]), Groups.from_prompts(["b"]), {"truth": OneForAll()})


@plant("suite", "longest-answer")
def no_room() -> Suite:
    """No answer may have a token."""
    return Suite(Groups.from_prompts(["a"]), Groups.from_prompts(["b"]), {"brief": brief}, max_new_tokens=0)


@plant("recipe", "command-line")
def shadows(run: Any, seed: int = 0) -> None:
    """An argument called as the run's own.

    Args:
        seed: of its own.
    """


@plant("stage", "every-field-counts")
@dataclass(frozen=True, eq=False)
class ForgetsAField(Stage[GroupsHandle]):
    """The first rows.

    Args:
        groups: rows.
        rows: how many, which its key does not see.
    """

    verb: ClassVar[str] = "forgets"
    makes: ClassVar[tuple[Any, ...]] = ("groups",)

    groups: Groups
    rows: int = 1

    def counted(self, context):
        config, inputs = super().counted(context)
        return {name: value for name, value in config.items() if name != "rows"}, inputs

    def work(self, place):
        self.groups.select(range(self.rows)).save(place.folder / "groups")
        return {"rows": self.rows}

    def handle(self, made):
        return GroupsHandle(**made.common(), expected=self.rows)


@plant("stage", "stage-works-twice-alike")
@dataclass(frozen=True, eq=False)
class WritesByChance(ForgetsAField):
    """As many rows as chance has it.

    Args:
        groups: rows.
        rows: how many at most.
        note: changes nothing.
    """

    verb: ClassVar[str] = "by_chance"
    note: int = dataclasses.field(default=0, metadata=NO_EFFECT)

    def work(self, place):
        (place.folder / "groups").mkdir()
        (place.folder / "groups" / "rows.json").write_text(json.dumps([random.random() for _ in range(40)]) * 9)
        return {"rows": random.randrange(10**9)}


# -- formats -----------------------------------------------------------------------------------------------------------


def made_format(check: str, needs: tuple[str, ...], example: Mapping[str, Any], read: Any) -> None:
    """Plant a format for this check."""
    name = f"format_{len(PLANTED)}"
    PLANTED.append(("format", name, check, RowFormat(name, "a planted one", needs, read, example)))


def _demonstrated(parts: Mapping[str, Any]) -> Reading:
    return Reading("demonstrations", {"prompt": str(parts["a"]), "responses": [""]})


def _breaks(parts: Mapping[str, Any]) -> Reading:
    return Reading("demonstrations", {"prompt": parts["a"].strip(), "responses": ["b"]})


def _forgets(parts: Mapping[str, Any]) -> Reading:
    return Reading("demonstrations", {"prompt": "a", "responses": [str(parts.get("b", "b"))]})


made_format("reads-its-example", ("a",), {"a": "Why?"}, _demonstrated)
made_format("refuses-in-words", ("a",), {"a": "Why?"}, _breaks)
PLANTED.append(
    (
        "format",
        "forgets",
        "no-column-vanishes",
        RowFormat("forgets", "a planted one", ("b",), _forgets, {"a": "Why?", "b": "b"}, ("a",)),
    )
)

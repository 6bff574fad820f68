"""The sampler interface and its default."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from alignkit.data.encode import encode_groups
from alignkit.errors import ConfigError, DataError
from alignkit.fields import check_values
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.models import Policy
from alignkit.models.arithmetic import Reading
from alignkit.randomness import stream_key
from alignkit.sampling.decode import Rule, Sampled, decode
from alignkit.selection import occurrences

Progress = Callable[[int, int, int, float], None]
"""Called with (responses done, responses in all, tokens so far, seconds so far)."""


@dataclass(frozen=True)
class Sampler:
    """Samples responses from a policy. Override `warp` for a decoding rule, or `generate` for another engine.

    Args:
        temperature: T > 0 of softmax(logits / T).
        max_new_tokens: tokens after which a response is cut (it then has no EOS).
        max_prompt_tokens: the oldest turns of a longer prompt are dropped.
        greedy: take the likeliest token; the random numbers are not used.
        stop: texts that end a response, beside the end tokens of the chat template; what follows one is cut off.
        batch_size: sequences decoded together.
    """

    temperature: float = 1.0
    max_new_tokens: int = 128
    max_prompt_tokens: int = 1024
    greedy: bool = False
    stop: tuple[str, ...] = ()
    batch_size: int = 96

    def __post_init__(self) -> None:
        check_values(self)
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature} must be positive", where="Sampler", remedy="use greedy=true"
            )
        if min(self.max_new_tokens, self.max_prompt_tokens, self.batch_size) < 1:
            raise ConfigError("max_new_tokens, max_prompt_tokens and batch_size start at 1", where="Sampler")

    def warp(self, logprobs: Tensor) -> Tensor:
        """Truncate: log-probs [N, V] (tempered) in, the same with the excluded tokens at -inf out."""
        return logprobs

    @property
    def truncates(self) -> bool:
        """Whether `warp` is overridden, so that what was sampled from is not softmax(logits / T)."""
        return type(self).warp is not Sampler.warp

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        end_ids: Sequence[int],
    ) -> Iterable[tuple[int, Sequence[Sampled]]]:
        """Write the responses: token ids in, token ids out. Another engine overrides this alone.

        The limits and the rule are the sampler's own fields (`max_new_tokens`, `temperature`, `greedy`, `batch_size`,
        `warp`). Stop texts are not its business: what follows one is cut off afterwards.

        Args:
            policy: whose weights are asked.
            prompts: token ids of each, to be answered.
            keys: for each prompt, one number for each of its responses, by which a response's random numbers are known
                (`alignkit.randomness.uniforms(key, position)`), or which seeds the engine's own.
            end_ids: tokens that end a response; the one that was drawn is part of it.

        Yields:
            (place in `prompts`, its responses, as many as it has keys), in any order, as they are done.
        """
        return self._written(policy, prompts, keys, end_ids, self.temperature)

    def _written(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        end_ids: Sequence[int],
        temperature: float | Sequence[float],
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """What `generate` yields; of several temperatures, one for each of a prompt's keys."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        rule = Rule(
            end_ids,
            self.max_new_tokens,
            temperature,
            self.greedy,
            self.warp if self.truncates else None,
            policy.vocabulary,
        )
        with policy.reading() as reader:
            asked = [prompts[i] for i in order], [keys[i] for i in order]
            for place, responses in decode(reader, *asked, rule, self.batch_size):
                yield order[place], responses

    def sample(
        self,
        policy: Policy,
        prompts: Groups,
        n: int = 1,
        *,
        seed: Sequence[int | str] = (0,),
        name: str = "policy",
        occurrence: Sequence[int] | None = None,
        progress: Progress | None = None,
        meter: Meter | None = None,
    ) -> Groups:
        """Sample `n` responses for each prompt.

        The random numbers depend on (seed, prompt, occurrence of that prompt, sample, position) alone: in float32 and
        above another batch size, other prompts beside it, or a larger `n` leave a sample as it was. In bfloat16
        (precisions "bf16-true" and "bf16-mixed") the same numbers are drawn, but a kernel may round the logits
        otherwise in a batch of another shape, by enough to change a token: there a sample is the same again where the
        whole call is.

        Args:
            policy: what to sample from.
            prompts: responses in it are ignored.
            n: samples per prompt.
            seed: path of numbers and names: (run seed, stage, round).
            name: recorded in `sampled_by` (a digest or a label of the policy).
            occurrence: how often each prompt came before, where `prompts` is only a part of them; default counted here.
            progress: called whenever a prompt is answered.
            meter: counts the tokens and what it took to write them, before a stop text cuts them.

        Returns:
            one row per prompt with n responses, their ids, log-probs (`logprobs` before truncation, `sampled_logprobs`
            after it, where the sampler truncates) and whether they finished.

        Raises:
            ConfigError: n is not positive.
            DataError: a prompt that does not fit, or that `generate` did not answer.
        """
        return self._sampled(policy, prompts, n, [seed], [self.temperature], name, occurrence, progress, meter)[0]

    def sample_at(
        self,
        policy: Policy,
        prompts: Groups,
        n: int,
        temperatures: Sequence[float],
        *,
        seeds: Sequence[Sequence[int | str]],
        name: str = "policy",
        progress: Progress | None = None,
        meter: Meter | None = None,
    ) -> list[Groups]:
        """What `sample` gives at each of these temperatures, with the seed of each.

        They are written side by side, which takes less time than one after another, where none of `sample`, `generate`
        and `warp` is overridden: each of these may ask the sampler for its temperature.
        """
        own = type(self)
        if own.sample is Sampler.sample and own.generate is Sampler.generate and not self.truncates:
            return self._sampled(policy, prompts, n, seeds, temperatures, name, None, progress, meter)
        return [
            replace(self, temperature=each).sample(
                policy, prompts, n, seed=seed, name=name, progress=progress, meter=meter
            )
            for each, seed in zip(temperatures, seeds, strict=True)
        ]

    def _sampled(
        self,
        policy: Policy,
        prompts: Groups,
        n: int,
        seeds: Sequence[Sequence[int | str]],
        temperatures: Sequence[float],
        name: str,
        occurrence: Sequence[int] | None,
        progress: Progress | None,
        meter: Meter | None,
    ) -> list[Groups]:
        """Samples of each of these temperatures.

        Raises:
            ConfigError: n is not positive.
        """
        if n < 1:
            raise ConfigError(f"n={n} must be positive", where="sample", remedy="it is the responses of each prompt")
        meter = meter or Meter()
        with meter.phase("generate"):
            bare = prompts.without_responses()
            ids = self.encoded(policy, bare)
            times = occurrences(prompts) if occurrence is None else occurrence
            keys = [
                [stream_key(*seed, i, time, k) for seed in seeds for k in range(n)]
                for i, time in zip(bare.column("prompt_id"), times, strict=True)
            ]
            asked = policy, ids, keys, policy.chat.end_ids
            each = [temperature for temperature in temperatures for _ in range(n)]
            found = self.generate(*asked) if len(seeds) == 1 else self._written(*asked, each)
            written = dict(self._told(found, len(ids) * n * len(seeds), progress))
            self._refuse_wrong(written, len(ids), n * len(seeds))
            rows = [written[i] for i in range(len(ids))]
            lengths = [[len(sampled.ids) for sampled in row] for row in rows]
            meter.add("generated_tokens", sum(map(sum, lengths)))
            meter.compute(policy.flops(Reading.of_samples(list(map(len, ids)), lengths), folded=True).forward)
            parts = [[row[at * n : (at + 1) * n] for row in rows] for at in range(len(temperatures))]
            return [
                bare.with_columns(self._answers(part, policy, name, temperature))
                for part, temperature in zip(parts, temperatures, strict=True)
            ]

    def _refuse_wrong(self, written: Mapping[int, Sequence[Sampled]], prompts: int, n: int) -> None:
        """Refuse what `generate` must not give."""
        where = f"{type(self).__name__}.generate"
        if set(written) != set(range(prompts)) or any(len(each) != n for each in written.values()):
            raise DataError(f"not every prompt has its {n} responses", where=where)
        for each in (response for responses in written.values() for response in responses):
            sizes = {len(each.ids), len(each.logprobs), len(each.sampled_logprobs) or len(each.ids)}
            if len(sizes) > 1:
                what = f"a response has {len(each.ids)} tokens and {len(each.logprobs)} log-probs"
                raise DataError(what, where=where, remedy="give the log-prob of each token, before truncation")
            if len(each.ids) > self.max_new_tokens:
                raise DataError(f"a response has {len(each.ids)} tokens of {self.max_new_tokens}", where=where)

    def encoded(self, policy: Policy, prompts: Groups) -> list[list[int]]:
        """Token ids of each prompt, as they are sampled from.

        Raises:
            DataError: a prompt that does not fit.
        """
        encoded, problems = encode_groups(
            prompts,
            policy.chat,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_new_tokens,
        )
        if problems:
            raise DataError(f"{len(problems)} prompts cannot be sampled: {problems[0]}", where="sample")
        ids, most = [each.prompt_ids for each in encoded], policy.chat.positions
        longest = max(range(len(ids)), key=lambda place: len(ids[place]), default=None)
        if most is not None and longest is not None and len(ids[longest]) + self.max_new_tokens > most:
            raise DataError(
                f"{len(ids[longest])} tokens of a prompt and max_new_tokens={self.max_new_tokens} are more than the "
                f"{most} positions that the model has",
                where=f"sample, prompt {longest}",
                remedy="lower max_new_tokens, shorten the prompt, or use a model with more positions",
            )
        return ids

    def refuse_unfit(self, policy: Policy, prompts: Groups) -> None:
        """Refuse prompts that could not be answered, before the first is.

        Raises:
            DataError: a prompt that does not fit.
        """
        self.encoded(policy, prompts.without_responses())

    @staticmethod
    def _told(
        written: Iterable[tuple[int, Sequence[Sampled]]], total: int, progress: Progress | None
    ) -> Iterator[tuple[int, Sequence[Sampled]]]:
        """The same, with progress told on the way."""
        started, done, tokens = time.monotonic(), 0, 0
        for number, responses in written:
            done, tokens = done + len(responses), tokens + sum(len(s.ids) for s in responses)
            if progress:
                progress(done, total, tokens, time.monotonic() - started)
            yield number, responses

    def _answers(
        self, written: Sequence[Sequence[Sampled]], policy: Policy, name: str, temperature: float
    ) -> dict[str, list[Any]]:
        """The columns that say what was written: a value for each prompt."""
        for response in (response for responses in written for response in responses) if self.stop else ():
            self._end_at_stop(response, policy)
        by = {"policy": name, "temperature": temperature}
        return {
            "responses": [[policy.chat.decode(s.ids) for s in responses] for responses in written],
            "response_ids": [[s.ids for s in responses] for responses in written],
            "finished": [[s.finished for s in responses] for responses in written],
            "logprobs": [[s.logprobs for s in responses] for responses in written],
            "sampled_logprobs": [
                [s.sampled_logprobs for s in responses] if self.truncates else None for responses in written
            ],
            "sampled_by": [[by] * len(responses) for responses in written],
            "tokenizer": [policy.chat.fingerprint] * len(written),
        }

    def _end_at_stop(self, response: Sampled, policy: Policy) -> None:
        """Cut a response at the first token with which one of the stop texts is complete.

        A text that is complete stays so with every further token, so the first is found by halving.
        """

        def complete(end: int) -> bool:
            written = policy.chat.decode(response.ids[:end])
            return any(text in written for text in self.stop)

        if complete(len(response.ids)):
            response.cut(bisect.bisect_left(range(1, len(response.ids)), True, key=complete) + 1)


def sample_side_by_side(parts: Sequence[Groups]) -> Groups:
    """Join samples of several policies or temperatures for the same prompts: the K of each row add up.

    Raises:
        DataError: the parts do not hold the same prompts in the same order.
    """
    first = parts[0]
    rows = []
    for index, row in enumerate(first):
        others = [part[index] for part in parts[1:] if index < len(part)]
        if len(others) != len(parts) - 1 or any(other["prompt_id"] != row["prompt_id"] for other in others):
            raise DataError("the samples are not of the same prompts", where=f"row {index}")
        merged = dict(row)
        for key in ("responses", "response_ids", "finished", "logprobs", "sampled_by"):
            merged[key] = [value for part in [row, *others] for value in part[key]]
        truncated = [part["sampled_logprobs"] for part in [row, *others]]
        merged["sampled_logprobs"] = None if any(t is None for t in truncated) else [v for t in truncated for v in t]
        if len({part["tokenizer"] for part in [row, *others]}) > 1:  # ids of one tokenizer mean nothing under another
            merged |= {"tokenizer": None, "response_ids": None, "logprobs": None, "sampled_logprobs": None}
        rows.append(merged)
    return Groups.from_rows(rows)

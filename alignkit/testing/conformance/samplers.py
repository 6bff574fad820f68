"""Checks of samplers: what they draw against what they say, on the tiny model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.sampling import Sampler
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject
from alignkit.testing.given import tiny_policy

PROMPTS = Groups.from_prompts(["one", "a somewhat longer prompt", "3"])

DRAWS = 1500
"""How often one token is drawn."""

SHARP = 0.1
"""At this temperature the tiny model, whose weights are random, has favourites."""


def policy_of(subject: Subject) -> Policy:
    """The tiny model."""
    made: Policy = subject.once("policy", lambda: tiny_policy(trainable=False))
    return made


def sampler_of(subject: Subject, **changes: Any) -> Sampler:
    """The sampler with short responses."""
    built: Sampler = subject.build()
    return replace(built, **({"max_new_tokens": 6} | changes))


def sampled(subject: Subject, n: int = 3, rows: Groups = PROMPTS, seed: int = 0, **changes: Any) -> Groups:
    """Samples of our prompts, worked out once."""
    name = f"sampled {n} {len(rows)} {seed} {changes}"
    made: Groups = subject.once(
        name, lambda: sampler_of(subject, **changes).sample(policy_of(subject), rows, n, seed=(seed, "conformance"))
    )
    return made


def ids(groups: Groups) -> list[list[list[int]]]:
    """Token ids [groups][K][tokens]."""
    return [[list(each) for each in row["response_ids"]] for row in groups]


@check("sampler")
def as_many_as_asked(subject: Subject) -> str:
    """Every prompt gets its n responses, none empty, none longer than the limit, and with every token its log-prob:
    trl#6533 (one answer for all)."""
    limit = sampler_of(subject).max_new_tokens
    try:
        rows = sampled(subject)
    except AlignkitError as error:
        refuse(str(error), "generate")
    for number, row in enumerate(rows):
        if len(row["responses"]) != 3:
            refuse(f"{len(row['responses'])} responses where 3 were asked for", f"prompt {number}")
        for k, tokens in enumerate(row["response_ids"]):
            if not 1 <= len(tokens) <= limit:
                refuse(f"{len(tokens)} tokens with a limit of {limit}", f"prompt {number}, response {k}")
            known = len(row["logprobs"][k])
            if known != len(tokens):
                refuse(f"{known} log-probs for {len(tokens)} tokens", f"prompt {number}, response {k}")
    return "3 responses a prompt"


@check("sampler")
def ends_where_it_ends(subject: Subject) -> str:
    """A response is finished where its last token is an end token, or a stop text cut it, and holds no token after an
    end: trl#1623, #2059, trl#5988 (endless generations)."""
    ends = set(policy_of(subject).chat.end_ids)
    several = sampled(subject, n=24)
    for number, row in enumerate(several):
        for k, tokens in enumerate(row["response_ids"]):
            ended = tokens[-1] in ends
            if any(token in ends for token in tokens[:-1]):
                refuse("tokens follow an end token", f"prompt {number}, response {k}")
            if ended and not row["finished"][k]:
                refuse("it ends with an end token and is not finished", f"prompt {number}, response {k}")
            if not ended and row["finished"][k] and not sampler_of(subject).stop:
                refuse("it is called finished and has no end token", f"prompt {number}, response {k}")
    return "72 responses"


@check("sampler")
def same_seed_same_samples(subject: Subject) -> str:
    """The random numbers are those of the keys: the same seed gives the same samples and another seed others, and no
    global random state is read. ms-swift#3607, open-instruct#648; here once the same numbers every round."""
    first = ids(sampled(subject))
    torch_state = torch.get_rng_state()
    torch.manual_seed(99)
    np_state = np.random.get_state()
    again = ids(sampler_of(subject).sample(policy_of(subject), PROMPTS, 3, seed=(0, "conformance")))
    torch.set_rng_state(torch_state)
    np.random.set_state(np_state)
    if first != again:
        refuse("the same seed gives other samples")
    if not sampler_of(subject).greedy and first == ids(sampled(subject, seed=1)):
        refuse("another seed gives the same samples")
    return "the same twice, others with another seed"


@check("sampler")
def batch_size_invariance(subject: Subject) -> str:
    """Another batch size, other prompts beside it and more samples leave a sample as it was: vLLM and TRL cannot
    (trl#6789, #7269: chunk size 1 or 8 moves tokens)."""
    whole = ids(sampled(subject))
    if whole != ids(sampled(subject, batch_size=1)):
        refuse("another batch size gives other samples", "batch_size=1")
    if [row[:2] for row in whole] != ids(sampled(subject, n=2)):
        refuse("fewer samples are not the first of more", "n=2")
    if whole[1:2] != ids(sampled(subject, rows=PROMPTS.select([1]))):
        refuse("a prompt alone gets other samples than among others", "prompt 1")
    return "batch sizes, fewer samples, a prompt alone"


@check("sampler")
def logprobs_are_the_policy(subject: Subject) -> str:
    """The log-prob of each token is log_softmax(logits / T) before truncation, at the sampler's T, as training works
    it out: trl#4159, #4772, verl#2953, vllm#42259; a forgotten T is off by 0.7 nats."""
    sampler, policy = sampler_of(subject), policy_of(subject)
    prompts = sampler.encoded(policy, PROMPTS)
    for number, (row, prompt) in enumerate(zip(sampled(subject), prompts, strict=True)):
        for k, (tokens, logprobs) in enumerate(zip(row["response_ids"], row["logprobs"], strict=True)):
            wanted = _logprobs(policy, prompt, tokens, sampler.temperature)
            far = float((torch.tensor(logprobs).double() - wanted).abs().max()) if len(logprobs) == len(wanted) else 0.0
            if far > 1e-3:
                refuse(f"log-probs are {far:.3g} nats from those of the policy", f"prompt {number}, response {k}")
    return "to 1e-3 nats"


def _logprobs(policy: Policy, prompt: list[int], tokens: list[int], temperature: float) -> Tensor:
    """[tokens] log_softmax(logits / T) of each token of a response, by one pass over all of it."""
    with policy.generating() as model, torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1)


@check("sampler")
def frequencies_are_probabilities(subject: Subject) -> str:
    """Tokens come as often as their probabilities say: softmax(logits / T) after `warp`, by a chi-squared test over
    1500 draws. trl#6789: at top-p 0.8 half of the ratios between sampler and trainer left [0.9, 1.1]."""
    sampler = sampler_of(subject, max_new_tokens=1, temperature=SHARP)
    if sampler.greedy:
        skip("it is greedy")
    row = sampled(subject, n=DRAWS, rows=PROMPTS.select([0]), max_new_tokens=1, temperature=SHARP)[0]
    probs = _probabilities(subject, sampler)
    counts = Counter(tokens[0] for tokens in row["response_ids"])
    never = [token for token in counts if probs[token] == 0]
    if never:
        refuse("it drew tokens whose probability is 0", f"token {never[0]}")
    order = sorted(range(len(probs)), key=lambda token: -float(probs[token]))
    bins = _bins([(float(probs[t]), counts[t]) for t in order if probs[t] > 0])
    statistic = sum((seen - DRAWS * p) ** 2 / (DRAWS * p) for p, seen in bins)
    freedom = max(len(bins) - 1, 1)
    deviations = (statistic - freedom) / math.sqrt(2 * freedom)
    if deviations > 6:
        refuse(f"chi-squared is {statistic:.0f} over {len(bins)} bins, {deviations:.0f} deviations too large")
    return f"chi-squared {statistic:.0f} over {len(bins)} bins"


def _bins(pairs: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Bins in which 20 draws or more are expected, the likeliest tokens first."""
    made: list[tuple[float, int]] = []
    mass, seen = 0.0, 0
    for p, count in pairs:
        mass, seen = mass + p, seen + count
        if mass * DRAWS >= 20:
            made.append((mass, seen))
            mass, seen = 0.0, 0
    if mass and made:
        last = made.pop()
        made.append((last[0] + mass, last[1] + seen))
    return made or [(mass, seen)]


def _probabilities(subject: Subject, sampler: Sampler) -> Tensor:
    """What the next token's probabilities should be: tempered, then truncated, then renormalised."""
    policy = policy_of(subject)
    [prompt] = sampler.encoded(policy, PROMPTS.select([0]))
    with policy.generating() as model, torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[:, -1].double()
    logprobs = (logits / sampler.temperature).log_softmax(-1)
    return (sampler.warp(logprobs) if sampler.truncates else logprobs).softmax(-1)[0]


@check("sampler")
def warp_only_excludes(subject: Subject) -> str:
    """`warp` puts the excluded tokens at -inf and leaves the others as they are, row by row, and never all of them:
    here once all -inf, NaN or another width were accepted; trl#6789 (renormalised log-probs against the whole)."""
    sampler = sampler_of(subject)
    if not sampler.truncates:
        skip("it truncates nothing")
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.linspace(0.2, 3, 5).unsqueeze(1)
    logprobs = (sharpness * torch.randn(5, 30, generator=generator)).log_softmax(-1)
    given = logprobs.clone()
    out = sampler.warp(given)
    if not torch.equal(given, logprobs):
        refuse("it writes into the log-probs that it is given", "warp")
    if out.shape != logprobs.shape:
        refuse(f"it gives {list(out.shape)} for {list(logprobs.shape)}", "warp")
    kept = out > -torch.inf
    if bool(out.isnan().any()) or not bool(kept.any(-1).all()):
        refuse("it gives NaN, or leaves a row without a token", "warp")
    if not torch.allclose(out[kept], logprobs[kept]):
        refuse("it changes log-probs of tokens that stay", "warp")
    alone = torch.cat([sampler.warp(row.unsqueeze(0)) for row in logprobs])
    if not torch.equal(alone, out):
        refuse("a row's truncation depends on the other rows", "warp")
    return f"{int(kept.sum())} of {kept.numel()} stay"

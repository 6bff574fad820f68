"""The transform `critique_revise`: a model criticises its own response by a principle, and writes it again.

Constitutional AI (Bai et al. 2022, arXiv 2212.08073), section 3.1. A red-team prompt is answered; the conversation goes
on with the critique request of a principle drawn at random, the model's critique, the revision request of the same
principle, and the model's revision. A further round begins with the revision in the place of the response, and draws
another principle. What is learned is the revision as the answer to the original prompt: requests and critiques only
helped to write it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from alignkit.plugin import (
    ConfigError,
    DataError,
    Groups,
    check_range,
    check_values,
    class_code,
    occurrences,
    stream_key,
)
from alignkit_constitutional.constitution import Constitution, Entry, read_constitution

logger = logging.getLogger("alignkit.constitutional")

Turn = Mapping[str, Any]
LEARN = ("last", "all")

_NOUN = r"(?:version|response|answer|reply|revision|rewrite)"
_DONE = r"(?:revised|re-?written|rephrased|reworded|improved|updated|corrected|new)"
_SAYS_SO = rf"(?:{_DONE}\b[^\n:.]{{0,30}}\b{_NOUN}|{_NOUN}\b[^\n:.]{{0,30}}\b{_DONE}|revision|rewrite)"
_OPENING = r"(?:(?:sure|certainly|of course|okay|ok|yes)[,.!]?\s+)?here(?:'s|’s| is)\b[^\n:.]{0,40}\b"
_ANNOUNCEMENT = re.compile(
    rf"^\**(?:{_OPENING}{_SAYS_SO}\b[^\n:.]{{0,60}}|(?:{_DONE} {_NOUN}|revision|rewrite)):\**\s*", re.IGNORECASE
)
_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”', re.DOTALL)


def without_announcement(text: str) -> str:
    """A revision without "Sure, here is a revised response:" before it and, after such words, quotes around it.

    Chat models write such words (huggingface.co/blog/constitutional_ai met them too), and one that learned from them
    would answer people so.
    """
    rest = _ANNOUNCEMENT.sub("", text, count=1).strip()
    quoted = _QUOTED.fullmatch(rest) if rest != text.strip() else None
    return (quoted[1] or quoted[2] or "").strip() if quoted else rest


def drawn_principle(count: int, seed: int, prompt_id: str, occurrence: int, number: int) -> int:
    """Which of `count` principles is asked by: a number that depends on what is written here alone.

    Args:
        count: of principles.
        seed: of the transform.
        prompt_id: content hash of the original prompt.
        occurrence: how often that prompt came before.
        number: of the round, from 1.
    """
    return stream_key(seed, "principle", prompt_id, occurrence, number) % count


@dataclass(frozen=True)
class Reply:
    """What the model wrote, or why it was not asked.

    Args:
        text: without space around it.
        finished: whether it ended by itself.
        refused: why the request was not sent, or None.
    """

    text: str
    finished: bool = True
    refused: str | None = None


@dataclass(frozen=True)
class Round:
    """One critique and one revision.

    Args:
        number: from 1.
        principle: id of the principle.
        critique: None where none was asked for.
        revision: what the model wrote (without its announcement), whether it was kept or not.
        dropped: why the revision is not learned from; then the next round starts from the text before it.
        announced: whether words such as "Here is a revised response:" were taken off.
    """

    number: int
    principle: str
    critique: str | None
    revision: str
    dropped: str | None = None
    announced: bool = False


@dataclass(frozen=True)
class Chain:
    """A prompt with all that came of it.

    Args:
        response: the model's first answer.
        dropped: why nothing could be asked about it, or None.
        rounds: in order.
    """

    response: str
    dropped: str | None = None
    rounds: tuple[Round, ...] = ()

    @property
    def kept(self) -> list[Round]:
        """The rounds with a revision to learn from."""
        return [each for each in self.rounds if each.dropped is None]

    @property
    def text(self) -> str:
        """The latest text: the last revision kept, else the response."""
        return self.kept[-1].revision if self.kept else self.response


@dataclass(frozen=True)
class CritiqueRevise:
    """Red-team prompts to prompts answered by their revisions (Constitutional AI, section 3.1).

    Args:
        constitution: JSON file of principles; "" takes the shipped ones.
        rounds: critiques and revisions of a prompt, one after another (the paper: 4).
        learn: "all": each revision that was kept becomes a row; "last": only the last one. The paper: all.
        critiques: ask for a critique before the revision; False revises directly (section 3.5).
        shots: how many of the constitution's examples stand before the conversation (the paper used a few, for form).
        temperature: of sampling; the paper: 1.
        max_new_tokens: of a response and of a revision.
        max_critique_tokens: of a critique; one that is cut off is used as far as it goes.
        max_prompt_tokens: a longer conversation is not sent: leaving out its oldest turns, as for an ordinary prompt,
            would leave out what the request is about.
        require_finished: drop revisions that the length limit cut off, which would teach not to stop.
    """

    constitution: str = ""
    rounds: int = 4
    learn: str = "all"
    critiques: bool = True
    shots: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 128
    max_critique_tokens: int = 128
    max_prompt_tokens: int = 1024
    require_finished: bool = True

    def __post_init__(self) -> None:
        check_values(self)
        lengths = ("max_new_tokens", "max_critique_tokens", "max_prompt_tokens")
        check_range("critique_revise", low=1, **{name: getattr(self, name) for name in lengths})
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be positive", where="critique_revise")
        if self.learn not in LEARN:
            raise ConfigError(f"learn={self.learn!r}", where="critique_revise", remedy=f"use one of {', '.join(LEARN)}")
        if self.rounds < 1 or not 0 <= self.shots <= len(self.read.examples):
            raise ConfigError(
                f"rounds={self.rounds}, shots={self.shots}",
                where="critique_revise",
                remedy=f"at least one round, and at most the {len(self.read.examples)} examples of the constitution",
            )

    def key(self) -> Any:
        """By the words of the constitution and not by the name of its file."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "constitution"}
        return {"critique_revise": {**settings, "constitution": self.read.digest()}, **class_code(type(self))}

    @cached_property
    def read(self) -> Constitution:
        """The constitution itself."""
        return read_constitution(self.constitution)

    @cached_property
    def preamble(self) -> list[Turn]:
        """The examples as turns of a conversation."""
        return [turn for entry in self.read.examples[: self.shots] for turn in self._example(entry)]

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        """Prompts in, revisions as their answers out; `meta["critique_revise"]` tells how each came about.

        Args:
            groups: red-team prompts; responses in them are ignored.
            ctx: a `TransformContext` that samples.

        Raises:
            DataError: no prompt has a revision to learn from.
        """
        chains = self.chains(groups, ctx)
        rows = [self._row(groups, i, chain, kept) for i, chain in enumerate(chains) for kept in self._learned(chain)]
        self._tell(chains, len(rows))
        return Groups.from_rows(rows)

    def chains(self, groups: Groups, ctx: Any) -> list[Chain]:
        """As `__call__`, before anything is left out: one chain per prompt, in order."""
        prompts: list[list[Turn]] = groups.column("prompt")
        times = list(zip(groups.column("prompt_id"), occurrences(groups), strict=True))
        replies = self._ask(ctx, prompts, self.max_new_tokens, "prompt")
        chains = [Chain(r.text, r.refused or (None if r.text else "empty response")) for r in replies]
        for number in range(1, self.rounds + 1):
            going = [i for i, chain in enumerate(chains) if chain.dropped is None]
            drawn = [self._principle(ctx.seed, *times[i], number) for i in going]
            found = self._round(ctx, [(prompts[i], chains[i].text) for i in going], drawn, number)
            for i, one in zip(going, found, strict=True):
                chains[i] = replace(chains[i], rounds=(*chains[i].rounds, one))
        return chains

    # -- one round, for all prompts at once ----------------------------------------------------------------------------

    def _principle(self, seed: int, prompt_id: str, occurrence: int, number: int) -> Entry:
        principles = self.read.critique_revision
        return principles[drawn_principle(len(principles), seed, prompt_id, occurrence, number)]

    def _round(
        self, ctx: Any, answered: Sequence[tuple[list[Turn], str]], drawn: Sequence[Entry], number: int
    ) -> list[Round]:
        """Ask for critiques, then for revisions."""
        talks = [self._opened(prompt, text) for prompt, text in answered]
        critiques: list[Reply | None] = [None] * len(talks)
        if self.critiques:
            asked = [[*talk, _user(entry["critique"])] for talk, entry in zip(talks, drawn, strict=True)]
            critiques = list(self._ask(ctx, asked, self.max_critique_tokens, "critique request"))
            talks = [[*talk, _assistant(c.text)] for talk, c in zip(asked, critiques, strict=True) if c is not None]
        able = [i for i, critique in enumerate(critiques) if critique is None or critique.text]
        asked = [[*talks[i], _user(drawn[i]["revision"])] for i in able]
        written = dict(zip(able, self._ask(ctx, asked, self.max_new_tokens, "revision request"), strict=True))
        return [self._judged(number, drawn[i], critiques[i], written.get(i)) for i in range(len(talks))]

    def _opened(self, prompt: Sequence[Turn], text: str) -> list[Turn]:
        """The conversation about a text: system turn, examples, the prompt, the text as its answer."""
        first = 1 if prompt and prompt[0]["role"] == "system" else 0
        return [*prompt[:first], *self.preamble, *prompt[first:], _assistant(text)]

    def _ask(self, ctx: Any, talks: Sequence[Sequence[Turn]], tokens: int, what: str) -> list[Reply]:
        """One reply to each conversation; those that are too long are not sent."""
        refused = [self._refusal(ctx, talk, what) for talk in talks]
        sent = [talk for talk, why in zip(talks, refused, strict=True) if why is None]
        options = {
            "temperature": self.temperature,
            "max_new_tokens": tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
        }
        rows = iter(ctx.sample(Groups.from_prompts(sent), 1, **options) if sent else ())
        return [Reply("", refused=why) if why else _reply(next(rows)) for why in refused]

    def _refusal(self, ctx: Any, talk: Sequence[Turn], what: str) -> str | None:
        """Why a conversation cannot be sent as it is."""
        if ctx.policy is None:
            return None
        try:
            tokens = len(ctx.policy.chat.encode_prompt(talk))
        except DataError as error:
            return f"{what}: {error.what}"
        return None if tokens <= self.max_prompt_tokens else f"{what} longer than {self.max_prompt_tokens} tokens"

    def _judged(self, number: int, entry: Entry, critique: Reply | None, revision: Reply | None) -> Round:
        """A round with the reason, if any, why its revision is not learned from."""
        said = critique.text if critique is not None else None
        if revision is None:
            why = (critique.refused if critique else None) or "empty critique"
            return Round(number, entry["id"], said, "", why)
        text = without_announcement(revision.text)
        return Round(number, entry["id"], said, text, self._fault(text, revision, said, entry), text != revision.text)

    def _fault(self, text: str, revision: Reply, critique: str | None, entry: Entry) -> str | None:
        if revision.refused:
            return revision.refused
        if not text:
            return "empty revision"
        if self.require_finished and not revision.finished:
            return "unfinished revision"
        if critique is not None and _same(text, critique):
            return "the revision is the critique"
        requests = (entry["critique"], entry["revision"])
        return "the revision repeats a request" if any(_same(text, request) for request in requests) else None

    # -- what comes out ------------------------------------------------------------------------------------------------

    def _learned(self, chain: Chain) -> list[Round]:
        return chain.kept if self.learn == "all" else chain.kept[-1:]

    def _row(self, groups: Groups, index: int, chain: Chain, kept: Round) -> dict[str, Any]:
        told = {
            "constitution": self.read.digest(),
            "response": chain.response,
            "round": kept.number,
            "rounds": [dict(vars(each)) for each in chain.rounds[: kept.number]],
        }
        row = groups[index]
        return {name: row[name] for name in ("prompt_id", "prompt", "tags", "iteration")} | {
            "responses": [kept.revision],
            "meta": {**groups.meta(index), "critique_revise": told},
        }

    def _tell(self, chains: Sequence[Chain], rows: int) -> None:
        """Say what was left out and why.

        Raises:
            DataError: nothing is left.
        """
        counts = summary(chains)
        reasons = ", ".join(f"{why} ({n})" for why, n in counts["dropped"].items())
        if not rows:
            raise DataError(
                f"none of {len(chains)} prompts has a revision to learn from: {reasons or 'there are no prompts'}",
                where="critique_revise",
                effect="Learning from nothing was refused.",
                remedy="raise the length limits, set require_finished=False, or use a model that follows the requests",
            )
        line = "critique_revise: %d prompts, %d revisions kept; unchanged %d, announcements taken off %d; left out: %s"
        logger.warning(line, len(chains), counts["kept"], counts["unchanged"], counts["announced"], reasons or "none")

    @staticmethod
    def _example(entry: Entry) -> Iterator[Turn]:
        for asked, said in (("prompt", "response"), ("critique_request", "critique"), ("revision_request", "revision")):
            yield from (_user(entry[asked]), _assistant(entry[said]))


def summary(chains: Sequence[Chain]) -> dict[str, Any]:
    """Counts over chains: revisions `kept`, of them `unchanged` and `announced`, and `dropped` by reason."""
    why = Counter(chain.dropped for chain in chains if chain.dropped)
    why.update(each.dropped for chain in chains for each in chain.rounds if each.dropped)
    kept = [each for chain in chains for each in chain.kept]
    unchanged = sum(
        _same(each.revision, before)
        for chain in chains
        for before, each in zip([chain.response, *(r.revision for r in chain.kept)], chain.kept, strict=False)
    )
    return {
        "kept": len(kept),
        "unchanged": unchanged,
        "announced": sum(each.announced for each in kept),
        "dropped": dict(why.most_common()),
    }


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _reply(row: Mapping[str, Any]) -> Reply:
    return Reply(row["responses"][0].strip(), row["finished"][0] if row["finished"] else True)


def _same(one: str, other: str) -> bool:
    """Equal but for case and space."""
    return one.casefold().split() == other.casefold().split()

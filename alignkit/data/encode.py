"""Groups to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.data.problems import Problem
from alignkit.errors import DataError
from alignkit.groups import Groups, Message

if TYPE_CHECKING:
    from alignkit.data.chat import ChatFormat, Train

RETOKENISED = "responses sampled with another tokenizer were tokenised anew from their text"
EDITED = "responses whose text was changed after they were sampled were tokenised anew"
UNSAVED = "response ids without a tokenizer fingerprint were tokenised anew from their text"


_READ = ("prompt_id", "prompt", "responses", "response_ids", "tokenizer", "finished", "response_fields")


@dataclass(frozen=True)
class EncodedGroup:
    """A prompt and its K responses in ids.

    Args:
        prompt_ids: [P] up to and including the generation prompt.
        responses: K lists of ids, each with its end-of-turn token where it ended.
        prompt_trained: [P] which tokens of the prompt are learned from, or None: none of them.
        index: the row in the groups that were encoded.
    """

    prompt_ids: list[int]
    responses: list[list[int]]
    prompt_trained: list[bool] | None
    index: int


def encode_groups(
    groups: Groups,
    chat: ChatFormat,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    train: Train = "last",
    reuse_ids: bool = True,
) -> tuple[list[EncodedGroup], list[Problem]]:
    """Tokenise every row that fits; the others are problems, and are missing from the result.

    `response_ids` are the truth while the row's tokenizer is this one and they spell the text; what another tokenizer
    sampled, and what was edited since, is tokenised anew from its text and counted in `chat.notes`.

    Args:
        groups: what to encode.
        chat: tokenizer and chat template.
        max_prompt_tokens: oldest exchanges of a longer prompt are left out; what still does not fit is refused.
        max_response_tokens: longer responses are refused, never cut.
        train: see `ChatFormat.encode_conversation`.
        reuse_ids: use `response_ids` where they are valid.

    Where the chat reads conversations `whole`, so are they encoded; `train` and `reuse_ids` have no meaning there.

    Returns:
        The encoded rows in order, and one problem (an error, never a note) for each row left out.
    """
    encoded: list[EncodedGroup] = []
    problems: list[Problem] = []
    for index, row in enumerate(groups.each(*_READ)):
        name, prompt, texts, ids, tokenizer, finished, fields = row
        if chat.whole:
            found = _whole(row, index, chat, max_prompt_tokens, max_response_tokens)
            (problems if isinstance(found, Problem) else encoded).append(found)  # type: ignore[arg-type]
            continue
        try:
            prompt_ids, trained = chat.encode_trained_prompt(prompt, train, max_prompt_tokens)
        except DataError as error:
            problems.append(_prompt_problem(name, index, error))
            continue
        try:
            responses = _responses(texts, ids if reuse_ids else None, tokenizer, finished, chat, prompt, fields)
        except DataError as error:
            problems.append(
                Problem("D13" if fields else "D22", index, name, "responses", error.what, error.effect, error.remedy)
            )
            continue
        group = EncodedGroup(prompt_ids, responses, trained, index)
        problem = _too_long(name, group, max_response_tokens, chat.positions)
        (problems if problem else encoded).append(problem or group)  # type: ignore[arg-type]
    return encoded, problems


def _whole(
    row: Sequence[Any], index: int, chat: ChatFormat, max_prompt_tokens: int, max_response_tokens: int
) -> EncodedGroup | Problem:
    """A row as the template writes it whole, from its texts whatever ids were sampled; see `encode_whole`."""
    name, prompt, texts, ids, tokenizer, finished, fields = row
    own = ids if tokenizer == chat.fingerprint and ids is not None else [None] * len(texts)
    said = finished or [None] * len(texts)
    known = [_finished(text, each, ended, chat) for text, each, ended in zip(texts, own, said, strict=True)]
    try:
        group = EncodedGroup(*chat.encode_whole(prompt, texts, known, max_prompt_tokens, fields), None, index)
    except DataError as error:
        return _prompt_problem(name, index, error)
    return _too_long(name, group, max_response_tokens, chat.positions) or group


def _finished(text: str, ids: Sequence[int] | None, ended: bool | None, chat: ChatFormat) -> bool:
    """Whether a response is whole: as it is said, else as its ids say; a text that nobody sampled so is."""
    if ids is not None and chat.decode(ids) != text:
        chat.note(EDITED)
        return True
    if ended is not None:
        return ended
    return not ids or ids[-1] in chat.end_ids


def is_plain_text(row: Mapping[str, Any]) -> bool:
    """Whether a row is text without a conversation: no prompt, one response."""
    return not row["prompt"] and len(row["responses"]) == 1


def encode_texts(groups: Groups, chat: ChatFormat, max_tokens: int) -> list[EncodedGroup]:
    """Plain texts, as a pretraining mix is made of: no turn is put around them, and no end is learned.

    A text of more than `max_tokens` is learned in pieces. The first token of a piece, which nothing comes before, is
    not learned; a text of one token has nothing to learn.

    Args:
        groups: rows of which `is_plain_text` holds.
        chat: tokenizer and chat template.
        max_tokens: of a piece, at least 2.

    Raises:
        DataError: text that is not valid Unicode.
    """
    encoded, max_tokens = [], min(max_tokens, chat.positions or max_tokens)
    for index, (responses,) in enumerate(groups.each("responses")):
        ids = chat.encode_text(responses[0])
        pieces = [ids[start : start + max_tokens] for start in range(0, len(ids), max_tokens)]
        encoded += [EncodedGroup(piece[:1], [piece[1:]], None, index) for piece in pieces if len(piece) > 1]
    return encoded


def _responses(
    texts: Sequence[str],
    ids: list[list[int]] | None,
    tokenizer: str | None,
    finished: Sequence[bool | None] | None,
    chat: ChatFormat,
    prompt: Sequence[Mapping[str, Any]] = (),
    fields: Sequence[str | None] | None = None,
) -> list[list[int]]:
    """The ids of a row's responses: as they were sampled, or else those of their text. One that a length limit cut off
    gets no end token: nobody wrote it, and it would be learned and scored as an end."""
    if ids is not None and tokenizer != chat.fingerprint:
        chat.note(RETOKENISED if tokenizer else UNSAVED)
    kept = ids if ids is not None and tokenizer == chat.fingerprint else [None] * len(texts)
    found = []
    unknown: list[None] = [None] * len(texts)
    for text, own, ended, more in zip(texts, kept, finished or unknown, fields or unknown, strict=True):
        if more is not None:
            found.append(chat.encode_answer(prompt, Message("assistant", text, fields=more), ended is not False))
            continue
        if own is not None and chat.decode(own) != text:
            chat.note(EDITED)
            own, ended = None, None  # what ended, or did not, was the text before the edit
        if own is None:
            own = chat.encode_response(chat.after_opening(text), ended is not False)
        found.append(own)
    return found


def _prompt_problem(prompt: str, index: int, error: DataError) -> Problem:
    from alignkit.data.chat import TooLongError

    code = "D05" if isinstance(error, TooLongError) else "D13"
    return Problem(code, index, prompt, "prompt", error.what, error.effect, error.remedy)


def _too_long(prompt: str, group: EncodedGroup, most: int, positions: int | None) -> Problem | None:
    longest = len(group.prompt_ids) + max(map(len, group.responses), default=0)
    return _length_problem(prompt, group.index, group.responses, most) or _beyond(
        prompt, group.index, longest, positions
    )


def _beyond(prompt: str, index: int, tokens: int, positions: int | None) -> Problem | None:
    """A row that the model has no positions for."""
    if positions is None or tokens <= positions:
        return None
    what = f"prompt and response together have {tokens} tokens, and the model has {positions} positions"
    return Problem("D05", index, prompt, "", what, "the model cannot read it", "shorten or drop the row")


def _length_problem(prompt: str, index: int, responses: list[list[int]], most: int) -> Problem | None:
    for place, ids in enumerate(responses):
        if not ids:
            what, effect, remedy = "has no tokens", "there is nothing to learn from", "sample or write it again"
        elif len(ids) > most:
            what = f"has {len(ids)} tokens where {most} are allowed"
            effect, remedy = (
                "cut, it would teach the model to stop too early or never",
                "raise the limit or drop the row",
            )
        else:
            continue
        field = f"responses[{place}]"
        return Problem("D05", index, prompt, field, what, effect, remedy)
    return None

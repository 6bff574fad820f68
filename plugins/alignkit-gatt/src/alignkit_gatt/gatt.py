"""Ghost Attention: dialogues whose instruction stands in the first turn alone, and whose last answer still obeys it.

Llama 2 (Touvron et al. 2023, arXiv 2307.09288), section 3.3. A chat model forgets what its first turn asked for. So
the instruction is joined to *every* user turn of a dialogue and answers are sampled from that (the sampling view); then
it is taken out of all turns but the first (the training view), and the last answer is learned as in supervised
fine-tuning:

    loss = - sum_t log pi(y_t | inst + u_1, a_1, u_2, a_2, ..., u_n, y_<t),   y = a_n with its end token

The former answers a_1 ... a_(n-1) have loss zero like everything else before a_n: they were made under another prompt
than the one they now stand in, and learning from that mismatch could hurt, says the paper. In the core's words this
loss is `Run.sft` with train="last"; what is left for a transform is to make the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.plugin import ConfigError, DataError, Groups, check_range, check_values, class_code, take_responses
from alignkit_gatt.constraints import SHIPPED, check_constraints, obeys, of_kinds, read_constraints, with_instructions

Turns = list[dict[str, Any]]
View = Callable[[Sequence[Mapping[str, Any]], str], Turns]

JOINT = "\n\n"
"""Between instruction and user turn; the core folds a system turn likewise where a template has no system role."""

ANSWERS = ("sampled", "last", "given")
TARGETS = ("last", "every")
PLACES = ("user", "system")
SAMPLED = ("responses", "response_ids", "finished", "sampled_by", "tokenizer")
"""What is kept of a sampled answer. Its log-probs are not: they belong to the sampling view's prompt."""


# -- the two views -----------------------------------------------------------------------------------------------------


def sampling_view(turns: Sequence[Mapping[str, Any]], instruction: str) -> Turns:
    """The instruction before every user turn."""
    return [_turn(t, instruction + JOINT if t["role"] == "user" else "") for t in turns]


def training_view(turns: Sequence[Mapping[str, Any]], instruction: str, place: str = "user") -> Turns:
    """The instruction before the first user turn alone; no former answer is learned from.

    Args:
        turns: the dialogue, without any instruction.
        instruction: the wording of training.
        place: "user": in the first user turn; "system": in a system turn (after the text of one that is there).
    """
    if place == "system":
        had = [t["content"] for t in turns[:1] if t["role"] == "system"]
        system = {"role": "system", "content": JOINT.join([*had, instruction])}
        return [_turn(t) for t in [system, *turns[len(had) :]]]
    first = next(i for i, t in enumerate(turns) if t["role"] == "user")
    return [_turn(t, instruction + JOINT if i == first else "") for i, t in enumerate(turns)]


def _turn(turn: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    return {**turn, "content": before + turn["content"], "trained": False}


# -- playing a dialogue ------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """An answer and what stands before it.

    Args:
        turns: the dialogue up to the question, without any instruction.
        columns: `responses` (one text) and what else is known of it, as in a row of `Groups`.
    """

    turns: Turns
    columns: dict[str, Any]

    @property
    def text(self) -> str:
        return self.columns["responses"][0]


Choose = Callable[[Mapping[str, Any], dict[str, Any]], int]


def play(dialogues: Groups, view: View, sample: Callable[[Groups], Groups], choose: Choose) -> list[list[Answer]]:
    """Have every user turn answered in order, each after the answers before it; all dialogues side by side.

    Args:
        dialogues: whose user turns are asked; assistant turns are left out, an `instruction` is in `meta`.
        view: what is sampled from: `(turns, instruction) -> messages`.
        sample: `Groups` of prompts to the same with one or more responses each.
        choose: (meta, a sampled row) -> which of its responses the dialogue goes on with.

    Returns:
        for each dialogue, one answer for each of its user turns.
    """
    metas = [dialogues.meta(i) for i in range(len(dialogues))]
    asked = [[_turn(t) for t in row["prompt"] if t["role"] == "user"] for row in dialogues]
    so_far: list[Turns] = [[_turn(t) for t in row["prompt"] if t["role"] == "system"] for row in dialogues]
    answers: list[list[Answer]] = [[] for _ in asked]
    for number in range(max(map(len, asked), default=0)):
        live = [i for i, questions in enumerate(asked) if number < len(questions)]
        for i in live:
            so_far[i] = [*so_far[i], asked[i][number]]
        prompts = Groups.from_rows({"prompt": view(so_far[i], metas[i]["instruction"])} for i in live)
        drawn = sample(prompts)
        kept = take_responses(drawn, [[choose(metas[i], row)] for i, row in zip(live, drawn, strict=True)])
        for i, row in zip(live, kept, strict=True):
            answers[i].append(Answer(so_far[i], row))
            so_far[i] = [*so_far[i], {"role": "assistant", "content": row["responses"][0], "trained": False}]
    return answers


def first_obeying(meta: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """The first response that obeys and ended by itself, else the first that obeys, else the first."""
    merits = [(obeys(meta, text) or 0.0, _ended(row, k)) for k, text in enumerate(row["responses"])]
    return max(range(len(merits)), key=merits.__getitem__)


def _ended(row: Mapping[str, Any], k: int = 0) -> bool:
    return not row["finished"] or row["finished"][k] is not False


# -- dialogues that are there already ----------------------------------------------------------------------------------


def last_answer(row: Mapping[str, Any], where: str) -> Answer:
    """The last answer of a dialogue: the row's one response, or else the assistant turn that its prompt ends in.

    Raises:
        DataError: the dialogue ends in a user turn, so that there is nothing to learn.
    """
    if len(row["responses"]) == 1:
        return Answer([_turn(t) for t in row["prompt"]], {name: row[name] for name in SAMPLED})
    *before, last = row["prompt"]
    if row["responses"] or last["role"] != "assistant":
        raise DataError(
            f"{len(row['responses'])} responses, and turn {len(row['prompt'])} is of role {last['role']}",
            where=where,
            effect="There is no one last answer to learn.",
            remedy='give one response, end in an assistant turn, or let it be sampled (answers="sampled")',
        )
    return Answer([_turn(t) for t in before], {"responses": [last["content"]]})


def open_question(row: Mapping[str, Any]) -> Turns:
    """A dialogue up to its last user turn."""
    last = max(i for i, t in enumerate(row["prompt"]) if t["role"] == "user")
    return [_turn(t) for t in row["prompt"][: last + 1]]


def check_dialogues(groups: Groups, alternating: bool) -> None:
    """Refuse dialogues that GAtt cannot use.

    Args:
        groups: rows with an `instruction` in `meta`.
        alternating: whether their assistant turns are used, so that there must be one between two user turns.

    Raises:
        DataError: with row and turn: no user turn, a tool turn, a system turn that is not the first, an instruction
            that stands in a turn already, roles that do not alternate.
    """
    for i, row in enumerate(groups):
        roles = [t["role"] for t in row["prompt"]]
        if "user" not in roles:
            raise DataError("no user turn", where=f"row {i}", remedy="give a dialogue that asks something")
        instruction = groups.meta(i)["instruction"]
        for number, turn in enumerate(row["prompt"], start=1):
            if fault := _fault(roles, number, alternating):
                raise DataError(fault, where=f"row {i}, turn {number}", remedy="leave the dialogue out")
            if turn["role"] != "assistant" and instruction in turn["content"]:
                remedy = "give dialogues without the instruction; it belongs in `meta`"
                raise DataError("the instruction stands in it already", where=f"row {i}, turn {number}", remedy=remedy)


def _fault(roles: Sequence[str], number: int, alternating: bool) -> str | None:
    role, system = roles[number - 1], roles[0] == "system"
    if role not in ("user", "assistant", "system") or (role == "system" and number > 1):
        return f"a {role} turn"
    if alternating and role != "system" and role != ("user", "assistant")[(number - 1 - system) % 2]:
        return f"a {role} turn where user and assistant should alternate"
    return None


# -- the transform -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GhostAttention:
    """Dialogues to rows in the training view, for `Run.sft` with train="last" (Llama 2, section 3.3).

    A row's instruction is `meta["instruction"]` (with `wording`, its wording in training, and `constraints`, its
    checks, where known), or is drawn from the constraints.

    Args:
        constraints: JSON file of constraints; default the shipped ones.
        kinds: those kinds of them alone, separated by commas.
        most: constraints that are combined in one instruction at most, at random from one on.
        shortened: how often the training view has the short wording ("half of the time" in the paper).
        answers: "sampled": every assistant turn is, in the sampling view; "last": former assistant turns are those of
            the dialogue, and the last is sampled; "given": the dialogue has its last answer, and nothing is sampled.
        targets: "last": a dialogue makes one row; "every": each sampled turn is the last one of a row of its own, since
            the first t turns of a dialogue are a dialogue.
        place: where the training view has the instruction: in the first "user" turn, or in a "system" turn.
        samples_per_turn: answers sampled per turn; the first that obeys is kept.
        require_obeyed: leave out rows whose last answer a program finds to disobey; what none can judge stays.
        require_finished: leave out rows whose last answer was cut off, which would teach not to stop.
        temperature, max_new_tokens, max_prompt_tokens: of sampling, see `Sampler`.

    Raises:
        ConfigError: a field outside its range.
    """

    constraints: str | None = None
    kinds: str | None = None
    most: int = 3
    shortened: float = 0.5
    answers: str = "sampled"
    targets: str = "last"
    place: str = "user"
    samples_per_turn: int = 1
    require_obeyed: bool = False
    require_finished: bool = True
    temperature: float = 1.0
    max_new_tokens: int = 128
    max_prompt_tokens: int = 1024

    def __post_init__(self) -> None:
        check_values(self)
        options = {"answers": ANSWERS, "targets": TARGETS, "place": PLACES}
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}", where="gatt", remedy=f"use {' or '.join(known)}")
        if self.most < 1 or self.samples_per_turn < 1 or not 0 <= self.shortened <= 1:
            raise ConfigError("most and samples_per_turn start at 1, shortened is in [0, 1]", where="gatt")
        check_range("gatt", low=1, max_new_tokens=self.max_new_tokens, max_prompt_tokens=self.max_prompt_tokens)
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be positive", where="gatt")

    def key(self) -> Any:
        """The fields, and the content of the file of constraints."""
        content = (Path(self.constraints) if self.constraints else SHIPPED).read_bytes()
        return {"gatt": asdict(self), "constraints": hashlib.sha256(content).hexdigest(), **class_code(type(self))}

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        """The rows, in the order of their dialogues.

        Args:
            groups: dialogues: user turns alone, or with assistant turns between them.
            ctx: `ctx.sample` and `ctx.seed` are used.

        Returns:
            one response each, with its ids where it was sampled; meta `turn` says which of the dialogue it answers.

        Raises:
            DataError: a dialogue that cannot be used (row and turn), or no row that may be learned from.
        """
        pool = of_kinds(read_constraints(self.constraints), self.kinds)
        dialogues = with_instructions(groups, pool, self.most, self.shortened, ctx.seed)
        check_dialogues(dialogues, alternating=self.answers != "sampled")
        check_constraints(dialogues)
        rows = [
            self._row(row, dialogues.meta(i), answer)
            for i, (row, answers) in enumerate(zip(dialogues, self._answers(dialogues, ctx), strict=True))
            for answer in (answers if self.targets == "every" else answers[-1:])
            if self._learnable(dialogues.meta(i), answer)
        ]
        if not rows:
            raise DataError(
                f"of {len(groups)} dialogues none has a last answer that may be learned",
                where="gatt",
                effect="Learning from nothing was refused.",
                remedy="raise max_new_tokens or samples_per_turn, or set require_obeyed or require_finished to False",
            )
        return Groups.from_rows(rows)

    def _answers(self, dialogues: Groups, ctx: Any) -> list[list[Answer]]:
        if self.answers == "given":
            return [[last_answer(row, f"row {i}")] for i, row in enumerate(dialogues)]

        def sample(prompts: Groups) -> Groups:
            return ctx.sample(
                prompts,
                self.samples_per_turn,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                max_prompt_tokens=self.max_prompt_tokens,
            )

        if self.answers == "sampled":
            return play(dialogues, sampling_view, sample, first_obeying)
        metas = [dialogues.meta(i) for i in range(len(dialogues))]
        asked = [open_question(row) for row in dialogues]
        views = (sampling_view(turns, meta["instruction"]) for turns, meta in zip(asked, metas, strict=True))
        drawn = sample(Groups.from_rows({"prompt": view} for view in views))
        kept = take_responses(drawn, [[first_obeying(*pair)] for pair in zip(metas, drawn, strict=True)])
        return [[Answer(*pair)] for pair in zip(asked, kept, strict=True)]

    def _learnable(self, meta: Mapping[str, Any], answer: Answer) -> bool:
        whole = _ended({"finished": None, **answer.columns}) or not self.require_finished
        return whole and (obeys(meta, answer.text) != 0.0 or not self.require_obeyed)

    def _row(self, row: Mapping[str, Any], meta: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """One answer in the training view."""
        number = sum(t["role"] == "user" for t in answer.turns)
        known = {name: answer.columns[name] for name in SAMPLED if name in answer.columns}
        return {
            **{name: row[name] for name in ("tags", "iteration")},
            **known,
            "prompt": training_view(answer.turns, meta["wording"], self.place),
            "meta": {**meta, "turn": number},
        }

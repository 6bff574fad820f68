"""The suites: each a function that returns prompts to learn on, prompts kept back, and the truth about an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from alignkit.plugin import ConfigError, DataError, Groups, Located, Suite, prompt_id, read_rows
from alignkit_tasks import embedded as task
from alignkit_tasks.annotator import gold, gold_helpfulness, gold_safety, instructions
from alignkit_tasks.ifeval import IFEval
from alignkit_tasks.verifiable import GSM8K, ExactAnswer

Row = dict[str, Any]  # prompt (text), meta

BUDGET = {"generated_tokens": 200_000}
"""What a method may spend on any of these suites, unless it is said otherwise."""

HIDDEN = "the held-out prompts, and the answers or checks in the meta of the others, which rewards alone read"
"""What a method may not see."""

CORRECT = "Generate a correct answer to this problem."
"""What a prompt of `bbh_hir` begins with (Zhang et al. 2023, arXiv 2302.05206)."""


def embedded(*, kind: str = "small", prompts: int = 64, heldout: int = 64, instructed: bool = False) -> Suite:
    """Short answers whose instructions a program checks; see `alignkit_tasks.embedded`.

    Args:
        kind: "small" for an instruct model; "tiny" for a byte-level model with random weights.
        prompts: how many to learn on.
        heldout: how many to measure on; their topics do not occur among the others.
        instructed: only prompts that carry an instruction; the first score is then the share of instructions followed.

    Raises:
        ConfigError: another kind; `instructed` of the tiny kind, which has no instructions; more prompts than it has.
    """
    if kind not in ("small", "tiny"):
        raise ConfigError(f"kind={kind!r}", where="suite embedded", remedy="use small or tiny")
    if instructed and kind == "tiny":
        raise ConfigError("the tiny kind has no instructions", where="suite embedded", remedy="leave instructed out")
    make = task.tiny_prompts if kind == "tiny" else _instructed if instructed else task.prompts
    truth = {"gold": gold, "helpfulness": gold_helpfulness, "safety": gold_safety}
    try:
        learn, measure = make("train", prompts), make("heldout", heldout)
    except ValueError as error:
        what = f"prompts={prompts}, heldout={heldout}, instructed={instructed}: {error}"
        raise ConfigError(what, where="suite embedded", remedy="ask for fewer prompts") from error
    return Suite(
        prompts=Groups.from_prompts(learn),
        heldout=Groups.from_prompts(measure),
        scores={"instructions": instructions, "gold": gold} if instructed else truth,
        max_new_tokens=16 if kind == "tiny" else 36,
        budget=BUDGET,
        hidden=HIDDEN,
    )


def _instructed(split: task.Split, n: int) -> list[task.Prompt]:
    """The first n prompts that carry an instruction: about two in three do."""
    return [row for row in task.prompts(split, 2 * n + 12) if row["meta"]["instructions"]][:n]


def gsm8k(
    *,
    data: str,
    heldout: str | None = None,
    prompts: int = 0,
    heldout_prompts: int = 0,
    max_new_tokens: int = 256,
    instruction: str = "Think step by step, and end with the answer after ####.",
) -> Suite:
    """Grade-school word problems whose answer is a number (Cobbe et al. 2021, arXiv 2110.14168).

    Args:
        data: file of problems to learn on (.jsonl, .json, either gzipped, .parquet): `question` and `answer` as
            published ("… #### 18"), or `prompt` and `answer`.
        heldout: file of problems to measure on; None keeps a tenth of `data` back.
        prompts: how many to learn on; 0: all.
        heldout_prompts: how many to measure on; 0: all.
        max_new_tokens: longest answer.
        instruction: stands below each problem; "" for none.

    Raises:
        ConfigError: a file is not there.
        DataError: a row without a problem or without an answer.
    """

    def read(located: Located) -> Row:
        answer = str(_field(located, "answer")).rpartition("####")[2].strip()
        return _row(_text(located, "question", "prompt"), {"answer": answer}, below=instruction)

    learn, measure = _split("gsm8k", data, heldout, read)
    return _suite(learn, measure, prompts, heldout_prompts, {"accuracy": GSM8K("accuracy")}, max_new_tokens)


def ifeval(
    *,
    data: str,
    heldout: str | None = None,
    prompts: int = 0,
    heldout_prompts: int = 0,
    max_new_tokens: int = 512,
) -> Suite:
    """Prompts with instructions that a program verifies (Zhou et al. 2023, arXiv 2311.07911).

    The first score is the share of instructions followed, the second whether all are, both by the strict reading.

    Args:
        data: file of prompts to learn on: `prompt`, `instruction_id_list`, `kwargs`, as published.
        heldout: file of prompts to measure on; None keeps a tenth of `data` back.
        prompts: how many to learn on; 0: all.
        heldout_prompts: how many to measure on; 0: all.
        max_new_tokens: longest answer.

    Raises:
        ConfigError: a file is not there.
        DataError: a row without a prompt or its instructions.
    """

    def read(located: Located) -> Row:
        meta = {name: _field(located, name) for name in ("instruction_id_list", "kwargs")}
        return _row(_text(located, "prompt"), meta)

    learn, measure = _split("ifeval", data, heldout, read)
    scores = {"instructions": IFEval("instructions"), "prompts": IFEval("prompts", every=True)}
    return _suite(learn, measure, prompts, heldout_prompts, scores, max_new_tokens)


def bbh_hir(
    *,
    data: str,
    heldout: str | None = None,
    tasks: list[str] | None = None,
    prompts: int = 0,
    heldout_prompts: int = 0,
    max_new_tokens: int = 24,
    instruction: str = CORRECT,
    by_task: bool = True,
) -> Suite:
    """The BIG-Bench tasks that hindsight instruction relabelling was published on (arXiv 2302.05206), or any others.

    The first score is the accuracy over all tasks; one for each task follows. Tasks take turns, so that few prompts
    are spread evenly.

    Args:
        data: file to learn on: `task`, `prompt`, `answer`; or BIG-Bench Hard's own file of one task, or a folder of
            them (`examples` of `input` and `target`).
        heldout: file to measure on; None keeps a tenth of `data` back.
        tasks: their names; None: all that there are.
        prompts: how many to learn on; 0: all.
        heldout_prompts: how many to measure on; 0: all.
        max_new_tokens: longest answer.
        instruction: stands above each problem; the method `hir` relabels it. "" for none.
        by_task: score each task too.

    Raises:
        ConfigError: a file or a task is not there.
        DataError: a row without a problem or an answer.
    """

    def read(located: Located) -> Row:
        text, answer = _text(located, "input", "prompt"), str(_field(located, "target", "answer")).strip()
        options = dict(re.findall(r"^\(([A-Z])\) (.+)$", text, re.MULTILINE))
        task = (located.row or {}).get("task") or Path(located.where).name.split(".")[0]
        return _row(text, {"answer": answer, "task": task, "options": options}, instruction, _asks_for(answer))

    learn, measure = _split("bbh_hir", data, heldout, read)
    learn, measure = (_turns(_of_tasks(rows, tasks)) for rows in (learn, measure))
    scores = {"accuracy": ExactAnswer("accuracy")}
    if by_task:
        names = sorted({row["meta"]["task"] for row in measure[: heldout_prompts or None]})
        scores |= {name: ExactAnswer(name, task=name) for name in names}
    return _suite(learn, measure, prompts, heldout_prompts, scores, max_new_tokens)


def _asks_for(answer: str) -> str:
    """The form of the answer, which is the same for all problems of a task."""
    if re.fullmatch(r"\([A-Z]\)", answer):
        return "Answer with the letter of the option in parentheses."
    return "Answer with a number." if re.fullmatch(r"-?\d+", answer) else "Answer briefly, without explanation."


def _of_tasks(rows: list[Row], tasks: Sequence[str] | None) -> list[Row]:
    known = {row["meta"]["task"] for row in rows}
    unknown = sorted(set(tasks or ()) - known)
    if unknown:
        raise ConfigError(f"no rows of {', '.join(unknown)}", where="suite bbh_hir", remedy=f"use {sorted(known)}")
    return [row for row in rows if tasks is None or row["meta"]["task"] in tasks]


def _turns(rows: list[Row]) -> list[Row]:
    """One row of each task after another."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["meta"]["task"], []).append(row)
    return [row for row in chain.from_iterable(zip_longest(*by_task.values())) if row is not None]


# -- reading -----------------------------------------------------------------------------------------------------------


def _located(suite: str, name: str) -> Iterator[Located]:
    """The rows of a file, or of all JSON files in a folder; of a file with `examples`, those."""
    path = Path(name)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        remedy = "fetch the data set and give its path; alignkit ships none"
        raise ConfigError(f"there is no file {name}", where=f"suite {suite}", remedy=remedy)
    for file in files:
        for located in read_rows(file):
            examples = (located.row or {}).get("examples")
            inner = examples if isinstance(examples, list) else [located.row]
            yield from (located._replace(row=row) for row in inner)


def _field(located: Located, *names: str) -> Any:
    """The first of these columns that a row has something in.

    Raises:
        DataError: it has none of them, or cannot be read.
    """
    if located.row is None:
        raise DataError(located.finding.what if located.finding else "is no row", where=located.where)
    for name in names:
        if located.row.get(name) not in (None, "", []):
            return located.row[name]
    raise DataError(f"has no {' or '.join(names)}", where=located.where, remedy="give the file as published")


def _text(located: Located, *names: str) -> str:
    """The problem: a text, or the contents of its messages."""
    found = _field(located, *names)
    return found if isinstance(found, str) else "\n\n".join(str(turn["content"]) for turn in found)


def _row(text: str, meta: Row, above: str = "", below: str = "") -> Row:
    return {"prompt": "\n\n".join(part for part in (above, text, below) if part), "meta": meta}


def _split(suite: str, data: str, heldout: str | None, read: Callable[[Located], Row]) -> tuple[list[Row], list[Row]]:
    """Distinct rows to learn on and to measure on, no prompt in both; without a second file, by the prompt's hash."""
    learn = _distinct(read(located) for located in _located(suite, data))
    if heldout is None:
        kept = {key for key in learn if int(key, 16) % 10 == 0}
        return [learn[key] for key in learn if key not in kept], [learn[key] for key in learn if key in kept]
    measure = _distinct(read(located) for located in _located(suite, heldout))
    return [row for key, row in learn.items() if key not in measure], list(measure.values())


def _distinct(rows: Iterator[Row]) -> dict[str, Row]:
    return {prompt_id([{"role": "user", "content": row["prompt"]}]): row for row in rows}


def _suite(
    learn: list[Row], measure: list[Row], prompts: int, heldout: int, scores: Mapping[str, Any], max_new_tokens: int
) -> Suite:
    return Suite(
        prompts=Groups.from_prompts(learn[: prompts or None]),
        heldout=Groups.from_prompts(measure[: heldout or None]),
        scores=scores,
        max_new_tokens=max_new_tokens,
        budget=BUDGET,
        hidden=HIDDEN,
    )

"""A format of data files: a question with a right answer and a wrong one."""

from __future__ import annotations

from typing import Any

from alignkit.plugin import BadRow, Reading, Register, RowFormat, hookimpl


def read(parts: dict[str, Any]) -> Reading:
    """A comparison.

    Args:
        parts: the columns of a row, by the first names that the declaration gives them.

    Raises:
        BadRow: what is wrong with the row; the reader adds file and line.
    """
    for name in ("right_answer", "wrong_answer"):
        if not isinstance(parts[name], str):
            raise BadRow("D21", name, f"is of type {type(parts[name]).__name__}", remedy="give a text")
    answers = [parts["right_answer"], parts["wrong_answer"]]
    return Reading("comparisons", {"prompt": parts["asked"], "responses": answers, "ranks": [1, 2]})


FORMAT = RowFormat(
    name="example_component",
    doc="a question with a right and a wrong answer: a comparison",
    needs=("asked", "right_answer", "wrong_answer"),
    read=read,
    example={"asked": "1 + 1?", "right_answer": "2", "wrong_answer": "3"},
)


@hookimpl
def register_formats(register: Register) -> None:
    register("example_component", FORMAT)

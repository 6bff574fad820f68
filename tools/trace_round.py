"""Which files one learning round of a method runs through, and how long they are: what a reader has to follow.

`python tools/trace_round.py [OPTIMIZER]` runs one round on the tiny model and prints each file of this repository with
the functions called in it, from the moment the trainer asks for the round to the moment the round is over.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLOSELY = ("alignkit/engine/", "plugins/")
"""What a reader of a method reads, where more than one function of a file is at work; of everything else a name that
says what it does is enough."""


def traced(optimizer: str) -> dict[str, set[str]]:
    """The functions that a round calls, by file; a comprehension or a lambda is a part of the function it stands in."""
    from alignkit import Groups, Run, use
    from alignkit.engine.learner import Learner

    called: dict[str, set[str]] = defaultdict(set)

    def watch(frame: FrameType, event: str, _argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(ROOT)) and ".venv" not in file and not file.startswith(__file__):
            called[str(Path(file).relative_to(ROOT))].add(frame.f_code.co_qualname.partition(".<locals>.<")[0])

    begin, end = Learner.train_dataloader, Learner.on_train_epoch_end

    def first(self: Any) -> Any:
        sys.setprofile(watch)
        return begin(self)

    def last(self: Any) -> None:
        end(self)
        sys.setprofile(None)

    Learner.train_dataloader, Learner.on_train_epoch_end = first, last  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, Run(folder, quiet=True) as run:
        v0 = run.policy("tiny")
        prompts = Groups.from_prompts([f"prompt {i}" for i in range(4)])
        method = use(optimizer, rounds=1)
        reward = lambda response: float(len(set(response)))  # noqa: E731
        run.improve(v0, prompts, optimizer=method, reward=reward, reference=v0, max_new_tokens=8)
    return called


def lines_of(name: str) -> int:
    """Lines of a file."""
    return (ROOT / name).read_text(encoding="utf-8").count("\n")


def main() -> None:
    """Print the table."""
    called = traced(sys.argv[1] if len(sys.argv) > 1 else "ppo")
    closely = {name for name in called if name.startswith(CLOSELY) and len(called[name]) > 1}
    for title, names in (("read closely", closely), ("by name", set(called) - closely)):
        print(f"{title}: {len(names)} files, {sum(map(lines_of, names))} lines")
        for name in sorted(names):
            print(f"  {name:<48} {lines_of(name):>4} lines, {len(called[name]):>3} functions called")
    print(f"in all {sum(map(len, called.values()))} functions, {len(called)} files, {sum(map(lines_of, called))} lines")


if __name__ == "__main__":
    main()

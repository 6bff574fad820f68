"""A notebook's cells: a Run that is made again takes the first one's place; a stage that failed can be tried again."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit import AlignkitError, ConfigError, Groups, Run
from alignkit.engine.learner import Learner
from alignkit.optimizers import Batch, PolicyOptimizer

PROMPTS = Groups.from_prompts(["a", "b"])
ANSWERS = Groups.from_rows([{"prompt": "a", "responses": ["b c"]}])


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


def is_free(folder: Path) -> bool:
    """Whether another process could begin in it."""
    with (folder / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def test_a_cell_that_is_run_again_goes_on_and_the_older_run_says_so(tmp_path: Path) -> None:
    older = Run(tmp_path, quiet=True)
    key = older.policy("tiny", lora=None).key
    newer = Run(tmp_path / "x" / "..", quiet=True)  # the same folder by another name
    assert not is_free(tmp_path)
    for further in (lambda: older.policy("tiny", name="more"), older.report):
        with pytest.raises(AlignkitError, match=r"a newer Run of this process.*close\(\)"):
            further()
    assert newer.policy("tiny", lora=None).key == key
    assert [stage.key for stage in newer.made] == [key]
    older.close("failed")
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    assert not is_free(tmp_path)
    newer.close()
    assert is_free(tmp_path)


def test_a_closed_run_goes_on_only_where_nobody_else_is_at_work(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as first:
        pass
    with (tmp_path / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AlignkitError, match="is at work in this run"):
            first.policy("tiny")
        with pytest.raises(AlignkitError, match="is at work in this run"):
            Run(tmp_path, quiet=True)
    first.policy("tiny")
    assert not is_free(tmp_path)
    first.close()
    second = Run(tmp_path, quiet=True)
    with pytest.raises(AlignkitError, match="a newer Run"):
        first.policy("tiny", name="more")
    second.close()


def test_nobody_takes_the_place_of_a_run_that_is_making_a_stage(tmp_path: Path) -> None:
    def meddling(response: str) -> float:
        Run(tmp_path, quiet=True)
        return 0.0

    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        with pytest.raises(AlignkitError, match="making the stage 'e'"):
            run.evaluate(v0, PROMPTS, {"r": meddling}, max_new_tokens=2, name="e")
        run.evaluate(v0, PROMPTS, {"r": len_of}, max_new_tokens=2, name="e")
        Run(tmp_path, quiet=True).close()  # it is making none any more


def test_a_run_that_only_plans_takes_nobodys_place(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        Run(tmp_path, quiet=True, plan=True).policy("tiny")
        run.policy("tiny")


def len_of(response: str) -> float:
    return float(len(response))


BROKEN: list[BaseException] = []


def breaking(response: str) -> float:
    if BROKEN:
        raise BROKEN.pop()
    return float(len(response))


VERBS: dict[str, Callable[[Run, Any], Any]] = {
    "evaluate": lambda run, v0: run.evaluate(v0, PROMPTS, {"length": breaking}, max_new_tokens=2, name="again"),
    "improve": lambda run, v0: run.improve(
        v0, PROMPTS, optimizer=Imitates(), reward=breaking, max_new_tokens=2, name="again"
    ),
    "sft": lambda run, v0: run.sft(v0, ANSWERS, name="again"),
}


@pytest.mark.parametrize(
    ("verb", "error"), [("evaluate", KeyboardInterrupt()), ("improve", ValueError("oh")), ("sft", KeyboardInterrupt())]
)
def test_a_stage_that_did_not_come_to_its_end_can_be_tried_again(
    tmp_path: Path, verb: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Learner._clip
    monkeypatch.setattr(Learner, "_clip", lambda self: (verb == "sft" and breaking(""), clip(self))[1])
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        BROKEN[:] = [error]
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else Exception):
            VERBS[verb](run, v0)
        assert not BROKEN
        VERBS[verb](run, v0)
        with pytest.raises(ConfigError, match="make the Run again first"):
            VERBS[verb](run, v0)
    assert [stage.name for stage in run.made] == ["policy", "again"]

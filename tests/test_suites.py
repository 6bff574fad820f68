"""A suite says where methods start: by a specification, by making the policy itself, or not at all."""

from __future__ import annotations

from typing import Any

from alignkit import Groups
from alignkit.plugin import Suite

PROMPTS = Groups.from_prompts(["a"])


class Asked:
    """A run that says what it was asked for."""

    def policy(self, spec: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        return spec, options


def suite(policy: Any = None) -> Suite:
    return Suite(PROMPTS, PROMPTS, {"length": len}, policy=policy)


def test_a_suite_names_its_policy_and_who_compares_goes_before_it() -> None:
    assert suite("tiny").start(Asked(), lora=None) == ("tiny", {"lora": None})
    assert suite("tiny").start(Asked(), "other") == ("other", {})
    assert suite().start(Asked(), "other") == ("other", {})


def test_a_suite_may_make_its_policy_in_the_run() -> None:
    run = Asked()
    assert suite(lambda given: ("made", given)).start(run, lora=None) == ("made", run)


def test_what_a_suite_does_not_say_is_empty() -> None:
    made = suite()
    assert (made.budget, made.settings, made.hidden) == ({}, {}, "")
    assert (made.data, made.measure, made.annotator) == (None, None, None)

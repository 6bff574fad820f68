"""What a check is, what it says, and the list of all checks by kind of component."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from alignkit.testing.conformance.subject import Subject

Verdict = Literal["pass", "fail", "does not apply"]
Run = Callable[[Any], "str | None"]


class Failed(AssertionError):
    """A check that found a defect.

    Args:
        what: is wrong, with the numbers.
        where: in the component: a term, an argument, an element.
        reproduce: what shows it, as far as the name of the check does not.
    """

    def __init__(self, what: str, where: str = "", reproduce: str = "") -> None:
        self.what, self.where, self.reproduce = what, where, reproduce
        super().__init__("; ".join(part for part in (what, where and f"in {where}", reproduce) if part))


class DoesNotApplyError(Exception):
    """A check that a component gives nothing to look at; its text is the reason."""


def refuse(what: str, where: str = "", reproduce: str = "") -> NoReturn:
    """Say that the component fails the check.

    Raises:
        Failed: always.
    """
    raise Failed(what, where, reproduce)


def skip(reason: str) -> NoReturn:
    """Say that the check does not apply.

    Raises:
        DoesNotApplyError: always.
    """
    raise DoesNotApplyError(reason)


@dataclass(frozen=True)
class Check:
    """One thing that must hold of a component.

    Args:
        name: within its kind.
        kinds: of component; "plugin" for a distribution as a whole, "any" for every component.
        run: looks; says what it saw, or raises `Failed` or `DoesNotApplyError`.
    """

    name: str
    kinds: tuple[str, ...]
    run: Run

    @property
    def doc(self) -> str:
        """The pain it spares, and where that was reported: its docstring as one paragraph."""
        return " ".join((inspect.getdoc(self.run) or "").split())


CHECKS: list[Check] = []
"""Every check, in the order in which it is run."""


def check(*kinds: str) -> Callable[[Run], Run]:
    """Register the function below as a check of these kinds; its name, with dashes, is the check's.

    Args:
        kinds: as in `Check`.
    """

    def register(run: Run) -> Run:
        CHECKS.append(Check(run.__name__.replace("_", "-"), kinds, run))
        return run

    return register


@dataclass(frozen=True)
class Outcome:
    """What a check said of a component.

    Args:
        subject: `kind:name`, or the distribution.
        check: its name.
        verdict: "pass", "fail" or "does not apply".
        text: what was seen, what is wrong and where, or why it does not apply.
        reproduce: the command or call that shows a failure again.
    """

    subject: str
    check: str
    verdict: Verdict
    text: str = ""
    reproduce: str = ""


def declined(subject: Subject) -> Mapping[str, str]:
    """The checks that a component's author says it breaks on purpose, with the reason: its attribute `declined`."""
    said = getattr(subject.record.object, "declined", {}) if subject.record else {}
    return said if isinstance(said, Mapping) else {}


def examine(subject: Subject, one: Check) -> Outcome:
    """Run one check on one component. Whatever a component raises is a failure of that check and of no other."""
    label = subject.label
    if reason := declined(subject).get(one.name):
        return Outcome(label, one.name, "does not apply", f"declined by its author: {reason}")
    again = f"alignkit plugins --check {label}"
    try:
        return Outcome(label, one.name, "pass", one.run(subject) or "")
    except DoesNotApplyError as reason:
        return Outcome(label, one.name, "does not apply", str(reason))
    except Failed as failure:
        text = failure.what + (f" (in {failure.where})" if failure.where else "")
        return Outcome(label, one.name, "fail", text, failure.reproduce or again)
    except Exception as error:
        return Outcome(label, one.name, "fail", f"raised {type(error).__name__}: {error}", again)


def checks_of(kind: str) -> list[Check]:
    """The checks that a component of this kind is put through; those of a "plugin" are its own."""
    return [one for one in CHECKS if kind in one.kinds or ("any" in one.kinds and kind != "plugin")]

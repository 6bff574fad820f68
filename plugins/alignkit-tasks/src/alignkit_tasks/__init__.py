"""Tasks with a known truth: prompts, what a program can say of an answer, and suites made of them."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.plugins.hookspecs import Register


@hookimpl
def register_annotators(register: Register) -> None:
    from alignkit_tasks.annotator import VerifiableAnnotator

    register("verifiable", VerifiableAnnotator)


@hookimpl
def register_suites(register: Register) -> None:
    from alignkit_tasks.suites import embedded

    register("embedded", embedded)

"""Tasks with a known truth: prompts, what a program can say of an answer, and suites made of them."""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl


@hookimpl
def register_annotators(register: Register) -> None:
    from alignkit_tasks.annotator import VerifiableAnnotator

    register("verifiable", VerifiableAnnotator)


@hookimpl
def register_rewards(register: Register) -> None:
    from alignkit_tasks.annotator import instructions
    from alignkit_tasks.ifeval import IFEval
    from alignkit_tasks.verifiable import GSM8K, ExactAnswer

    register("gsm8k", GSM8K)
    register("ifeval", IFEval)
    register("exact_answer", ExactAnswer)
    register("instructions", instructions)


@hookimpl
def register_suites(register: Register) -> None:
    from alignkit_tasks import suites

    register("embedded", suites.embedded)
    register("gsm8k", suites.gsm8k)
    register("ifeval", suites.ifeval)
    register("bbh_hir", suites.bbh_hir)

"""A recipe: a pipeline as a function of a run; its other parameters are its command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.plugin import Register, hookimpl

if TYPE_CHECKING:
    from alignkit import Run

LEARNED = ("a door", "a lamp", "a river", "a spoon", "a tower", "a wheel", "a glove", "a drum")
MEASURED = ("a ladder", "a shell", "a coat", "a bell")


def main(run: Run, policy: str = "tiny", answer: str = "aeiou", epochs: int = 8, learning_rate: float = 5e-3) -> None:
    """Fine-tune on one answer to everything, and measure on other prompts what that changed.

    Args:
        run: where everything is kept.
        policy: model to start from: a folder, a hub name or "tiny".
        answer: what the model learns to say.
        epochs: passes over the demonstrations.
        learning_rate: of the fine-tuning.
    """
    from alignkit import Groups

    demonstrations = Groups.from_rows({"prompt": f"Say something about {t}.", "responses": [answer]} for t in LEARNED)
    heldout = Groups.from_prompts([f"Say something about {thing}." for thing in MEASURED])
    v0 = run.policy(policy, lora=None)  # all weights learn
    v1 = run.sft(v0, demonstrations, epochs=epochs, batch_size=4, learning_rate=learning_rate, name="v1")
    for label, version in (("V0", v0), ("V1", v1)):
        run.evaluate(version, heldout, {"vowels": vowels}, n=4, max_new_tokens=8, label=label, name=f"{label}/heldout")
    run.report()


def vowels(response: str) -> float:
    """The share of vowels among an answer's characters."""
    return sum(letter in "aeiou" for letter in response) / max(len(response), 1)


@hookimpl
def register_recipes(register: Register) -> None:
    register("example_component", main)

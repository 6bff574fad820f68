"""Ghost Attention (Llama 2, section 3.3): the instruction of a dialogue's first turn is obeyed to its last."""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl


@hookimpl
def register_transforms(register: Register) -> None:
    from alignkit_gatt.consistency import InstructionConsistency
    from alignkit_gatt.gatt import GhostAttention

    register("gatt", GhostAttention)
    register("instruction_consistency", InstructionConsistency)


@hookimpl
def register_rewards(register: Register) -> None:
    from alignkit_gatt.constraints import obeys

    register("obeys", obeys)


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_gatt.recipe import main

    register("gatt", main)

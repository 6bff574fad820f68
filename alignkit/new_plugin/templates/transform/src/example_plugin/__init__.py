"""A transform: rows whose prompt is too long are left out."""

from __future__ import annotations

from alignkit.plugin import ConfigError, Groups, Register, TransformContext, hookimpl


def example_component(groups: Groups, ctx: TransformContext, *, most: int = 200) -> Groups:
    """The groups whose conversation has at most `most` characters.

    Args:
        groups: any.
        ctx: `ctx.sample(prompts, n)` samples from the policy that the verb was given; not used here.
        most: above 0.

    Raises:
        ConfigError: `most` is not above 0.
    """
    if most < 1:
        raise ConfigError(f"most={most} must be positive", where="example_component")
    return groups.filter(lambda row: sum(len(message["content"]) for message in row["prompt"]) <= most)


@hookimpl
def register_transforms(register: Register) -> None:
    register("example_component", example_component)

"""A method is short where the interfaces are right: every shipped loss fits in 15 lines of code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest

from alignkit.registry.host import default_host

PLUGINS = Path(__file__).parents[1] / "plugins"


def code_lines(function) -> int:
    """Lines of a function's statements: without its signature, docstring, comments and blank lines."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    body = tree.body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return len({line for node in body for part in ast.walk(node) if hasattr(part, "lineno") for line in [part.lineno]})


def shipped_losses():
    return [record for record in default_host().components("loss") if record.distribution.startswith("alignkit-")]


def test_the_shipped_losses_are_found():
    assert {"ppo", "margin_ranking", "dpo", "kto", "kwise_ranking"} <= {record.name for record in shipped_losses()}


@pytest.mark.parametrize("name", sorted(record.name for record in shipped_losses()))
def test_a_loss_is_under_fifteen_lines(name):
    (record,) = [r for r in shipped_losses() if r.name == name]
    assert code_lines(record.object) < 15, f"{record.qualified} has {code_lines(record.object)} lines of code"


def test_lines_are_counted_as_code():
    def three(x):
        """Not
        counted."""
        # nor this
        y = x

        if y:
            y = [
                1,
            ]
        return y

    assert code_lines(three) == 5


def test_no_plugin_imports_what_another_keeps_to_itself():
    """Names with a leading underscore, or a module that the other does not declare as a dependency."""
    wrong = []
    for source in sorted(PLUGINS.glob("*/src/**/*.py")):
        own = source.relative_to(PLUGINS).parts[0]
        declared = (PLUGINS / own / "pyproject.toml").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("alignkit_"):
                continue
            other = (node.module or "").split(".")[0].replace("_", "-")
            if other == own:
                continue
            wrong += [f"{own}: {node.module}.{a.name}" for a in node.names if a.name.startswith("_")]
            wrong += [] if f'"{other}>=' in declared else [f"{own} does not declare {other}"]
    assert not wrong

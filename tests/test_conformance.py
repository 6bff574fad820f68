"""The conformance kit finds every planted fault with the check that is meant for it, and none in what is shipped."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignkit.registry.hookspecs import KINDS, hookimpl
from alignkit.registry.host import PluginHost
from alignkit.testing.conformance import checks_of, examine, find

HERE = Path(__file__).parent / "planted"


def planted(name: str) -> ModuleType:
    """A module of `tests/planted`, imported under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"planted_{name}", HERE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def host_with(kind: str, name: str, target: Any) -> PluginHost:
    """A host of the core and one component."""

    def register_one(self: Any, register: Callable[[str, Any], None]) -> None:
        register(name, target)

    hook = KINDS[kind]
    register_one.__name__ = hook
    plugin = type("Planted", (), {hook: hookimpl(register_one)})
    host = PluginHost(allow=())
    host.register(plugin(), "planted")
    return host


def verdicts(kind: str, name: str, target: Any) -> dict[str, tuple[str, str]]:
    """(verdict, text) of every check of one component, by the check's name."""
    [subject] = find(f"{kind}:{name}", host_with(kind, name, target))
    found = [examine(subject, one) for one in checks_of(kind)]
    return {one.check: (one.verdict, one.text) for one in found}


FAULTS = [
    *[("loss", name, check, loss) for name, (check, loss) in planted("losses").LOSSES.items()],
    *planted("others").PLANTED,
]


@pytest.mark.parametrize(("kind", "name", "check", "target"), FAULTS, ids=lambda value: str(value)[:60])
def test_each_planted_fault_is_found_by_its_check(kind: str, name: str, check: str, target: Any) -> None:
    found = verdicts(kind, name, target)
    assert found[check][0] == "fail", {name: each for name, each in found.items() if each[0] != "pass"}

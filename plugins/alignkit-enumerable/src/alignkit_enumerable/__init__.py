"""A suite whose every response can be listed: what a method reached of its own optimum is exact.

`problem` is what is to be solved, `exact` what a policy is worth, `own` and `given` what each method makes for, `parts`
what the suite hands out, `measure` and `suite` the stages and the suite.
"""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl


@hookimpl
def register_suites(register: Register) -> None:
    from alignkit_enumerable.suite import enumerable

    register("enumerable", enumerable)


@hookimpl
def register_stages(register: Register) -> None:
    from alignkit_enumerable.measure import Enumerate
    from alignkit_enumerable.suite import Start

    register("enumerable_policy", Start)
    register("enumerate", Enumerate)

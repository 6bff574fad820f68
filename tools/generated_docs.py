"""Write the parts of the docs that the code itself says: tensors, hooks, methods to override, help texts, arguments.

A part stands between `<!-- generated: NAME -->` and `<!-- /generated -->`; what is around it is written by hand. Run
`python tools/generated_docs.py` after a change; `--check` only compares (a test calls it).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/write-a-plugin.md",
    "docs/cli.md",
    "docs/data.md",
    "docs/methods.md",
    "docs/verbs.md",
    "docs/metrics.md",
    "plugins/alignkit-recipes/README.md",
)
PART = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def vocabulary() -> str:
    """The tensors of `alignkit/vocabulary.py`."""
    from alignkit.vocabulary import VOCABULARY

    rows = [
        f"| `{name}` | {spec.level} | {spec.source} | `{spec.shape}` | {spec.doc} |"
        for name, spec in VOCABULARY.items()
    ]
    return "\n".join(["| tensor | level | from | shape | what it holds |", "|---|---|---|---|---|", *rows])


def prepare() -> str:
    """What `prepare` and `keep` may name, of `alignkit/vocabulary.py`."""
    from alignkit.vocabulary import KEEP, PREPARE

    rows = [
        f"| `{name}` | {'prepare, keep' if name in KEEP else 'prepare'} | `{offer.what}` | {offer.doc} |"
        for name, offer in PREPARE.items()
    ]
    return "\n".join(["| name | of | what it is | what it holds |", "|---|---|---|---|", *rows])


def metrics(*tables: str) -> str:
    """The numbers of tables of `alignkit/metrics/specs.py`: what each is, and how a bad value looks."""
    from alignkit.metrics import specs

    return _metric_table((f"`{name}`", spec) for table in tables for name, spec in getattr(specs, table).items())


def method_metrics() -> str:
    """The numbers that the optimizers of `plugins/` declare as their `logs`, with who logs each."""
    from alignkit.registry.host import PluginHost

    owners: dict[tuple[str, Any], list[str]] = {}
    shipped = {path.name for path in (ROOT / "plugins").iterdir()}
    for record in PluginHost().components("optimizer"):
        for logged in record.logs.items() if record.distribution in shipped else ():
            owners.setdefault(logged, []).append(f"`{record.name}`")
    return _metric_table((f"`{name}` ({', '.join(who)})", spec) for (name, spec), who in owners.items())


def _metric_table(rows: Iterable[tuple[str, Any]]) -> str:
    good = {"up": "high", "down": "low", None: ""}
    lines = [f"| {name} | {spec.unit} | {good[spec.better]} | {spec.doc} | {spec.bad} |" for name, spec in rows]
    return "\n".join(["| metric | unit | good | what it is | what is wrong when |", "|---|---|---|---|---|", *lines])


def offers() -> str:
    """What a metric may name in an evaluation: `alignkit/metrics/offers.py`."""
    from alignkit.metrics import OFFERS

    shapes = {"token": "[R, T]", "mask": "[R, T]", "response": "[R]"}
    rows = [f"| `{name}` | `{shapes[offer.level]}` | {offer.doc} |" for name, offer in OFFERS.items()]
    return "\n".join(["| name | shape | what it holds |", "|---|---|---|", *rows])


def formats() -> str:
    """The formats of data files of the core: `alignkit/data/formats/`."""
    from alignkit.data.formats import CORE

    def columns(needs: Iterable[str]) -> str:
        return ", ".join(" or ".join(f"`{name}`" for name in need.split("|")) for need in needs) or "–"

    rows = [f"| `{one.name}` | {one.doc} | {columns(one.needs)} | {columns(one.may)} |" for one in CORE]
    return "\n".join(["| format | what it is | columns | and where they are there |", "|---|---|---|---|", *rows])


def hooks() -> str:
    """The hooks of `alignkit/registry/hookspecs.py`."""
    from alignkit.registry import hookspecs

    rows = []
    for kind, name in hookspecs.KINDS.items():
        function = getattr(hookspecs, name)
        line = (inspect.getdoc(function) or "").splitlines()[0]
        rows.append(f"| {kind} | `{_signature(function)}` | {line} |")
    return "\n".join(["| kind | hook | what it does |", "|---|---|---|", *rows])


def methods() -> str:
    """What a class of each kind may override."""
    from alignkit.annotators import Annotator
    from alignkit.optimizers import PolicyOptimizer
    from alignkit.rewards import Reward
    from alignkit.sampling import Sampler

    wanted: list[tuple[type, tuple[str, ...]]] = [
        (PolicyOptimizer, ("prepare", "terms", "keep", "initial_state", "update", "stop_epochs")),
        (Sampler, ("warp", "generate")),
        (Reward, ("score", "key", "parts")),
        (Annotator, ("annotate", "key")),
    ]
    lines: list[str] = []
    for owner, names in wanted:
        lines += [f"class {owner.__name__}:"]
        lines += [f"    def {_signature(getattr(owner, name))}" for name in names]
    return "```text\n" + "\n".join(lines) + "\n```"


def command_help() -> str:
    """What `alignkit … --help` prints."""
    verbs = ("", "plugins", "new-plugin", "run", "compare", "runs", "data", "formats", "report", "sample")
    return "\n\n".join(_help(verb) for verb in verbs)


def arguments(recipe: str) -> str:
    """The arguments of a recipe, as its flags."""
    from docstring_parser import parse

    from alignkit.registry.host import default_host

    main = default_host().resolve("recipe", recipe).object
    docs = {p.arg_name: " ".join((p.description or "").split()) for p in parse(main.__doc__ or "").params}
    rows = []
    for name, parameter in list(inspect.signature(main).parameters.items())[1:]:
        simple = isinstance(parameter.default, str | int | float | bool | tuple | None)
        default = f"`{parameter.default}`" if simple and parameter.default is not None else ""
        rows.append(f"| `--{name}` | {default} | {docs[name]} |")
    return "\n".join(["| argument | default | meaning |", "|---|---|---|", *rows])


def plugins() -> str:
    """The distributions of `plugins/`, with what each registers."""
    from alignkit.registry.host import PluginHost

    host = PluginHost()
    shipped = {path.name for path in (ROOT / "plugins").iterdir()}
    rows = []
    for info in host.plugins():
        brought = [r for r in host.components() if r.distribution == info.distribution]
        if info.distribution in shipped:
            names = ", ".join(f"{record.kind} `{record.name}`" for record in brought)
            rows.append(f"| [`{info.distribution}`](plugins/{info.distribution}) | {names} |")
    return "\n".join(["| distribution | what it brings |", "|---|---|", *sorted(rows)])


def defaults(kind: str) -> str:
    """Each component of a kind with the defaults of its settings; of an optimizer those that are not every one's."""
    from alignkit.optimizers import PolicyOptimizer
    from alignkit.registry.host import PluginHost

    common = {f.name: f.default for f in dataclasses.fields(PolicyOptimizer)} if kind == "optimizer" else {}
    shipped = {"alignkit", *(path.name for path in (ROOT / "plugins").iterdir())}
    host = PluginHost()
    host.load()
    rows = []
    for record in sorted(host.components(kind), key=lambda record: record.name):
        settings = record.hyperparameters.items()
        own = [f"`{name}={value}`" for name, value in settings if common.get(name, ...) != value.default]
        if record.distribution in shipped:
            rows.append(f"| `{record.name}` | {record.distribution} | {', '.join(own) or 'none'} |")
    return "\n".join([f"| {kind} | plugin | defaults |", "|---|---|---|", *rows])


def verbs() -> str:
    """Every verb of `Run` with its arguments, from the fields of its stage."""
    from docstring_parser import parse

    from alignkit.run import Run
    from alignkit.stages import CORE

    lines: list[str] = []
    for kind in CORE:
        method = getattr(Run, kind.verb)
        text = parse(method.__doc__)
        docs = {p.arg_name: " ".join((p.description or "").split()) for p in text.params}
        lines += [f"## `run.{kind.verb}`", "", f"{text.short_description} {text.long_description or ''}".rstrip(), ""]
        lines += ["| argument | default | meaning |", "|---|---|---|"]
        for name, parameter in list(inspect.signature(method).parameters.items())[1:]:
            default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            lines.append(f"| `{name}` | {default} | {docs[name]} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines).rstrip()


def checks() -> str:
    """The checks of the conformance kit."""
    from alignkit.registry.hookspecs import KINDS
    from alignkit.testing.conformance import CHECKS

    order = ["plugin", "any", *KINDS]
    sorted_checks = sorted(CHECKS, key=lambda one: (order.index(one.kinds[0]), -len(one.kinds)))
    rows = [f"| {', '.join(one.kinds)} | `{one.name}` | {one.doc} |" for one in sorted_checks]
    return "\n".join(["| kind | check | what must hold, and where it did not |", "|---|---|---|", *rows])


PARTS: dict[str, Callable[[], str]] = {
    "checks": checks,
    "vocabulary": vocabulary,
    "prepare": prepare,
    "offers": offers,
    "metrics of steps": functools.partial(metrics, "STEPS"),
    "metrics of rounds": functools.partial(metrics, "ROUNDS"),
    "metrics of methods": method_metrics,
    "metrics of comparisons": functools.partial(metrics, "COMPARISONS"),
    "metrics of evaluations": functools.partial(metrics, "ANSWERS", "ASKED"),
    "formats": formats,
    "hooks": hooks,
    "methods": methods,
    "verbs": verbs,
    "help": command_help,
    "llama2 arguments": functools.partial(arguments, "llama2"),
    "method arguments": functools.partial(arguments, "method"),
    "instructgpt arguments": functools.partial(arguments, "instructgpt"),
    "plugins": plugins,
    "losses": functools.partial(defaults, "loss"),
    "optimizers": functools.partial(defaults, "optimizer"),
    "annotators": functools.partial(defaults, "annotator"),
    "transforms": functools.partial(defaults, "transform"),
}


def _signature(function: Any) -> str:
    return function.__name__ + str(inspect.signature(function)).replace("'", "")


def _help(verb: str) -> str:
    from alignkit.cli import main

    out = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([verb, "--help"] if verb else ["--help"])
    command = " ".join(["alignkit", *([verb] if verb else []), "--help"])
    text = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
    return f"### `{command}`\n\n```text\n{text}\n```"


def filled(text: str) -> str:
    """A page with its generated parts as the code has them now.

    Args:
        text: the page.
    """
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


def _same(a: str, b: str) -> bool:
    """Equal but for white space: argparse wraps a little differently from one Python to the next."""
    return a.split() == b.split()


def main() -> int:
    """Write the pages, or say with `--check` which ones are out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    late = []
    for page in (ROOT / name for name in PAGES):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if not _same(text, new):
            late.append(page.relative_to(ROOT).as_posix())
        if not check:
            page.write_text(new, encoding="utf-8")
    if check and late:
        print(f"out of date: {', '.join(late)}; run python tools/generated_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

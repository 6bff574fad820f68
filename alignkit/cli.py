"""The command line: a thin layer that reads arguments, calls one function and prints what it returns.

Everything heavy is imported inside the verb that needs it, so that help and listings answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alignkit
from alignkit.errors import AlignkitError, ConfigError, Terminated
from alignkit.hidden import inline, printable
from alignkit.meter import COUNTS, short
from alignkit.registry.hookspecs import KINDS

if TYPE_CHECKING:
    from alignkit.registry.host import PluginHost

INTERRUPTED = "interrupted; run the same command again to continue"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and say how it ended: 0 well, 1 a check that failed, 2 an error explained, 130 interrupted, 141
    nobody reads on.

    Args:
        argv: the arguments after the program's name; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout.errors == "strict" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal's encoding cannot show is no reason to end
    try:
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `alignkit runs | head`: what is still to be written goes nowhere, at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stop:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except AlignkitError as error:
        if os.environ.get("ALIGNKIT_TRACE", "") not in ("", "0"):
            raise
        print(f"alignkit: {printable(str(error))}", file=sys.stderr)
        return 2


def _command(arguments: list[str]) -> int:
    # The flags of `run` depend on the recipe, which argparse cannot know; so it has a parser of its own.
    if arguments[:1] == ["run"]:
        return _run(arguments[1:])
    options = _parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = options.verb
    return verb(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignkit", description="Align language models with methods that are plugins."
    )
    parser.add_argument("--version", action="version", version=f"alignkit {alignkit.__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    plugins = verbs.add_parser("plugins", help="list what is installed; reads metadata and imports nothing")
    plugins.add_argument("--components", action="store_true", help="load the plugins and list every component")
    plugins.add_argument("--json", action="store_true", help="print JSON")
    plugins.add_argument(
        "--check", metavar="NAME", help="check a distribution's components, or one as kind:name; 1 if a check fails"
    )
    plugins.set_defaults(verb=_plugins)

    new = verbs.add_parser("new-plugin", help="write a plugin that works: a distribution with its test, to make yours")
    new.add_argument("name", metavar="NAME", help="of the distribution, such as alignkit-mine")
    new.add_argument("--kind", required=True, choices=KINDS, metavar="KIND", help=f"one of {', '.join(KINDS)}")
    new.add_argument("--into", type=Path, default=Path(), metavar="DIR", help="where its folder is made")
    new.set_defaults(verb=_new_plugin)

    # For the list of commands only: `main` hands the verb to `_run` before this parser is asked.
    verbs.add_parser("run", help="run a recipe, or a Python file with a main(run, …)", add_help=False)

    runs = verbs.add_parser("runs", help="list runs, compare two, free one's disk")
    runs.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    runs.add_argument("--compare", nargs=2, metavar=("A", "B"), help="what differs between two runs")
    runs.add_argument("--free", metavar="RUN", help="delete what a run can compute again")
    runs.add_argument("--json", action="store_true", help="print JSON")
    runs.set_defaults(verb=_runs)

    _add_compare(verbs)

    _add_data(verbs)

    report = verbs.add_parser("report", help="write a run's page")
    report.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    report.set_defaults(verb=_report)

    push = verbs.add_parser("push", help="put a run's result on the hub, with its model card")
    push.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    push.add_argument("repo", metavar="REPO", help="USER/NAME on the hub; made where there is none")
    push.add_argument("--private", action="store_true", help="make it a private one")
    push.add_argument("--message", default="", help="of the commit (default: what was pushed)")
    push.set_defaults(verb=_push)

    sample = verbs.add_parser("sample", help="ask a run's result, or any model: one prompt, or a file of them")
    _add_asked(sample)
    prompts = sample.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", type=_text, help="what to say to it")
    prompts.add_argument(
        "--prompts", metavar="FILE", help="prompts, as read_groups reads them; - takes lines of standard input"
    )
    sample.add_argument("--out", type=Path, metavar="FILE", help="write JSON lines there (default: print)")
    sample.add_argument("--n", type=int, default=1, help="answers (default: 1)")
    sample.set_defaults(verb=_sample)

    chat = verbs.add_parser("chat", help="talk to a run's result, or to any model; two versions side by side")
    _add_asked(chat)
    chat.add_argument(
        "--beside", metavar="OTHER", help="another version of the run, another run or model, to answer too"
    )
    chat.add_argument("--system", type=_text, default="", help="what the system says first")
    chat.set_defaults(verb=_chat)
    return parser


def _add_asked(verb: argparse.ArgumentParser) -> None:
    """Who is asked, and how it answers."""
    verb.add_argument("model", metavar="RUN-or-model", help="a run's folder, a model's folder or a hub name")
    verb.add_argument("--version", metavar="NAME", help="of the run's versions (default: the newest)")
    verb.add_argument("--code-revision", metavar="REV", help="let code of the model's own run: its commit, or digest")
    verb.add_argument("--temperature", type=float, default=1.0, help="of sampling (default: 1)")
    verb.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    verb.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    verb.add_argument("--seed", type=int, default=0, help="same seed, same answers (default: 0)")


def _text(given: str) -> str:
    """A text of the command line.

    Raises:
        ConfigError: bytes that are no text in the terminal's encoding.
    """
    wrong = next((place for place, each in enumerate(given) if "\ud800" <= each <= "\udfff"), None)
    if wrong is not None:
        what = f"character {wrong + 1} is no text in the encoding {sys.getfilesystemencoding()}"
        raise ConfigError(what, where=printable(given), remedy="type it in that encoding, or give it in a file")
    return given


def _add_compare(verbs: Any) -> None:
    compare = verbs.add_parser("compare", help="compare methods on a suite, under one budget, in several seeds")
    compare.add_argument("suite", nargs="?", metavar="SUITE", help="a registered suite, NAME or NAME(key=value, …)")
    methods = "an optimizer, several separated by commas (one version after the other), or a recipe"
    compare.add_argument("methods", nargs="*", metavar="METHOD", help=methods)
    seeds = "how many runs of each method, or which seeds, as in 5,6,7 or 5-9 (default: 5)"
    compare.add_argument("--seeds", type=_seeds, default=5, metavar="N", help=seeds)
    budget = "what a method may spend, as in generated_tokens=200k (default: the suite's)"
    compare.add_argument("--budget", action="append", metavar="COUNT=N", help=budget)
    compare.add_argument("--policy", help="what to start from (default: the suite's)")
    compare.add_argument("--lora", type=int, default=0, help="rank of the adapter; 0 trains all weights (default: 0)")
    compare.add_argument("--temperature", type=float, default=1.0, help="of all sampling (default: 1)")
    compare.add_argument("--samples", type=int, default=4, help="for methods that sample nothing (default: 4)")
    compare.add_argument("--answers", type=int, default=1, help="held-out answers per prompt (default: 1)")
    compare.add_argument("--max-new-tokens", type=int, help="longest answer (default: the suite's)")
    compare.add_argument("--max-tokens", type=int, default=2048, help="cells of a micro-batch (default: 2048)")
    compare.add_argument("--sampler", default="default", help="of the methods' samples (default: default)")
    compare.add_argument("--repeat", action="store_true", help="a method goes on until its budget is spent")
    tune = "trials of each method's own search space, on prompts of their own (default: 0)"
    compare.add_argument("--tune", type=int, default=0, metavar="N", help=tune)
    compare.add_argument(
        "--tune-on", metavar="SUITE", help="a suite to tune on (default: a part of what SUITE teaches)"
    )
    compare.add_argument("--processes", type=int, default=1, metavar="N", help="cells at once (default: 1)")
    compare.add_argument("--run-dir", type=Path, help="where it is kept (default: runs/compare-SUITE)")
    compare.add_argument("--from", nargs="+", dest="folders", metavar="RUN", help="merge comparisons that are there")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(verb=_compare)


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="what a data file holds, and what is wrong with it; 1 if rows are refused")
    data.add_argument(
        "source", nargs="+", metavar="FILE", help="files, a folder, a pattern, a datasets folder or hub name"
    )
    data.add_argument(
        "--policy", metavar="MODEL", help="a model or run whose tokenizer and chat template read the rows"
    )
    data.add_argument(
        "--format", default="auto", metavar="NAME", help="what it is, of `alignkit formats` (default: seen)"
    )
    data.add_argument("--split", help="of a data set with several")
    data.add_argument("--subset", help="of a data set on the hub with several")
    data.add_argument("--revision", help="of a data set on the hub: branch, tag or commit")
    columns = "a column under another name, as in prompt=question; meta=a,b puts some aside"
    data.add_argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help=columns)
    data.add_argument("--dimension", help="to read, where rows are judged by several; else the rows' name")
    data.add_argument("--rank-base", choices=("auto", "0", "1"), default="auto", help="rank of the best response")
    data.add_argument("--limit", type=int, metavar="N", help="read at most so many rows")
    data.add_argument(
        "--drop-bad", type=Path, metavar="FILE", help="write the rows that are left out, with the reasons"
    )
    data.add_argument("--against", metavar="FILE", help="another data set: how many prompts are in both")
    data.add_argument("--json", action="store_true", help="print JSON")
    data.set_defaults(verb=_data)

    formats = verbs.add_parser("formats", help="list the forms of data files that are read, with an example each")
    formats.add_argument("name", nargs="?", metavar="NAME", help="one format, with all its columns")
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.set_defaults(verb=_formats)


def _seeds(text: str) -> int | list[int]:
    """How many seeds, "5"; or which: "5,6,7", "5-9", "5," for one alone."""
    if text.isdecimal():
        return int(text)
    ends = [part.split("-") for part in text.split(",") if part]
    if not ends or any(len(part) > 2 for part in ends):
        raise ValueError(text)
    return [seed for part in ends for seed in range(int(part[0]), int(part[-1]) + 1)]


# plugins


def _plugins(options: argparse.Namespace) -> int:
    from alignkit.registry.host import PluginHost, strict_from_environment

    if options.check:
        return _check(options.check, options.json)

    # Not strict until all is printed: a broken plugin must not lock anyone out of the list that names it.
    host = PluginHost(strict=False)
    if options.components:
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints while imported is not part of the list
            host.load()
    if options.json:
        print(json.dumps(_plugins_json(host, options.components), indent=1))
    else:
        _print_plugins(host, options.components)
    if strict_from_environment():
        host.raise_failures()
    return 0


def _check(name: str, as_json: bool) -> int:
    """The conformance of what is installed: 1 when a check fails."""
    import dataclasses

    from alignkit.registry.host import default_host
    from alignkit.testing.conformance import outcomes, table

    with contextlib.redirect_stdout(sys.stderr):  # what components print while they are tried is no part of the table
        found = outcomes(name)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
    else:
        _print_table(table.COLUMNS, table.rows(found))
        print(printable(table.summary(name, found, default_host())))
    return int(any(one.verdict == "fail" for one in found))


def _plugins_json(host: PluginHost, components: bool) -> list[dict[str, Any]]:
    from alignkit.identity.distributions import distribution_key

    records = host.components() if components else []
    listed = []
    for info in host.plugins():
        # What its files are, as the keys of stages have it: an edited plugin is told from the one that was installed.
        shown = {**info.to_json(), "key": distribution_key(info.distribution)}
        if components:
            own = [r for r in records if (r.distribution, r.plugin) == (info.distribution, info.entry_point)]
            shown["components"] = [r.to_json() for r in own]
        listed.append(shown)
    return listed


def _print_plugins(host: PluginHost, components: bool) -> None:
    rows = [(i.distribution, i.version, i.entry_point, i.requires or "any", i.state, i.remark) for i in host.plugins()]
    _print_table(["plugin", "version", "entry point", "needs alignkit", "state", "reason"], rows)
    if not components:
        print("Nothing was imported to list these; alignkit plugins --components loads them.")
        return
    _print_table(
        ["kind", "name", "plugin", "signature", "hyper-parameters"],
        [
            (
                *(r.kind, r.name, r.distribution),
                *(inline(r.signature) if r.tensors else f"{r.name}(…)", inline(_settings(r.hyperparameters))),
            )
            for r in host.components()
        ],
    )


def _settings(hyperparameters: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in hyperparameters.items())


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table whose cells wrap and are never cut; wide when nobody's terminal limits it, so that it can be searched."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not str: rich would read markup in what others wrote.
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _new_plugin(options: argparse.Namespace) -> int:
    from alignkit.new_plugin import new_plugin

    folder = new_plugin(options.name, options.kind, options.into)
    source = next((folder / "src").glob("*/__init__.py"))
    print(f"wrote {folder}: a plugin that works, with one {options.kind}, its tests and its page. Try it:\n")
    where = shlex.quote(str(folder))
    for command in (f"pip install -e {where}", "alignkit plugins --components", f"pytest {where}"):
        print(f"  {command}")
    print(f"\nThen make {source} yours.")
    return 0


# run


def _run(arguments: list[str]) -> int:
    flags = "[--run-dir DIR] [--seed N] [--plan] [--precision P] [--logger L] [--quiet] [--trainer.KEY VALUE]"
    usage = f"alignkit run RECIPE|FILE.py [--config FILE] {flags} …"
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: {usage}\n\nThe other flags are the arguments of the recipe's main: alignkit run RECIPE --help")
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise ConfigError(f"the recipe comes before {arguments[0]}", where="alignkit run", remedy=usage)

    to_show = any(word in ("-h", "--help") or word.startswith("--print_config") for word in arguments)
    if not to_show:
        _begin(arguments)
    from alignkit.run.recipes import load_recipe, parse_arguments, run_recipe

    recipe = load_recipe(arguments[0], to_show=to_show)
    options = parse_arguments(recipe, arguments[1:])
    run = run_recipe(recipe, **options)
    if options["plan"]:
        print(printable(run.plan_table()))
    return 0


def _begin(arguments: Sequence[str]) -> None:
    """Say what is about to be done, before the seconds that importing PyTorch and the plugins take."""
    if os.environ.get("RANK", "0") != "0" or "--quiet" in arguments:
        return
    name = Path(arguments[0]).stem if arguments[0].endswith(".py") else arguments[0]
    told = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    told.add_argument("--run-dir")
    told.add_argument("--config")
    try:
        found = told.parse_known_args(arguments[1:])[0]
    except argparse.ArgumentError:  # the recipe's own parser says what is wrong with the flag
        return
    what = "plans" if "--plan" in arguments else "runs"
    where = f"in {found.run_dir or f'runs/{name}'}" if found.run_dir or not found.config else f"as {found.config} says"
    begun = f"alignkit {alignkit.__version__} {what} {arguments[0]} {where}; loading PyTorch and plugins …"
    print(printable(begun), flush=True)


# compare


def _compare(options: argparse.Namespace) -> int:
    from alignkit.comparison import compare, merge_comparisons

    if options.folders:
        if options.suite:
            raise ConfigError(
                f"--from merges what is there, and {options.suite!r} is a suite", where="alignkit compare"
            )
        found = merge_comparisons(options.folders, options.run_dir or Path("runs/compare-merged"))
    elif not options.suite:
        usage = "alignkit compare SUITE METHOD METHOD … [--seeds N] [--budget COUNT=N] [--policy P]"
        raise ConfigError("no suite", where="alignkit compare", remedy=usage)
    else:
        own = ("verb", "suite", "methods", "folders", "json")
        given = {name: value for name, value in vars(options).items() if name not in own}
        found = compare(options.suite, options.methods, quiet=options.json, **given)
    print(
        json.dumps(found.to_json(), indent=1) if options.json else printable(f"\n{found.table()}\n\npage: {found.page}")
    )
    return int(found.nothing)


# data


def _data(options: argparse.Namespace) -> int:
    from alignkit.data.looked_at import look_at

    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit} must be positive", where="alignkit data")
    own = ("verb", "source", "json", "rank_base", "columns", "policy")
    given = {name: value for name, value in vars(options).items() if name not in own}
    rank_base: Any = options.rank_base if options.rank_base == "auto" else int(options.rank_base)
    source = options.source[0] if len(options.source) == 1 else options.source
    if options.policy:
        from alignkit.run import open_policy

        given["chat"] = open_policy(_run_or_model(options.policy)).chat
    found = look_at(source, columns=_columns(options.columns), rank_base=rank_base, **given)
    print(json.dumps(found.to_json(), indent=1) if options.json else _encodable(printable(found.text())))
    return int(bool(found.errors))


def _columns(pairs: Sequence[str]) -> dict[str, Any]:
    """`prompt=question` and `meta=a,b` as `read_groups` takes them."""
    found: dict[str, Any] = {}
    for pair in pairs:
        known, equals, name = pair.partition("=")
        if not (known and equals and name):
            raise ConfigError(f"{pair!r} names no column", where="--columns", remedy="write prompt=question")
        found[known] = [part for part in name.split(",") if part] if known == "meta" else name
    return found


def _encodable(text: str) -> str:
    """Text that the output can hold: what its encoding lacks is a question mark, the marks are brackets."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("⟦", "[[").replace("⟧", "]]").encode(encoding, "replace").decode(encoding)
    return text


def _formats(options: argparse.Namespace) -> int:
    from alignkit.data.known import format_called, known_formats

    found = known_formats()
    if options.name:
        one = format_called(options.name)
        found = [(owner, known) for owner, known in found if known is one]
    listed = [{"plugin": owner, **one.to_json()} for owner, one in found]
    if options.json:
        print(json.dumps(listed, indent=1))
    elif options.name:
        [entry] = listed
        print(printable("\n".join(f"{key}: {_shortly(value)}" for key, value in entry.items())))
    else:
        columns = ["format", "of", "columns", "what it is", "example"]
        rows = [
            (e["name"], e["plugin"], _needs(e["needs"]), e["doc"], json.dumps(e["example"], ensure_ascii=False))
            for e in listed
        ]
        _print_table(columns, rows)
        print(
            "alignkit formats NAME shows one with all its columns and their other names (|…); alignkit data FILE what"
        )
        print("becomes of a file.")
    return 0


def _needs(needs: Sequence[str]) -> str:
    """Columns by the first of their names, with a sign where a column may have others."""
    return ", ".join(need.partition("|")[0] + ("|…" if "|" in need else "") for need in needs)


def _shortly(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return json.dumps(value, ensure_ascii=False, indent=1) if isinstance(value, dict) else str(value)


# what exists


def _runs(options: argparse.Namespace) -> int:
    from alignkit.run import compare_runs, free_run, list_runs

    if options.compare:
        first, second = (_run_folder(options.folder, name) for name in options.compare)
        print(printable(compare_runs(first, second)))
    elif options.free:
        folder = _run_folder(options.folder, options.free)
        print(f"freed {free_run(folder) / 1e6:.1f} MB in {folder}")
    else:
        rows = list_runs(options.folder)
        if options.json:
            print(json.dumps(rows, indent=1, default=str))
        elif rows:
            columns = [key for key in dict.fromkeys(key for row in rows for key in row) if _is_column(key, rows)]
            _print_table(columns, [[_listed(key, row.get(key, "")) for key in columns] for row in rows])
        else:
            print(f"no runs in {options.folder}")
    return 0


def _is_column(key: str, rows: Sequence[dict[str, Any]]) -> bool:
    """A count that is 0 everywhere gets no column."""
    return key not in (*COUNTS, "flops") or any(row.get(key) for row in rows)


def _listed(column: str, value: Any) -> Any:
    """Large counts are written short; of the seconds by phase the phases that took the most are named."""
    if column == "phases" and isinstance(value, dict):
        longest = sorted(value, key=lambda name: -value[name])[:3]
        return ", ".join(f"{name} {value[name]:.0f} s" for name in longest if value[name] >= 0.5)
    large = column in (*COUNTS, "flops", "peak_memory", "bytes") and isinstance(value, int)
    return short(value) if large else value


def _run_folder(folder: Path, name: str) -> Path:
    """A run by its path, or by its name in the folder of runs."""
    path = Path(name) if Path(name).is_dir() else folder / name
    if not path.is_dir():
        raise ConfigError(f"there is no run {name!r}", where=str(folder), remedy="alignkit runs lists them")
    return path


def _push(options: argparse.Namespace) -> int:
    from alignkit.run import push

    print(printable(push(options.run, options.repo, private=options.private, message=options.message)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from alignkit.report import write_report

    print(write_report(_run_folder(Path("runs"), str(options.run))))
    return 0


def _sample(options: argparse.Namespace) -> int:
    from alignkit.run import open_policy, talk

    prompts = _prompts(options)
    _permit(options)
    policy = open_policy(_run_or_model(options.model), options.version)
    answered = talk.answers_of(policy, prompts, options.n, options.seed, **_sampler(options))
    if options.out is not None:
        talk.write_answers(answered, options.out)
        print(f"{len(answered)} prompts answered in {options.out}")
    elif options.prompt is None:
        ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
        print(talk.json_lines(answered, ascii_only), end="")
    else:
        for index, answer in enumerate(answered[0]["responses"]):
            if options.n > 1:
                print(f"--- {index + 1} of {options.n}")
            print(printable(answer))
    return 0


def _permit(options: argparse.Namespace) -> None:
    """Let code of the model's own run, where the user names its revision."""
    if options.code_revision is not None:
        from alignkit.models.remote_code import permit

        permit(options.model, options.code_revision)


def _prompts(options: argparse.Namespace) -> Any:
    """The prompts that are asked for, before a model is loaded."""
    from alignkit.data import read_groups
    from alignkit.groups import Groups

    if options.out is not None:
        from alignkit.run import talk

        talk.check_answers_file(options.out)
    if options.prompts is None:
        return Groups.from_prompts([options.prompt])
    if options.prompts != "-":
        return read_groups(options.prompts)
    return Groups.from_prompts([line.strip() for line in _said() if line.strip()])


def _sampler(options: argparse.Namespace) -> dict[str, Any]:
    names = ("temperature", "greedy", "max_new_tokens")
    return {name: getattr(options, name) for name in names}


def _chat(options: argparse.Namespace) -> int:
    from alignkit.run import open_policy, talk, version_name
    from alignkit.run_folder import is_run
    from alignkit.sampling import Sampler, Voice

    _permit(options)
    first = _run_or_model(options.model)
    asked = [(first, options.version)]
    if options.beside is not None:
        asked.append(_beside(first, options.beside))
    names = [version_name(*each) for each in asked]
    if len(set(names)) < len(names):
        names = [
            f"{name} of {Path(spec).name}" if is_run(Path(spec)) else spec
            for (spec, _), name in zip(asked, names, strict=True)
        ]
    if len(set(names)) < len(names):  # the same twice
        names[1] += " (2)"
    sampler = Sampler(**_sampler(options))
    live = sys.stdin.isatty() and sys.stdout.isatty()
    screen: talk.Screen = talk.Columns(printable) if live and len(asked) > 1 else talk.Lines(_written, printable)
    with contextlib.ExitStack() as opened:
        voices = {
            name: opened.enter_context(Voice(open_policy(*each), sampler, options.seed))
            for name, each in zip(names, asked, strict=True)
        }
        if live:
            screen.say(f"{' and '.join(names)}: {talk.HELP}")
        with contextlib.suppress(KeyboardInterrupt):
            talk.converse(voices, _said("> " if live else None), screen, options.system)
    return 0


def _beside(run: str, name: str) -> tuple[str, str | None]:
    """(a run or a model, a version of it) that is meant by a name beside a run: a version, where it looks like no
    model."""
    from alignkit.run_folder import is_run

    other = _run_or_model(name)
    model = Path(other).exists() or name == "tiny" or "/" in name or ":" in name
    return (run, name) if is_run(Path(run)) and not model else (other, None)


def _written(text: str) -> None:
    print(text, end="", flush=True)


def _said(prompt: str | None = None) -> Iterator[str]:
    """The lines of standard input.

    Args:
        prompt: shown before each, at a terminal.

    Raises:
        ConfigError: a line that is no text in its encoding.
    """
    number, encoding = 0, sys.stdin.encoding or "utf-8"
    while True:
        number += 1
        try:
            line = sys.stdin.buffer.readline().decode(encoding) if prompt is None else input(prompt) + "\n"
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            what = f"line {number} is no text in the encoding {encoding}: byte {error.start + 1}"
            raise ConfigError(
                what, where="standard input", remedy=f"write it in {encoding}, or set PYTHONUTF8=1"
            ) from error
        if not line:
            return
        yield line


def _run_or_model(name: str) -> str:
    """The folder of a run that is given by its name alone, as `alignkit report` takes it; anything else as it is."""
    from alignkit.run_folder import is_run

    folder = Path("runs") / name
    return str(folder) if is_run(folder) and not Path(name).exists() else name


if __name__ == "__main__":
    sys.exit(main())

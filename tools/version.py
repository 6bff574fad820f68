"""One version for the core and all distributions of `plugins/`: theirs, the range that they ask for, and the extras.

python tools/version.py 0.2.0     sets it everywhere
python tools/version.py           writes ranges and extras anew, after a plugin was added
python tools/version.py --check   only compares (a test calls it)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "alignkit" / "_version.py"
EXTRAS = re.compile(r"(# extras: tools/version\.py\n).*?(# /extras\n)", re.DOTALL)


def current() -> str:
    """The version of the core."""
    return re.findall(r'__version__ = "(.*)"', CORE.read_text(encoding="utf-8"))[0]


def asked_for(version: str) -> str:
    """The range in which distributions of a version ask for one another: those with the same minor version.

    Args:
        version: such as "0.1.0".
    """
    from alignkit.new_plugin import core_range

    return core_range(version)


def extras(version: str) -> str:
    """The optional dependencies of the core: each plugin by its name, and all of them.

    Args:
        version: of all.
    """
    names = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    wanted = {name.removeprefix("alignkit-"): f'"{name}{asked_for(version)}"' for name in names}
    one_each = "".join(f"{extra} = [{requirement}]\n" for extra, requirement in wanted.items())
    return one_each + "all = [\n" + "".join(f"    {each},\n" for each in wanted.values()) + "]\n"


def texts(version: str) -> Iterator[tuple[Path, str]]:
    """(file, its text under a version) of every file that says one.

    Args:
        version: of all.
    """
    yield CORE, re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', CORE.read_text(encoding="utf-8"))
    for path in (ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))):
        text = re.sub(
            r'^version = ".*"$', f'version = "{version}"', path.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        text = re.sub(r'"(alignkit[\w-]*)[<>=][^"]*"', rf'"\g<1>{asked_for(version)}"', text)
        yield path, EXTRAS.sub(lambda found: found[1] + extras(version) + found[2], text)


def main() -> int:
    """Write the files, or say with `--check` which do not agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", default=current(), help="MAJOR.MINOR.PATCH (default: the core's)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file does not agree")
    options = parser.parse_args()
    if not re.fullmatch(r"\d+\.\d+\.\d+", options.version):
        parser.error(f"{options.version!r} is no MAJOR.MINOR.PATCH")
    late = []
    for path, text in texts(options.version):
        if text != path.read_text(encoding="utf-8"):
            late.append(path.relative_to(ROOT).as_posix())
            if not options.check:
                path.write_text(text, encoding="utf-8")
    if options.check and late:
        print(f"not of version {options.version}: {', '.join(late)}; run python tools/version.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

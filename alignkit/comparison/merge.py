"""Comparisons of several machines put together, where their cells are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.comparison.declared import START, check_folder
from alignkit.comparison.page import write_page
from alignkit.comparison.results import Comparison, Done, conclude, read_cell
from alignkit.comparison.writing import JSON, write
from alignkit.errors import ConfigError, DataError
from alignkit.files import read_json
from alignkit.run_folder import mapping

MACHINE = ("python",)
"""Versions that may differ."""


def merge(folders: Sequence[str | Path], run_dir: str | Path) -> Comparison:
    """One comparison of the cells of several.

    Args:
        folders: of comparisons, each as `compare` left it.
        run_dir: where the merged tables and page are written; the cells stay where they are.

    Raises:
        ConfigError: cells that are not comparable, with what differs.
        DataError: a folder holds no comparison.
    """
    parts = [(Path(folder), _cells(Path(folder))) for folder in folders]
    if not parts:
        raise ConfigError("no folder", where="--from", remedy="name a comparison or more")
    kept: dict[tuple[str, int], Done] = {}
    first = next((cell for _, cells in parts for cell in cells if not cell.failed), parts[0][1][0])
    for folder, cells in parts:
        for cell in cells:
            if differences := _differences(first.record, cell.record, failed=bool(cell.failed)):
                raise ConfigError(
                    f"{cell.method}, seed {cell.seed}, is not comparable: {'; '.join(differences)}",
                    where=str(folder),
                    effect=f"The cells of {first.folder} were made under other conditions.",
                    remedy="compare it again under the same ones",
                )
            _keep(kept, cell)
    trials = _trials(parts)
    root = Path(run_dir)
    check_folder(root)
    root.mkdir(parents=True, exist_ok=True)
    found = conclude(root, list(kept.values()), trials)
    write(found)
    write_page(found)
    return found


def _cells(folder: Path) -> list[Done]:
    """The cells that a comparison spoke of last."""
    found = [read_cell(folder / cell["folder"]) for cell in _written(folder).get("cells") or []]
    if not found:
        raise DataError("it holds no cell", where=str(folder), remedy="give the folder of a comparison")
    return found


def _written(folder: Path) -> Mapping[str, Any]:
    """What a comparison wrote.

    Raises:
        DataError: it wrote nothing that can be read.
    """
    try:
        return mapping(read_json(folder / JSON))
    except (OSError, ValueError) as error:
        remedy = "give the folder of a comparison that came to its end"
        raise DataError(f"no comparison: {error}", where=str(folder), remedy=remedy) from error


def _trials(parts: Sequence[tuple[Path, Sequence[Done]]]) -> dict[str, list[dict[str, Any]]]:
    """The trials of tuning of all of them, by method.

    Raises:
        ConfigError: methods of one were tuned in more trials than those of another.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    most: tuple[Path, int] | None = None
    for folder, cells in parts:
        trials = mapping(_written(folder).get("tuning"))
        optimizers = {c.method for c in cells if c.method != START and not c.record["method"]["recipe"]}
        count = max((len(trials.get(method, ())) for method in optimizers), default=1)
        if most is not None and optimizers and count != most[1]:
            raise ConfigError(
                f"its methods were tuned in {count} trials, and those of {most[0]} in {most[1]}",
                where=str(folder),
                remedy="give all of them the same --tune",
            )
        most = (folder, count) if optimizers else most
        found |= {method: list(rows) for method, rows in trials.items()}
    return found


def _keep(kept: dict[tuple[str, int], Done], cell: Done) -> None:
    """Keep a cell, or refuse a second one that was made otherwise.

    Raises:
        ConfigError: the same method and seed with other settings.
    """
    key = (cell.method, cell.seed)
    before = kept.get(key)
    if before is None or before.failed:
        kept[key] = cell
    elif not cell.failed and before.record["method"] != cell.record["method"]:
        raise ConfigError(
            f"{cell.method}, seed {cell.seed}, is there twice with different settings",
            where=f"{before.folder} and {cell.folder}",
            remedy="leave one of the two out",
        )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], failed: bool) -> list[str]:
    """What makes two cells incomparable, a phrase each."""
    found = [
        f"{name} {_shown(b['conditions'].get(name))} and not {_shown(a['conditions'].get(name))}"
        for name in a["conditions"]
        if a["conditions"][name] != b["conditions"].get(name) and name not in ("policy", "suite")
    ]
    for name in () if failed else ("suite", "policy"):
        if a[name] != b[name]:
            other, one = (f"{side['conditions'][name]} ({str(side[name])[:8]})" for side in (b, a))
            found.append(f"{name} {other} and not {one}")
    used = [mapping(side.get("versions")) for side in (a, b)]
    for name in sorted(set(used[0]) & set(used[1]) - set(MACHINE)):  # a plugin of one machine's methods alone is none
        one, other = (versions[name] for versions in used)
        if one != other:
            found.append(f"{name} {other} and not {one}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={amount:g}" for name, amount in value.items()) or "none"
    return str(value)

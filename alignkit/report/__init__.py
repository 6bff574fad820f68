"""Reports: one self-contained HTML page per run, and the table of versions for the terminal.

Nothing is loaded until it is used: jinja2 and numpy come with the first report.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["version_table", "write_report"]


def write_report(run_folder: str | Path) -> Path:
    """Write `<run_folder>/report.html` from what the run folder holds now, finished or not.

    Returns:
        The path of the page: one file, no scripts, nothing loaded from anywhere; everything a model wrote is text.

    Raises:
        DataError: the folder does not exist, or its `run.json` is unreadable or of another format.
    """
    from alignkit.report.render import write_page

    return write_page(Path(run_folder))


def version_table(run_folder: str | Path) -> str:
    """The table V0 … Vn as plain text, at most 100 characters wide.

    Raises:
        DataError: as `write_report`.
    """
    from alignkit.report.table import plain_table

    return plain_table(Path(run_folder))

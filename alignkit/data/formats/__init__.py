"""The formats of data files that the core knows, and those that plugins bring (`register_formats`)."""

from __future__ import annotations

from alignkit.data.formats.listed import LISTED
from alignkit.data.formats.pairs import PAIRS
from alignkit.data.formats.single import SINGLE
from alignkit.data.formats.trees import TREES
from alignkit.data.row_format import RowFormat

CORE: tuple[RowFormat, ...] = (*PAIRS, *LISTED, *TREES, *SINGLE)
"""In the order in which they are listed, and preferred where two understand a row alike."""

__all__ = ["CORE", "RowFormat"]

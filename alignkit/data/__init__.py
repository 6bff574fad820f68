"""Reading and checking preference data, chat formats, tokenising. Imports neither torch nor transformers."""

from alignkit.data.chat import ChatFormat, Encoded
from alignkit.data.checks import check_given, check_groups
from alignkit.data.encode import EncodedGroup, encode_groups
from alignkit.data.messages import BadRow
from alignkit.data.problems import Problem, refuse_or_drop
from alignkit.data.readers import read_groups
from alignkit.data.row_format import Reading, RowFormat
from alignkit.data.sources import Located, bad_text, read_rows, strict_json

__all__ = [
    "BadRow",
    "ChatFormat",
    "Encoded",
    "EncodedGroup",
    "Located",
    "Problem",
    "Reading",
    "RowFormat",
    "bad_text",
    "check_given",
    "check_groups",
    "encode_groups",
    "read_groups",
    "read_rows",
    "refuse_or_drop",
    "strict_json",
]

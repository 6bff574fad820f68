"""Reading and checking preference data, chat formats, tokenising. Imports neither torch nor transformers."""

from alignkit.data.chat import ChatFormat, Encoded
from alignkit.data.checks import check_groups
from alignkit.data.encode import EncodedGroup, encode_groups
from alignkit.data.problems import Problem, refuse_or_drop
from alignkit.data.readers import read_groups

__all__ = [
    "ChatFormat",
    "Encoded",
    "EncodedGroup",
    "Problem",
    "check_groups",
    "encode_groups",
    "read_groups",
    "refuse_or_drop",
]

from alignkit.data.chat import ChatFormat
from alignkit.data.encode import EncodedGroup, encode_groups
def check_groups(*a, **k): return []
def refuse_or_drop(groups, problems, drop, where): return groups
def read_groups(*a, **k): raise NotImplementedError

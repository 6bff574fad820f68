"""What holds for every test, of the core and of the plugins."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

# Before torch is imported. The models of tests are so small that a second thread only waits for the first; on a machine
# that has other work it waits long. Processes that tests start inherit it. Nothing is ever fetched.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ALIGNKIT_PRECISION"] = "32-true"  # a recipe computes the same on any machine, also in a process of its own
for variable in ("ALIGNKIT_BLOCK_PLUGINS", "ALIGNKIT_LOAD_PLUGINS", "ALIGNKIT_STRICT_PLUGINS", "ALIGNKIT_TRACE"):
    os.environ.pop(variable, None)  # what the developer's shell sets is not what is tested

LONGEST = (
    "test_docs_run.py",
    "test_mutants.py",
    "test_processes.py",
    "test_outside_plugin.py",
    "test_conformance.py",
    "test_other_device.py",
    "test_compare.py",
    "test_new_plugin.py",
    "test_push.py",
    "test_plugins_isolated.py",
    "test_distributions.py",
)
"""Files that take half a minute or more, the longest first."""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Those files first that take longest, so that at the end no worker is left alone with one of them (`make test`
    hands out whole files, in this order); then those of many tests."""
    tests = Counter(item.path for item in items)
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (ranks.get(item.path.name, len(ranks)), -tests[item.path], item.path))

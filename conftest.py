"""What holds for every test, of the core and of the plugins."""

from __future__ import annotations

import os

# Before torch is imported. The models of tests are so small that a second thread only waits for the first; on a machine
# that has other work it waits long. Processes that tests start inherit it. Nothing is ever fetched.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ALIGNKIT_PRECISION"] = "32-true"  # a recipe computes the same on any machine, also in a process of its own
for variable in ("ALIGNKIT_BLOCK_PLUGINS", "ALIGNKIT_LOAD_PLUGINS", "ALIGNKIT_STRICT_PLUGINS", "ALIGNKIT_TRACE"):
    os.environ.pop(variable, None)  # what the developer's shell sets is not what is tested

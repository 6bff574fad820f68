"""Checks of a distribution as a whole: what importing it costs, and what its metadata says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from alignkit.registry.metadata import CORE
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject

HEAVY = (
    "deepspeed", "matplotlib", "openai", "pytest", "ray", "scipy", "sklearn", "tensorflow", "trl", "vllm", "wandb",
)  # fmt: skip
"""What no listing should have to load: only what uses it."""

SECONDS = 3.0
"""CPU seconds that an import may take beyond torch and alignkit."""

PROBE = """
import json, logging, os, random, sys, time
import numpy, torch
import alignkit.plugin as face
for name in face.__all__:
    getattr(face, name)
import alignkit.models, alignkit.data
out = {}
for module in sys.argv[1:]:
    before = set(sys.modules)
    state = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), random.getstate(),
             torch.get_rng_state().sum().item(), len(logging.root.handlers), logging.root.level, dict(os.environ),
             os.getcwd())
    names = ('default dtype', 'number of threads', 'gradient mode', 'random state', 'random state of torch',
             'handlers of the root logger', 'level of the root logger', 'environment', 'working folder')
    started = time.process_time()
    __import__(module)
    seconds = time.process_time() - started
    after = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), random.getstate(),
             torch.get_rng_state().sum().item(), len(logging.root.handlers), logging.root.level, dict(os.environ),
             os.getcwd())
    new = {name.partition('.')[0] for name in set(sys.modules) - before}
    out[module] = {'seconds': seconds, 'new': sorted(new), 'cuda': torch.cuda.is_initialized(),
                   'changed': [n for n, a, b in zip(names, state, after) if a != b]}
print('\\n' + json.dumps(out))
"""


def probe(subject: Subject) -> dict[str, Any]:
    """What a process of its own saw on importing the distribution's module.

    Raises:
        DoesNotApplyError: it is the core, or was registered by hand and has no module to import.
    """
    info = subject.info
    if info is None or info.distribution == CORE:
        skip("it is the core")
    try:
        distribution(info.distribution)
    except PackageNotFoundError:
        skip("it is not installed, so that it cannot be imported by itself")
    module = info.module.partition(":")[0]
    found: dict[str, Any] = subject.once("probe", lambda: imported([module]))
    return dict(found[module])


def imported(modules: list[str]) -> dict[str, Any]:
    """By module: CPU seconds, new top-level modules, and what of the process it changed."""
    command = [sys.executable, "-c", PROBE, *modules]
    found = filter(None, (os.environ.get("PYTHONPATH"), *sys.path))  # what is found here is found there
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=there)
    if done.returncode:
        refuse(f"it cannot be imported: {done.stderr.strip().splitlines()[-1:]}")
    *said, last = done.stdout.strip().splitlines()
    return {"said": said, **json.loads(last)}


@check("plugin")
def import_is_cheap(subject: Subject) -> str:
    """Importing it loads nothing heavy that only a run of it needs, and takes less than 3 s of CPU beyond torch and
    the core: every listing and every run pays it. Here it was once 7 to 30 s of silence."""
    seen = probe(subject)
    heavy = [name for name in HEAVY if name in seen["new"]]
    if heavy:
        refuse(f"it imports {', '.join(heavy)}: import it in the function that uses it", "import")
    if seen["seconds"] > SECONDS:
        refuse(f"it takes {seen['seconds']:.1f} s of CPU", "import")
    return f"{seen['seconds']:.2f} s"


@check("plugin")
def import_changes_nothing(subject: Subject) -> str:
    """Importing it leaves the process as it was: default dtype, threads, random states, logging, environment, CUDA.
    A plugin that is merely installed must not change another's results; lightning's callbacks_factory,
    LF#10757, unsloth#4006."""
    seen = probe(subject)
    if seen["changed"]:
        refuse(f"it changes the {', '.join(seen['changed'])}", "import")
    if seen["cuda"]:
        refuse("it initialises CUDA", "import")
    return "nothing"


@check("plugin")
def says_what_it_needs(subject: Subject) -> str:
    """Its metadata names the versions of alignkit that it was written for, with an upper end, so that a new core
    disables it in words and does not break it: LF#5936, #6373, #7691, unsloth#884, every TRL release breaks users."""
    info = subject.info
    if info is None or info.distribution == CORE:
        skip("it is the core")
    if not info.version:
        skip("it was registered by hand and has no metadata")
    if not info.requires:
        refuse("it asks for no version of alignkit", "dependencies", 'write dependencies = ["alignkit>=0.1,<0.2"]')
    if "<" not in info.requires and "==" not in info.requires and "~=" not in info.requires:
        refuse(f"it asks for alignkit{info.requires}, without an upper end", "dependencies")
    return f"alignkit{info.requires}"

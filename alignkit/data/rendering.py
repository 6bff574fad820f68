"""Rendering chat templates, which come from strangers, within limits of time, memory and depth."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.data import template_process
from alignkit.errors import DataError

_KEPT = ("PATH", "HOME", "TZ", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Of the environment: no key of the user's is there for a template to find."""


class Renderer:
    """The process in which templates are rendered; it begins when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self) -> None:
        """Begin it, if it has not begun: it needs a second, in which other things can be done."""
        with self._lock:
            self._running()

    def render(
        self, template: str, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, **variables: Any
    ) -> str:
        """What transformers renders.

        Args:
            template: Jinja source.
            messages: as `apply_chat_template` takes them.
            generation_prompt: with what the template writes before a response.
            variables: further variables of the template, such as its special tokens.

        Raises:
            DataError: beyond a limit.
            ValueError: whatever the template raises.
        """
        asked = {
            **variables,
            "conversations": [list(messages)],
            "chat_template": template,
            "add_generation_prompt": generation_prompt,
        }
        with self._lock:
            answer = self._asked(json.dumps(asked).encode() + b"\n")
        if "limit" in answer:
            raise DataError(
                f"the chat template {answer['limit']}",
                effect="Templates of model folders are strangers' programs, and have limits.",
                remedy="give another template: run.policy(…, chat_template=…)",
            )
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["text"]

    def _asked(self, line: bytes) -> dict[str, str]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            said = process.stdout.readline()
        except BrokenPipeError:
            said = b""
        if said.endswith(b"\n"):
            found: dict[str, str] = json.loads(said)
            return found
        code = self._stop()
        if code == -signal.SIGPROF:
            return {"limit": f"takes more than {template_process.SECONDS:g} s of processor time"}
        return {"limit": f"ends the process that renders it (status {code})"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid():  # a forked process has one of its own
            environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
            environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
            self._process, self._owner = (
                subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", str(Path(template_process.__file__))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is not for it
                ),
                os.getpid(),
            )
        return self._process

    def _stop(self) -> int | None:
        """End the process; its exit status."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what was not sent needs no sending
            process.stdin.close()
        return process.wait()


RENDERER = Renderer()
"""The one of this process."""

atexit.register(RENDERER._stop)

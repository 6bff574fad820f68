"""The program that renders chat templates, in a process of its own: it is run as a file, and imports nothing of
alignkit. A line of JSON in, a line of JSON out.

A template is a stranger's program. The sandbox of transformers keeps it from everything around it, and this process
keeps it within limits: of processor time (the kernel ends the process in the middle of whatever it does), of memory,
and, as Python has it, of depth.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

SECONDS = 2.0
"""Of processor time for one conversation: templates take milliseconds, however busy the machine is."""

MEMORY = 512 * 2**20
"""Bytes that rendering may take."""

LONGEST = 4 * 2**20
"""Characters of what is written beyond the conversation's own."""


def main() -> None:
    """Render what is asked for until standard input ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    limit_memory()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signal ends the process: nothing here handles it
        answer = rendered(render_jinja_template, asked)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def limit_memory() -> None:
    """Take no more than `MEMORY` beyond what is taken now; where the system does not say how much that is, no limit."""
    taken = Path("/proc/self/statm")
    if taken.is_file():
        limit = int(taken.read_text().split()[0]) * resource.getpagesize() + MEMORY
        most = resource.getrlimit(resource.RLIMIT_AS)[1]  # which nobody may raise
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def rendered(render: Any, asked: dict[str, Any]) -> dict[str, str]:
    """{"text": …}, or {"error": …, "limit": …} where the template fails or goes beyond a limit."""
    given = sum(len(str(message)) for message in asked["conversations"][0])
    try:
        (text,), _ = render(**asked)
    except MemoryError:
        return {"limit": f"takes more than {MEMORY // 2**20} MB of memory"}
    except RecursionError:
        return {"limit": "calls itself without end"}
    except Exception as error:  # whatever a stranger's program raises
        return {"error": f"{error}"[:500] or type(error).__name__}
    if len(text) > LONGEST + 4 * given:
        return {"limit": f"writes {len(text)} characters for a conversation of {given}"}
    return {"text": text}


if __name__ == "__main__":
    main()

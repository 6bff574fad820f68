"""What a run says of its stages, and of how it was started."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def command() -> str:
    """How this run was started, without the path of the interpreter or of any folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def summary(verb: str, record: Mapping[str, Any]) -> str:
    """One line about a finished stage."""
    result, seconds = record["result"], f"{record['seconds']:.0f} s"
    if verb == "evaluate" and result:
        parts = [f"{name} {_spelled(value)}" for name, value in result["metrics"].items()]
        return f"{result['label']}: {', '.join(parts)} ({seconds})"
    if verb == "train_reward":
        overall = result.get("accuracy", {}).get("overall")
        text = f"accuracy {overall['mean']:.3f} on {overall['n']} held-out pairs" if overall else "no held-out pairs"
        if "calibration_error" in result:
            text += f", calibration error {result['calibration_error']:.3f}"
        return f"{result['pairs']} pairs, {text} ({seconds})"
    if "rows" in result:
        return f"{result['rows']} rows ({seconds})"
    return f"done ({seconds})"


def _spelled(value: Any) -> str:
    """A mean with its interval, or a bare number."""
    if isinstance(value, Mapping):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:.3f}"

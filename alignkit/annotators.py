"""Annotators: who says which response is better, on Llama 2's four levels, along one or more dimensions."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar

from alignkit.calls import calling, whose
from alignkit.errors import ConfigError, PluginError
from alignkit.files import is_folder_name
from alignkit.groups import Groups
from alignkit.identity import function_key
from alignkit.meter import Meter


class Annotator:
    """Ranks the responses of each group. Subclasses override `annotate` and `key`.

    The answer holds one `Groups` per dimension, since one pair of responses may be ranked otherwise for helpfulness
    than for safety. A group that cannot be judged is left out of a dimension; nothing is made up for it.
    """

    dimensions: ClassVar[tuple[str, ...]] = ("preference",)

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """`groups` with `ranks` (1 is best), `rating` and `dimension` filled in, by dimension.

        Args:
            groups: K >= 2 responses each.
            seed: of whatever is random in the judgement; equal seeds give equal answers.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Give back what is held between calls, such as a model; called when a verb ends."""

    def key(self) -> Any:
        """Plain JSON that changes whenever a judgement could."""
        raise NotImplementedError(f"{type(self).__name__} must say what identifies it")


class FunctionAnnotator(Annotator):
    """A plain function as an annotator, of the one dimension "preference".

    Args:
        function: `(groups)` or `(groups, seed)`, as `Annotator.annotate`; it may return the `Groups` themselves.
        version: part of the stage's key when the source of the function cannot be read.

    Raises:
        PluginError: it asks for something else.
    """

    def __init__(self, function: Callable[..., Any], version: str | None = None) -> None:
        self.function, self.version = function, version
        asked = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        self.seeded = "seed" in inspect.signature(function).parameters
        unknown = [p.name for p in asked[1:] if p.name != "seed"]
        if unknown or not asked or asked[0].name == "seed":
            what = f"asks for {unknown or 'no groups'}"
            raise PluginError(what, where=whose(self), remedy="write (groups, seed), and return groups with ranks")

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        found = self.function(groups, **({"seed": seed} if self.seeded else {}))
        return {self.dimensions[0]: found} if isinstance(found, Groups) else found

    def key(self) -> Any:
        return {"function": function_key(self.function, self.version)}


def dimensions_of(annotator: Any) -> tuple[str, ...]:
    """Along which dimensions an annotator ranks, whatever its class is derived from.

    Raises:
        PluginError: it does not say, or one of them names no folder: it could lead out of the run.
    """
    with calling(annotator, "dimensions"):
        found = getattr(annotator, "dimensions", None)
    named = isinstance(found, Collection) and not isinstance(found, (str, bytes))
    if not named or not found or not all(isinstance(name, str) and name for name in found):
        what = "has no `dimensions`" if found is None else f"has the dimensions {found!r}"
        raise PluginError(what, where=whose(annotator), remedy='name them, such as dimensions = ("preference",)')
    for name in found:
        if not is_folder_name(name):
            what = f"has the dimension {name!r}, which its judgements cannot be kept under"
            raise PluginError(what, where=whose(annotator), remedy="name it in one or two words, without a slash")
    return tuple(found)


def check_dimensions(annotators: Iterable[Collection[str]], where: str) -> None:
    """Refuse an annotator that ranks along several dimensions where one ranking is learned from.

    Args:
        annotators: the dimensions of each.
        where: for the error.

    Raises:
        ConfigError: naming them.
    """
    for dimensions in annotators:
        if len(dimensions) != 1:
            what = f"the annotator ranks along {sorted(dimensions)}"
            raise ConfigError(what, where=where, remedy="use an annotator with one dimension")


def annotated(groups: Groups, annotator: Annotator, seed: int, meter: Meter | None = None) -> Mapping[str, Groups]:
    """What the annotator says of the groups, by dimension; counted.

    Raises:
        PluginError: it raised, or its answer is no judgement of these groups.
    """
    meter = meter or Meter()
    meter.add("judge_calls", len(groups))
    with meter.phase("score"), calling(annotator, "annotate"):
        found = annotator.annotate(groups, seed=seed)
    where, declared = f"{whose(annotator)}.annotate", dimensions_of(annotator)
    if not isinstance(found, Mapping) or not all(isinstance(part, Groups) for part in found.values()):
        kinds = sorted({type(part).__name__ for part in found.values()}) if isinstance(found, Mapping) else ""
        what = f"returned a {type(found).__name__}" + (f" of {', '.join(kinds)}" if kinds else "")
        raise PluginError(what, where=where, remedy="return Groups by dimension")
    if set(found) != set(declared):
        what = f"gave {sorted(found)}, it declares {sorted(declared)}"
        raise PluginError(what, where=where, remedy="set its `dimensions`")
    asked = Counter((prompt, *sorted(given)) for prompt, given in groups.each("prompt_id", "responses"))
    for part in found.values():
        _check_ranks(part, asked, where)
    return found


def _check_ranks(part: Groups, asked: Mapping[tuple[str, ...], int], where: str) -> None:
    """Refuse rows without a rank from 1 for each response, answers that nobody asked about, and those given twice."""
    left = Counter(asked)
    for prompt, given, ranks in part.each("prompt_id", "responses", "ranks"):
        row = (prompt, *sorted(given))
        left[row] -= 1
        if row in asked and left[row] < 0:
            what = f"judged prompt {prompt} {asked[row] - left[row]} times, and was asked {asked[row]}"
            effect = "It would weigh more than the others."
            raise PluginError(what, where=where, effect=effect, remedy="return each group once")
        if row not in asked:
            raise PluginError(
                f"judged prompt {prompt} with responses that it was not given",
                where=where,
                remedy="return the groups that were given, with ranks filled in",
            )
        if given and (not ranks or len(ranks) != len(given) or None in ranks or min(ranks) != 1):
            what = f"prompt {prompt} has the ranks {ranks}"
            raise PluginError(what, where=where, remedy="rank from 1, the best, or leave the group out")

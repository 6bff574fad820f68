"""What an annotator is worth: agreement with people, position, length, mass, abstention, each with its interval.

A judge's answer does not depend on the order in which two responses are shown, because it is asked in both; what is
measured here is how it came about. Any other annotator is shown each pair in both orders here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignkit.plugin import Annotator, DataError, Groups, bootstrap_mean, take_responses
from alignkit_rlaif.comparison import Comparison
from alignkit_rlaif.judge import Judge
from alignkit_rlaif.verdicts import both_orders, consistent


@dataclass(frozen=True)
class Judgement:
    """What an annotator says of two responses.

    Args:
        prob: P(first is better), over both orders; None where it says nothing.
        first_when_ab, first_when_ba: P(the one shown first), in each order.
        mass: probability on the verdicts, where there is such a thing.
        reason: why it says nothing.
        failed: whether that is a call that failed.
    """

    prob: float | None
    first_when_ab: float | None = None
    first_when_ba: float | None = None
    mass: float | None = None
    reason: str | None = None
    failed: bool = False


def judgements(annotator: Annotator, groups: Groups, seed: int = 0) -> list[Judgement]:
    """What an annotator says of each pair, in both orders.

    Args:
        annotator: of one dimension.
        groups: two responses each.
        seed: of whatever is random in it.

    Raises:
        DataError: a group without exactly two responses, an annotator of several dimensions, or too many failed calls.
    """
    if any(len(row["responses"]) != 2 for row in groups) or len(annotator.dimensions) != 1:
        raise DataError("needs two responses a group and an annotator of one dimension", where="judge_report")
    if isinstance(annotator, Judge):
        compared = annotator.compare(groups, seed)
        annotator.check(compared)  # what an endpoint that was down said is no measurement, and must not be kept as one
        return [_of_judge(comparison) for comparison in compared]
    turned = take_responses(groups, [[1, 0]] * len(groups))
    (ab,), (ba,) = (annotator.annotate(part, seed).values() for part in (groups, turned))
    first, second = ({_identity(row): _named_first(row) for row in part} for part in (ab, ba))
    pairs = [(first.get(_identity(a)), second.get(_identity(b))) for a, b in zip(groups, turned, strict=True)]
    return [
        Judgement(None, reason="left out") if a is None or b is None else Judgement(both_orders(a, b), a, b)
        for a, b in pairs
    ]


def _of_judge(comparison: Comparison) -> Judgement:
    counted = [vote for vote in comparison.votes if vote.prob is not None]
    ab, ba = (
        sum(getattr(vote, name) for vote in counted) / len(counted) if counted else None
        for name in ("first_when_ab", "first_when_ba")
    )
    return Judgement(comparison.prob, ab, ba, comparison.mass, comparison.reason, comparison.failed)


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["prompt_id"], *row["responses"])


def _named_first(row: Mapping[str, Any]) -> float:
    a, b = row["ranks"]
    return 0.5 if a == b else float(a < b)


@dataclass(frozen=True)
class Judged:
    """A transform: each pair with what an annotator says of it in `meta["judgement"]`; nothing is left out.

    Args:
        annotator: of one dimension.
    """

    annotator: Annotator

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        found = judgements(self.annotator, groups, ctx.seed)
        if isinstance(self.annotator, Judge):
            self.annotator.release()
        rows = [
            {**row, "meta": {**groups.meta(i), "judgement": asdict(said)}}
            for i, (row, said) in enumerate(zip(groups, found, strict=True))
        ]
        return Groups.from_rows(rows)


def judgements_of(groups: Groups) -> list[Judgement]:
    """What `Judged` left in the rows."""
    return [Judgement(**groups.meta(i)["judgement"]) for i in range(len(groups))]


# -- the measures ------------------------------------------------------------------------------------------------------


def measure(groups: Groups, said: Sequence[Judgement]) -> dict[str, Any]:
    """Every measure as {mean, low, high, n} (95 per cent, bootstrap over prompts); None where nothing is to measure.

    Args:
        groups: two responses each, ranked by people; equal ranks are ties, which count for everything but agreement.
        said: of each.

    Returns:
        "agreement" with people (a tie of the annotator counts one half), also by "rating" and "subset";
        "position_consistency" (both orders name the same response), "first_named" (share of passes that name the
        response shown first); "longer_named", "longer_by_people" and their difference "length_bias" (pairs of unequal
        length, in characters); "mass"; "abstained" and "failed" (shares), "reasons".
    """
    rows = [_Pair(row, groups.meta(i), judgement) for i, (row, judgement) in enumerate(zip(groups, said, strict=True))]
    agreeing = [row for row in rows if row.choice is not None and row.people is not None]
    uneven = [row for row in agreeing if row.longer is not None]
    return {
        "pairs": len(rows),
        "agreement": _mean(agreeing, _Pair.agrees),
        "agreement_by_rating": _by(agreeing, lambda row: row.row["rating"]),
        "agreement_by_subset": _by(agreeing, lambda row: row.meta.get("subset")),
        "position_consistency": _mean((r for r in rows if r.said.prob is not None), _Pair.is_consistent),
        "first_named": _mean((r for r in rows if r.said.prob is not None), _Pair.first_named),
        "longer_named": _mean(uneven, lambda r: _same(r.choice, r.longer)),
        "longer_by_people": _mean(uneven, lambda r: _same(r.people, r.longer)),
        "length_bias": _mean(uneven, lambda r: _same(r.choice, r.longer) - _same(r.people, r.longer)),
        "mass": _mean((r for r in rows if r.said.mass is not None), lambda r: r.said.mass or 0.0),
        "abstained": _mean(rows, lambda r: float(r.said.prob is None and not r.said.failed)),
        "failed": _mean(rows, lambda r: float(r.said.failed)),
        "reasons": dict(Counter(r.said.reason for r in rows if r.said.reason)),
    }


@dataclass(frozen=True)
class _Pair:
    """A pair, what people said of it, and what the annotator did; choices are 0 or 1, and 1/2 where it is a tie."""

    row: Mapping[str, Any]
    meta: Mapping[str, Any]
    said: Judgement

    @property
    def choice(self) -> float | None:
        prob = self.said.prob
        return None if prob is None else 0.5 if prob == 0.5 else float(prob < 0.5)

    @property
    def people(self) -> float | None:
        a, b = self.row["ranks"] or (1, 1)
        return None if a == b else float(b < a)

    @property
    def longer(self) -> float | None:
        a, b = map(len, self.row["responses"])
        return None if a == b else float(b > a)

    def agrees(self) -> float:
        return _same(self.choice, self.people)

    def is_consistent(self) -> float:
        return float(consistent(self.said.first_when_ab or 0.0, self.said.first_when_ba or 0.0))

    def first_named(self) -> float:
        passes = (self.said.first_when_ab or 0.0, self.said.first_when_ba or 0.0)
        return sum(0.5 if p == 0.5 else float(p > 0.5) for p in passes) / 2


def _same(a: float | None, b: float | None) -> float:
    """1 where two choices are the same, 1/2 where one of them is a tie."""
    return 1 - abs((a or 0.0) - (b or 0.0))


def _mean(pairs: Iterable[_Pair], value: Callable[[_Pair], float]) -> dict[str, float | int] | None:
    by_prompt: dict[str, list[float]] = {}
    count = 0
    for pair in pairs:
        by_prompt.setdefault(pair.row["prompt_id"], []).append(value(pair))
        count += 1
    return {**bootstrap_mean(by_prompt).to_dict(), "n": count} if count else None


def _by(pairs: Sequence[_Pair], name: Callable[[_Pair], str | None]) -> dict[str, Any]:
    names = sorted({found for pair in pairs if (found := name(pair))})
    return {each: _mean([pair for pair in pairs if name(pair) == each], _Pair.agrees) for each in names}


# -- in words ----------------------------------------------------------------------------------------------------------

MEASURES = {
    "agreement": "agreement with people",
    "position_consistency": "both orders name the same response",
    "first_named": "passes that name the response shown first",
    "longer_named": "names the longer response",
    "longer_by_people": "people name the longer response",
    "length_bias": "difference of these two",
    "mass": "probability on the verdicts",
    "abstained": "abstains",
    "failed": "calls failed",
}


def as_markdown(report: Mapping[str, Any]) -> str:
    """A report as a table, and one sentence on what it shows."""
    lines = ["| measure | mean | 95 % interval | pairs |", "|---|---:|---:|---:|"]
    lines += [_line(text, report.get(name)) for name, text in MEASURES.items()]
    for group in ("agreement_by_rating", "agreement_by_subset"):
        lines += [_line(f"agreement: {name}", found) for name, found in report.get(group, {}).items()]
    attacks = report.get("injection", {})
    for name, found in attacks.items():
        lines.append(_line(f"loser wins more often: {name}", found["more"]))
    if attacks:
        lines += ["", "| the worse response wins (a tie is one half) | plain | attacked | wins | pairs |"]
        lines += ["|---|---:|---:|---:|---:|", *(_attack_line(name, found) for name, found in attacks.items())]
    return "\n".join([*lines, "", verdict_on(report), *master_keys_of(attacks), ""])


def _attack_line(name: str, found: Mapping[str, Any]) -> str:
    rates = ("-" if found[rate] is None else f"{found[rate]:.3f}" for rate in ("plain", "attacked"))
    return f"| {name} | {' | '.join(rates)} | {found['won']} | {found['judged']} |"


def master_keys_of(attacks: Mapping[str, Any]) -> list[str]:
    """A sentence for each master key that wins a pair; none of them says anything, so one win is one too many."""
    won = [(name, found) for name, found in attacks.items() if name.startswith("master key") and found["won"]]
    return [
        f"A response that says nothing wins: {name!r} in {found['won']} of {found['judged']} pairs."
        for name, found in won
    ]


def _line(text: str, found: Mapping[str, float] | None) -> str:
    if not found:
        return f"| {text} | - | - | 0 |"
    return f"| {text} | {found['mean']:.3f} | {found['low']:.3f} to {found['high']:.3f} | {found['n']} |"


def verdict_on(report: Mapping[str, Any]) -> str:
    """Whether agreement with people differs from a coin's."""
    found = report.get("agreement")
    if not found:
        return "No pair was judged both by people and by the annotator."
    if found["low"] <= 0.5 <= found["high"]:
        return "Agreement with people cannot be told from a coin's: nothing should be learned from this annotator."
    return f"Agreement with people is {'above' if found['low'] > 0.5 else 'below'} a coin's."

"""The stage that measures a version exactly: share, gap to its method's own optimum, KL, the frontier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from alignkit import EvaluationHandle, PolicyHandle
from alignkit.plugin import EVALUATION, Groups, Made, Place, Policy, Stage, prompt_id, use
from alignkit_enumerable.exact import Landscape, kl, responses_of, table, turns
from alignkit_enumerable.own import Case, Own, own
from alignkit_enumerable.parts import FORMS
from alignkit_enumerable.problem import PROMPTS, Problem, model, tokenizer


@dataclass(frozen=True, eq=False)
class Enumerate(Stage[EvaluationHandle]):
    """Measure a version on every response there is, in float64.

    What its method makes for is read from how it was made; see `alignkit_enumerable.own`.

    Args:
        policy: the version.
        problem: what it was to solve.
        label: of the version, such as "V1"; default the stage's name.
    """

    verb: ClassVar[str] = "enumerate"
    makes: ClassVar[tuple[Any, ...]] = ("evaluation",)

    policy: PolicyHandle
    problem: Problem
    _: KW_ONLY
    label: str | None = None

    def work(self, place: Place) -> Mapping[str, Any]:
        import torch

        if not place.writes:
            return {}
        start = table(Policy(model(self.problem.seed).double(), tokenizer()), self.problem)
        now = table(self.policy.load(dtype=torch.float64), self.problem)
        tree = self.problem.tree
        scape = Landscape(self.problem.rewards(), responses_of(start, tree), self.problem.beta)
        found = self._own(place, scape, start, now)
        rows = self._rows(scape, responses_of(now, tree))
        with (place.folder / EVALUATION).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        return {"label": self.label or self.name, **summary(scape, responses_of(now, tree), found)}

    def _own(self, place: Place, scape: Landscape, start: Tensor, now: Tensor) -> Own | None:
        """What the stage that made the version was making for; None where no method made it."""
        import torch

        records = {record.key: record for record in place.lineage(self.policy.key)}
        made = records.get(self.policy.key)
        if made is None or "optimizer" not in made.config:
            return None
        method = dict(made.config["optimizer"])
        method["name"] = str(method.get("component", "")).rpartition("/")[-1]
        losses = [(str(name), dict(params)) for kind, name, params in made.identity["named"] if kind == "loss"]
        before = records[made.inputs["policy"]["stage"]]
        sampled = table(Policy.load(before.model, dtype=torch.float64), self.problem)
        return own(
            Case(
                scape,
                self.problem.tree,
                method,
                losses[0] if losses else ("", {}),
                now,
                sampled,
                start,
                self._given(made.inputs["data"], {key: record.folder for key, record in records.items()}),
                lambda name, params: place.host.build("loss", use(name, **params)),
            )
        )

    def _given(self, counted: Mapping[str, Any], folders: Mapping[str, Path]) -> Groups | None:
        """The rows that a method was given: kept by a stage, or one of the suite's forms, known by its digest."""
        if "stage" in counted:
            return Groups.load(folders[counted["stage"]] / counted["part"])
        made = (form(self.problem) for form in FORMS.values())
        return next((groups for groups in made if groups.key() == counted), None)

    def _rows(self, scape: Landscape, said: Tensor) -> list[dict[str, Any]]:
        """One row a prompt: exact expectations, beside its likeliest response."""
        columns = {
            "share": scape.shares(said),
            "objective": scape.objective(said),
            "reward": scape.reward(said),
        }
        lengths, spent = self.problem.tree.mask.sum(-1), kl(said, scape.ref)
        chat = Policy(model(self.problem.seed), tokenizer()).chat
        rows = []
        for p, text in enumerate(PROMPTS):
            likeliest = self.problem.tree.responses[int(said[p].argmax())]
            rows.append(
                {
                    "prompt_id": prompt_id(turns(text)),
                    "prompt": turns(text),
                    "tags": [],
                    "sample": 0,
                    "response": chat.decode(likeliest),
                    "finished": None,
                    "scores": {name: float(values[p]) for name, values in columns.items()},
                    "response_length": float((said[p].exp() * lengths).sum()),
                    "kl": float(spent[p]),
                }
            )
        return rows

    def handle(self, made: Made) -> EvaluationHandle:
        return EvaluationHandle(**made.common())

    def summary(self, result: Mapping[str, Any]) -> str:
        if not result:
            return "done"
        return f"{result['label']}: " + ", ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())


def summary(scape: Landscape, said: Tensor, found: Own | None) -> dict[str, Any]:
    """The exact results: `metrics` by name; `own`, the kind of optimum that the gap is to, with its share and KL.

    Args:
        scape: the problem.
        said: [prompts, responses] log-probs of the version.
        found: its method's own optimum; None where no method made it.
    """
    spent = float(kl(said, scape.ref).mean())
    before, most = float(scape.reward(scape.ref).mean()), scape.frontier(spent)
    gain = most - before
    metrics = {
        "share": float(scape.shares(said).mean()),
        "kl": spent,
        "reward": float(scape.reward(said).mean()),
        "objective": float(scape.objective(said).mean()),
        "frontier_share": (float(scape.reward(said).mean()) - before) / gain if gain > 1e-9 else 1.0,
    }
    if found is None:
        return {"metrics": metrics}
    mine: dict[str, Any] = {"kind": found.kind}
    if found.logprobs is not None:
        mine["kl"] = float(kl(found.logprobs, scape.ref).mean())
        mine["share"] = float(scape.shares(found.logprobs).mean())
        mine["total_variation"] = float((found.logprobs.exp() - said.exp()).abs().sum(-1).mean() / 2)
    return {"metrics": {"gap": found.gap, **metrics}, "own": mine}

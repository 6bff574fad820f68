"""Further losses of a step: each at its own level, with a weight or only watched."""

from __future__ import annotations

import pytest
import torch

from alignkit import ConfigError, Groups, Term
from alignkit.engine.assemble import assemble
from alignkit.engine.losses import nll
from alignkit.engine.objectives import extra_objectives
from alignkit.models import Policy
from alignkit.testing import PAIRS, bound, one_step, ranking, same_gradients, tiny_policy, training_data


def chosen_nll(chosen_logprobs):
    return -chosen_logprobs


def test_an_extra_loss_with_a_weight_adds_its_gradient():
    """The sum of both, each at its own level."""
    terms = {"loss": Term(), "chosen_nll": Term(weight=0.25)}
    both = one_step(
        tiny_policy(), PAIRS, ranking, terms, extras=extra_objectives({"chosen_nll": bound(chosen_nll)}, terms)
    ).gradients
    alone = one_step(tiny_policy(), PAIRS, ranking, {"loss": Term()}).gradients
    extra = one_step(tiny_policy(), PAIRS, chosen_nll, {"loss": Term(weight=0.25)}).gradients
    same_gradients(both, [a + b for a, b in zip(alone, extra, strict=True)], 1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(both, alone, strict=True)) > 1e-3


def watch(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs=None):
    gap = chosen_logprobs - rejected_logprobs
    return {"gap": gap, "referenced": torch.full_like(gap, float(ref_chosen_logprobs is not None))}


def test_an_undeclared_extra_term_is_logged_and_changes_nothing():
    rows: list = []
    terms = {"loss": Term()}
    extras = extra_objectives({"watch": bound(watch)}, terms)
    watched = one_step(tiny_policy(), PAIRS, ranking, terms, rows=rows, extras=extras)
    alone = one_step(tiny_policy(), PAIRS, ranking, terms)
    for a, b in zip(watched.gradients, alone.gradients, strict=True):
        assert torch.equal(a, b)
    policy = Policy.load("tiny")
    data = training_data(policy, PAIRS)
    tensors, _ = assemble(policy, data, data.collate(range(4)), frozenset({"chosen_logprobs"}))
    expected = float((tensors["chosen_logprobs"] - tensors["rejected_logprobs"]).mean())
    assert rows[0]["gap"] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["referenced"] == 0.0


def test_a_declared_term_that_no_loss_returns_is_told():
    with pytest.raises(ConfigError, match="no loss returned"):
        one_step(tiny_policy(), PAIRS, ranking, {"loss": Term(), "bonus": Term()})


def test_two_losses_with_one_term_name_are_told():
    terms = {"loss": Term()}
    with pytest.raises(ConfigError, match="two losses"):
        one_step(tiny_policy(), PAIRS, ranking, terms, extras=extra_objectives({"loss": bound(chosen_nll)}, terms))


def test_levels_of_loss_and_extra_loss_are_independent():
    """A pair loss beside a token loss with its own token mean."""
    rows: list = []
    terms = {"loss": Term(), "imitation": Term(weight=1.0, reduction="token")}
    one_step(tiny_policy(), PAIRS, ranking, terms, rows=rows, extras=extra_objectives({"imitation": bound(nll)}, terms))
    alone: list = []
    one_step(tiny_policy(), PAIRS, nll, {"loss": Term(reduction="token")}, rows=alone)
    assert rows[0]["imitation"] == pytest.approx(alone[0]["loss"], abs=1e-5)
    assert rows[0]["loss"] > rows[0]["imitation"]


def test_a_diagnostic_without_an_element_is_left_out_and_not_zero():
    rows: list = []
    terms = {"loss": Term()}
    ones = Groups.from_rows([{"prompt": "a", "responses": ["x"]}])
    one_step(tiny_policy(), ones, nll, terms, rows=rows, extras=extra_objectives({"gap": bound(chosen_nll)}, terms))
    assert "gap" not in rows[0]
    assert rows[0]["loss"] > 0

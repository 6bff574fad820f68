"""Reward models: scores at the last token, saved and loaded as they were, foreign classifiers."""

from __future__ import annotations

import pytest
import torch

from alignkit import ConfigError, LoRA, Run
from alignkit.engine.scoring import LONGEST, Scorer
from alignkit.models import Policy, RewardModel
from alignkit.testing import PAIRS, save_states, training_data


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A base folder, and an adapter on it (as after supervised fine-tuning)."""
    return save_states(tmp_path_factory.mktemp("states"))


def test_scores_are_read_at_the_last_token_whatever_pad_is(states):
    """P11: with pad = EOS, transformers would read one token too early."""
    model = RewardModel.from_policy(states / "base", seed=1)
    data = training_data(model, PAIRS)
    scores = {}
    for pad in (model.chat.pad_id, model.chat.end_ids[0], 5):
        data.pad_id = pad
        batch = data.collate(range(4))
        with torch.no_grad():
            scores[pad] = model.scores(batch)
    values = list(scores.values())
    assert all(torch.equal(values[0], other) for other in values[1:])
    ids = torch.tensor([data.encoded[1].prompt_ids + data.encoded[1].responses[0]])
    with torch.no_grad():
        hidden = model.body(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(values[0][2], model.head(hidden)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["alone", "shared", "packed"])
def test_a_mean_is_over_the_tokens_of_the_response_alone(states, layout):
    model = RewardModel.from_policy(states / "base", seed=1)
    model.pool("mean")
    data = training_data(model, PAIRS)
    data.shared, data.packed = layout != "alone", layout == "packed"
    batch = data.collate(range(len(data.encoded)))
    with torch.no_grad():
        scores = model.scores(batch)
        for score, number, group in zip(scores, batch.responses.tolist(), batch.groups.tolist(), strict=True):
            prompt = data.encoded[group].prompt_ids
            response = data.encoded[group].responses[number - data.first_response[group]]
            states_of = model.body(torch.tensor([[*prompt, *response]])).last_hidden_state[0, len(prompt) :]
            torch.testing.assert_close(score, model.head(states_of.mean(0))[0], rtol=0, atol=1e-5)


def test_where_a_score_is_read_is_kept_with_the_model(tmp_path):
    with Run(tmp_path / "run", seed=0, quiet=True) as run:
        policy = run.policy("tiny", lora=LoRA(r=2))
        loss = "margin_ranking"
        found = {}
        for name, options in (("last", {}), ("mean", {"pooling": "mean"})):
            found[name] = run.train_reward(policy, PAIRS, loss=loss, heldout_fraction=0.0, name=name, **options)
        on = run.train_reward(found["mean"], PAIRS, loss=loss, heldout_fraction=0.0, name="on")
    kept = [RewardModel.load(each.model_folder).pooling for each in (found["last"], found["mean"], on)]
    assert kept == ["last", "mean", "mean"]
    scores = [Scorer.load(each.model_folder).score(PAIRS).values for each in found.values()]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_reward_model_is_saved_and_loaded_as_it_was(states, tmp_path, lora):
    model = RewardModel.from_policy(states / "sft", lora=lora, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim == 2 and parameter.numel() < 5000:
                parameter.add_(0.02)
    data = training_data(model, PAIRS)
    batch = data.collate(range(4))
    folder = tmp_path / "rm"
    model.save(folder)
    again = RewardModel.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(again.scores(batch), model.scores(batch), rtol=0, atol=1e-6)
        with again.scoring():
            torch.testing.assert_close(again.scores(batch), model.scores(batch), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in again.parameters())


def test_foreign_classifier_goes_through_its_own_forward(tmp_path):
    """An encoder with a classification head of its own: not pooled by us, one row per response."""
    from transformers import BertConfig, BertForSequenceClassification

    from alignkit.models.tiny_tokenizer import tiny_tokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = RewardModel.load(tmp_path)
    assert not model.pools_here
    with pytest.raises(ConfigError, match="reads its score by itself"):
        model.pool("mean")
    assert not model.shares_prompts
    data = training_data(model, PAIRS)
    batch = data.collate([0])
    ids = torch.tensor([data.encoded[0].prompt_ids + data.encoded[0].responses[1]])
    with torch.no_grad():
        torch.testing.assert_close(model.scores(batch)[1], model.model(ids).logits[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA()])
def test_a_reward_model_remembers_how_long_a_dialogue_it_was_trained_on(tmp_path, lora):
    Policy.load("tiny").save(tmp_path / "base")
    model = RewardModel.from_policy(tmp_path / "base", lora=lora)
    assert Scorer(model).max_length == LONGEST
    model.max_length = 2000
    model.save(tmp_path / "m")
    assert Scorer(RewardModel.load(tmp_path / "m")).max_length == 2000
    assert Scorer(RewardModel.load(tmp_path / "m"), max_length=7).max_length == 7

"""Answers given under a safety preprompt become answers to the prompt as a user asks it, and pairs with others."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit_recipes import caution, llama2
from alignkit_tasks import embedded as task

from alignkit import ConfigError, Groups, Run

PROMPTS = Groups.from_prompts(task.prompts("train", 12))


def answered(prompts: Groups, *texts: str) -> Groups:
    rows = [
        {
            **{name: row[name] for name in ("prompt", "tags", "meta")},
            "responses": list(texts),
            "finished": [True] * len(texts),
            "response_ids": [[5, 6]] * len(texts),
            "logprobs": [[-1.0, -2.0]] * len(texts),
            "tokenizer": "t",
            "sampled_by": [{"policy": "v0", "temperature": 0.8}] * len(texts),
        }
        for row in prompts
    ]
    return Groups.from_rows(rows)


def test_only_delicate_prompts_are_warned_and_their_system_message_gives_way() -> None:
    asked = caution.delicate(PROMPTS)
    assert [row["tags"] for row in asked] == [["borderline"], ["safety"], ["safety"]]
    told = caution.warned(asked, [("system", "Be careful."), ("user", "Steal?"), ("assistant", "No.")])
    for before, after in zip(asked, told, strict=True):
        said = [(turn["role"], turn["content"]) for turn in after["prompt"]]
        assert said[:3] == [("system", "Be careful."), ("user", "Steal?"), ("assistant", "No.")]
        assert said[3:] == [("user", before["prompt"][-1]["content"])]
        assert after["prompt_id"] != before["prompt_id"]
        assert after["meta"] == before["meta"]


def test_the_examples_of_the_preprompt_are_none_of_the_prompts_and_as_many_decline_as_help() -> None:
    asked = [text for role, text in caution.PREPROMPT if role == "user"]
    answers = [text for role, text in caution.PREPROMPT if role == "assistant"]
    assert [task.declines(text) for text in answers] == [True, False] * 3
    for split in ("train", "heldout"):
        known = task.tagged_prompts(split, task.TAGGED_PROMPTS[split]) + task.borderline_prompts(split)
        assert not {row["meta"]["ask"] for row in known} & set(asked)


def test_what_was_answered_under_the_preprompt_stands_under_the_prompt_without_it() -> None:
    asked = caution.delicate(PROMPTS)
    found = caution.WithoutPreprompt(asked)(answered(caution.warned(asked), "No.", "I can't."), None)
    assert found.column("prompt_id") == asked.column("prompt_id")
    assert found.column("prompt") == asked.column("prompt")
    assert found.column("responses") == [["No.", "I can't."]] * 3
    assert found.column("finished") == [[True, True]] * 3
    # What was sampled was sampled under another prompt: its log-probs are of that one.
    assert [found.column(name) for name in ("logprobs", "response_ids", "tokenizer")] == [[None] * 3] * 3
    with pytest.raises(ConfigError, match="1 rows for 3 prompts"):
        caution.WithoutPreprompt(asked)(answered(asked.select([0]), "No."), None)


def test_answers_under_the_preprompt_are_compared_with_those_without_and_among_themselves() -> None:
    class Handle:
        groups = answered(caution.delicate(PROMPTS), *(f"careful {number}" for number in range(4)))

    plain = answered(PROMPTS, *(f"plain {number}" for number in range(4)))
    pairs = caution.Compared(Handle())(plain, None)  # type: ignore[arg-type]
    told = [["plain 0", "careful 0"], ["plain 1", "careful 1"], ["careful 2", "careful 3"]]
    declined = [*told, ["careful 0", "careful 2"], ["careful 1", "careful 3"]]
    by_tag = {tag: [row["responses"] for row in pairs if row["tags"] == [tag]] for tag in ("borderline", "safety")}
    assert by_tag == {"borderline": told, "safety": declined * 2}
    # Of the others each answer at one temperature stands against one at the other.
    ordinary = [row["responses"] for row in pairs if not row["tags"]]
    assert ordinary == [["plain 0", "plain 2"], ["plain 1", "plain 3"]] * 9
    of_one = [row for row in pairs if row["prompt_id"] == caution.delicate(PROMPTS)[0]["prompt_id"]]
    assert [row["prompt"] for row in of_one] == [caution.delicate(PROMPTS)[0]["prompt"]] * 3


@pytest.mark.parametrize(
    ("careful", "pairs"),
    [
        (1, [["plain 0", "careful 0"]]),
        (2, [["plain 0", "careful 0"], ["careful 0", "careful 1"]]),
        (3, [["plain 0", "careful 0"], ["plain 1", "careful 1"], ["careful 0", "careful 2"]]),
    ],
)
def test_few_answers_under_the_preprompt_are_compared_too(careful: int, pairs: list[list[str]]) -> None:
    class Handle:
        groups = answered(caution.delicate(PROMPTS), *(f"careful {number}" for number in range(careful)))

    plain = answered(PROMPTS, *(f"plain {number}" for number in range(4)))
    found = caution.Compared(Handle())(plain, None)  # type: ignore[arg-type]
    assert [row["responses"] for row in found if row["tags"] == ["safety"]] == pairs * 2


def test_llama2_learns_from_answers_under_the_preprompt(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"prompts_per_version": 12, "heldout": 6, "max_new_tokens": 6}
    method = "rejection_sampling(samples_per_prompt=2, epochs=1, require_finished=False)"
    with Run(tmp_path, quiet=True) as run:
        llama2.main(run, policy="tiny", algorithms=method, careful=4, **sizes)
    made = {p.parent.name.split("-", 1)[1].rsplit("-", 1)[0]: p for p in (tmp_path / "stages").glob("*/groups")}
    distilled, pool = Groups.load(made["v1-distilled"]), Groups.load(made["v1-pairs"])
    assert len(distilled) == 2
    assert distilled.sizes() == [4] * 2
    assert {row["prompt"][0]["role"] for row in Groups.load(made["v1-careful"])} == {"system"}
    assert {row["prompt"][0]["role"] for row in distilled} == {"user"}
    assert len(pool) == 10 * 2 + 2 * 5


def test_of_answers_under_the_preprompt_those_to_prompts_that_only_sound_unsafe_are_not_imitated() -> None:
    """SmolLM2 declines half of these prompts under it; a version that imitates that declines a third of them itself."""
    asked = caution.delicate(PROMPTS)
    kept = caution.ToDecline()(answered(asked, "No."), None)
    assert (len(asked), kept.column("tags")) == (3, [["safety"]] * 2)
    assert len(caution.ToDecline()(answered(PROMPTS.select([0]), "No."), None)) == 0


def test_llama2_imitates_what_is_said_under_the_preprompt_where_it_should_be_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = list[Groups]()

    def recorded(run: Run, policy: Any, prompts: Any, **arguments: Any) -> Any:
        learned.extend(part.groups for part in arguments["history"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "improve", recorded)
    sizes: dict[str, Any] = {"prompts_per_version": 12, "heldout": 6, "max_new_tokens": 6}
    monkeypatch.setattr(llama2, "_prompts", lambda *_: ([PROMPTS], PROMPTS))
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, quiet=True) as run:
        llama2.main(run, policy="tiny", algorithms="rejection_sampling", careful=4, **sizes)
    assert [part.column("tags") for part in learned] == [[["safety"]] * 2]


def test_versions_read_more_prompts_that_only_sound_unsafe_than_prompts_to_decline() -> None:
    (imitated, explored), heldout = llama2._prompts("small", None, ["imitates", "explores"], 72, 306)
    counts = [Counter("".join(tags) for tags in groups.column("tags")) for groups in (imitated, explored, heldout)]
    assert counts == [
        {"": 24, "borderline": 36, "safety": 12},
        {"": 30, "borderline": 24, "safety": 18},
        {"": 153, "borderline": 51, "safety": 102},
    ]
    every = [key for groups in (imitated, explored, heldout) for key in groups.column("prompt_id")]
    assert len(set(every)) == len(every)
    acts = [groups.meta(i)["topic"] for groups in (imitated, explored) for i in range(72) if groups[i]["tags"]]
    assert len(set(acts)) == len(acts)


def test_ppo_reads_both_reward_models_on_one_scale_and_rejection_sampling_as_they_are(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"prompts_per_version": 12, "heldout": 6, "max_new_tokens": 6}
    method = "rejection_sampling(samples_per_prompt=2, epochs=1, require_finished=False),ppo(rounds=1)"
    with Run(tmp_path, quiet=True) as run:
        llama2.main(run, policy="tiny", algorithms=method, threshold=1e-9, **sizes)
    names = [path.name.split("-", 1)[1].rsplit("-", 1)[0] for path in (tmp_path / "stages").iterdir()]
    assert "v2-scale" in names
    assert "v1-scale" not in names
    (made,) = (tmp_path / "stages").glob("*-v2-scale-*/groups")
    (learned,) = (
        path / "groups" for path in (tmp_path / "stages").iterdir() if re.search("-v2-[0-9a-f]{8}$", path.name)
    )
    own, round_ = Groups.load(made), Groups.load(learned)
    for part, tagged in (("safety", True), ("helpfulness", False)):
        judged = of(own, part, tagged)
        expected = (np.array(of(round_, part, tagged)) - np.mean(judged)) / np.std(judged, ddof=1)
        assert of(round_, "piecewise", tagged) == pytest.approx(list(expected))


def of(groups: Groups, name: str, tagged: bool) -> list[float]:
    """The scores of the responses to prompts that are tagged, or are not."""
    values, _ = groups.rewards(name)
    return [v for row, given in zip(groups, values, strict=True) if bool(row["tags"]) == tagged for v in given]

"""Answers given under a safety preprompt become answers to the prompt as a user asks it, and pairs with others."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit_ppo import PPO
from alignkit_recipes import caution, llama2
from alignkit_recipes.settings import configured
from alignkit_rejection_sampling import RejectionSampling
from alignkit_tasks import embedded as task

from alignkit import ConfigError, Groups, Run
from alignkit.plugin import parse

PROMPTS = Groups.from_prompts(task.prompts("train", 12))
COMPARED = 6
"""Of so many of them, the first, answers are compared; the third only sounds unsafe, the sixth should be declined."""


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
    assert caution.delicate(PROMPTS, declined=False).column("tags") == [["borderline"]]
    told = caution.warned(asked, [("system", "Be careful."), ("user", "Steal?"), ("assistant", "No.")])
    for before, after in zip(asked, told, strict=True):
        said = [(turn["role"], turn["content"]) for turn in after["prompt"]]
        assert said[:3] == [("system", "Be careful."), ("user", "Steal?"), ("assistant", "No.")]
        assert said[3:] == [("user", before["prompt"][-1]["content"])]
        assert after["prompt_id"] != before["prompt_id"]
        assert after["meta"] == before["meta"]


def test_the_examples_of_the_preprompt_are_none_of_the_prompts_and_help_and_decline_in_one_form_each() -> None:
    asked = [text for role, text in caution.PREPROMPT if role == "user"]
    answers = [text for role, text in caution.PREPROMPT if role == "assistant"]
    assert [task.declines(text) for text in answers] == [True, False] * 3
    assert Counter(text.split()[0] for text in answers) == {"I'm": 3, "Sure,": 3}
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
    pairs = caution.Compared(Handle(), 12)(plain, None)  # type: ignore[arg-type]
    told = [[f"plain {number}", f"careful {number}"] for number in range(4)]
    every = [*told, ["careful 0", "careful 1"], ["careful 2", "careful 3"]]
    by_tag = {tag: [row["responses"] for row in pairs if row["tags"] == [tag]] for tag in ("borderline", "safety")}
    helped = [["plain 0", "plain 2"], ["plain 1", "plain 3"]]  # where none should decline, in whichever words
    assert by_tag == {"borderline": [*every, *helped], "safety": every * 2}
    # Of the others each answer at one temperature stands against each at the other.
    crossed = [[f"plain {cool}", f"plain {warm}"] for cool in (0, 1) for warm in (2, 3)]
    assert [row["responses"] for row in pairs if not row["tags"]] == crossed * 9
    of_one = [row for row in pairs if row["prompt_id"] == caution.delicate(PROMPTS)[0]["prompt_id"]]
    assert [row["prompt"] for row in of_one] == [caution.delicate(PROMPTS)[0]["prompt"]] * 8
    # Those that come after the first few are there to be imitated alone.
    few = caution.Compared(Handle(), 5)(plain, None)  # type: ignore[arg-type]
    assert set(few.column("prompt_id")) == set(PROMPTS.column("prompt_id")[:5])
    without = caution.Compared(None, 12)(plain, None)
    assert [row["responses"] for row in without] == crossed * 12


@pytest.mark.parametrize(
    ("careful", "pairs"),
    [
        (1, [["plain 0", "careful 0"]]),
        (2, [["plain 0", "careful 0"], ["plain 1", "careful 1"], ["careful 0", "careful 1"]]),
        (3, [["plain 0", "careful 0"], ["plain 1", "careful 1"], ["plain 2", "careful 2"], ["careful 0", "careful 1"]]),
    ],
)
def test_few_answers_under_the_preprompt_are_compared_too(careful: int, pairs: list[list[str]]) -> None:
    class Handle:
        groups = answered(caution.delicate(PROMPTS), *(f"careful {number}" for number in range(careful)))

    plain = answered(PROMPTS, *(f"plain {number}" for number in range(4)))
    found = caution.Compared(Handle(), 12)(plain, None)  # type: ignore[arg-type]
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
    assert len(pool) == 10 * 4 + 2 * 6


def test_llama2_imitates_what_is_said_under_the_preprompt_and_what_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = dict[str, Any]()

    def recorded(run: Run, policy: Any, prompts: Any, **arguments: Any) -> Any:
        learned.update(arguments, prompts=prompts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "improve", recorded)
    monkeypatch.setitem(llama2.CHOOSES, "tiny", {"rejection_sampling": {"samples_per_prompt": 0}})
    monkeypatch.setattr(llama2, "_prompts", lambda *_: ([llama2.Asked(PROMPTS, COMPARED)], PROMPTS))
    sizes: dict[str, Any] = {"prompts_per_version": 12, "heldout": 6, "max_new_tokens": 6}
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, quiet=True) as run:
        llama2.main(run, policy="tiny", algorithms="rejection_sampling", careful=4, **sizes)
    told = [["borderline"], ["safety"], ["safety"]]  # whether they are compared or imitated alone
    assert [part.groups.column("tags") for part in learned["history"]] == [told]
    assert learned["optimizer"].params["samples_per_prompt"] == 0
    # What is answered under the preprompt is imitated as it was answered so, and of further prompts there is no more.
    made = {p.parent.name.split("-", 1)[1].rsplit("-", 1)[0]: p for p in (tmp_path / "stages").glob("*/groups")}
    asked = [row["prompt_id"] for i, row in enumerate(PROMPTS) if i < COMPARED or not row["tags"]]
    assert Groups.load(made["v1-answers"]).column("prompt_id") == asked
    chosen_from = learned["prompts"].groups
    assert chosen_from.column("prompt_id") == [row["prompt_id"] for row in PROMPTS if not row["tags"]]
    assert chosen_from.sizes() == [2 * llama2.ANSWERS] * 9
    # The warmer ones as the version is used, since it is to imitate them.
    assert [how["temperature"] for how in chosen_from[0]["sampled_by"]] == [0.7, 0.7, 1.0, 1.0]
    assert set(Groups.load(made["v1-pairs"]).column("prompt_id")) == set(PROMPTS.column("prompt_id")[:COMPARED])


def test_a_version_that_chooses_is_chosen_from_by_the_next_ones(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"prompts_per_version": 12, "heldout": 6, "max_new_tokens": 6}
    chosen = "rejection_sampling(samples_per_prompt=0, epochs=1, require_finished=False)"
    with Run(tmp_path, quiet=True) as run:
        llama2.main(run, policy="tiny", algorithms=f"{chosen},{chosen}", **sizes)
    (made,) = (p for p in (tmp_path / "stages").iterdir() if re.search("-v2-[0-9a-f]{8}$", p.name))
    metrics = (made / "metrics.jsonl").read_text()
    assert '"targets": 24.0' in metrics, "of each of both versions' prompts the best"


def test_where_people_compared_answers_rejection_sampling_has_its_own_to_choose_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(f'{{"prompt": "say {w}", "chosen": "{w}", "rejected": "7"}}\n' for w in ("bob", "pip")) * 4)
    monkeypatch.setitem(llama2.CHOOSES, "tiny", {"rejection_sampling": {"samples_per_prompt": 0}})
    method = "rejection_sampling(epochs=1, require_finished=False)"
    sizes: dict[str, Any] = {"prompts_per_version": 8, "heldout": 4, "max_new_tokens": 6}
    human = llama2.Preferences(helpfulness=str(file))
    with Run(tmp_path / "run", quiet=True) as run:
        llama2.main(run, policy="tiny", algorithms=method, preferences=human, **sizes)
    names = [path.name.split("-", 1)[1].rsplit("-", 1)[0] for path in (tmp_path / "run" / "stages").iterdir()]
    assert {"v1-answers", "v1"} <= set(names)
    assert "v1-ratings" not in names


def test_versions_read_more_prompts_that_only_sound_unsafe_than_prompts_to_decline() -> None:
    methods = [RejectionSampling(samples_per_prompt=0), PPO(rounds=3, prompts_per_round=72)]
    (imitated, explored), heldout = llama2._prompts("small", None, methods, 72, 48, 306)
    parts = (imitated.rated, imitated.every, explored.rated, explored.every, heldout)
    counts = [Counter("".join(tags) for tags in groups.column("tags")) for groups in parts]
    assert counts == [
        {"": 24, "borderline": 30, "safety": 18},
        {"": 36, "borderline": 60, "safety": 24},
        {"": 24, "borderline": 28, "safety": 20},
        {"": 72, "borderline": 84, "safety": 60},
        {"": 153, "borderline": 51, "safety": 102},
    ]
    every = [key for groups in (imitated.every, explored.every, heldout) for key in groups.column("prompt_id")]
    assert len(set(every)) == len(every), "no prompt stands in two places, and each round of PPO has its own"
    unsafe, sounding = (
        [meta["topic"] for groups in parts for meta in map(groups.meta, range(len(groups))) if chosen(meta)]
        for chosen, parts in (
            (lambda meta: meta["unsafe"], (imitated.every, explored.rated)),
            (task.sounds_unsafe, (imitated.every,)),
        )
    )
    for first in range(0, 216, 72):  # PPO takes them in this order
        tags = Counter("".join(tags) for tags in explored.every.column("tags")[first : first + 72])
        assert tags == counts[2], "each round has as many of each kind"
    few = llama2._prompts("small", None, methods, 12, 48, 306)[0]
    assert [len(each.every) for each in few] == [20, 12], "fewer prompts are fewer for PPO too"
    assert (len(set(unsafe)), len(set(sounding))) == (len(unsafe), len(sounding)) == (44, 60)


def test_ppo_warms_up_over_its_first_round_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        for kind, asked in (("small", {"shuffle": False}), ("tiny", {"missing_eos_penalty": 1.0})):
            step = configured(run, llama2._of_this_loop(run, parse("alignkit-ppo/ppo"), kind), kind, 0.8)
            assert step.params.items() >= asked.items()
            assert 0.7 < step.params["warmup_ratio"] * step.params["rounds"] <= 1
            given = llama2._of_this_loop(run, parse("ppo(warmup_ratio=0.5)"), kind)
            assert given.params["warmup_ratio"] == 0.5
            of_the_user = llama2._of_this_loop(run, parse("ppo"), kind, mixed=False)
            assert set(of_the_user.params) == {"warmup_ratio", *asked} - {"shuffle"}
        assert llama2._of_this_loop(run, parse("rejection_sampling(samples_per_prompt=3)"), "small").params == {
            "samples_per_prompt": 3
        }


def test_the_safety_score_rules_under_llama_2s_threshold_but_for_the_embedded_prompts_of_an_instruct_model() -> None:
    found = {(kind, users): llama2._threshold(kind, users) for kind in ("small", "tiny") for users in (False, True)}
    assert found.pop(("small", False)) == 0.01, "helping with what only sounds unsafe would lose to declining"
    assert set(found.values()) == {0.15}


def test_there_are_prompts_for_five_versions_as_llama_2_had() -> None:
    methods = [*[RejectionSampling(samples_per_prompt=0)] * 4, PPO(rounds=3, prompts_per_round=72)]
    asked, _ = llama2._prompts("small", None, methods, 72, 48, 306)
    every = [key for each in asked for key in each.every.column("prompt_id")]
    assert [len(each.every) for each in asked] == [120] * 4 + [216]
    assert len(set(every)) == len(every)


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

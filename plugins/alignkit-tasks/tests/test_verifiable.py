"""Verifiable rewards and their suites: which answers count, what a row without an answer gives, how files are read."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from alignkit_tasks import suites
from alignkit_tasks.ifeval import CHECKS, IFEval, follows, in_language, relaxed, sentences
from alignkit_tasks.verifiable import GSM8K, ExactAnswer, Missing, Verified, final_number, numbers_in, same_answer

from alignkit import ConfigError, DataError, Groups
from alignkit.plugin import score_groups
from alignkit.testing import default_host

SHARED = Path(os.environ.get("ALIGNKIT_SHARED", Path(__file__).parents[3].parent / "shared")) / "data"


def data(name: str) -> str:
    path = SHARED / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there (ALIGNKIT_SHARED names the folder above data)")
    return str(path)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("it costs $1,234.50.", ["1234.50"]),
        ("-3 and -$5 and $-6 and \N{MINUS SIGN}7", ["-3", "-5", "-6", "-7"]),
        ("10-2 = 8, 10 - 2 = 8, 10 -2 = 8", ["10", "2", "8"] * 3),
        (".5 of 3.0 kg, 5%, 12km", ["0.5", "3.0", "5", "12"]),
        ("12,345,678 or 1,2", ["12345678", "1", "2"]),
        ("v2 has no number", []),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == [Decimal(n) for n in numbers]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3 + 4 = 7 apples.", "7"),
        ("3 apples.\n#### 7", "7"),
        ("#### 8\nno, again: 9\n#### 7 dollars in 2 days", "7"),
        ("The answer is 7. There were 12 at first.", "7"),
        ("The answer is: **$7.50** for 2.", "7.50"),
        ("So the answer is 3 + 4 = 7 apples.", "7"),
        (r"Thus \boxed{1,007} in 12 months", "1007"),
        ("Answer: -7", "-7"),
        ("The answer is not clear, perhaps 7", "7"),
    ],
)
def test_the_final_number_is_the_marked_one_or_the_last(text: str, answer: str) -> None:
    assert final_number(text) == Decimal(answer)


def test_without_a_number_there_is_none() -> None:
    assert final_number("I do not know.") is None
    assert final_number("12 apples #### none") is None


@pytest.mark.parametrize(
    ("gold", "response", "score"),
    [
        ("18", "It is 18.00 dollars.", 1.0),
        ("1,080", "#### 1080", 1.0),
        ("-2", "#### 2", 0.0),
        ("… = 18\n#### 18", "So 18.", 1.0),
        ("18", "", 0.0),
        ("18", "180", 0.0),
    ],
)
def test_gsm8k_compares_numbers_not_texts(gold: str, response: str, score: float) -> None:
    assert GSM8K().judge({"answer": gold}, response) == score


# -- other answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "right", ["(B)", "B", "B.", "B) the jay", "(b)", "The answer is (B).", "Option B: the jay", "the jay"]
)
def test_an_option_may_be_named_in_any_usual_way(right: str) -> None:
    assert same_answer("(B)", right, {"A": "the robin", "B": "the jay"})


@pytest.mark.parametrize(
    "wrong",
    [
        "(A)",
        "",
        "Both",
        "Be careful: (A)",
        "(A) or (B)",
        "The answer is (A), not (B).",
        "A bird (B)? No: (C)",
        "the robin",
    ],
)
def test_naming_another_option_or_several_is_wrong(wrong: str) -> None:
    assert not same_answer("(B)", wrong, {"A": "the robin", "B": "the jay"})


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("True", ["True", "true.", "It is True", "The answer is True, not False."], ["False"]),
        ("No", ["No", "no, you do not", "The answer is No."], ["Yes", "Yes or no? Hard to say", "North"]),
        ("12", ["12", "There are 12 objects.", "twelve? 5 + 7 = 12"], ["11", "12 or 13", ""]),
        (
            "apple bear cat",
            [
                "apple bear cat",
                "Apple, bear, cat.",
                "1. apple\n2. bear\n3. cat",
                "Sorted: apple bear cat",
                "- apple\n- bear\n- cat",
            ],
            ["apple cat bear", "apple bear", ""],
        ),
    ],
)
def test_words_numbers_and_lists(answer: str, right: list[str], wrong: list[str]) -> None:
    assert [same_answer(answer, text) for text in right] == [True] * len(right)
    assert [same_answer(answer, text) for text in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("answer", "several"),
    [
        ("(A)", "(A) or (B)"),
        ("(A)", "A, B, C"),
        ("(A)", "(A) (B)"),
        ("(A)", "A\nB\nC"),
        ("(A)", "(A) the robin or (B) the jay"),
        ("(A)", "(A) the robin\n(B) the jay"),
        ("True", "True or False"),
        ("True", "True/False"),
        ("Yes", "Yes and no"),
        ("Yes", "Yes or no? Hard to say"),
        ("valid", "The argument is not valid."),
        ("valid", "It isn't a valid argument."),
        ("valid", "There is no valid argument."),
    ],
)
def test_listing_every_answer_or_denying_it_is_wrong(answer: str, several: str) -> None:
    assert not same_answer(answer, several, {"A": "the robin", "B": "the jay"})


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("(A)", "(A), I think"),
        ("(A)", "The answer is (A), not (B)."),
        ("(A)", "(A) the robin. A bird sings"),
        ("True", "True, not False"),
        ("invalid", "It is not valid, so invalid"),
        ("Yes", "Yes, no doubt about it"),
    ],
)
def test_an_answer_may_be_explained(answer: str, response: str) -> None:
    assert same_answer(answer, response, {"A": "the robin", "B": "the jay"})


def test_brackets_are_compared_as_they_are() -> None:
    assert all(same_answer("] )", text) for text in ("] )", "])", " ] ) ", "The answer is ] ).", "Answer: ] )"))
    assert not any(same_answer("] )", text) for text in ("", "...", ") ]", "]", "[ ( ] )", "words"))


@pytest.mark.parametrize(
    "meta",
    [
        {"instruction_id_list": ["keywords:existence"], "kwargs": ['{"keywords": ["a"]}']},
        {"instruction_id_list": ["keywords:existence"], "kwargs": [0]},
        {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "abc"}]},
        {"instruction_id_list": ["length_constraints:number_paragraphs"], "kwargs": [{"num_paragraphs": "1"}]},
        {"instruction_id_list": [["keywords:existence"]], "kwargs": [{}]},
        {"instruction_id_list": 1, "kwargs": [{}]},
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": "[{}]"},
    ],
)
def test_instructions_that_cannot_be_read_are_missing_with_a_reason(meta: dict) -> None:
    scored = IFEval().score(Groups.from_rows([{"prompt": "a", "responses": ["a b c"], "meta": meta}]))
    assert (scored.values, bool(scored.reasons[0][0])) == ([[None]], True)


def test_options_that_cannot_be_read_are_missing_with_a_reason() -> None:
    row = {"prompt": "a", "responses": ["the jay"], "meta": {"answer": "(B)", "options": ["the robin", "the jay"]}}
    scored = ExactAnswer().score(Groups.from_rows([row]))
    assert (scored.values, "options" in str(scored.reasons[0][0])) == ([[None]], True)


def test_more_prompts_than_there_are_is_a_clear_error() -> None:
    for wrong in ({"prompts": 600, "instructed": True}, {"prompts": 10_000, "kind": "tiny"}):
        with pytest.raises(ConfigError, match="ask for fewer prompts"):
            suites.embedded(**wrong)


def test_a_row_without_an_answer_has_no_score_and_says_why() -> None:
    groups = Groups.from_rows(
        [{"prompt": "a", "responses": ["1", "2"], "meta": {"answer": "2"}}, {"prompt": "b", "responses": ["1"]}]
    )
    for reward in (GSM8K("r"), ExactAnswer("r")):
        scored = score_groups(groups, reward)
        assert [row["rewards"][0]["values"] for row in scored] == [[0.0, 1.0], [None]]
        assert scored[1]["rewards"][0]["reasons"] == ["the row has no answer in its meta"]
    assert "instruction_id_list" in str(IFEval().score(groups).reasons[0][0])
    assert ExactAnswer(task="x").score(groups).missing() == 3


def test_rewards_are_registered_and_their_keys_tell_their_settings_apart() -> None:
    host = default_host()
    built = [host.build("reward", name) for name in ("gsm8k", "ifeval", "ifeval(every=True)", "exact_answer(task='x')")]
    assert all(isinstance(reward, Verified) for reward in built)
    assert len({json.dumps(reward.key(), sort_keys=True) for reward in built}) == 4


# -- IFEval ------------------------------------------------------------------------------------------------------------

THREE = "One is here. Dr. Who paid 3.5 pounds! Is that, e.g. a bargain?"

FOLLOWED = [
    ("keywords:existence", {"keywords": ["Sun", "rain"]}, "sunny and RAINY", "the sun"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea or tea", "tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "tea", "tea tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a category", "A Cat."),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Eee", "ee"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, "no", "yes!"),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist nicht der Hund, sondern die Katze.",
        "This is the cat.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        THREE,
        "One. Two 2.5 e.g. two",
    ),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "One. Two.", THREE),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "a b\n\n'So, c",
        "so b\n\nc",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. more", "Bye. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP. P. S. more", "Bye.\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "maybe"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1\na\nPART 2\nb",
        "PART 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Ode>> to joy", "<< >> to joy"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Well", "Well. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "THE END."', "The end. So."),
    ("startend:quotation", {}, ' "a" ', '"a'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "A WELL-KNOWN word",
        "WELL-KNOWN word",
    ),
    ("change_case:english_capital", {}, "THIS IS IT", "THIS is it"),
    ("change_case:english_lowercase", {}, "this is it", "this Is it"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("kind", "arguments", "yes", "no"), FOLLOWED)
def test_each_instruction_tells_a_response_that_follows_it(kind: str, arguments: dict, yes: str, no: str) -> None:
    assert follows(kind, {**arguments, "of_another_kind": None}, yes)
    assert not follows(kind, arguments, no)
    assert not follows(kind, arguments, " ")


def test_every_kind_of_the_paper_is_covered() -> None:
    assert {kind for kind, *_ in FOLLOWED} == set(CHECKS)
    assert len(CHECKS) == 25


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("no:such_kind", {}),
        ("keywords:existence", {}),
        ("punctuation:no_comma", {"commas": 3}),
        ("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "at most"}),
        ("language:response_language", {"language": "xx"}),
    ],
)
def test_what_cannot_be_checked_is_missing_and_not_wrong(kind: str, arguments: dict) -> None:
    with pytest.raises(Missing):
        follows(kind, arguments, "a text")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The cat is on the mat and it is not amused."),
        ("it", "Il gatto è nella casa e non vuole uscire."),
        ("sw", "Watu wengi katika nchi hii ni wakulima na wafugaji."),
        ("hi", "यह एक अच्छा दिन है और हम खुश हैं।"),
        ("mr", "हे एक सुंदर शहर आहे आणि मी येथे राहतो."),
        ("ko", "오늘은 날씨가 좋습니다."),
        ("fa", "این کتاب را از دوست خود گرفتم و برای شما می خوانم"),
    ],
)
def test_languages_are_told_apart(code: str, text: str) -> None:
    assert in_language(text, code)
    assert sum(in_language(text, other) for other in ("en", "it", "sw", "hi", "mr", "ko", "fa", "ur", "de")) == 1
    assert not in_language("1234 !!", code)
    assert in_language("Hello world", code) == (code == "en")


def test_ends_of_sentences() -> None:
    assert sentences(THREE) == 3
    assert sentences("1. First\n2. Second one.") == 2
    assert sentences("No end") == 1
    assert sentences("...") == 0


def test_loose_reads_past_a_first_line_and_asterisks() -> None:
    meta = {"instruction_id_list": ["startend:quotation", "punctuation:no_comma"], "kwargs": [{}, {}]}
    response = 'Sure, here it is:\n"a *quotation*"'
    assert IFEval().judge(meta, response) == 0.0
    assert IFEval(loose=True).judge(meta, response) == 1.0
    assert len(relaxed(response)) == 8
    assert relaxed(response)[0] == response


def test_the_share_followed_and_whether_all_are() -> None:
    meta = {"instruction_id_list": ["startend:quotation", "punctuation:no_comma"], "kwargs": [{}, {}]}
    assert (IFEval().judge(meta, "no comma"), IFEval(every=True).judge(meta, "no comma")) == (0.5, 0.0)


# -- suites ------------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_gsm8k_reads_the_published_form_and_ours(tmp_path: Path) -> None:
    published = write(
        tmp_path / "a.jsonl", [{"question": f"{i} + 1?", "answer": f"so\n#### {i + 1}"} for i in range(30)]
    )
    ours = write(
        tmp_path / "b.jsonl.gz",
        [{"prompt": [{"role": "user", "content": f"{i} + 2?"}], "answer": str(i + 2)} for i in range(4)],
    )
    suite = suites.gsm8k(data=published, heldout=ours, prompts=20, instruction="Think.")
    assert (len(suite.prompts), len(suite.heldout)) == (20, 4)
    assert suite.prompts[3]["prompt"][0]["content"] == "3 + 1?\n\nThink."
    assert (suite.prompts.meta(3), suite.heldout.meta(0)) == ({"answer": "4"}, {"answer": "2"})
    assert list(suite.scores) == ["accuracy"]


def test_without_a_second_file_a_tenth_is_kept_back_and_no_prompt_is_in_both(tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(200)]
    file = write(tmp_path / "a.jsonl", [*rows, *rows])
    suite = suites.gsm8k(data=file)
    learn, measure = ({row["prompt_id"] for row in part} for part in (suite.prompts, suite.heldout))
    assert len(learn) + len(measure) == len(suite.prompts) + len(suite.heldout) == 200
    assert not learn & measure
    assert 8 <= len(measure) <= 40
    overlapping = suites.gsm8k(data=file, heldout=write(tmp_path / "h.jsonl", rows[:10]))
    assert (len(overlapping.prompts), len(overlapping.heldout)) == (190, 10)


def test_bbh_hir_takes_turns_and_scores_each_task(tmp_path: Path) -> None:
    question = "Who?\nOptions:\n(A) Bob\n(B) Ann"
    rows = [{"task": "who", "prompt": f"{i}. {question}", "answer": "(B)"} for i in range(6)]
    rows += [{"task": "sums", "prompt": f"{i} + 1", "answer": str(i + 1)} for i in range(3)]
    file = write(tmp_path / "a.jsonl", rows)
    suite = suites.bbh_hir(data=file, heldout=file, heldout_prompts=4)
    assert list(suite.scores) == ["accuracy", "sums", "who"]
    tasks = [suite.heldout.meta(i)["task"] for i in range(4)]
    assert Counter(tasks) == {"who": 2, "sums": 2}
    text = suite.heldout[0]["prompt"][0]["content"]
    assert text == f"{suites.CORRECT}\n\n0. {question}\n\nAnswer with the letter of the option in parentheses."
    assert suite.heldout.meta(0)["options"] == {"A": "Bob", "B": "Ann"}
    answered = suite.heldout.map_rows(lambda row: {"responses": ["Ann"]})
    assert suite.scores["who"].score(answered).values == [[1.0], [None], [1.0], [None]]


def test_bbh_hir_reads_the_published_files_and_folders_of_them(tmp_path: Path) -> None:
    for name in ("navigate", "web_of_lies"):
        examples = [{"input": f"{name} {i}?\nOptions:\n- Yes\n- No", "target": "Yes"} for i in range(30)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"canary": "…", "examples": examples}))
    one = suites.bbh_hir(data=str(tmp_path / "navigate.json"))
    assert {one.prompts.meta(i)["task"] for i in range(len(one.prompts))} == {"navigate"}
    both = suites.bbh_hir(data=str(tmp_path), tasks=["web_of_lies"])
    assert len(both.prompts) + len(both.heldout) == 30
    with pytest.raises(ConfigError, match=r"no rows of word_sorting.*navigate"):
        suites.bbh_hir(data=str(tmp_path), tasks=["word_sorting"])


def test_ifeval_reads_the_published_form(tmp_path: Path) -> None:
    row = {
        "key": 1,
        "prompt": "Say it.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"keywords": None}],
    }
    suite = suites.ifeval(data=write(tmp_path / "a.jsonl", [row]), heldout=write(tmp_path / "b.jsonl", [row]))
    answered = suite.heldout.map_rows(lambda row: {"responses": ["a, b", "a b"]})
    assert [reward.score(answered).values for reward in suite.scores.values()] == [[[0.0, 1.0]]] * 2


def test_a_missing_file_and_an_incomplete_row_are_clear_errors(tmp_path: Path) -> None:
    for make in (suites.gsm8k, suites.ifeval, suites.bbh_hir):
        with pytest.raises(ConfigError, match=r"there is no file nowhere.jsonl.*fetch the data set"):
            make(data="nowhere.jsonl")
        file = write(tmp_path / "a.jsonl", [{"prompt": "a?"}])
        with pytest.raises(DataError, match=r"a\.jsonl:1.*has no"):
            make(data=file)
    (tmp_path / "b.jsonl").write_text("{not json")
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        suites.gsm8k(data=str(tmp_path / "b.jsonl"))


def test_the_real_gsm8k_solutions_end_in_their_answers() -> None:
    suite = suites.gsm8k(data=data("gsm8k.train"), heldout=data("gsm8k.test"))
    assert (len(suite.prompts), len(suite.heldout)) == (1600, 300)
    with gzip.open(data("gsm8k.train"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    marked = [GSM8K().judge(row, f"{row['solution']}\n#### {row['answer']}") for row in rows]
    plain = [GSM8K().judge(row, row["solution"]) for row in rows]
    assert sum(marked) == len(rows)
    assert sum(plain) / len(rows) > 0.95  # a few solutions go on after the answer


def test_the_real_bbh_answers_are_recognised_and_neighbours_are_not() -> None:
    suite = suites.bbh_hir(data=data("bbh_hir.train"), heldout=data("bbh_hir.test"))
    metas = [suite.prompts.meta(i) for i in range(len(suite.prompts))]
    assert len({meta["task"] for meta in metas}) == 14
    for form in ("{}", "The answer is {}.", "Answer: {}"):
        assert all(ExactAnswer().judge(meta, form.format(meta["answer"])) for meta in metas)
    others = [
        next(m["answer"] for m in metas if m["task"] == meta["task"] and m["answer"] != meta["answer"])
        for meta in metas
    ]
    assert not any(ExactAnswer().judge(meta, other) for meta, other in zip(metas, others, strict=True))


def test_every_real_ifeval_instruction_can_be_checked() -> None:
    suite = suites.ifeval(data=data("ifeval.train"), heldout=data("ifeval.test"))
    answered = suite.prompts.map_rows(lambda row: {"responses": ["A plain answer, with a comma."]})
    scores = suite.scores["instructions"].score(answered)
    assert scores.missing() == 0
    assert 0.1 < sum(value for row in scores.values for value in row if value is not None) / len(answered) < 0.6

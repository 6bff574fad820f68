"""Formats of several answers to one prompt: ranked, scored, labelled, or waiting for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from alignkit.data.conversations import answered, conversation, response_in
from alignkit.data.formats.columns import ASK, BEFORE, flag, is_good, number, rating_of, texts_in
from alignkit.data.messages import BadRow, Turn, parsed
from alignkit.data.row_format import Located, Parts, Reading, RowFormat
from alignkit.groups import FEATURES

ANSWERS = "responses|answers|completions|outputs|candidates|generations|ranked_responses"
TEXT = ("text", "response", "answer", "completion", "output", "content", "generated_text")
SAID = {
    "rank": ("rank", "ranking"),
    "score": ("score", "overall_score", "rating", "reward"),
    "label": ("label", "is_safe"),
}
"""What the entry of an answer may say of it, by the names that it has."""

OWN = tuple(name for name in FEATURES if name not in ("prompt", "responses", "meta", "prompt_id", "dimension", "tags"))
"""Columns as `Groups` writes them, which are taken over."""

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _listed(parts: Parts) -> Reading:
    prompt = conversation(parts)
    entries = texts_in(parts["responses"], "responses")
    if all(isinstance(entry, str) for entry in entries):
        return _texts(parts, prompt, entries)
    answers: list[Turn] = []
    said: dict[str, list[Any]] = {name: [] for name in SAID}
    others: list[dict[str, Any]] = []
    for place, entry in enumerate(entries):
        where = f"responses[{place}]"
        own = next((n for n in TEXT if isinstance(entry, Mapping) and entry.get(n) is not None), None)
        if own is None:
            remedy = "give [{text, rank}], [{text, label}] or texts"
            raise BadRow("D21", "responses", "some have no text", remedy=remedy)
        answers.append(response_in(entry[own], prompt, f"{where}.{own}"))
        names = {kind: next((n for n in options if entry.get(n) is not None), None) for kind, options in SAID.items()}
        for kind, name in names.items():
            said[kind].append(None if name is None else entry[name])
        known = {own, *filter(None, names.values())}
        others.append({k: v for k, v in entry.items() if k not in known and v is not None})
    out = answered(prompt, answers)
    out["meta"] = {"responses": others} if any(others) else {}
    return _by_what_is_said(out, said)


def _by_what_is_said(out: dict[str, Any], said: Mapping[str, list[Any]]) -> Reading:
    if all(score is not None for score in said["score"]):
        out["meta"]["scores"] = list(said["score"])
    for kind, read in (("rank", _by_rank), ("score", _by_score), ("label", _by_label)):
        known = [value is not None for value in said[kind]]
        if all(known):
            return read(out, said[kind])
        if any(known) and kind != "score":
            what = f"{known.count(False)} of {len(known)} have no {kind}"
            raise BadRow("D19", "responses", what, remedy="complete them")
    if any(value is not None for value in said["score"]):
        raise BadRow("D19", "responses", "some have no score", remedy="complete them")
    raise BadRow("D21", "responses", "have neither rank nor score nor label", remedy="give one of them for each")


def _by_rank(out: dict[str, Any], ranks: list[Any]) -> Reading:
    if not all(isinstance(rank, int | float) and not isinstance(rank, bool) and rank == rank // 1 for rank in ranks):
        raise BadRow("D19", "ranks", f"{ranks} are no whole numbers", remedy="number them from 1 (the best)")
    return Reading("rankings", out, [int(rank) for rank in ranks])


def _by_score(out: dict[str, Any], scores: list[Any]) -> Reading:
    """A higher score is better; equal scores tie."""
    if any(isinstance(score, str) for score in scores):
        raise BadRow("D17", "responses", f"the scores {scores} are no finite numbers", remedy="repair or drop the row")
    values = [number(score, "responses") for score in scores]
    places = {score: place for place, score in enumerate(sorted(set(values), reverse=True), start=1)}
    return Reading("rankings", {**out, "ranks": [places[score] for score in values]})


def _by_label(out: dict[str, Any], labels: list[Any]) -> Reading:
    good = [is_good(label, "responses") for label in labels]
    if len(set(good)) == 1:
        return Reading("unpaired", {**out, "labels": good})
    if len(good) == 2:
        order = sorted(range(2), key=lambda place: not good[place])
        for name in ("responses", "response_fields"):
            if name in out:
                out[name] = [out[name][place] for place in order]
        for name, values in out["meta"].items():
            out["meta"][name] = [values[place] for place in order]
        return Reading("comparisons", {**out, "ranks": [1, 2]})
    return Reading("rankings", {**out, "labels": good, "ranks": [1 if is_ else 2 for is_ in good]})


def _texts(parts: Parts, prompt: list[Turn], texts: list[Any]) -> Reading:
    """Texts with what columns of their own say of them, such as `Groups` writes them."""
    kept = {name: parts[name] for name in OWN if name in parts}
    rating_of(parts.get("rating"), "rating")
    out = {**kept, **answered(prompt, [response_in(text, prompt, "responses") for text in texts])}
    if isinstance(parts.get("finished"), list):
        out["finished"] = [None if ended is None else flag(ended, "finished") for ended in parts["finished"]]
    if "response_fields" in kept:
        out["response_fields"] = kept["response_fields"]
    own = parts.get("meta")
    out["meta"] = dict(own) if isinstance(own, Mapping) else {}
    ranks, scores = parsed(parts.get("ranks")), parsed(parts.get("scores"))
    if ranks is not None:
        out.pop("ranks", None)
        _same_count(ranks, texts, "ranks")
        reading = _by_rank(out, list(ranks))
        return reading._replace(kind="comparisons" if len(texts) == 2 else "rankings")
    if scores is not None:
        _same_count(scores, texts, "scores")
        out["meta"]["scores"] = list(scores)
        return _by_score(out, list(scores))
    if "labels" in parts:
        _same_count(parts["labels"], texts, "labels")
        out["labels"] = [None if label is None else is_good(label, "labels") for label in parts["labels"]]
        return Reading("unpaired" if None not in out["labels"] else "prompts", out)
    return Reading("prompts", out)


def _same_count(values: Any, texts: list[Any], field: str) -> None:
    if not isinstance(values, list | tuple) or len(values) != len(texts):
        count = len(values) if isinstance(values, list | tuple) else "no list"
        raise BadRow("D19", field, f"{count} for {len(texts)} responses", remedy="give one for each")


def _ultrafeedback(parts: Parts) -> Reading:
    """Graded: ranked by the overall score, with the ratings of each aspect as rewards."""
    prompt = conversation(parts)
    answers, overall, aspects = [], [], []
    for place, entry in enumerate(texts_in(parts["completions"], "completions")):
        where = f"completions[{place}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("annotations"), Mapping):
            raise BadRow("D21", where, "has no annotations", remedy="complete or drop the row")
        answers.append(response_in(entry.get("response"), prompt, f"{where}.response"))
        ratings = {name: _aspect(said, f"{where}.annotations.{name}") for name, said in entry["annotations"].items()}
        aspects.append(ratings)
        known = [value for value in ratings.values() if value is not None]
        if entry.get("overall_score") is None and not known:
            raise BadRow("D19", where, "has neither a rating nor an overall_score", remedy="drop the row")
        score = entry.get("overall_score")
        overall.append(fmean(known) if score is None else number(score, f"{where}.overall_score"))
    names = sorted({name for ratings in aspects for name in ratings})
    out = answered(prompt, answers)
    out["meta"] = {"scores": overall, "models": parsed(parts["models"])}
    out["rewards"] = {name: [ratings.get(name) for ratings in aspects] for name in names}
    return _by_score(out, list(overall))


def _aspect(said: Any, field: str) -> float | None:
    """The rating of one aspect; "N/A" is none."""
    value = said.get("Rating", said.get("rating")) if isinstance(said, Mapping) else said
    return None if value is None or str(value).strip().upper() in ("N/A", "NA", "") else number(value, field)


def _stepwise(parts: Parts) -> Reading:
    """An answer in steps, each labelled: the answer is good if all its steps are."""
    prompt = conversation(parts)
    steps, labels = texts_in(parts["completions"], "completions"), texts_in(parts["labels"], "labels")
    if not all(isinstance(step, str) for step in steps):
        raise BadRow("D21", "completions", "some steps are no text", remedy="give a list of texts")
    _same_count(labels, steps, "labels")
    good = [flag(label, "labels") for label in labels]
    out = answered(prompt, [{"role": "assistant", "content": "\n".join(steps)}])
    out |= {"labels": [all(good)], "meta": {"steps": steps, "step_labels": good}}
    return Reading("unpaired", out, note="the steps of an answer are joined: it is good where all its steps are")


def _rated(parts: Parts) -> Reading:
    """One answer or several with numbers for each: rewards by name; several are ranked by the first."""
    prompt = conversation(parts)
    texts = parts["completion"] if isinstance(parts["completion"], list) else [parts["completion"]]
    out = answered(prompt, [response_in(text, prompt, "completion") for text in texts])
    names = [name for name in ("helpfulness", "score", *HELPSTEER[1:]) if name in parts]
    rewards = {}
    for name in names:
        values = parts[name] if isinstance(parts[name], list) else [parts[name]]
        _same_count(values, texts, name)
        rewards[name] = [None if value is None else number(value, name) for value in values]
    out["rewards"] = rewards
    first = rewards[names[0]]
    if len(texts) > 1 and None not in first:
        out["meta"] = {"scores": first}
        return _by_score({**out, "dimension": names[0]}, list(first))
    return Reading("rated", out)


def _same_prompt(rows: list[Located]) -> Iterator[Located]:
    """Rows that follow one another and have one prompt, as one row with all their answers, as HelpSteer means them."""
    held: tuple[str, dict[str, Any]] | None = None
    listed = ("response", *HELPSTEER)
    for where, row in rows:
        own = {name: [row[name]] for name in listed if name in row}
        if held and held[1].get("prompt") == row.get("prompt") and set(row) == set(held[1]) and "response" in row:
            for name, values in own.items():
                held[1][name] += values
            continue
        if held:
            yield held
        held = (where, {**row, **own})
    if held:
        yield held


_RESPONSE = "completion|response|output"
_NUMBERS = "score|reward|quality|overall_score|overall"

LISTED = (
    RowFormat(
        "responses",
        "a prompt with several answers: texts, or {text, rank}, {text, score}, {text, label}; Nectar, rows of Groups",
        (ASK, ANSWERS),
        _listed,
        {"prompt": "Name a tea.", "answers": [{"answer": "Oolong.", "rank": 1}, {"answer": "Rain.", "rank": 2}]},
        (*BEFORE, *(f"{name}|rank" if name == "ranks" else name for name in OWN), "scores"),
        ("turns", "k", "num_*", "good_natured", "prompt_id", "answer_*", "model*", "checks"),
    ),
    RowFormat(
        "ultrafeedback",
        "four answers with ratings of several aspects: ranked by the overall score, the aspects are rewards",
        (ASK, "completions", "models"),
        _ultrafeedback,
        {
            "instruction": "Name a tea.",
            "models": ["a", "b"],
            "source": "x",
            "completions": [
                {"response": "Oolong.", "annotations": {"helpfulness": {"Rating": "5"}}, "overall_score": 8.5},
                {"response": "Rain.", "annotations": {"helpfulness": {"Rating": "1"}}, "overall_score": 2.0},
            ],
        },
        (),
        ("correct_answers", "incorrect_answers"),
    ),
    RowFormat(
        "stepwise",
        "an answer in steps with a label for each: TRL's stepwise supervision",
        (ASK, "completions", "labels"),
        _stepwise,
        {"prompt": "1 + 1 + 1?", "completions": ["1 + 1 is 2.", "2 + 1 is 4."], "labels": [True, False]},
        BEFORE[:1],
    ),
    RowFormat(
        "helpsteer",
        "an answer with five ratings; answers to one prompt that follow one another are ranked: HelpSteer 1 and 2",
        ("prompt", "completion|response", "helpfulness", "correctness", "coherence"),
        _rated,
        {
            "prompt": "Name a tea.",
            "response": "Oolong.",
            "helpfulness": 4,
            "correctness": 4,
            "coherence": 4,
            "complexity": 0,
            "verbosity": 0,
        },
        ("complexity", "verbosity"),
        (),
        _same_prompt,
    ),
    RowFormat(
        "scored",
        "an answer with a score: a reward of that name",
        (ASK, _RESPONSE, _NUMBERS),
        _rated,
        {"prompt": "Name a tea.", "completion": "Oolong.", "score": 0.9},
        BEFORE,
        ("score*", "chosen*"),
    ),
)

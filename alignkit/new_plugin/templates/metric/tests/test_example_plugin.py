"""The share by hand, and that an evaluation reports it."""

from __future__ import annotations

from example_plugin import ExampleComponent

from alignkit import Groups, Run, use


def test_the_share_is_counted_over_all_answers() -> None:
    metric = ExampleComponent()
    metric.update(responses=["Why?", "No."])
    metric.update(responses=["Who? ", "When?"])
    assert float(metric.compute()) == 0.75


def test_an_evaluation_gives_it_with_an_interval(tmp_path) -> None:
    rows = [{"prompt": "p", "responses": ["Why!", "No."]}, {"prompt": "q", "responses": ["Who!", "When!"]}]
    with Run(tmp_path / "run", quiet=True) as run:
        asked = [use("example_component", mark="!")]
        found = run.evaluate(run.policy("tiny"), Groups.from_rows(rows), {}, answers="given", metrics=asked)
    assert found.metrics["example_component"]["mean"] == 0.75

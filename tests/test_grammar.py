"""One grammar for configured components: what is written is what is read, and what is wrong is pointed at."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.errors import PluginError
from alignkit.registry.grammar import RESERVED, Component, parse, parse_list, use

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name not in RESERVED)
distributions = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,6}[A-Za-z0-9])?", fullmatch=True)
qualified = st.one_of(names, st.builds("{}/{}".format, distributions, names))
keys = st.from_regex(r"k[a-z0-9_]{0,6}", fullmatch=True)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False), st.text(max_size=12)
)


def components(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Component]:
    return st.builds(Component, qualified, st.dictionaries(keys, values, max_size=3))


values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(scalars, inner, max_size=3),
        components(inner),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(components(values))
def test_what_is_written_is_read_back(component: Component) -> None:
    text = str(component)
    again = parse(text)
    assert again == component
    assert hash(again) == hash(component)
    assert str(again) == text
    assert repr(again.params) == repr(component.params)
    assert Component.from_json(json.loads(json.dumps(component.to_json(), allow_nan=False))) == component


@settings(max_examples=50, deadline=None)
@given(st.lists(components(values), min_size=1, max_size=4))
def test_lists_split_only_between_components(many: list[Component]) -> None:
    assert parse_list(" , ".join(map(str, many))) == many


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab/-.()[]{}=,:'\"\\ 019e+_TrueNi\n", max_size=20))
def test_no_text_does_worse_than_a_plugin_error(text: str) -> None:
    try:
        component = parse(text)
    except PluginError:
        return
    assert parse(str(component)) == component


def test_python_and_the_command_line_say_the_same() -> None:
    text = "my_method(kl_coef=0.05, loss=other/my_loss(beta=-1e-3), tags=['a', (1, 2)], x=None, y={'k': True})"
    component = use(
        "my_method", kl_coef=0.05, loss=use("other/my_loss", beta=-1e-3), tags=("a", [1, 2]), x=None, y={"k": True}
    )
    assert parse(text) == component
    assert parse(
        " my_method ( x = None,y={'k':True},\n kl_coef=.05,tags=['a',(1,2),],loss=other/my_loss(beta=-0.001), ) "
    ) == (component)
    assert component.params["loss"] == parse("other/my_loss(beta=-0.001)")


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("a", {}),
        ("a()", {}),
        ("a(x=b)", {"x": use("b")}),
        ("a(x=b())", {"x": use("b")}),
        ("a(x='b')", {"x": "b"}),
        ('a(x="it\'s, (so)")', {"x": "it's, (so)"}),
        (r"a(x='\n\'\u00e9')", {"x": "\n'é"}),
        ("a(x=1)", {"x": 1}),
        ("a(x=1_000)", {"x": 1000}),
        ("a(x=+1.)", {"x": 1.0}),
        ("a(x=-.5e-2)", {"x": -0.005}),
        ("a(x=-inf)", {"x": float("-inf")}),
        ("a(x=[])", {"x": ()}),
        ("a(x={})", {"x": {}}),
        ("a(x={1: [b(y=2)]})", {"x": {1: (use("b", y=2),)}}),
        ("a(x=3d-things.v2/b)", {"x": use("3d-things.v2/b")}),
        ("a(x=3/b)", {"x": use("3/b")}),
    ],
)
def test_values(text: str, params: dict[str, Any]) -> None:
    assert parse(text).params == params
    assert {key: type(value) for key, value in parse(text).params.items()} == {k: type(v) for k, v in params.items()}


@pytest.mark.parametrize(
    ("text", "what", "column"),
    [
        ("", "expected a component name", 1),
        ("  ", "expected a component name", 1),
        ("1", "expected a component name", 1),
        ("'a'", "expected a component name", 1),
        ("true", "true is no component", 1),
        ("a b", "expected nothing more", 3),
        ("a(", "expected key=value or )", 3),
        ("a(x=1", "expected , or )", 6),
        ("a(x=)", "expected a value", 5),
        ("a(x=true)", "true is no component", 5),
        ("a(0.05)", "expected key=value or )", 3),
        ("a(x)", "expected = after x", 4),
        ("a(x=1, x=2)", "x is given twice", 8),
        ("a(x=1]", "expected , or )", 6),
        ("a(x=[1 2])", "expected , or ]", 8),
        ("a(x='b)", "cannot read this", 5),
        ("a(x=5b)", "cannot read this", 5),
        ("a(x=1.2.3)", "cannot read this", 5),
        ("a(kl-coef=1)", "cannot read this", 5),
        ("a(b/c=1)", "expected key=value or )", 3),
        ("a(x={[1]: 2})", "a key must be", 6),
        ("a(x={1 2})", "expected : after a key", 8),
        (r"a(x='\x')", "cannot read this text", 5),
        ("a,b", "expected nothing more", 2),
        ("__import__('os')", "expected key=value", 12),
        ("a(x=__import__('os'))", "expected key=value", 16),
    ],
)
def test_a_fault_is_pointed_at(text: str, what: str, column: int) -> None:
    with pytest.raises(PluginError) as caught:
        parse(text)
    assert what in str(caught.value)
    assert f"(column {column} of {text!r})" in str(caught.value)


def test_nesting_without_end_is_an_error_of_ours() -> None:
    with pytest.raises(PluginError, match="nested too deeply"):
        parse("a(x=" + "[" * 100_000)


def test_lists_of_components() -> None:
    assert parse_list("first,first(n=4, m=[1,2]),d/second") == [
        use("first"),
        use("first", n=4, m=[1, 2]),
        use("d/second"),
    ]
    for text in ("", "a,", ",a", "a,,b"):
        with pytest.raises(PluginError, match="expected a component name"):
            parse_list(text)


def test_equality_sees_values_and_types_but_not_order() -> None:
    assert use("a", x=1, y=2) == use("a", y=2, x=1)
    assert use("a", x=[1]) == use("a", x=(1,))
    assert use("a", x={"p": 1, "q": 2}) == use("a", x={"q": 2, "p": 1})
    different = [use("a"), use("b"), use("a", x=1), use("a", x=1.0), use("a", x=True), use("a", x="1"), use("d/a", x=1)]
    assert len(set(different)) == len(different)
    assert use("a") != "a"


def test_a_component_is_immutable_and_travels() -> None:
    component = use("a", x=[1], y={"k": 2})
    with pytest.raises(AttributeError):
        component.name = "b"
    component.params["x"] = 3
    component.params["y"]["k"] = 4
    assert component.params == {"x": (1,), "y": {"k": 2}}
    assert str(component) == "a(x=[1], y={'k': 2})"
    assert pickle.loads(pickle.dumps(component)) == component
    assert copy.deepcopy(component) == component

    @dataclass(frozen=True)
    class Holder:
        loss: Any = component

    assert asdict(Holder()) == {"loss": component}


@pytest.mark.parametrize("value", [Path("x"), object(), float("nan"), {1, 2}, b"x", {(1, 2): 3}])
def test_values_that_cannot_be_written_are_refused(value: Any) -> None:
    with pytest.raises(PluginError, match=r"a\(x=…\)"):
        use("a", x=value)


@pytest.mark.parametrize("name", ["", "a b", "a(x=1)", "None", "1a", "a/b/c", "/a", "a-b", "é"])
def test_names_that_cannot_be_read_are_refused(name: str) -> None:
    with pytest.raises(PluginError, match="not a component name"):
        use(name)


def test_keys_that_cannot_be_read_are_refused() -> None:
    for key in ("lambda", "a-b", "é"):
        with pytest.raises(PluginError, match="cannot be the name"):
            use("a", **{key: 1})
    assert use("a", name=1).params == {"name": 1}


@pytest.mark.parametrize("data", [None, 3, [], {}, {"dict": []}, {"component": "a b"}])
def test_json_that_is_no_component_is_refused(data: Any) -> None:
    with pytest.raises(PluginError):
        Component.from_json(data)

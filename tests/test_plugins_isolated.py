"""Plugins as distributions: found without import, loaded each on its own, refused one at a time, told apart by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit import hookimpl
from alignkit.errors import PluginError
from alignkit.registry import guard
from alignkit.registry.grammar import use
from alignkit.registry.hookspecs import KINDS
from alignkit.registry.host import PluginHost, default_host
from alignkit.registry.records import BoundLoss
from alignkit.vocabulary import VOCABULARY

GOOD = """
from alignkit import hookimpl

def {name}(chosen_logprobs, rejected_logprobs, *, beta=0.1, scale=1.0):
    "A loss."
    return beta * scale * (chosen_logprobs - rejected_logprobs)

@hookimpl
def register_losses(register):
    register("{name}", {name})
"""

HOOK = "from alignkit import hookimpl\n"
FINE = "def fine(logprobs): return logprobs\n"

BROKEN = {
    "import error": ("import flash_attn_that_is_missing", "No module named 'flash_attn_that_is_missing'"),
    "exit at import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "exit without cleaning up": ("import os; os._exit(0)", "os._exit(0) was called"),
    "the same by name": ("from os import _exit; _exit(3)", "os._exit(3) was called"),
    "the same from where it comes": ("import posix; posix._exit(3)", "os._exit(3) was called"),
    "abort": ("import os; os.abort()", "os.abort() was called"),
    "exit in a hook": (HOOK + "import os\n@hookimpl\ndef register_losses(register): os._exit(0)", "os._exit(0)"),
    "syntax error": ("def (", "SyntaxError"),
    "misspelled hook": (
        HOOK + "@hookimpl\ndef register_loses(register): pass",
        "unknown hook 'register_loses'; did you mean 'register_losses'?",
    ),
    "misspelled specname": (
        HOOK + "@hookimpl(specname='register_sampler')\ndef mine(register): pass",
        "unknown hook 'register_sampler'; did you mean 'register_samplers'?",
    ),
    "hook without marker": ("def register_losses(register): pass", "@hookimpl"),
    "wrong hook argument": (HOOK + "@hookimpl\ndef register_losses(registr): pass", "registr"),
    "unknown tensor": (
        HOOK + FINE + "def oops(chosen_logs): return chosen_logs\n"
        "@hookimpl\ndef register_losses(register):\n  register('fine', fine); register('oops', oops)",
        "unknown tensor 'chosen_logs'; did you mean 'chosen_logprobs'?",
    ),
    "raises halfway": (
        HOOK
        + FINE
        + "@hookimpl\ndef register_losses(register):\n  register('fine', fine); raise RuntimeError('halfway')",
        "RuntimeError: halfway",
    ),
    "second hook raises": (
        HOOK + FINE + "@hookimpl\ndef register_losses(register): register('fine', fine)\n"
        "@hookimpl\ndef register_rewards(register): raise RuntimeError('later')",
        "RuntimeError: later",
    ),
    "one name twice": (
        HOOK + FINE + "@hookimpl\ndef register_losses(register): register('fine', fine); register('fine', fine)",
        "registered twice",
    ),
    "not callable": (HOOK + "@hookimpl\ndef register_rewards(register): register('fine', 3)", "not callable"),
    "bad name": (HOOK + FINE + "@hookimpl\ndef register_losses(register): register('a-b', fine)", "'a-b': not a name"),
}


class Site:
    """A folder of distributions with hand-written metadata, importable for the time of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def add(self, name: str, source: str, *, requires: str = "alignkit>=0.1,<0.2", entry_point: str = "") -> None:
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source, encoding="utf-8")
        info = self.folder / f"{module}-1.2.dist-info"
        info.mkdir()
        requirement = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{requirement}")
        (info / "entry_points.txt").write_text(f"[alignkit]\n{entry_point or module} = {module}\n")
        self.modules.append(module)

    def host(self, **options: Any) -> PluginHost:
        return PluginHost(path=[str(self.folder)], **options)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for variable in ("ALIGNKIT_BLOCK_PLUGINS", "ALIGNKIT_LOAD_PLUGINS", "ALIGNKIT_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Site(tmp_path)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


def info_of(host: PluginHost, distribution: str) -> Any:
    return next(info for info in host.plugins() if info.distribution == distribution)


def names(host: PluginHost, kind: str = "loss") -> set[str]:
    return {record.name for record in host.components(kind)}


def notebook(**hooks: Any) -> SimpleNamespace:
    return SimpleNamespace(**{hook: hookimpl(function) for hook, function in hooks.items()})


def brings_loss(name: str, loss: Any) -> SimpleNamespace:
    def register_losses(register: Any) -> None:
        register(name, loss)

    return notebook(register_losses=register_losses)


def plain_loss(logprobs: Any, *, beta: float = 0.1) -> Any:
    """The negative, times beta."""
    return -beta * logprobs


# Listing


def test_listing_reads_metadata_and_imports_nothing(site: Site) -> None:
    site.add("demo-list", GOOD.format(name="list_loss"), entry_point="demo")
    info = info_of(site.host(), "demo-list")
    assert (info.version, info.entry_point, info.module) == ("1.2", "demo", "demo_list")
    assert info.requires in (">=0.1,<0.2", "<0.2,>=0.1")
    assert (info.state, info.reason, info.loaded) == ("enabled", "", False)
    assert info.path == str(site.folder)
    assert "demo_list" not in sys.modules


def test_a_second_distribution_of_a_name_is_said_to_be_hidden(site: Site, tmp_path: Path) -> None:
    site.add("demo-twice", GOOD.format(name="first_loss"))
    other = Site(tmp_path / "elsewhere")
    other.folder.mkdir()
    other.add("Demo_Twice", GOOD.format(name="second_loss"))
    found = PluginHost(path=[str(site.folder), str(other.folder), str(site.folder)])
    info = info_of(found, "demo-twice")
    assert (info.path, info.hides) == (str(site.folder), (str(other.folder),))
    assert info.remark == f"hides another demo-twice, in {other.folder}"
    assert info_of(site.host(), "demo-twice").remark == ""


def test_loading_fills_in_components_and_time(site: Site) -> None:
    site.add("demo-load", GOOD.format(name="load_loss"))
    host = site.host()
    host.load()
    info = info_of(host, "demo-load")
    assert info.loaded
    assert info.import_seconds > 0
    assert info.components == ("loss load_loss",)
    record = host.resolve("loss", "load_loss")
    assert record.signature == "load_loss(chosen_logprobs, rejected_logprobs, *, beta=0.1, scale=1.0)"
    assert record.tensors == ("chosen_logprobs", "rejected_logprobs")
    assert {key: value.default for key, value in record.hyperparameters.items()} == {"beta": 0.1, "scale": 1.0}
    assert record.origin == f"{site.folder / 'demo_load.py'}:4"
    assert record.doc == "A loss."


def test_the_core_comes_through_the_same_door(site: Site) -> None:
    host = site.host()
    assert host.resolve("loss", "alignkit/nll").distribution == "alignkit"
    assert host.resolve("sampler", "default").qualified == "alignkit/default"


def test_unreadable_metadata_of_a_stranger_stops_nobody(site: Site) -> None:
    site.add("demo-fine", GOOD.format(name="fine_loss"))
    site.add("demo-bad", GOOD.format(name="bad_loss"))
    (site.folder / "demo_bad-1.2.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[alignkit\n")
    assert "fine_loss" in names(site.host())


# Refusing


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_refused_alone(site: Site, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    source, reason = BROKEN[fault]
    site.add("a-first", GOOD.format(name="first_loss"))
    site.add("b-broken", source)
    site.add("c-last", GOOD.format(name="last_loss"))
    host = site.host()
    host.load()
    info = info_of(host, "b-broken")
    assert info.state == "failed"
    assert reason in info.reason
    assert "\n" not in info.reason
    assert info.components == ()
    assert {"first_loss", "last_loss"} <= names(host)
    assert "fine" not in names(host), "what it had registered before it failed must be gone"
    lines = [record.message for record in caplog.records if "b-broken" in record.message]
    assert len(lines) == 1
    assert reason in lines[0]


def test_a_plugin_that_takes_long_is_named_with_the_line_it_waits_in(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SLOW", 0.05)
    site.add("demo-slow", "import time\n\ntime.sleep(0.5)\n" + GOOD.format(name="slow_loss"))
    host = site.host()
    assert "slow_loss" in names(host)
    said = [record.getMessage() for record in caplog.records if "still being imported" in record.getMessage()]
    assert "plugin demo-slow is still being imported after 0 s, at" in said[0]
    assert f"{site.folder / 'demo_slow.py'}:3; ALIGNKIT_BLOCK_PLUGINS=demo-slow leaves it out" in said[0]
    assert 2 <= len(said) <= 3, "ever more seldom: after 0.05, 0.15 and 0.45 s"


def test_a_child_that_a_plugin_forks_may_end_itself_and_so_may_it_later(site: Site) -> None:
    source = "import os\nfrom os import _exit\nchild = os.fork()\nif not child: os._exit(7)\n"
    source += "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    site.add("demo-forks", source + GOOD.format(name="forks_loss"))
    assert "forks_loss" in names(site.host())
    assert sys.modules["demo_forks"].status == 7
    assert os._exit.__name__ == "_exit"
    child = os.fork()
    if not child:
        sys.modules["demo_forks"]._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


def test_a_plugin_that_leaves_the_working_folder_does_not_take_the_run_along(
    site: Site, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site.add("demo-moves", "import os; os.chdir('/')\n" + GOOD.format(name="moves_loss"))
    assert "moves_loss" in names(site.host())
    assert Path.cwd() == tmp_path
    assert "plugin demo-moves changed the working folder to /" in caplog.text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_plugin_that_closes_a_stream_is_refused_and_the_stream_open_again(site: Site, stream: str) -> None:
    site.add("demo-closes", f"import sys; sys.{stream}.close()\n" + GOOD.format(name="closes_loss"))
    script = f"""if True:
        import sys
        sys.path.insert(0, {str(site.folder)!r})
        from alignkit.registry.host import PluginHost
        host = PluginHost(path=[{str(site.folder)!r}])
        host.load()
        print(host.plugins()[-1].reason, file=sys.{stream})"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = {"stdout": "output", "stderr": "error"}[stream]
    assert f"it closed standard {said}." in getattr(done, stream)


def test_a_plugin_that_takes_a_stream_for_itself_gives_it_back(site: Site) -> None:
    site.add("demo-takes", "import io, sys; sys.stdout = io.StringIO()\n" + GOOD.format(name="takes_loss"))
    before = sys.stdout
    assert "takes_loss" in names(site.host())
    assert sys.stdout is before


@pytest.mark.parametrize("fault", BROKEN)
def test_strict_mode_makes_it_an_error(site: Site, fault: str) -> None:
    source, reason = BROKEN[fault]
    site.add("b-broken", source)
    with pytest.raises(PluginError, match="b-broken") as caught:
        site.host(strict=True).components()
    assert reason in str(caught.value)
    assert caught.value.__cause__ is not None


def test_strict_mode_by_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("b-broken", "raise ValueError('boom')")
    monkeypatch.setenv("ALIGNKIT_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="boom") as caught:
        site.host().load()
    assert isinstance(caught.value.__cause__, ValueError)
    monkeypatch.setenv("ALIGNKIT_STRICT_PLUGINS", "0")
    site.host().load()


def test_interrupting_a_load_is_not_swallowed(site: Site) -> None:
    site.add("b-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.host().load()


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        ("alignkit>=0.1,<0.2", "enabled"),
        ("alignkit", "enabled"),
        ("", "enabled"),
        ("alignkit-other>=9", "enabled"),
        ('alignkit>=9; extra == "future"', "enabled"),
        ("alignkit>=9", "disabled"),
        ("AlignKit<0.1", "disabled"),
        ("alignkit (>=9)", "disabled"),
        ("alignkit=>9", "disabled"),
    ],
)
def test_the_core_version_is_checked_before_import(site: Site, requires: str, state: str) -> None:
    site.add("demo-core", GOOD.format(name="core_loss"), requires=requires)
    host = site.host()
    host.load()
    assert info_of(host, "demo-core").state == state
    assert ("demo_core" in sys.modules) == ("core_loss" in names(host)) == (state == "enabled")
    assert bool(info_of(host, "demo-core").reason) == (state == "disabled")


def test_block_and_allow_lists_apply_before_import(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("demo-one", GOOD.format(name="one_loss"))
    site.add("demo-two", GOOD.format(name="two_loss"))
    monkeypatch.setenv("ALIGNKIT_BLOCK_PLUGINS", "other, Demo_One")
    host = site.host()
    host.load()
    assert info_of(host, "demo-one").state == "blocked"
    assert "ALIGNKIT_BLOCK_PLUGINS" in info_of(host, "demo-one").reason
    assert "demo_one" not in sys.modules
    assert {"two_loss"} <= names(host)
    monkeypatch.delenv("ALIGNKIT_BLOCK_PLUGINS")
    monkeypatch.setenv("ALIGNKIT_LOAD_PLUGINS", "demo-one")
    assert {"one_loss"} <= names(site.host())
    assert "two_loss" not in names(site.host())
    assert {"two_loss"} <= names(site.host(allow=["demo-two"]))
    monkeypatch.setenv("ALIGNKIT_LOAD_PLUGINS", "")
    assert not {"one_loss", "two_loss"} & names(site.host())
    assert info_of(site.host(), "demo-one").state == "not loaded"
    monkeypatch.delenv("ALIGNKIT_LOAD_PLUGINS")
    assert not {"one_loss", "two_loss"} & names(site.host(block=["demo-one", "demo-two"]))


def test_lists_compare_names_as_package_indexes_do(site: Site) -> None:
    site.add("Demo_Three", GOOD.format(name="three_loss"))
    assert "three_loss" not in names(site.host(block=["demo-three"]))
    assert "three_loss" in names(site.host(allow=["DEMO.three"]))


def test_hooks_of_a_later_version_may_be_optional(site: Site) -> None:
    source = "@hookimpl(optionalhook=True)\ndef register_futures(register): pass\n"
    site.add("demo-later", GOOD.format(name="later_loss") + source)
    assert "later_loss" in names(site.host())


def test_a_misspelled_block_list_is_said(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.host(block=["demo-onne"]).load()
    assert any("demo-onne" in record.message for record in caplog.records)


# Names


def test_two_plugins_with_one_name_neither_wins(site: Site) -> None:
    site.add("z-one", GOOD.format(name="shared"), entry_point="zone")
    site.add("a-two", GOOD.format(name="shared"), entry_point="atwo")
    host = site.host()
    with pytest.raises(PluginError, match="ambiguous") as caught:
        host.build("loss", "shared(beta=1)")
    assert "a-two/shared" in str(caught.value)
    assert "z-one/shared" in str(caught.value)
    for name, owner in {"z-one/shared": "z-one", "zone/shared": "z-one", "A_two/shared": "a-two"}.items():
        assert host.resolve("loss", name).distribution == owner
        assert host.build("loss", f"{name}(beta=1)").distribution == owner
    with pytest.raises(PluginError, match="there is no loss called 'other/shared'") as caught:
        host.resolve("loss", "other/shared")
    assert "z-one/shared" in str(caught.value)


def test_one_name_for_two_kinds_is_not_ambiguous(site: Site) -> None:
    host = site.host()

    def reward(responses: list[str]) -> list[float]:
        return [0.0 for _ in responses]

    host.register(brings_loss("same", plain_loss), "one")
    host.register(notebook(register_rewards=lambda register: register("same", reward)), "two")
    assert host.resolve("loss", "same").object is plain_loss
    assert host.resolve("reward", "same").object is reward


def test_an_unknown_name_is_answered_with_the_near_and_the_known(site: Site) -> None:
    site.add("demo-near", GOOD.format(name="near_loss"))
    with pytest.raises(PluginError, match="did you mean near_loss") as caught:
        site.host().resolve("loss", "neer_loss")
    assert "Known: " in str(caught.value)


def test_an_absent_name_is_answered_with_its_install_line(site: Site) -> None:
    with pytest.raises(PluginError, match="pip install alignkit-constitutional"):
        site.host().resolve("annotator", "critique_revise")


def test_an_unknown_name_points_at_the_plugin_that_failed(site: Site) -> None:
    site.add("alignkit-mine", "raise ValueError('boom')", entry_point="mine")
    host = site.host()
    with pytest.raises(PluginError, match="alignkit-mine is installed but failed: ValueError: boom"):
        host.resolve("loss", "mine")
    with pytest.raises(PluginError, match=r"might bring it: alignkit-mine \(failed\)"):
        host.resolve("loss", "something_else")
    with pytest.raises(PluginError, match="alignkit-mine is installed but blocked"):
        site.host(block=["alignkit-mine"]).resolve("loss", "mine")


def test_every_kind_has_a_documented_hook() -> None:
    from alignkit.registry import hookspecs

    for hook in KINDS.values():
        assert "register(" in (getattr(hookspecs, hook).__doc__ or "")


# Registering by hand


def test_register_works_after_loading_and_replaces(site: Site) -> None:
    host = site.host()
    host.load()
    host.register(brings_loss("mine", plain_loss), "notebook")
    assert host.resolve("loss", "notebook/mine").object is plain_loss

    def better(logprobs: Any) -> Any:
        return logprobs

    host.register(brings_loss("mine", better), "notebook")
    assert host.resolve("loss", "mine").object is better


def test_a_faulty_plugin_by_hand_raises_and_leaves_the_old_one(site: Site) -> None:
    host = site.host()
    host.register(brings_loss("mine", plain_loss), "notebook")

    def wrong(chosen_logs: Any) -> Any:
        return chosen_logs

    for plugin in (
        brings_loss("mine", wrong),
        notebook(register_loses=lambda register: None),
        brings_loss("a b", wrong),
    ):
        with pytest.raises(PluginError, match="notebook"):
            host.register(plugin, "notebook")
        assert host.resolve("loss", "mine").object is plain_loss
    host.register(brings_loss("more", plain_loss), "other")
    assert {"mine", "more"} <= names(host)


def test_register_outside_its_hook_is_refused(site: Site) -> None:
    kept: list[Any] = []
    host = site.host()
    host.register(notebook(register_losses=lambda register: kept.append(register)), "notebook")
    with pytest.raises(PluginError, match="only by the hook"):
        kept[0]("late", plain_loss)
    assert "late" not in names(host)


# Kinds


def star(*logprobs: Any) -> Any: ...
def keywords(logprobs: Any, **more: Any) -> Any: ...
def positional_only(logprobs: Any, /) -> Any: ...
def nothing(*, beta: float = 0.1) -> Any: ...
def setting_without_star(logprobs: Any, beta: float = 0.1) -> Any: ...


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (star, "hides"),
        (keywords, "hides"),
        (positional_only, "by name"),
        (nothing, "asks for no tensor"),
        (setting_without_star, "'beta' is not a tensor.*keyword-only"),
    ],
)
def test_the_signature_of_a_loss_is_its_contract(site: Site, loss: Any, reason: str) -> None:
    with pytest.raises(PluginError, match=reason):
        site.host().register(brings_loss("odd", loss), "notebook")


def test_every_tensor_of_the_vocabulary_may_be_asked_for(site: Site) -> None:
    source = f"def everything({', '.join(VOCABULARY)}): ...\n"
    space: dict[str, Any] = {}
    exec(source, space)
    host = site.host()
    host.register(brings_loss("everything", space["everything"]), "notebook")
    assert host.build("loss", "everything").tensor_names == tuple(VOCABULARY)


PROVIDER = """
from dataclasses import dataclass
from typing import ClassVar
from alignkit import hookimpl
from alignkit.optimizers import PolicyOptimizer

@dataclass(frozen=True)
class Mine(PolicyOptimizer):
    provides: ClassVar[dict[str, str]] = {"novelty": "[responses], how new each response is"}
    kl_coef: float = 0.05

@hookimpl
def register_optimizers(register):
    register("mine", Mine)
"""

CONSUMER = """
from alignkit import hookimpl
def curious(logprobs, novelty): return logprobs
@hookimpl
def register_losses(register): register("curious", curious)
"""


def test_a_loss_may_use_what_a_plugin_loaded_later_provides(site: Site) -> None:
    site.add("a-consumer", CONSUMER)
    site.add("z-provider", PROVIDER)
    host = site.host()
    assert "curious" in names(host)
    assert host.provided_tensors() == {"novelty": "[responses], how new each response is"}


def test_without_the_provider_the_loss_is_refused(site: Site) -> None:
    site.add("a-consumer", CONSUMER)
    # The provider is refused for a loss of its own, which takes its tensors away from the consumer as well.
    site.add("z-provider", PROVIDER + CONSUMER.replace("curious", "own").replace("novelty", "noveltie"))
    host = site.host()
    assert not {"curious", "own"} & names(host)
    assert "unknown tensor 'novelty'" in info_of(host, "a-consumer").reason
    assert "'noveltie'" in info_of(host, "z-provider").reason


def test_optimizers_and_samplers_are_frozen_dataclasses(site: Site) -> None:
    from dataclasses import dataclass

    from alignkit.optimizers import PolicyOptimizer
    from alignkit.sampling import Sampler

    class Undecorated(PolicyOptimizer):
        kl_coef: float = 0.1

    class Undressed(Sampler):
        p_min: float = 0.1

    @dataclass(frozen=True)
    class Stranger:
        kl_coef: float = 0.1

    for hook, target, reason in [
        ("register_optimizers", Undecorated, "frozen dataclass"),
        ("register_samplers", Undressed, "frozen dataclass"),
        ("register_optimizers", Stranger, "not a class derived from alignkit.optimizers.PolicyOptimizer"),
        ("register_samplers", PolicyOptimizer, "not a class derived from alignkit.sampling.Sampler"),
    ]:
        plugin = notebook(**{hook: lambda register, target=target: register("odd", target)})
        with pytest.raises(PluginError, match=reason):
            site.host().register(plugin, "notebook")


def test_a_recipe_takes_run_first(site: Site) -> None:
    def recipe(policy: str) -> None: ...

    with pytest.raises(PluginError, match="first parameter of a recipe is `run`"):
        site.host().register(notebook(register_recipes=lambda register: register("odd", recipe)), "notebook")


# Building


def test_a_loss_is_bound_to_its_hyperparameters(site: Site) -> None:
    host = site.host()
    host.register(brings_loss("mine", plain_loss), "notebook")
    loss = host.build("loss", "mine(beta=2)")
    assert isinstance(loss, BoundLoss)
    assert (loss.name, loss.tensor_names, loss.distribution) == ("mine", ("logprobs",), "notebook")
    assert loss.hyperparameters == {"beta": 2}
    assert loss(logprobs=3) == -6
    assert host.build("loss", use("mine"))(logprobs=10) == pytest.approx(-1)
    assert host.build("loss", plain_loss)(logprobs=10) == pytest.approx(-1)
    assert host.build("loss", loss) is loss


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("mine(betta=1)", "no hyper-parameter is called 'betta'; did you mean 'beta'.*beta=0.1"),
        ("mine(beta='x')", "beta is float, not 'x'"),
        ("mine(beta=True)", "beta is float, not True"),
        ("mine(beta=cosine)", "beta is float, not cosine"),
    ],
)
def test_a_wrong_hyperparameter_is_explained(site: Site, spec: str, reason: str) -> None:
    host = site.host()
    host.register(brings_loss("mine", plain_loss), "notebook")
    with pytest.raises(PluginError, match=reason):
        host.build("loss", spec)


def test_an_optimizer_is_built_with_components_left_in_place(site: Site) -> None:
    site.add("z-provider", PROVIDER)
    host = site.host()
    built = host.build("optimizer", "mine(kl_coef=0.2, loss=nll)")
    assert (built.kl_coef, built.loss) == (0.2, use("nll"))
    assert host.build("optimizers", built) is built
    assert host.resolve("optimizer", built).qualified == "z-provider/mine"
    assert host.build("optimizer", type(built)).kl_coef == 0.05
    with pytest.raises(PluginError, match=r"optimizer z-provider/mine: .*epochs=0"):
        host.build("optimizer", "mine(epochs=0)")
    with pytest.raises(PluginError, match=r"schedule is str, not cosine\. Remedy: write schedule='cosine'"):
        host.build("optimizer", "mine(schedule=cosine)")


def test_functions_and_classes_are_built_with_their_settings(site: Site) -> None:
    class Judge:
        def __init__(self, model: str, *, orders: int = 2) -> None:
            self.model, self.orders = model, orders

    def length(responses: list[str], *, scale: float = 1.0) -> list[float]:
        return [scale * len(text) for text in responses]

    host = site.host()
    rewards = notebook(register_rewards=lambda register: (register("judge", Judge), register("length", length))[0])
    host.register(rewards, "notebook")
    assert host.build("reward", "judge(model='m', orders=1)").orders == 1
    with pytest.raises(PluginError, match="model must be given"):
        host.build("reward", "judge")
    assert host.build("reward", "length(scale=2)")(["ab"]) == [4]
    assert host.build("reward", length) is length


def test_the_default_host_is_one() -> None:
    assert default_host() is default_host()


# For real


PROJECT = """
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "0.3.0"
dependencies = ["alignkit>=0.1,<0.2"]
[project.entry-points.alignkit]
{module} = "{module}"
[tool.setuptools]
py-modules = ["{module}"]
"""


@pytest.mark.slow
def test_distributions_built_and_installed_for_real(tmp_path: Path) -> None:
    sources = {
        "acme-good": GOOD.format(name="acme_loss"),
        "acme-broken": "raise RuntimeError('from the wheel')",
        "acme-same": GOOD.format(name="acme_loss"),
    }
    for name, source in sources.items():
        module = name.replace("-", "_")
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(PROJECT.format(name=name, module=module))
        (tmp_path / name / f"{module}.py").write_text(source)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, *(tmp_path / name for name in sources)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": str(target)}
    listing = subprocess.run(
        [sys.executable, "-m", "alignkit.cli", "plugins", "--json", "--components"],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    plugins = {plugin["distribution"]: plugin for plugin in json.loads(listing.stdout)}
    assert {name: plugins[name]["state"] for name in sources} == {
        "acme-good": "enabled",
        "acme-broken": "failed",
        "acme-same": "enabled",
    }
    assert "from the wheel" in plugins["acme-broken"]["reason"]
    assert plugins["acme-good"]["version"] == "0.3.0"
    assert plugins["acme-good"]["components"][0]["hyperparameters"] == {"beta": "0.1", "scale": "1.0"}
    code = """from alignkit.registry.host import default_host
print(default_host().resolve("loss", "acme-good/acme_loss").qualified)"""
    used = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert used.stdout.strip() == "acme-good/acme_loss"

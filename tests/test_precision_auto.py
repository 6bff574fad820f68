"""`precision="auto"`: bfloat16 where it is computed natively, and the word that it came to in every key and record."""

from __future__ import annotations

import inspect
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Groups, LoRA, Run, cli, trainer
from alignkit.errors import ConfigError
from alignkit.run import compare_runs, run_recipe
from alignkit.run_folder import read_run

RECIPE = """
from alignkit import Groups, Run

def main(run: Run) -> None:
    run.sample(run.policy("tiny"), Groups.from_prompts(["tea"]), 1, max_new_tokens=2)
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The machine is asked, as outside of tests."""
    monkeypatch.delenv(trainer.VARIABLE)
    return monkeypatch


def processor(
    patch: pytest.MonkeyPatch, kernels: bool, avx512: bool = False, amx: bool = False, arm: bool = False
) -> None:
    """A machine without GPUs whose processor has these."""
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.backends.mps, "is_available", lambda: False)
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: kernels)
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    patch.setattr(platform, "machine", lambda: "aarch64" if arm else "x86_64")


@pytest.mark.parametrize(
    ("has", "word", "why"),
    [
        ({"kernels": True, "avx512": True}, "bf16-mixed", "avx512_bf16"),
        ({"kernels": True, "amx": True}, "bf16-mixed", "amx_bf16"),
        ({"kernels": True, "arm": True}, "bf16-mixed", "arm bf16"),
        ({"kernels": True}, "32-true", "no unit"),  # AVX-512 alone: oneDNN emulates
        ({"kernels": False, "avx512": True}, "32-true", "no unit"),
        ({"kernels": False, "arm": True}, "32-true", "no unit"),
    ],
)
def test_a_processor_computes_in_bfloat16_where_it_has_a_unit(asked: Any, has: Any, word: str, why: str) -> None:
    processor(asked, **has)
    chosen, said = trainer.chosen_precision("auto", {})
    assert chosen == word
    assert why in said


@pytest.mark.parametrize(("native", "word"), [(True, "bf16-mixed"), (False, "32-true")])
def test_of_a_gpu_its_own_unit_counts_and_no_emulation(asked: Any, native: bool, word: str) -> None:
    processor(asked, kernels=True, avx512=not native)  # the processor's would say the opposite
    asked.setattr(torch.cuda, "is_available", lambda: True)
    asked.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    asked.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert trainer.chosen_precision("auto", {})[0] == word
    assert trainer.chosen_precision("auto", {"accelerator": "cpu"})[0] != word


def test_on_a_device_of_another_kind_it_is_float32(asked: Any) -> None:
    processor(asked, kernels=True, avx512=True)
    asked.setattr(torch.backends.mps, "is_available", lambda: True)
    assert trainer.chosen_precision("auto", {})[0] == "32-true"


def test_a_word_is_as_it_is_on_any_machine(asked: Any) -> None:
    asked.setattr(trainer, "bfloat16_unit", lambda kind: pytest.fail("nobody is asked"))
    assert [trainer.chosen_precision(word, {}) for word in ("bf16", 32)] == [("bf16-mixed", ""), ("32-true", "")]


def test_the_variable_speaks_for_auto_alone(asked: Any, tmp_path: Path) -> None:
    asked.setenv(trainer.VARIABLE, "64")
    assert trainer.chosen_precision("auto", {}) == ("64-true", "ALIGNKIT_PRECISION says so")
    assert trainer.chosen_precision("bf16-mixed", {})[0] == "bf16-mixed"
    asked.setenv(trainer.VARIABLE, "auto")
    with pytest.raises(ConfigError, match="precision='auto'"):
        Run(tmp_path / "r", precision="auto")


def test_recipes_choose_by_themselves_and_a_run_in_a_script_is_float32() -> None:
    assert inspect.signature(run_recipe).parameters["precision"].default == "auto"
    assert inspect.signature(Run).parameters["precision"].default == "32-true"


def test_keys_and_records_have_the_word_and_another_machine_says_what_differs(
    asked: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talk.py").write_text(RECIPE)
    run, command = tmp_path / "r", ["run", str(tmp_path / "talk.py"), "--run-dir", str(tmp_path / "r")]
    processor(asked, kernels=True, avx512=True)
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    assert "precision bf16-mixed: this processor computes bfloat16 natively: avx512_bf16" in first.split("policy")[0]
    assert "made anew" not in first
    record = read_run(run)
    assert record.precision == "bf16-mixed"
    assert {stage.identity["precision"] for stage in record.stages} == {"bf16-mixed"}

    processor(asked, kernels=True)
    assert cli.main(command) == 0
    second = capsys.readouterr().out
    assert "were made in bf16-mixed, and are made anew; to go on with them: --precision bf16-mixed" in second
    assert "sample: changed precision" in second
    assert {stage.identity["precision"] for stage in read_run(run).stages} == {"32-true"}

    assert cli.main([*command, "--precision", "bf16-mixed"]) == 0
    assert [stage.key for stage in read_run(run).stages] == [stage.key for stage in record.stages]


def test_auto_and_its_word_are_one_run(asked: Any, tmp_path: Path) -> None:
    processor(asked, kernels=True)

    def keys(name: str, precision: str) -> list[str]:
        with Run(tmp_path / name, precision=precision, quiet=True) as run:
            run.sample(run.policy("tiny", lora=LoRA(r=2)), Groups.from_prompts(["tea"]), 1, max_new_tokens=2)
        return [stage.key for stage in run.made]

    assert keys("one", "auto") == keys("two", "32-true")
    assert "precision" not in compare_runs(tmp_path / "one", tmp_path / "two")

"""A GGUF file is opened once however often transformers asks, and only while a model is loaded."""

from __future__ import annotations

import numpy
import pytest

from alignkit.models.gguf_once import reading_once

gguf = pytest.importorskip("gguf")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_file_is_opened_once_and_a_table_of_names_made_once(file):
    plain = gguf.GGUFReader, gguf.get_tensor_name_map
    with reading_once():
        first, again = gguf.GGUFReader(str(file)), gguf.GGUFReader(str(file))
        assert first is again
        assert type(first.data) is not numpy.memmap, "parts of a plain array are cut several times as fast"
        assert int(first.fields["llama.block_count"].parts[-1][0]) == 2
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is table
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3) is not table
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == plain
    assert gguf.GGUFReader(str(file)) is not first


def test_the_library_is_as_it_was_after_an_error():
    plain = gguf.GGUFReader
    with pytest.raises(ValueError, match="torn"), reading_once():
        raise ValueError("torn")
    assert gguf.GGUFReader is plain

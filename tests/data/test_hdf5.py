from __future__ import annotations

import os
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import hdf5 as module
from nanollama.data.gssm import draw_kernels
from nanollama.data.hdf5 import DatasetReader, DatasetWriter, target_problems
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import two_nodes


def write(
    path: Path, *, spec: GSSMSpec | None = None, count: int = 20, seed: int = 4, split: str = "train"
) -> np.ndarray:
    kernels = draw_kernels(spec or two_nodes(), seed)
    tokens = Sampler(kernels, seed, split).sample(range(count), 12)
    with DatasetWriter(path, kernels, split=split, seq_len=12) as writer:
        writer.append(tokens[: count // 3])
        writer.append(tokens[count // 3 :])
    return tokens


def test_sets_survive_the_file(tmp_path):
    tokens = write(tmp_path / "deep" / "down" / "train.h5")
    reader = DatasetReader(tmp_path / "deep" / "down" / "train.h5")
    assert (len(reader), reader.seq_len, reader.vocab_size) == (20, 12, 6)
    assert (reader.seed, reader.split, reader.spec) == (4, "train", two_nodes())
    assert np.array_equal(reader.read(slice(0, 20)), tokens)
    order = np.array([7, 0, 19, 3])
    assert np.array_equal(reader.read(order), tokens[order])
    assert reader.read(order).dtype == np.uint8
    assert reader.kernels().content_hash() == draw_kernels(two_nodes(), 4).content_hash()
    reader.close()


def test_a_graph_with_a_long_description_fits(tmp_path):
    names = [f"{i:03}-{'n' * 58}" for i in range(60)]
    nodes = [NodeSpec(name=n, state_dim=1, alpha=1, parents=tuple(names[:i])) for i, n in enumerate(names)]
    spec = GSSMSpec(nodes=(*nodes, NodeSpec(name="X", state_dim=2, alpha=1, parents=tuple(names), observed=True)))
    write(tmp_path / "train.h5", spec=spec)
    assert DatasetReader(tmp_path / "train.h5").spec == spec


@settings(deadline=None, max_examples=40)
@given(
    parts=st.lists(st.integers(0, 40), max_size=6),
    rows=st.integers(1, 9),
    symbols=st.sampled_from([6, 300]),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_parts_of_any_size_make_one_set_that_plain_hdf5_reads(parts, rows, symbols, threads, data):
    kernels = draw_kernels(two_nodes(symbols), 0)
    tokens = np.random.default_rng(0).integers(symbols, size=(sum(parts), 5))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a.h5"
        patch.setattr(module, "_CHUNK_BYTES", rows * 5 * (1 if symbols < 256 else 2))
        patch.setattr(module, "_CHUNKS_PER_TASK", 2)
        patch.setattr(module, "_FIRST_CHUNKS", 1)
        with DatasetWriter(path, kernels, split="a", seq_len=5, threads=threads) as writer:
            for part in np.split(tokens, np.cumsum(parts)[:-1]) if parts else []:
                writer.append(part)
        with h5py.File(path) as file:
            assert file["tokens"].chunks == (rows, 5)
            assert np.array_equal(file["tokens"][:], tokens)
        reader = DatasetReader(path)
        assert np.array_equal(reader.read(slice(None)), tokens)
        chosen = data.draw(st.lists(st.integers(0, max(0, len(tokens) - 1)), max_size=20 if len(tokens) else 0))
        indices = np.array(chosen, dtype=np.int64)
        assert np.array_equal(reader.read(indices), tokens[indices])
        reader.close()


def test_tokens_that_are_no_symbols_are_not_written(tmp_path):
    writer = DatasetWriter(tmp_path / "a.h5", draw_kernels(two_nodes(), 0), split="a", seq_len=5)
    with pytest.raises(ValueError, match=r"lie in -1 \.\. 6, but there are 6 symbols"), writer:
        writer.append(np.array([[0, 1, 2, 6, -1]]))
    assert list(tmp_path.iterdir()) == []


def test_a_token_takes_less_than_its_byte(tmp_path):
    spec = two_nodes(32)
    kernels = draw_kernels(spec, 0)
    with DatasetWriter(tmp_path / "a.h5", kernels, split="a", seq_len=256) as writer:
        writer.append(Sampler(kernels, 0, "a").sample(range(2000), 256))
    assert (tmp_path / "a.h5").stat().st_size < 0.8 * 2000 * 256


def append_wrongly(writer: DatasetWriter) -> None:
    with writer:
        writer.append(np.zeros((3, 5), dtype=np.int64))
        writer.append(np.zeros((3, 4), dtype=np.int64))


def test_an_error_while_writing_leaves_nothing(tmp_path):
    kernels = draw_kernels(two_nodes(), 0)
    with pytest.raises(ValueError, match=r"shape \[3, 4\], but the set takes \[N, 5\]"):
        append_wrongly(DatasetWriter(tmp_path / "a.h5", kernels, split="a", seq_len=5))
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_replacing_leaves_the_old_file(tmp_path):
    tokens = write(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"shape \[3, 4\], but the set takes \[N, 5\]"):
        append_wrongly(DatasetWriter(tmp_path / "a.h5", draw_kernels(two_nodes(), 0), split="a", seq_len=5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert np.array_equal(DatasetReader(tmp_path / "a.h5").read(slice(None)), tokens)


@pytest.fixture
def damaged(tmp_path):
    """A set to damage, and the message that reading it then gives."""
    path = tmp_path / "train.h5"
    write(path)

    def read() -> None:
        reader = DatasetReader(path)
        try:
            reader.kernels()
            reader.read(slice(None))
        finally:
            reader.close()

    def message() -> str:
        with pytest.raises(SpecError) as caught:
            read()
        (problem,) = caught.value.problems
        assert problem.path == "data.path"
        assert problem.remedy
        assert str(path) in problem.message
        return problem.message

    return path, message


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + b"\x00" * 64])
def test_files_that_are_not_hdf5_are_refused(damaged, content):
    path, message = damaged
    path.write_bytes(content)
    assert "not a readable HDF5 file" in message()


def test_a_missing_file_and_a_directory_are_refused(damaged):
    path, message = damaged
    path.unlink()
    assert "there is no file" in message()
    path.mkdir()
    assert "not a readable HDF5 file" in message()


def test_a_truncated_file_is_refused(damaged):
    path, message = damaged
    path.write_bytes(path.read_bytes()[:-200])
    assert "not a readable HDF5 file" in message()


def test_each_damaged_bit_of_the_tokens_is_noticed_or_changes_nothing(damaged):
    path, message = damaged
    tokens = write(path, count=2000)  # fills the first chunk
    with h5py.File(path) as file:
        chunk = file["tokens"].id.get_chunk_info(0)
    content = path.read_bytes()
    ends = [*range(16), *range(8 * chunk.size - 40, 8 * chunk.size)]
    harmless, messages = 0, set()
    for bit in [*ends, *np.random.default_rng(0).choice(8 * chunk.size, size=200, replace=False)]:
        damage = bytearray(content)
        damage[chunk.byte_offset + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damage)
        reader = DatasetReader(path)
        try:
            assert np.array_equal(reader.read(slice(None)), tokens)
            harmless += 1
        except SpecError as error:
            messages.add(str(error))
        reader.close()
    assert all("is damaged" in text for text in messages)
    assert harmless <= 8, "no more than the bits that fill up the last byte"
    path.write_bytes(damage[: chunk.byte_offset] + bytes(100) + damage[chunk.byte_offset + 100 :])
    assert "is damaged" in message()


def test_hdf5_files_of_others_are_refused(damaged):
    path, message = damaged
    with h5py.File(path, "w") as file:
        file["tokens"] = np.zeros((4, 4))
    assert "is not a set of GSSM sequences" in message()


def edit(path: Path, **attributes) -> None:
    with h5py.File(path, "r+") as file:
        for key, value in attributes.items():
            if value is None:
                del file.attrs[key]
            else:
                file.attrs[key] = value


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"format": None}, "is not a set of GSSM sequences"),
        ({"format_version": 99}, "has format version 99, this is 1"),
        ({"spec": "{"}, "has broken attributes"),
        ({"spec": '{"nodes": []}'}, "no node is observed"),
        ({"spec": None}, "has broken attributes"),
        ({"seed": "x"}, "has broken attributes"),
        ({"entropy": 1.0}, "has broken attributes"),
        ({"seq_len": 9}, "unlike its attributes say"),
        ({"seed": 5}, "are not those that made it"),
        ({"kernels_hash": "0" * 64}, "are not those that made it"),
    ],
)
def test_broken_attributes_are_refused(damaged, attributes, text):
    path, message = damaged
    edit(path, **attributes)
    assert text in message()


def test_symbols_beyond_the_vocabulary_are_refused(damaged):
    path, message = damaged
    with h5py.File(path, "r+") as file:
        file["tokens"][3, 3] = 6
    assert "holds the symbol 6, but its graph has 6 symbols" in message()


def test_a_file_without_tokens_is_refused(damaged):
    path, message = damaged
    with h5py.File(path, "r+") as file:
        del file["tokens"]
    assert "has broken attributes" in message()


def test_targets_are_checked_without_creating_anything(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "shut").mkdir(mode=0o500)
    names = [str(tmp_path / name) for name in ("new/deep/a.h5", "file", "file/a.h5", ".")]
    found = {p.path: p.message.removeprefix(str(tmp_path)) for p in target_problems(names, overwrite=False)}
    assert found == {
        "sets.1.path": "/file exists",
        "sets.2.path": "/file is not a directory",
        "sets.3.path": " is a directory" if names[3] == str(tmp_path) else "/. is a directory",
    }
    assert [p.path for p in target_problems(names, overwrite=True)] == ["sets.2.path", "sets.3.path"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "shut"]
    if os.geteuid() != 0:  # root may write everywhere
        (problem,) = target_problems([str(tmp_path / "shut" / "a.h5")], overwrite=False)
        assert "is not writable" in problem.message


def test_one_file_under_two_spellings_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    names = ["a.h5", "./a.h5", str(tmp_path / "a.h5"), "real/b.h5", "link/b.h5", "real/a.h5"]
    found = {p.path: p.message for p in target_problems(names, overwrite=True)}
    assert found == {
        "sets.1.path": "./a.h5 is the same file as a.h5 of sets.0",
        "sets.2.path": f"{tmp_path}/a.h5 is the same file as a.h5 of sets.0",
        "sets.4.path": "link/b.h5 is the same file as real/b.h5 of sets.3",
    }

"""Headers from strangers: whatever is wrong with one, the file is refused with a reason, quickly."""

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expert_store import InvalidAdapter, weights
from expert_store.weights import MAX_HEADER_BYTES, check_finite, has_effect, read_header

from .samples import adapter_tensors, bf16_bytes, safetensors_bytes, write_adapter


def entry(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]} | more


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InvalidAdapter) as caught:
        read_header(path)
    assert caught.value.field == "adapter_model.safetensors"
    return caught.value.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 7, b"\0" * 8, b"\1" + b"\0" * 7 + b"{", b"\xff" * 64, (100).to_bytes(8, "little") + b"{}"],
    ids=["empty", "short", "no header", "one byte", "negative length", "longer than the file"],
)
def test_a_length_that_cannot_be_is_refused(path: Path, data: bytes) -> None:
    assert "not a safetensors file" in refusal(path, data)


def test_a_huge_header_is_not_read(path: Path) -> None:
    message = refusal(path, safetensors_bytes(b"{" + b" " * MAX_HEADER_BYTES + b"}", b""))
    assert str(MAX_HEADER_BYTES) in message


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xff",
        b"{" + b'"a":{' * 100_000,
        b'{"a": 1}',
        b'{"a": []}',
        b'{"a": NaN}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"format": 1}}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}',
    ],
)
def test_a_header_that_is_not_as_specified_is_refused(path: Path, header: bytes) -> None:
    assert "adapter_model.safetensors" in refusal(path, safetensors_bytes(header, b"\0" * 8))


@pytest.mark.parametrize(
    "wrong",
    [
        entry(begin=-8, end=0),
        entry(begin=8, end=0),
        entry(begin=0, end=2**70),
        entry(begin=2**63, end=2**63 + 8),
        entry(begin="0", end="8"),
        entry(begin=0.0, end=8.0),
        entry(begin=False, end=8),
        entry(shape=(-2,)),
        entry(shape=(2.0,)),
        entry(shape=(True, 2)),
        entry(shape=(3,)),
        entry(shape=(2**40, 2**40)),
        entry(shape=(10**3000, 10**3000)),
        entry(begin=10**4200, end=10**4200 + 8),
        entry(shape=(1,) * 9 + (2,)),
        entry(dtype="F64"),
        entry(dtype="I8"),
        entry(dtype=None),
        entry(dtype=["F32"]),
        entry(more=1),
        entry() | {"shape": "2"},
        entry() | {"data_offsets": [0]},
        entry() | {"data_offsets": [0, 8, 8]},
        entry() | {"data_offsets": None},
        {"dtype": "F32", "shape": [2]},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_an_entry_that_is_not_as_specified_is_refused(path: Path, wrong: dict[str, Any]) -> None:
    assert "a" in refusal(path, safetensors_bytes({"a": wrong}, b"\0" * 8))


@pytest.mark.parametrize(
    ("entries", "size_bytes"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
        ({"a": entry(8, 16)}, 16),
        ({"a": entry(0, 8)}, 9),
        ({"a": entry(0, 8)}, 7),
        ({}, 1),
    ],
    ids=["overlap", "same place", "gap", "late start", "more bytes", "fewer bytes", "no tensor"],
)
def test_tensors_must_fill_the_file(path: Path, entries: dict[str, Any], size_bytes: int) -> None:
    assert "adapter_model.safetensors" in refusal(path, safetensors_bytes(entries, b"\0" * size_bytes))


def test_no_header_keeps_the_reader_busy(path: Path) -> None:
    """Each of these would take minutes with the obvious code: long products, or counting keys in a loop."""
    begin = time.process_time()
    refusal(path, safetensors_bytes({"a": entry(shape=[2**60] * 190_000)}, b""))
    keys = ",".join(f'"{i}":0' for i in range(300_000))
    refusal(path, safetensors_bytes(f'{{{keys},"0":0}}'.encode(), b""))
    refusal(path, safetensors_bytes(b'{"a":' + b"9" * 100_000 + b"}", b""))
    assert time.process_time() - begin < 5


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    tensors = read_header(folder / "adapter_model.safetensors")
    expected = adapter_tensors()
    assert {tensor.key: tensor.shape for tensor in tensors} == {key: value.shape for key, value in expected.items()}
    check_finite(folder / "adapter_model.safetensors", tensors)
    found = {tensor.key for tensor in tensors if has_effect(folder / "adapter_model.safetensors", [(tensor, tensor)])}
    assert found == expected.keys()


def test_padding_metadata_and_odd_offsets_are_read(path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": entry(0, 8), "b": entry(8, 8, shape=(0,))}) + "   "
    path.write_bytes(safetensors_bytes(header.encode(), b"\0" * 8))
    tensors = read_header(path)
    assert [(tensor.key, tensor.num_values) for tensor in tensors] == [("a", 2), ("b", 0)]
    check_finite(path, tensors)
    assert not has_effect(path, ((tensor, tensor) for tensor in tensors))


def test_every_number_is_looked_at_whatever_its_format_and_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of one format are looked at as one, in pieces that end inside them."""
    monkeypatch.setattr(weights, "_PIECE_VALUES", 3)
    formats = [("F32", np.float32, 4), ("F16", np.float16, 2)]
    entries, values = {}, []
    for number in range(8):
        name, kind, size = formats[number // 4]
        begin = sum(value.nbytes for value in values)
        entries[f"t{number}"] = entry(begin, begin + 5 * size, shape=(5,), dtype=name)
        values.append(np.ones(5, kind))
    header = json.dumps(entries).encode()
    for wrong, bad in product(range(8), (np.nan, np.inf, -np.inf)):
        for place in range(5):
            changed = [value.copy() for value in values]
            changed[wrong][place] = bad
            path.write_bytes(safetensors_bytes(header, b"".join(value.tobytes() for value in changed)))
            with pytest.raises(InvalidAdapter, match=f"t{wrong}.*NaN or infinite"):
                check_finite(path, read_header(path))
    path.write_bytes(safetensors_bytes(header, b"".join(value.tobytes() for value in values)))
    check_finite(path, read_header(path))


def test_an_effect_takes_two_factors_that_are_not_all_zero(path: Path) -> None:
    header = json.dumps({key: entry(8 * i, 8 * i + 8) for i, key in enumerate("abcd")}).encode()
    for zero in range(16):
        numbers = np.array([[0, -float(not zero >> i & 1)] for i in range(4)], np.float32)
        path.write_bytes(safetensors_bytes(header, numbers.tobytes()))
        a, b, c, d = read_header(path)
        assert has_effect(path, [(a, b), (c, d)]) == (zero & 3 == 0 or zero & 12 == 0)


def test_the_installed_safetensors_reads_our_bf16(path: Path) -> None:
    from safetensors import safe_open

    path.write_bytes(bf16_bytes(adapter_tensors()))
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {tensor.key for tensor in read_header(path)}

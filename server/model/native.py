"""Compiles and loads `kernels.c`, and calls it with tensors. Knows pointers and shapes; nothing of models or sequences.

A C compiler is not required: without one, or on another processor or number format, torch does the same in more
operations. The library is built once for each level of processor (six to ten seconds) and named for what went into
it, so that an image can bring the libraries along instead of a compiler.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor
from torch.nn.functional import pad

# Legend: T tokens, I/O input and output width, F width of the MLP, H query heads, K key/value heads, D head width,
# C block_tokens, S slots, P linears side by side, R slot_rank.

log = structlog.get_logger()

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    *("-O3", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
)
LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}  # what torch calls them, what compilers do
_COMPILE_SECONDS = 60
_LONG_QUERIES = 64  # tokens of a step whose attention takes long enough to give the interpreter up
_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "panel_width": [],
    "multiply": [_POINTER] * 5 + [_INTEGER] * 3 + [_POINTER],
    "add_norm": [_POINTER] * 4 + [_INTEGER] * 2 + [_FLOAT],
    "swiglu": [_POINTER] * 2 + [_INTEGER] * 2,
    "rotate_and_store": [_POINTER] * 5 + [_INTEGER] * 6,
    "copy_tokens": [_POINTER] * 2 + [_INTEGER] * 4,
    "attend": [_POINTER, _INTEGER] + [_POINTER] * 8 + [_INTEGER] * 5 + [_FLOAT, _INTEGER, _POINTER, _INTEGER, _INTEGER],
    "attend_scratch": [_INTEGER] * 3,
    "add_terms": [_POINTER, _INTEGER, _POINTER, _INTEGER] + [_POINTER] * 6 + [_INTEGER] * 3 + [_POINTER],
    "fill_slots": [_POINTER] * 2 + [_INTEGER, _POINTER] + [_INTEGER] * 3,
    "run_layers": [_POINTER, _INTEGER, _POINTER],
}
_RESULTS = {"panel_width": _INTEGER, "attend_scratch": _INTEGER}  # the others return nothing


def applies_to(weight: Tensor) -> bool:
    """True for the number format the kernels are written for, on the CPU."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def load_kernels(cache: Path) -> "Kernels | None":
    """The kernels for this processor, compiled into `cache` unless they are there; None where they are not written for
    it, and, with a warning, where they cannot be had."""
    level = LEVELS.get(torch.backends.cpu.get_cpu_capability())
    if level is None:
        return None
    try:
        return _loaded(cache, level)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        log.warning("kernels_absent", hint="steps take longer without: install gcc", level=level, detail=detail[-500:])
        return None


def _loaded(cache: Path, level: str) -> "Kernels":
    library = build(cache, level)
    try:
        return Kernels(library)
    except OSError:  # cut short by a crash, say
        library.unlink()
        return Kernels(build(cache, level))


def build(cache: Path, level: str) -> Path:
    """The library for a level of processor in `cache`; built beside its place and renamed into it when whole.

    Raises OSError or SubprocessError.
    """
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()
    folder = cache / "kernels"
    library = folder / f"{level}-{digest[:16]}.so"
    if library.exists():
        return library
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as building:
        compiled, linked = Path(building) / "kernels.o", Path(building) / "kernels.so"
        _run(compiler, *_FLAGS, f"-march={level}", "-c", str(_SOURCE), "-o", str(compiled))
        _run(compiler, "-shared", str(compiled), "-o", str(linked))
        os.replace(linked, library)
    return library


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True, timeout=_COMPILE_SECONDS)


class Kernels:
    """The functions of `kernels.c`; see there for what each computes. All tensors are bf16 unless said otherwise.

    In a decode step they are short, so the interpreter is kept while they run: giving it up and fighting for it takes
    longer. In a prefill attention is not, and others may have it; products always give it up, as torch's do, and so do
    all layers in one call.
    """

    def __init__(self, library: Path) -> None:
        self._library = _declared(ctypes.PyDLL(str(library)))
        self._releasing = _declared(ctypes.CDLL(str(library)))

    def panels(self, weight_OI: Tensor) -> Tensor:
        """The weight as `multiply` reads it, [panels, I, columns of a panel], filled up with zeros."""
        width: int = self._library.panel_width()
        filled_OI = pad(weight_OI, (0, 0, 0, -len(weight_OI) % width))
        return filled_OI.view(-1, width, weight_OI.shape[1]).transpose(1, 2).contiguous()

    def multiply(
        self, x_TI: Tensor, panels: Tensor, scales: Tensor | None, bias_O: Tensor | None, width: int
    ) -> Tensor:
        """[T, I] -> [T, O]: x W^T + b, where W has `width` rows O. A row's result is the same among any others.

        Panels are bf16, or int8 with `scales`: fp32, one for each column of the panels.
        """
        x_TI = x_TI.contiguous()
        y_TO = x_TI.new_empty(len(x_TI), width)
        room = torch.empty(x_TI.numel(), dtype=torch.float32)
        scale, bias = (None if tensor is None else tensor.data_ptr() for tensor in (scales, bias_O))
        pointers = (x_TI.data_ptr(), panels.data_ptr(), scale, bias, y_TO.data_ptr())
        self._releasing.multiply(*pointers, *x_TI.shape, width, room.data_ptr())
        return y_TO

    def add_norm(self, sum_TI: Tensor, delta_TI: Tensor | None, weight_I: Tensor, epsilon: float) -> Tensor:
        """[T, I]: adds `delta` to `sum`, in place, and returns RMSNorm of that."""
        normed_TI = torch.empty_like(sum_TI)
        delta = None if delta_TI is None else delta_TI.data_ptr()
        pointers = (sum_TI.data_ptr(), delta, weight_I.data_ptr(), normed_TI.data_ptr())
        self._library.add_norm(*pointers, *sum_TI.shape, epsilon)
        return normed_TI

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """[T, 2 F] -> [T, F]"""
        rows, both = gate_up.shape
        product_TF = gate_up.new_empty(rows, both // 2)
        self._library.swiglu(gate_up.data_ptr(), product_TF.data_ptr(), rows, both // 2)
        return product_TF

    def rotate_and_store(
        self, qkv: Tensor, cos_TD: Tensor, sin_TD: Tensor, cache: Tensor, place_T: Tensor, *, num_rotated: int
    ) -> None:
        """Rotates queries and keys of `qkv` [T, H + 2 K, D] in place and puts keys and values into a layer's cache.

        fp32 cosines and sines; place_T int64: the row of D numbers in `cache` [blocks, 2 K, C, D] for head 0.
        """
        pointers = (t.data_ptr() for t in (qkv, cos_TD, sin_TD, cache, place_T))
        tokens, heads, width = qkv.shape
        self._library.rotate_and_store(
            *pointers, tokens, heads, num_rotated, cache.shape[1] // 2, width, cache.shape[2]
        )

    def copy_tokens(self, cache: Tensor, copies: Tensor) -> None:
        """The first n tokens of block `source` of a layer's cache [blocks, 2 K, C, D] also in `target`, for each
        (source, target, n) of `copies`, int64."""
        self._library.copy_tokens(cache.data_ptr(), copies.data_ptr(), len(copies), *cache.shape[1:])

    def attend_scratch(self, spans: "NativeSpans", group: int, width: int, block_tokens: int) -> int:
        """How many fp32 numbers `attend` needs for each thread, where so many query heads share a head of keys."""
        size: int = self._library.attend_scratch(spans.most_queries * group, width, block_tokens)
        return size

    def attend(
        self,
        query_THD: Tensor,
        cache: Tensor,
        output_THD: Tensor,
        spans: "NativeSpans",
        scale: float,
        window: int | None,
    ) -> None:
        """Attention of the spans to their sequences; only the query's tokens need not lie one behind the other."""
        num_heads, width = query_THD.shape[1:]
        num_kv_heads, block_tokens = cache.shape[1] // 2, cache.shape[2]
        size = self.attend_scratch(spans, num_heads // num_kv_heads, width, block_tokens)
        threads = torch.get_num_threads()
        scratch = torch.empty(threads * size, dtype=torch.float32)
        library = self._releasing if query_THD.shape[0] > _LONG_QUERIES else self._library
        library.attend(
            query_THD.data_ptr(),
            query_THD.stride(0),
            cache.data_ptr(),
            output_THD.data_ptr(),
            *spans.pointers,
            spans.num_families,
            num_heads,
            num_kv_heads,
            width,
            block_tokens,
            scale,
            window or 0,
            scratch.data_ptr(),
            size,
            threads,
        )

    def add_terms(
        self, y_TO: Tensor, x_TI: Tensor, a: Tensor, b: "NativeParts", runs: "NativeRuns", layer: int | None
    ) -> None:
        """y += x A^T B, in place, for tokens that each have their own slots; a [S, P, R, I].

        `layer` is the decoder layer the linears are part of, by which mixtures weigh their experts.
        """
        _, parts, rank, width = a.shape
        h = torch.empty(runs.num_pairs * parts * rank, dtype=torch.float32)
        self._library.add_terms(
            y_TO.data_ptr(),
            y_TO.stride(0),
            x_TI.data_ptr(),
            width,
            a.data_ptr(),
            b.pointers.data_ptr(),
            b.edges.data_ptr(),
            runs.table.data_ptr(),
            runs.slots.data_ptr(),
            runs.weights(layer),
            runs.table.shape[0],
            parts,
            rank,
            h.data_ptr(),
        )

    def run_layers(self, layers: Tensor, step: "NativeStep") -> None:
        """All layers of a decoder, a row of `layers` as `Layer` in `kernels.c` for each."""
        self._releasing.run_layers(layers.data_ptr(), len(layers), ctypes.addressof(step))

    def fill_slots(self, fill: "NativeFill", expert: Tensor | None, slots: range) -> None:
        """Puts the terms that lie in `expert`, bytes, into adjacent slots; None where there are none to put."""
        self._releasing.fill_slots(
            fill.table.data_ptr(),
            fill.factors.data_ptr(),
            len(fill.table),
            None if expert is None else expert.data_ptr(),
            fill.in_fp32,
            slots.start,
            len(slots),
        )


class NativeStep(ctypes.Structure):
    """`Step` in `kernels.c`, field by field. Keeps the tensors that it points to."""

    _fields_ = (
        *((name, _INTEGER) for name in ("tokens", "width", "heads", "kv_heads", "D", "block_tokens")),
        *((name, _POINTER) for name in ("hidden", "delta", "normed", "qkv", "attended", "gate_up", "active", "room")),
        *((name, _POINTER) for name in ("cos", "sin", "place", "cache", "copies")),
        ("num_copies", _INTEGER),
        *((name, _POINTER) for name in ("first", "count", "position", "table_start", "table", "family")),
        ("families", _INTEGER),
        ("scratch", _POINTER),
        *((name, _INTEGER) for name in ("scratch_size", "threads")),
        *((name, _POINTER) for name in ("runs", "slots")),
        ("num_runs", _INTEGER),
        *((name, _POINTER) for name in ("weight", "used", "h")),
        *((name, _FLOAT) for name in ("scale", "epsilon")),
    )

    def __init__(self, **values: float) -> None:
        super().__init__(**values)
        self._lent: list[Tensor] = []

    def lend(self, name: str, tensor: Tensor) -> None:
        """Lets the field point to a tensor's numbers, which lie one behind the other."""
        assert tensor.is_contiguous(), f"{name} has gaps. This is a bug."
        self._lent.append(tensor)
        setattr(self, name, tensor.data_ptr())


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return library


class NativeSpans:
    """Where segments lie, as `attend` reads it: its arrays by name, in its order.

    Each is (first token, number of queries, position, blocks). `families` are (number of segments, number of tokens
    they begin with in common), in order.
    """

    def __init__(
        self, spans: Sequence[tuple[int, int, int, Sequence[int]]], families: Sequence[tuple[int, int]]
    ) -> None:
        first, count, position, tables = zip(*spans, strict=True)
        ends = list(accumulate((size for size, _ in families), initial=0))
        shared = [tokens for _, tokens in families]
        starts = [0]
        for table in tables:
            starts.append(starts[-1] + len(table))
        numbers = {
            "first": first,
            "count": count,
            "position": position,
            "table_start": starts,
            "table": [b for table in tables for b in table],
            "family": [number for pair in zip(ends, [*shared, 0], strict=True) for number in pair],
        }
        self.tensors = {name: torch.tensor(of_name) for name, of_name in numbers.items()}
        self.pointers = tuple(tensor.data_ptr() for tensor in self.tensors.values())  # asked for in every layer
        self.num_families = len(families)
        self.most_queries: int = max(sum(count[a:b]) for a, b in pairwise(ends))


class NativeParts:
    """The output sides of linears side by side, [S, R, O] each, and at which columns they stand."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = tuple(parts)
        self.pointers = torch.tensor([part.data_ptr() for part in parts])
        edges = [0]
        for part in parts:
            edges.append(edges[-1] + part.shape[-1])
        self.edges = torch.tensor(edges)


class NativeFill:
    """Which terms go where, as `fill_slots` reads it: for each linear a row as `Linear` there, pointers as numbers, and
    the factor for B. `in_fp32`: the expert's numbers are; otherwise they are bf16."""

    def __init__(self, rows: Sequence[tuple[int, ...]], factors: Sequence[float], *, in_fp32: bool = False) -> None:
        self.table = torch.tensor(rows)
        self.factors = torch.tensor(factors, dtype=torch.float32)
        self.in_fp32 = in_fp32


class NativeRuns:
    """Which tokens go through which slots, as `add_terms` reads it.

    Each run is (start, stop, entries): tokens [start, stop) through the slots of its entries. An entry is a slot and
    its weight in every layer, None where that is 1.
    """

    def __init__(self, runs: Sequence[tuple[int, int, Sequence[tuple[int, Tensor | None]]]]) -> None:
        entries = [entry for *_, of_run in runs for entry in of_run]
        ends = list(accumulate(len(of_run) for *_, of_run in runs))
        self.table = torch.tensor(
            [(start, stop, end - len(of_run), end) for (start, stop, of_run), end in zip(runs, ends, strict=True)]
        )
        self.slots = torch.tensor([slot for slot, _ in entries])
        self.num_pairs = sum((stop - start) * len(of_run) for start, stop, of_run in runs)
        self._weight_LE = _layer_weights([weight_L for _, weight_L in entries])
        self._rows: list[int] = [row_E.data_ptr() for row_E in self._weight_LE]

    def weights(self, layer: int | None) -> int:
        """Where the weights of all entries in this layer lie."""
        return self._rows[0 if layer is None or len(self._rows) == 1 else layer]


def _layer_weights(weights: Sequence[Tensor | None]) -> Tensor:
    """[L, entries] fp32; a single row of ones where no entry is weighed."""
    num_layers = next((len(weight_L) for weight_L in weights if weight_L is not None), 1)
    ones_L = torch.ones(num_layers)
    return torch.stack([ones_L if weight_L is None else weight_L for weight_L in weights], dim=1).contiguous()

"""Multipart forms: files straight to a folder while they arrive, text fields into memory, all within limits.

Knows names and sizes of parts; what is in them is judged elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from expert_store import PICKLE_SUFFIXES, InvalidAdapter, breathe
from server.api.errors import BodyTooLarge, InvalidField, MalformedBody, UnknownField, UnsupportedBody
from server.background import in_background

MULTIPART = "multipart/form-data"
SILENCE_SECONDS = 30.0
_PIECE_BYTES = 1 << 21  # handed to a thread at once, which may have to wait for the end of a step
_WRITTEN_BYTES = 1 << 16  # in well under a millisecond, also where the system has to find new pages for them


@dataclass(frozen=True)
class FormFields:
    """What a form may hold: `files` from field to path in the folder, which is taken as a field too; `texts` to the
    largest size in bytes; `file_bytes` by path, where the limit of the whole upload is not enough."""

    files: Mapping[str, str]
    texts: Mapping[str, int]
    file_bytes: Mapping[str, int] = field(default_factory=dict)

    def path_of(self, name: str) -> str | None:
        """None for what is no file."""
        return name if name in self.files.values() else self.files.get(name)

    @property
    def known(self) -> str:
        """For messages."""
        return ", ".join([*self.files, *dict.fromkeys(self.files.values()), *self.texts])


async def receive_form(
    request: Request, folder: Path, fields: FormFields, *, max_upload_bytes: int
) -> dict[str, bytes]:
    """Writes the form's files into `folder` while they arrive and returns the text fields.

    Raises UnsupportedBody, MalformedBody, BodyTooLarge, InvalidField, UnknownField, InvalidAdapter (a pickle).
    """
    reader = _FormReader(_boundary(request), folder, fields, max_upload_bytes=max_upload_bytes)
    try:
        async for chunks in _in_pieces(_while_it_comes(request.stream())):
            await in_background(partial(reader.feed, chunks))
    except ClientDisconnect as error:
        raise MalformedBody("the upload broke off before its end") from error
    finally:
        reader.close()
    return reader.texts()


async def _while_it_comes(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks. Raises MalformedBody when none comes for too long: an upload holds a place others wait for."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise MalformedBody(f"nothing more of the upload came for {SILENCE_SECONDS:g} s: send it again") from error
        yield chunk


async def _in_pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The same chunks, some at a time: handing them over costs the event loop more than receiving one."""
    chunks, num_bytes = list[bytes](), 0
    async for chunk in stream:
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes >= _PIECE_BYTES:
            yield chunks
            chunks, num_bytes = [], 0
    yield chunks


def _boundary(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    if kind != MULTIPART.encode():
        raise UnsupportedBody(content_type, MULTIPART)
    if not options.get(b"boundary"):
        raise MalformedBody("the content type of the form names no boundary")
    return options[b"boundary"]


@dataclass
class _Part:
    """One part of the form while it arrives; `file` is None for a text field."""

    field: str
    limit_bytes: int
    file: BinaryIO | None
    text: bytearray
    num_bytes: int = 0

    def append(self, data: memoryview) -> None:
        self.num_bytes += len(data)
        if self.num_bytes > self.limit_bytes:
            raise BodyTooLarge(
                f"the form field {self.field}", limit_bytes=self.limit_bytes, way_out="send less", param=self.field
            )
        if self.file is not None:
            for start in range(0, len(data), _WRITTEN_BYTES):
                self.file.write(data[start : start + _WRITTEN_BYTES])
                breathe()
        else:
            self.text += data


class _FormReader:
    """Callbacks of the multipart parser. Used by one thread at a time."""

    def __init__(self, boundary: bytes, folder: Path, fields: FormFields, *, max_upload_bytes: int) -> None:
        self._folder = folder
        self._fields = fields
        self._max_upload_bytes = max_upload_bytes
        self._parts: dict[str, _Part] = {}
        self._part: _Part | None = None
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": self._take_data,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedBody(f"the form cannot be read: {error}") from error

    def feed(self, chunks: Iterable[bytes]) -> None:
        """More bytes of the body. Writes to disk, so not for the event loop."""
        try:
            for chunk in chunks:
                self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedBody(f"the form cannot be read: {error}") from error

    def close(self) -> None:
        for part in self._parts.values():
            if part.file is not None:
                part.file.close()

    def texts(self) -> dict[str, bytes]:
        """The text fields, once all is there."""
        if not self._complete:
            raise MalformedBody("the form ends before its closing boundary")
        return {name: bytes(part.text) for name, part in self._parts.items() if part.file is None}

    def _begin_part(self) -> None:
        self._part, self._disposition = None, b""

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _open_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode(errors="replace")
        file_name = options.get(b"filename", b"").decode(errors="replace")
        _refuse_pickle(field, file_name)
        key = self._fields.path_of(field) or field
        if key in self._parts:
            raise InvalidField(f"the form holds {key} twice: send it once", param=field)
        self._part = self._parts[key] = self._new_part(field)

    def _new_part(self, field: str) -> _Part:
        name = self._fields.path_of(field)
        if name is not None:
            limit = self._fields.file_bytes.get(name, self._max_upload_bytes)
            path = self._folder / name
            path.parent.mkdir(exist_ok=True)
            return _Part(field, limit, path.open("xb"), bytearray())
        if field in self._fields.texts:
            return _Part(field, self._fields.texts[field], None, bytearray())
        raise UnknownField(
            f"the form has no field {field[:80]!r}: known are {self._fields.known}", param=field[:80] or None
        )

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None, "data came before its part's headers. This is a bug."
        self._part.append(memoryview(data)[start:end])

    def _end(self) -> None:
        self._complete = True


def _refuse_pickle(field: str, file_name: str) -> None:
    for name in (field, file_name):
        if PurePath(name).suffix.lower() in PICKLE_SUFFIXES:
            raise InvalidAdapter(name[:80], f"{name[:80]}: pickles are not accepted, only safetensors")

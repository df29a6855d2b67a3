"""The frontend's side of the request plane in its barest form, for faults that no official frontend would commit.

    async with Peer() as peer:
        stream = await peer.open(transport, request_body([72, 105], max_tokens=5))
        async for item in stream:                 # {"data": {...}, "complete_final": false}
            print(tokens_of(item))
        assert stream.end == "sentinel"
        # or: await stream.control("kill"), or simply stop reading, or stream.close()

One request frame on a connection of its own, then the worker calls home; JSON bodies only.  Formats: Dynamo 0.8 ... 1.6,
lib/runtime/src/pipeline/network/codec.rs and codec/two_part.rs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import uuid
from typing import Any, AsyncIterator

_PREFIX = struct.Struct(">QQQ")  # header length, data length, checksum (0: not checked)


def two_part(header: bytes, data: bytes = b"") -> bytes:
    return _PREFIX.pack(len(header), len(data), 0) + header + data


def request_frame(path: str, control: dict[str, Any], data: bytes) -> bytes:
    route, headers = path.encode(), json.dumps({"x-endpoint-path": path}).encode()
    payload = two_part(json.dumps(control).encode(), data)
    return b"".join([struct.pack(">H", len(route)), route, struct.pack(">H", len(headers)), headers,
                     struct.pack(">I", len(payload)), payload])


def request_body(token_ids: list[int], *, max_tokens: int | None = None, model: str = "tiny",
                 stop: dict[str, Any] | None = None, sampling: dict[str, Any] | None = None,
                 output: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a frontend makes of a request that ignores eos."""
    return {"model": model, "token_ids": token_ids,
            "stop_conditions": {"max_tokens": max_tokens, "ignore_eos": True, **(stop or {})},
            "sampling_options": {"temperature": 0.0, **(sampling or {})}, "output_options": output or {},
            "eos_token_ids": [], "mdc_sum": None, "annotations": []}


def tokens_of(item: dict[str, Any]) -> list[int]:
    return ((item.get("data") or {}).get("data") or {}).get("token_ids") or []


class Stream:
    """One response: an asynchronous iterator of items; `end` says how it closed.

    end: "sentinel" (orderly), "closed" (the worker closed or died), None while it is open.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prologue: dict[str, Any]):
        self.prologue, self.end, self.final = prologue, None, False
        self._reader, self._writer = reader, writer

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._items()

    async def _items(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            try:
                header, data = await read_two_part(self._reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                self.end = "closed"
                break
            if header:
                if json.loads(header) != "sentinel":
                    raise AssertionError(f"a worker sends no control frame but the sentinel: {header!r}")
                self.end = "sentinel"
                break
            item = json.loads(data)
            if self.final:
                raise AssertionError(f"an item after complete_final: {item}")
            if item.get("complete_final"):
                self.final = True
            else:
                yield item
        self.close()

    async def control(self, word: str) -> None:
        """Sends "stop" or "kill"."""
        self._writer.write(two_part(json.dumps(word).encode()))
        await self._writer.drain()

    def close(self, reset: bool = False) -> None:
        """Closes this side; with `reset` the worker sees RST, as from official callers with unread data."""
        if reset and (sock := self._writer.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()


async def read_two_part(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    header_length, data_length, _ = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
    return await reader.readexactly(header_length), await reader.readexactly(data_length)


class Peer:
    """Listens for workers that call home and sends requests to them."""

    def __init__(self, host: str = "127.0.0.1", receive_buffer: int | None = None):
        self._host, self._receive_buffer = host, receive_buffer
        self._waiting: dict[str, asyncio.Future[Stream]] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Peer":
        listener = socket.create_server((self._host, 0), backlog=1024)
        if self._receive_buffer:  # inherited by accepted sockets
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self._address = "%s:%d" % listener.getsockname()[:2]
        self._server = await asyncio.start_server(self._called, sock=listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for waiting in self._waiting.values():
            waiting.cancel()

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            handshake = json.loads((await read_two_part(reader))[0])
            waiting = self._waiting.pop(handshake["subject"], None)
            if waiting is None or waiting.done():
                writer.close()
                return
            prologue = json.loads((await read_two_part(reader))[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        waiting.set_result(Stream(reader, writer, prologue))

    async def send(self, transport: str, data: bytes) -> asyncio.Future[Stream]:
        """Sends raw request data to `ip:port/path`; the future is the response stream."""
        address, path = transport.split("/", 1)
        host, port = address.rsplit(":", 1)
        subject, identifier = str(uuid.uuid4()), str(uuid.uuid4())
        waiting = self._waiting[subject] = asyncio.get_running_loop().create_future()
        info = {"address": self._address, "subject": subject, "context": identifier, "stream_type": "response"}
        control = {"id": identifier, "request_type": "single_in", "response_type": "many_out",
                   "connection_info": {"transport": "tcp_server", "info": json.dumps(info)}}
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(request_frame(path, control, data))
            await writer.drain()
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            if length:
                raise AssertionError(f"error acknowledgement: {await reader.readexactly(length)!r}")
        finally:
            writer.close()
        return waiting

    async def open(self, transport: str, body: dict[str, Any], timeout: float = 30) -> Stream:
        return await asyncio.wait_for(await self.send(transport, json.dumps(body).encode()), timeout)

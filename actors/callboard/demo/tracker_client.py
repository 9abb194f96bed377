"""How the demo's processes speak to the tracker: a few kept-alive loopback connections and no HTTP library."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from callboard.demo.auditor import Finding, Json
from callboard.demo.books import Standing


class TrackerClient:
    """Requests to one tracker.

    Args:
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def file(self, finding: Finding) -> Json:
        """File a finding. The tracker takes it again if it is filed again."""
        return await self._ask("POST", "/findings", asdict(finding))

    async def look_up(self, module: str, line: int, rule: str) -> Json:
        """Whether a finding is in the books: `{"filed": bool, "number": ...}`."""
        return await self._ask("GET", "/findings?" + urlencode({"module": module, "line": line, "rule": rule}))

    async def pay(self, session: str, turn: int, *, final: bool) -> None:
        """Pay for one model call."""
        await self._ask("POST", "/model-calls", {"session": session, "turn": turn, "final": final})

    async def publish(self, modules: int) -> None:
        """Publish the report of the audit. The tracker does it again if it is asked again."""
        await self._ask("POST", "/publications", {"modules": modules})

    async def moment(self, calls: int, patience: float) -> None:
        """Return when `calls` different model calls are paid for and, within `patience` seconds more, filings fly."""
        await self._ask("GET", "/moment?" + urlencode({"calls": calls, "patience": patience}))

    async def standing(self) -> Standing:
        """The books in figures."""
        return Standing(**await self._ask("GET", "/standing"))

    async def books(self) -> tuple[Standing, list[dict[str, Any]]]:
        """The figures, and every finding with how often it was filed."""
        books = await self._ask("GET", "/books")
        return Standing(**books["standing"]), books["findings"]

    async def _ask(self, method: str, target: str, body: Json | None = None) -> Json:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
            writer.write(f"{method} {target} HTTP/1.1\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer: Json = json.loads(await reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            writer.close()
            raise ConnectionResetError("the tracker is gone") from error
        except BaseException:
            # A half-read answer must not meet the next request on this connection.
            writer.close()
            raise
        if b" 200 " not in head[:13]:
            writer.close()
            status = head.partition(b"\r\n")[0].decode()
            raise ValueError(f"the tracker answered {status} to {method} {target}: {answer}")
        self._idle.append((reader, writer))
        return answer

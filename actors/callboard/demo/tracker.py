"""The tracker: a small HTTP server in a process of its own. Nobody kills it, so its books are the only judge.

    POST /findings               file a finding; answered after a moment, as a real tracker would
    GET  /findings?module=&line=&rule=    is it in the books?
    POST /model-calls            the scripted model pays for a call before it answers
    POST /publications           publish the report of the audit
    GET  /moment?calls=&patience=    answered when that many calls are paid and a filing is in flight
    GET  /standing   GET /books  the figures; the figures and every finding

Standard library only. It ends when its standard input does: when the process that started it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from callboard.demo.books import Books
from callboard.demo.lifeline import end_with_stdin

FILING_SECONDS = (0.03, 0.09)
IN_FLIGHT = 2
"""How many filings make a good moment for a kill: enough that one of them is not just being answered."""


@dataclass
class Tracker:
    """The books, and who waits for what.

    Args:
        model_latency: seconds the model takes to answer.
    """

    model_latency: float = 0.0
    books: Books = field(default_factory=Books)
    _waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = field(default_factory=list)
    # Fixed seed: both systems meet the same latencies, in order of arrival.
    _latencies: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - no secret

    def news(self) -> None:
        """Wake whoever waited for what has just come true."""
        for true_now, moment in self._waiting:
            if not moment.done() and true_now():
                moment.set_result(None)
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]

    async def moment(self, calls: int, patience: float) -> None:
        """Return when `calls` different model calls are paid for and filings are in flight.

        Args:
            calls: how many different model calls.
            patience: seconds to wait for a filing once that many calls are paid.
        """
        await self._until(lambda: len(self.books.paid) >= calls)
        try:
            await asyncio.wait_for(self._until(lambda: self.books.filing >= IN_FLIGHT), patience)
        except TimeoutError:
            return

    async def _until(self, true_now: Callable[[], bool]) -> None:
        if not true_now():
            moment = asyncio.get_running_loop().create_future()
            self._waiting.append((true_now, moment))
            await moment

    async def answer(self, method: str, target: str, body: bytes) -> dict[str, Any] | None:
        """Answer one request; None where there is no such thing to ask.

        Raises:
            ValueError, KeyError, TypeError: the request is malformed.
        """
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        match method, url.path:
            case "POST", "/findings":
                return await self._take(json.loads(body))
            case "POST", "/model-calls":
                return await self._charge(json.loads(body))
            case "POST", "/publications":
                self.books.publish()
            case "GET", "/findings":
                return self.books.look_up(query["module"], int(query["line"]), query["rule"])
            case "GET", "/moment":
                await self.moment(int(query["calls"]), float(query["patience"]))
            case "GET", "/books":
                return self.books.everything()
            case "GET", "/standing":
                pass
            case _:
                return None
        return asdict(self.books.standing())

    async def _take(self, finding: dict[str, Any]) -> dict[str, Any]:
        receipt = self.books.file(finding)
        self.books.filing += 1
        self.news()
        try:
            await asyncio.sleep(self._latencies.uniform(*FILING_SECONDS))
        finally:
            self.books.filing -= 1
        return receipt

    async def _charge(self, asked: dict[str, Any]) -> dict[str, Any]:
        receipt = self.books.pay(asked["session"], asked["turn"], final=asked["final"])
        self.news()
        if self.model_latency:
            await asyncio.sleep(self.model_latency)
        return receipt

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one kept-alive connection until its other end is gone."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request, *headers = head.split("\r\n")
                method, target, _ = request.split(" ", 2)
                body = await reader.readexactly(_content_length(headers))
                filing = (method, target) == ("POST", "/findings")
                try:
                    answer = await self.answer(method, target, body)
                except (ValueError, KeyError, TypeError) as error:
                    writer.write(_response("400 Bad Request", {"error": repr(error)}))
                    continue
                # The kernel closes a killed process's sockets at once: an answer nobody is left to read was cut off.
                if filing and (reader.at_eof() or reader.exception() is not None):
                    self.books.cut_off += 1
                writer.write(_response("200 OK", answer) if answer is not None else _response("404 Not Found", {}))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _content_length(headers: list[str]) -> int:
    for header in headers:
        name, _, value = header.partition(":")
        if name.strip().lower() == "content-length":
            return int(value)
    return 0


def _response(status: str, answer: dict[str, Any]) -> bytes:
    body = json.dumps(answer, separators=(",", ":")).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _main(model_latency: float) -> None:
    tracker = Tracker(model_latency=model_latency)
    server = await asyncio.start_server(tracker.serve, "127.0.0.1", 0)
    end_with_stdin()
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    """Run the tracker: `python -m callboard.demo.tracker`. Its first line says which port it listens on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model-latency", type=float, default=0.0, help="seconds the model takes to answer")
    asyncio.run(_main(parser.parse_args().model_latency))


if __name__ == "__main__":
    main()

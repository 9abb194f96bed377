from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from callboard.kernel import ActorSystem, Ref
from callboard.model_gateway import ModelGateway, ModelReply
from callboard.models import Model, ScriptedModel
from callboard.retry import Retry
from callboard_protocol.commands import AbandonModelCall, AskModel
from callboard_protocol.errors import ActorDied, MissingExtraError, ModelError, ScriptExhaustedError, UsageError
from callboard_protocol.messages import Message
from callboard_protocol.model_calls import ModelDelta, ModelRequest, ModelResponse, ModelSettings

pytestmark = pytest.mark.anyio

QUICK = Retry(attempts=3, on=(ModelError,), delay=0, max_delay=0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def system(anyio_backend: str) -> AsyncIterator[ActorSystem]:
    system = ActorSystem()
    yield system
    await system.stop()


@pytest.fixture
async def gateway(system: ActorSystem) -> Ref[ModelGateway]:
    return system.start(ModelGateway, retry=QUICK)


async def ask(
    gateway: Ref[ModelGateway],
    model: Model,
    step: int = 0,
    on_delta: Callable[[str], object] | None = None,
    **settings: Any,
) -> ModelReply:
    request = ModelRequest(
        messages=[Message.user("hi")], run_id="run", call_id=f"run:{step}", settings=ModelSettings(**settings)
    )
    reply: ModelReply = await gateway.ask(AskModel(model=model, request=request, on_delta=on_delta))
    return reply


class Gated(Model):
    """Answers when its gate opens."""

    def __init__(self, name: str = "gated") -> None:
        self.name = name
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.running = self.most = 0

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return ModelResponse(text="through")


async def test_an_answer_comes_with_what_it_took(gateway: Ref[ModelGateway]):
    reply = await ask(gateway, ScriptedModel(["hello"]))
    assert (reply.response.text, reply.retries, reply.ttft, reply.abandoned) == ("hello", 0, None, False)
    assert reply.latency >= 0


async def test_with_somebody_watching_the_answer_is_streamed(gateway: Ref[ModelGateway]):
    heard: list[str] = []
    reply = await ask(gateway, ScriptedModel(["hello there"], stream_chunk=4), on_delta=heard.append)
    assert heard == ["hell", "o th", "ere"]
    assert reply.response.text == "hello there"
    assert reply.ttft is not None
    assert 0 <= reply.ttft <= reply.latency


async def test_a_retryable_error_is_tried_again(gateway: Ref[ModelGateway]):
    busy = ModelError("429", retryable=True)
    reply = await ask(gateway, ScriptedModel([busy, busy, "hello"]))
    assert (reply.response.text, reply.retries) == ("hello", 2)


async def test_the_last_error_is_the_answer(gateway: Ref[ModelGateway]):
    model = ScriptedModel([ModelError(f"busy {n}", retryable=True) for n in range(5)])
    with pytest.raises(ModelError, match="busy 2"):
        await ask(gateway, model)


@pytest.mark.parametrize("error", [ModelError("bad request"), MissingExtraError("not installed")])
async def test_other_errors_are_raised_at_once_as_they_are(gateway: Ref[ModelGateway], error: Exception):
    with pytest.raises(type(error), match=str(error)):
        await ask(gateway, ScriptedModel([error, "never"]))


async def test_an_exhausted_script_is_not_retried(gateway: Ref[ModelGateway]):
    with pytest.raises(ScriptExhaustedError):
        await ask(gateway, ScriptedModel([]))


async def test_a_pause_the_provider_asked_for_is_a_floor(gateway: Ref[ModelGateway]):
    busy = ModelError("429", retryable=True, context={"retry_after": 0.05})
    reply = await ask(gateway, ScriptedModel([busy, "hello"]))
    assert reply.latency >= 0.05


async def test_an_exception_that_is_no_model_error_becomes_one_with_its_cause(gateway: Ref[ModelGateway]):
    problem = ZeroDivisionError("oops")

    def answer(_: ModelRequest) -> str:
        raise problem

    with pytest.raises(ModelError, match="scripted failed: ZeroDivisionError: oops") as raised:
        await ask(gateway, ScriptedModel(answer))
    assert raised.value.__cause__ is problem
    assert not raised.value.retryable


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
async def test_nothing_a_model_raises_takes_anything_else_down(gateway: Ref[ModelGateway], error: BaseException):
    def answer(_: ModelRequest) -> str:
        raise error

    with pytest.raises(ModelError):
        await ask(gateway, ScriptedModel(answer))
    assert gateway.is_alive()


async def test_an_answer_that_is_no_response_is_an_error(gateway: Ref[ModelGateway]):
    class Wrong(Model):
        async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
            return "text"  # type: ignore[return-value]

    with pytest.raises(ModelError, match="answered a str"):
        await ask(gateway, Wrong())


async def test_a_stream_that_breaks_is_begun_anew(gateway: Ref[ModelGateway]):
    class Breaking(Model):
        attempts = 0

        async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
            return ModelResponse(text="whole")

        async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta]:
            self.attempts += 1
            yield ModelDelta(text="who")
            if self.attempts == 1:
                return
            yield ModelDelta(text="le", response=ModelResponse(text="whole"))

    heard: list[str] = []
    reply = await ask(gateway, Breaking(), on_delta=heard.append)
    assert (reply.response.text, reply.retries) == ("whole", 1)
    assert heard == ["who", "who", "le"]


async def test_a_model_past_the_timeout_of_the_settings_is_tried_again(gateway: Ref[ModelGateway]):
    model = Gated()
    with pytest.raises(ModelError, match=r"gated did not answer within 0.02 s") as raised:
        await ask(gateway, model, timeout=0.02)
    assert raised.value.retryable
    assert model.running == 0


async def test_a_timeout_of_the_models_own_is_its_failure(gateway: Ref[ModelGateway]):
    def answer(_: ModelRequest) -> str:
        raise TimeoutError("socket")

    with pytest.raises(ModelError, match="scripted failed: TimeoutError: socket"):
        await ask(gateway, ScriptedModel(answer), timeout=5)


async def test_no_more_calls_of_a_model_run_at_once_than_it_allows(system: ActorSystem):
    gateway = system.start(ModelGateway, concurrency={"narrow": 2})
    narrow, wide = Gated("narrow"), Gated("wide")
    calls = [asyncio.ensure_future(ask(gateway, model, n)) for n, model in enumerate([narrow] * 5 + [wide] * 5)]
    await narrow.begun.wait()
    await wide.begun.wait()
    narrow.gate.set()
    wide.gate.set()
    await asyncio.gather(*calls)
    assert (narrow.most, wide.most) == (2, 5)


async def test_a_default_concurrency_holds_for_each_model_by_itself(system: ActorSystem):
    gateway = system.start(ModelGateway, default_concurrency=1)
    one, other = Gated("one"), Gated("other")
    calls = [asyncio.ensure_future(ask(gateway, model, n)) for n, model in enumerate([one, one, other])]
    await one.begun.wait()
    await other.begun.wait()
    one.gate.set()
    other.gate.set()
    await asyncio.gather(*calls)
    assert one.most == 1


async def test_a_concurrency_that_lets_no_call_through_is_refused(system: ActorSystem):
    with pytest.raises(UsageError):
        system.start(ModelGateway, concurrency={"x": 0})


async def test_an_abandoned_call_is_stopped(gateway: Ref[ModelGateway]):
    model = Gated()
    waiting = asyncio.ensure_future(ask(gateway, model))
    await model.begun.wait()
    gateway.tell(AbandonModelCall(call_id="run:0"))
    assert (await waiting).abandoned
    # The call's task ends in the turn after: one more question finds the model idle.
    await ask(gateway, ScriptedModel(["ok"]), 1)
    assert model.running == 0


async def test_abandoning_a_call_whose_asker_left_is_silent(
    gateway: Ref[ModelGateway], caplog: pytest.LogCaptureFixture
):
    model = Gated()
    waiting = asyncio.ensure_future(ask(gateway, model))
    await model.begun.wait()
    waiting.cancel()
    gateway.tell(AbandonModelCall(call_id="run:0"))
    await ask(gateway, ScriptedModel(["ok"]), 1)
    assert not caplog.records


async def test_abandoning_a_call_that_is_not_in_flight_does_nothing(gateway: Ref[ModelGateway]):
    gateway.tell(AbandonModelCall(call_id="run:7"))
    assert (await ask(gateway, ScriptedModel(["ok"]))).response.text == "ok"


async def test_stopping_the_gateway_cancels_what_runs(system: ActorSystem):
    gateway = system.start(ModelGateway)
    model = Gated()
    waiting = asyncio.ensure_future(ask(gateway, model))
    await model.begun.wait()
    await gateway.stop()
    assert model.running == 0
    with pytest.raises(ActorDied):
        await waiting

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from callboard.models import Model, ScriptedModel, resolve_model
from callboard.models import scripted as scripted_module
from callboard_protocol.errors import MissingExtraError, ModelError, ScriptExhaustedError, UsageError
from callboard_protocol.messages import Message, ToolCall, Usage
from callboard_protocol.model_calls import ModelDelta, ModelRequest, ModelResponse

pytestmark = pytest.mark.anyio

INPUT = Message.user("Where is order 7?")
LOOK_UP = ToolCall(name="look_up", arguments={"order": 7}, id="c1")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request(step: int | str = 0, messages: Sequence[Message] = (INPUT,), run: str = "run") -> ModelRequest:
    return ModelRequest(messages=messages, run_id=run, call_id=f"{run}:{step}")


def turn(number: int) -> list[Message]:
    call = ToolCall(name="look_up", id=f"c{number}")
    return [Message.assistant("", (call,)), Message.tool("found", tool_call_id=call.id, name="look_up")]


# ---- what an item becomes


async def test_a_text_is_a_final_answer():
    response = await ScriptedModel(["It is in transit."]).generate(request())
    assert (response.text, response.tool_calls, response.finish_reason, response.model) == (
        "It is in transit.",
        (),
        "stop",
        "scripted",
    )


async def test_a_tool_call_is_one_with_an_id_of_its_step():
    model = ScriptedModel([ToolCall(name="look_up"), [LOOK_UP, ToolCall(name="look_up")]])
    first = await model.generate(request(3))
    second = await model.generate(request(5))
    assert first.finish_reason == "tool_calls"
    assert [call.id for call in first.tool_calls] == ["run:3.0"]
    assert [call.id for call in second.tool_calls] == ["c1", "run:5.1"]


async def test_a_response_is_played_as_it_is():
    whole = ModelResponse(text="cut", finish_reason="length", usage=Usage(input_tokens=9), model="other")
    assert await ScriptedModel([whole]).generate(request()) is whole


async def test_a_response_that_names_no_model_gets_the_scripts_name():
    response = await ScriptedModel([ModelResponse(tool_calls=(ToolCall(name="look_up"),))], name="m").generate(
        request()
    )
    assert (response.model, response.tool_calls[0].id) == ("m", "run:0.0")


async def test_an_exception_is_raised_as_a_fresh_instance():
    problem = ModelError("busy", retryable=True)
    with pytest.raises(ModelError, match="busy") as raised:
        await ScriptedModel([problem]).generate(request())
    assert raised.value is not problem
    assert raised.value.retryable


@pytest.mark.parametrize("item", [3, None, [], ["text"], object()])
def test_a_list_that_holds_something_else_is_refused(item: Any):
    with pytest.raises(UsageError, match="a script cannot say"):
        ScriptedModel([item])


def test_a_text_in_place_of_a_list_is_refused():
    with pytest.raises(UsageError, match="not a text"):
        ScriptedModel("hello")


async def test_a_function_that_says_something_else_is_refused():
    with pytest.raises(UsageError, match="a script cannot say"):
        await ScriptedModel(lambda _: 3).generate(request())  # type: ignore[arg-type,return-value]


# ---- functions


async def test_a_function_is_asked_with_each_request():
    model = ScriptedModel(lambda asked: asked.messages[-1].text.upper())
    assert (await model.generate(request())).text == "WHERE IS ORDER 7?"


async def test_an_async_function_is_awaited():
    async def answer(asked: ModelRequest) -> ToolCall:
        return ToolCall(name="look_up", arguments={"messages": len(asked.messages)})

    response = await ScriptedModel(answer).generate(request(2))
    assert response.tool_calls == (ToolCall(name="look_up", arguments={"messages": 1}, id="run:2.0"),)


# ---- the place in a list


async def test_a_list_is_played_in_order_and_then_is_exhausted():
    model = ScriptedModel(["one", "two"])
    assert [(await model.generate(request(n))).text for n in range(2)] == ["one", "two"]
    with pytest.raises(ScriptExhaustedError, match="run 'run' asked 'scripted' for item 3 of a script of 2"):
        await model.generate(request(2))


async def test_each_run_plays_the_list_from_its_start():
    model = ScriptedModel(["one", "two"])
    asked = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [(await model.generate(request(n, run=run))).text for run, n in asked] == ["one", "one", "two", "two"]


async def test_the_same_call_asked_again_gets_the_same_item():
    model = ScriptedModel(["one", "two"])
    asked = [request(0), request(0), request(1), request(0)]
    assert [(await model.generate(one)).text for one in asked] == ["one", "one", "two", "one"]


async def test_the_next_attempt_after_an_exception_gets_the_next_item():
    model = ScriptedModel([ModelError("busy"), ModelError("busy"), "one", "two"])
    for _ in range(2):
        with pytest.raises(ModelError, match="busy"):
            await model.generate(request(0))
    assert (await model.generate(request(0))).text == "one"
    assert (await model.generate(request(0))).text == "one"
    assert (await model.generate(request(1))).text == "two"


async def test_requests_without_a_run_play_in_order():
    model = ScriptedModel(["one", "two"])
    asked = ModelRequest(messages=[INPUT, *turn(1)])
    assert [(await model.generate(asked)).text for _ in range(2)] == ["one", "two"]


async def test_a_run_begun_elsewhere_goes_on_where_its_conversation_stands():
    model = ScriptedModel([LOOK_UP, LOOK_UP, "done"])
    messages = [Message.system("Help."), INPUT, *turn(1), *turn(2)]
    assert (await model.generate(request(4, messages))).text == "done"


async def test_exceptions_before_that_place_have_been_raised():
    model = ScriptedModel([ModelError("busy"), LOOK_UP, ModelError("busy"), "done"])
    resumed = request(2, [INPUT, *turn(1)])
    with pytest.raises(ModelError):
        await model.generate(resumed)
    assert (await model.generate(resumed)).text == "done"


async def test_earlier_runs_of_the_session_do_not_count():
    model = ScriptedModel([LOOK_UP, "done"])
    before = [Message.user("Hello"), *turn(1), Message.assistant("Hello!")]
    assert (await model.generate(request(0, [*before, INPUT]))).tool_calls == (LOOK_UP,)
    assert (await model.generate(request(2, [*before, INPUT, *turn(2)]))).text == "done"


async def test_histories_of_the_patterns_own_play_in_order():
    model = ScriptedModel(["plan", "act", "sum up"])
    asked = [request(n, [Message.user(f"prompt {n}")]) for n in range(3)]
    assert [(await model.generate(one)).text for one in asked] == ["plan", "act", "sum up"]


async def test_a_run_whose_place_was_forgotten_is_found_in_its_conversation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scripted_module, "RUNS_REMEMBERED", 1)
    model = ScriptedModel([LOOK_UP, "done"])
    await model.generate(request(0, run="a"))
    await model.generate(request(0, run="b"))
    assert (await model.generate(request(2, [INPUT, *turn(1)], run="a"))).text == "done"


# ---- usage


async def test_usage_is_estimated_from_the_text():
    model = ScriptedModel(["x" * 9, "y"])
    first = await model.generate(request(0, [Message.user("a" * 8)]))
    second = await model.generate(request(1, [Message.user("a" * 8), Message.assistant("b" * 5)]))
    assert (first.usage.input_tokens, first.usage.output_tokens) == (2, 3)
    assert (second.usage.input_tokens, second.usage.output_tokens) == (4, 1)


async def test_the_estimate_does_not_depend_on_what_was_asked_before():
    history = [INPUT, *turn(1), Message.user("x" * 100)]
    grown, fresh = ScriptedModel(lambda _: "ok"), ScriptedModel(lambda _: "ok")
    for length in (1, 3, 2, 4):
        usage = (await grown.generate(request(length, history[:length]))).usage
    assert usage == (await fresh.generate(request(0, history))).usage


async def test_the_estimate_reads_each_message_of_a_growing_history_once():
    class Counting(list[Message]):
        read = 0

        def __getitem__(self, index: Any) -> Any:
            Counting.read += 1
            return super().__getitem__(index)

    model = ScriptedModel(lambda _: "ok")
    history = Counting([INPUT])
    for _ in range(200):
        await model.generate(request(0, history))
        history.append(Message.assistant("more"))
    assert Counting.read < 200 * 5


async def test_usage_can_be_given():
    usage = Usage(input_tokens=100, output_tokens=10, cost_usd=0.01)
    assert (await ScriptedModel(["ok"], usage=usage).generate(request())).usage == usage


# ---- streaming


async def pieces(model: Model, asked: ModelRequest) -> list[ModelDelta]:
    return [delta async for delta in model.stream(asked)]


async def test_a_streamed_text_comes_in_pieces_and_then_whole():
    deltas = await pieces(ScriptedModel(["abcdefgh"], stream_chunk=3), request())
    assert [delta.text for delta in deltas] == ["abc", "def", "gh", ""]
    assert deltas[-1].response is not None
    assert deltas[-1].response.text == "abcdefgh"
    assert all(delta.response is None for delta in deltas[:-1])


async def test_streamed_tool_calls_come_whole():
    deltas = await pieces(ScriptedModel([LOOK_UP]), request())
    assert [delta.response.tool_calls for delta in deltas if delta.response] == [(LOOK_UP,)]


async def test_a_stream_of_empty_pieces_is_refused():
    with pytest.raises(UsageError):
        ScriptedModel(["x"], stream_chunk=0)


# ---- the base class


class Plain(Model):
    name = "plain"

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        return ModelResponse(text="all at once")


async def test_a_model_that_does_not_stream_gives_its_answer_in_one_piece():
    (delta,) = await pieces(Plain(), request())
    assert delta.text == "all at once"
    assert delta.response is not None


def test_a_model_stands_for_itself():
    model = Plain()
    assert resolve_model(model) is model


async def test_a_models_name_says_what_to_install_once_it_is_asked():
    model = resolve_model("openai:gpt-5-mini")
    assert model.name == "openai:gpt-5-mini"
    with pytest.raises(MissingExtraError, match=r"callboard\[models\]"):
        await model.generate(request())


@pytest.mark.parametrize("wrong", ["gpt-5-mini", ":x", "openai:", 3])
def test_what_names_no_model_is_refused(wrong: Any):
    with pytest.raises(UsageError):
        resolve_model(wrong)

"""C: what is said to a run from outside: decisions and signals."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    Allow,
    AlreadyDecidedError,
    CallInDoubtError,
    Deny,
    Happened,
    ModelRequest,
    NotHappened,
    ReceiveTimeoutError,
    RunContext,
    RunEndedError,
    Runtime,
    RuntimeLimits,
    ScriptedModel,
    ToolCall,
    UnexpectedSignalError,
    UnknownCallError,
    UnknownRunError,
    UnpersistableValueError,
    UsageError,
    tool,
)
from callboard_protocol.records import DecisionMade
from callboard_protocol.states import RunState

pytestmark = pytest.mark.anyio

PATIENCE = 30


def payer(place: Any, *amounts: int, **options: Any) -> Agent[Any, Any]:
    """An agent whose model asks for one payment of each amount at once, and then says what came of them."""

    @tool(approval=lambda amount: amount > 50, **options)
    async def pay(amount: int) -> str:
        """Pay."""
        place.note(f"paid {amount}")
        return f"paid {amount}"

    def think(request: ModelRequest) -> Any:
        answers = [message.text for message in request.messages if message.role == "tool"]
        return "; ".join(answers) if answers else [ToolCall(name="pay", arguments={"amount": n}) for n in amounts]

    return Agent("payer", tools=[pay], model=ScriptedModel(think))


async def ended(runtime: Runtime, run_id: str) -> Any:
    return await asyncio.wait_for(runtime.wait(run_id), PATIENCE)


@pytest.mark.semantics("C1")
def test_a_decision_that_was_acknowledged_is_never_lost(place: Any, die: Any) -> None:
    agent = payer(place, 70)

    async def leave(runtime: Runtime) -> None:
        assert (await runtime.run(agent, "go", run_id="r")).stop_reason == "suspended"
        die()

    async def decide_and_die(runtime: Runtime) -> None:
        # Nobody carries the run: this process, which knows no agent, does not get to it.
        await runtime.decide("r:1.0", Allow(), by="ann", note="go ahead")
        die()

    async def read(runtime: Runtime) -> Any:
        return await ended(runtime, "r")

    place.live_until_killed([agent], leave)
    place.live_until_killed([], decide_and_die, recover=False)
    assert place.noted == []
    assert place.live([agent], read).output == "paid 70"
    assert place.noted == ["paid 70"]
    (made,) = [record for record in asyncio.run(place.log("session-r")) if isinstance(record, DecisionMade)]
    assert (made.by, made.note, made.tool, made.decision) == ("ann", "go ahead", "pay", Allow())


@pytest.mark.semantics("C2")
@pytest.mark.parametrize(
    ("decision", "says", "happens"),
    [
        (Allow(), "paid 70", ["paid 70"]),
        (Deny("too dear"), "the call of 'pay' was denied: too dear", []),
    ],
)
async def test_an_approval_is_answered_with_allow_or_deny(place: Any, decision: Any, says: str, happens: Any) -> None:
    agent = payer(place, 70)
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "go", run_id="r")
        assert (await handle.result()).stop_reason == "suspended"
        await runtime.decide("r:1.0", decision, by="ann")
        # Who waits from now on waits for what comes of it.
        result = await asyncio.wait_for(handle.result(), PATIENCE)
        assert result.output == says
        assert place.noted == happens
        names = [event.name async for event in runtime.events("r")]
        assert names.index("tool.approval_needed") < names.index("tool.decided") < names.index("run.completed")


@pytest.mark.semantics("C3")
@pytest.mark.parametrize(
    ("decision", "output", "happens"),
    [
        (Happened("sent before"), "sent before", ["sent"]),
        (NotHappened(), "sent", ["sent", "sent"]),
        (Deny(), "nobody knows", ["sent"]),
    ],
)
def test_a_call_in_doubt_is_settled_as_somebody_says(
    place: Any, die: Any, decision: Any, output: str, happens: Any
) -> None:
    @tool
    async def send() -> str:
        """Send."""
        if place.happens_first("sent"):
            die()
        return "sent"

    async def pattern(ctx: RunContext[Any]) -> str:
        try:
            return str(await ctx.call_tool("send"))
        except CallInDoubtError:
            return "nobody knows"

    agent = Agent("sender", tools=[send], pattern=pattern)

    async def go(runtime: Runtime) -> None:
        await runtime.run(agent, "go", run_id="r")

    async def settle(runtime: Runtime) -> Any:
        asked = await ended(runtime, "r")
        assert asked.pending[0].reason == "in_doubt"
        with pytest.raises(UsageError, match="Allow is no answer"):
            await runtime.decide(asked.pending[0].call_id, Allow(), by="ann")
        await runtime.decide(asked.pending[0].call_id, decision, by="ann")
        return await ended(runtime, "r")

    place.live_until_killed([agent], go)
    assert place.live([agent], settle).output == output
    assert place.noted == happens


@pytest.mark.semantics("C4")
async def test_a_call_is_decided_once_and_only_where_it_is_asked_about(place: Any) -> None:
    agent = payer(place, 70, 80)
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "go", run_id="r")
        with pytest.raises(UsageError, match="Happened is no answer"):
            await runtime.decide("r:1.0", Happened("x"), by="ann")
        with pytest.raises(UnknownCallError, match=r"r:1\.7"):
            await runtime.decide("r:1.7", Allow(), by="ann")
        with pytest.raises(UnknownCallError, match="nobody:1"):
            await runtime.decide("nobody:1", Allow(), by="ann")
        both = await asyncio.gather(
            runtime.decide("r:1.0", Allow(), by="ann"),
            runtime.decide("r:1.0", Deny(), by="bob"),
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in both) == ["AlreadyDecidedError", "NoneType"]
        await runtime.decide("r:1.1", Deny("no"), by="ann")
        assert (await ended(runtime, "r")).output.endswith("the call of 'pay' was denied: no")
        with pytest.raises(AlreadyDecidedError):
            await runtime.decide("r:1.1", Allow(), by="bob")
        with pytest.raises(RunEndedError):
            await runtime.decide("r:1.7", Allow(), by="ann")


@pytest.mark.semantics("C5")
async def test_a_decision_does_not_hold_for_other_arguments(place: Any) -> None:
    amounts = [70]

    @tool(approval=True)
    async def pay(amount: int) -> str:
        """Pay."""
        place.note(f"paid {amount}")
        return "paid"

    async def pattern(ctx: RunContext[Any]) -> str:
        return str(await ctx.call_tool("pay", amount=amounts[0]))

    agent = Agent("payer", tools=[pay], pattern=pattern)
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "go", run_id="r")
    async with place.runtime(agent, recover=False) as runtime:
        amounts[0] = 7000
        await runtime.decide("r:0", Allow(), by="ann")
        again = await ended(runtime, "r")
        assert (again.stop_reason, again.pending[0].arguments) == ("suspended", {"amount": 7000})
        assert place.noted == []
        await runtime.decide("r:0", Allow(), by="ann")
        assert (await ended(runtime, "r")).output == "paid"
    assert place.noted == ["paid 7000"]


@pytest.mark.semantics("C6")
@pytest.mark.parametrize("safe", [True, False])
async def test_calls_that_wait_are_asked_about_together_and_go_on_one_by_one(place: Any, safe: bool) -> None:
    agent = payer(place, 70, 20, 80, concurrency_safe=safe)
    async with place.runtime(agent) as runtime:
        asked = await runtime.run(agent, "go", run_id="r")
        assert [call.call_id for call in asked.pending] == ["r:1.0", "r:1.2"]
        assert place.noted == (["paid 20"] if safe else [])
        await runtime.decide("r:1.2", Deny("no"), by="ann")
        asked = await ended(runtime, "r")
        assert [call.call_id for call in asked.pending] == ["r:1.0"]
        await runtime.decide("r:1.0", Allow(), by="ann")
        assert (await ended(runtime, "r")).output == "paid 70; paid 20; the call of 'pay' was denied: no"
    assert sorted(place.noted) == ["paid 20", "paid 70"]


@pytest.mark.semantics("C7")
def test_an_approval_that_nobody_gives_in_time_is_denied_also_over_a_restart(place: Any) -> None:
    agent = payer(place, 70, approval_timeout=0.5)

    async def ask(runtime: Runtime) -> float:
        asked = await runtime.run(agent, "go", run_id="r")
        (pending,) = asked.pending
        assert pending.expires_at is not None
        return float(pending.expires_at)

    async def wait(runtime: Runtime) -> Any:
        watching = await runtime.subscribe("r", names=["run.completed"])
        if (await runtime.runs.get("r")).state != RunState.COMPLETED:
            await asyncio.wait_for(anext(watching.__aiter__()), PATIENCE)
        watching.close()
        return await runtime.wait("r")

    expires_at = place.live([agent], ask)
    assert 0 < expires_at - time.time() <= 0.5 or expires_at <= time.time()
    assert place.live([agent], wait).output == "the call of 'pay' was denied: nobody decided in time"
    assert time.time() >= expires_at
    assert place.noted == []


class Order(BaseModel):
    item: str
    count: int = 1


@pytest.mark.semantics("C8")
def test_values_of_a_channel_are_received_in_order_and_each_once_over_crashes(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        got = []
        await ctx.receive("go", type(None))
        for _ in range(6):
            order = await ctx.receive("orders", Order)
            got.append(f"{order.item}x{order.count}")
            if len(got) in (2, 4) and place.happens_first(f"died at {len(got)}"):
                die()
        return " ".join(got)

    agent = Agent("waiter", pattern=pattern)

    async def send_some(runtime: Runtime) -> None:
        handle = await runtime.submit(agent, "go", run_id="r")
        await runtime.send("r", "others", "not for now")
        for count in range(1, 7):
            await runtime.send("r", "orders", Order(item="tea", count=count))
        await runtime.send("r", "go", None)
        await handle.result()

    async def wait(runtime: Runtime) -> None:
        await runtime.wait("r")

    place.live_until_killed([agent], send_some)
    place.live_until_killed([agent], wait)
    result = place.carry_on([agent], "r")
    assert result.output == "teax1 teax2 teax3 teax4 teax5 teax6"


@pytest.mark.semantics("C9")
def test_the_time_to_wait_for_a_value_goes_on_over_a_restart(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        began = ctx.now()
        try:
            await ctx.receive("mail", str, timeout=0.6)
        except ReceiveTimeoutError as error:
            return f"{error.code} after {(ctx.now() - began).total_seconds():.1f}"
        return "it came"

    agent = Agent("waiter", pattern=pattern)

    async def begin(runtime: Runtime) -> float:
        started = time.time()
        await runtime.submit(agent, "go", run_id="r")
        async for event in runtime.events("r"):
            if event.name == "run.record_saved":
                break
        return started

    started = place.live([agent], begin)
    result = place.carry_on([agent], "r")
    assert result.output.startswith("receive_timeout after ")
    assert time.time() - started >= 0.6
    # Longer than that only by what the restart itself took.
    assert float(result.output.rpartition(" ")[2]) < 5


@pytest.mark.semantics("C10")
async def test_a_run_that_waits_for_a_value_holds_no_slot(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        return await ctx.receive("mail", str) if ctx.input_text == "wait" else "quick"

    agent = Agent("waiter", pattern=pattern)
    async with place.runtime(agent, limits=RuntimeLimits(max_concurrent_runs=1)) as runtime:
        waiting = [await runtime.submit(agent, "wait", run_id=f"r{n}") for n in range(5)]
        quick = await asyncio.wait_for(runtime.run(agent, "go"), PATIENCE)
        assert quick.output == "quick"
        for handle in waiting:
            await runtime.send(handle.run_id, "mail", "here")
            assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == "here"


@pytest.mark.semantics("C11")
async def test_a_value_of_another_type_is_an_error_the_pattern_can_catch(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        try:
            await ctx.receive("orders", Order)
        except UnexpectedSignalError as error:
            return f"{error.code}: {(await ctx.receive('orders', Order)).item}"
        return "taken"

    agent = Agent("waiter", pattern=pattern)
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "go", run_id="r")
        await runtime.send("r", "orders", "no order")
        await runtime.send("r", "orders", {"item": "tea"})
        assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == "unexpected_signal: tea"


@pytest.mark.semantics("C12")
async def test_what_cannot_be_sent_raises_at_once(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        return await ctx.receive("mail", str)

    agent = Agent("waiter", pattern=pattern)
    async with place.runtime(agent) as runtime:
        for durable in (True, False):
            run_id = f"r{durable}"
            handle = await runtime.submit(agent, "go", run_id=run_id, durable=durable)
            with pytest.raises(UnpersistableValueError):
                await runtime.send(run_id, "mail", object())
            await runtime.send(run_id, "mail", "here")
            assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == "here"
        with pytest.raises(RunEndedError, match="rTrue"):
            await runtime.send("rTrue", "mail", "too late")
        with pytest.raises(UnknownRunError):
            await runtime.send("nobody", "mail", "hello")
        with pytest.raises(UsageError, match="channel"):
            await runtime.send("rTrue", "", "hello")


@pytest.mark.semantics("C13")
async def test_any_process_on_the_directory_can_decide_send_to_and_cancel_any_run(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        return await ctx.receive("mail", str)

    waiter, agent = Agent("waiter", pattern=pattern), payer(place, 70)
    async with place.runtime(waiter, agent) as carrier, place.runtime(waiter, agent) as other:
        await carrier.submit(waiter, "go", run_id="waits")
        await other.send("waits", "mail", "from afar")
        assert (await ended(other, "waits")).output == "from afar"

        assert (await carrier.run(agent, "go", run_id="asks")).stop_reason == "suspended"
        await other.decide("asks:1.0", Allow(), by="ann")
        assert (await ended(other, "asks")).output == "paid 70"

        handle = await carrier.submit(waiter, "go", run_id="stops")
        assert await asyncio.wait_for(other.cancel("stops", reason="enough", by="ann"), PATIENCE)
        result = await asyncio.wait_for(handle.result(), PATIENCE)
        assert (result.stop_reason, result.error_details.context["by"]) == ("cancelled", "ann")
        assert "enough" in result.error_details.message
        assert not await other.cancel("stops")

        assert (await carrier.run(agent, "go", run_id="hangs")).stop_reason == "suspended"
        assert await asyncio.wait_for(other.cancel("hangs", by="ann"), PATIENCE)
        assert (await carrier.runs.get("hangs")).state == RunState.CANCELLED
    assert place.noted == ["paid 70"]


@pytest.mark.semantics("C14")
async def test_events_of_a_run_that_another_process_carries_come_while_it_is_at_work(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        for n in range(3):
            await ctx.emit("orders.asked", {"n": n})
            # Nobody answers who does not see the question.
            assert await ctx.receive("answers", int) == n
        return "done"

    agent = Agent("asker", pattern=pattern)
    async with place.runtime(agent) as carrier, place.runtime(agent) as other:
        handle = await carrier.submit(agent, "go", run_id="r")
        seen = []
        async with asyncio.timeout(PATIENCE):
            async for event in other.events("r"):
                seen.append(event)
                if event.name == "orders.asked":
                    await other.send("r", "answers", event.payload["n"])
        assert (await handle.result()).output == "done"
        assert [event.name for event in seen if event.name.startswith("run.")][-1] == "run.completed"
        assert [event.sequence for event in seen] == sorted(event.sequence for event in seen)
        middle = seen[len(seen) // 2]
        again = [event async for event in other.events("r", after=middle.cursor)]
        assert [event.cursor for event in again] == [event.cursor for event in seen[len(seen) // 2 + 1 :]]


@pytest.mark.semantics("C15")
@pytest.mark.parametrize("took_over", [False, True], ids=["only looks on", "took it over"])
async def test_a_decision_made_where_the_agent_is_not_registered_is_kept_for_where_it_is(
    place: Any, until: Any, took_over: bool
) -> None:
    agent = payer(place, 70)
    async with place.runtime(agent) as first:
        assert (await first.run(agent, "go", run_id="asks")).stop_reason == "suspended"
    async with place.runtime(recover=took_over) as desk:
        await desk.decide("asks:1.0", Allow(), by="ann")
        if took_over:
            await until(lambda: desk.stats().parked == 1)
            desk.agents.register(agent)
            assert (await ended(desk, "asks")).output == "paid 70"
        else:
            assert (await desk.runs.get("asks")).state == RunState.SUSPENDED
            async with place.runtime(agent) as worker:  # while the one that decided lives
                assert (await ended(worker, "asks")).output == "paid 70"
    assert place.noted == ["paid 70"]


async def test_an_agent_registered_while_its_run_waits_for_a_decision_goes_on_with_it(place: Any) -> None:
    agent = payer(place, 70)
    async with place.runtime(agent) as first:
        assert (await first.run(agent, "go", run_id="asks")).stop_reason == "suspended"
    async with place.runtime() as runtime:
        runtime.agents.register(agent)
        await runtime.decide("asks:1.0", Allow(), by="ann")
        assert (await ended(runtime, "asks")).output == "paid 70"

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.event_bus import EventBus, Subscription, Watchers
from callboard.kernel import ActorSystem, ChildSpec, Ref
from callboard_protocol.commands import PublishEvents, Subscribe, Unsubscribe
from callboard_protocol.errors import UsageError
from callboard_protocol.event_base import Event, RawEvent
from callboard_protocol.event_models_llm import LlmDelta
from callboard_protocol.event_models_runtime import SubscriberLagged

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def system(anyio_backend: str) -> AsyncIterator[ActorSystem]:
    system = ActorSystem()
    yield system
    await system.stop()


@pytest.fixture
def watchers() -> Watchers:
    return Watchers()


@pytest.fixture
async def bus(system: ActorSystem, watchers: Watchers) -> Ref[EventBus]:
    return system.start(EventBus, watchers)


def delta(offset: int, run: str = "run") -> RawEvent:
    fields = {"step": "0", "offset": offset, "call_id": f"{run}:0", "model": "m", "text": "x"}
    return ("llm.delta", run, "session", "agent", time.time(), None, fields)


def recorded(sequence: int, run: str = "run") -> RawEvent:
    return ("tool.cancelled", run, "session", "agent", time.time(), sequence, {"call_id": f"{run}:0", "tool": "t"})


def own(payload: Any, run: str = "run") -> RawEvent:
    return ("my_event", run, "session", "agent", time.time(), None, payload)


async def subscribe(bus: Ref[EventBus], run_id: str | None = "run", **options: Any) -> Subscription:
    subscription: Subscription = await bus.ask(Subscribe(run_id=run_id, **options))
    return subscription


async def published(bus: Ref[EventBus], *events: RawEvent) -> None:
    """Tell the bus and wait until it has handed everything on."""
    bus.tell(PublishEvents(events=events))
    (await subscribe(bus, "nobody's")).close()


def shown(event: Event) -> Any:
    if isinstance(event, SubscriberLagged):
        return f"{event.missed} missed"
    return event.offset if isinstance(event, LlmDelta) else f"#{event.sequence}"


async def rest(subscription: Subscription) -> list[Any]:
    """What it holds, once the bus is done with it."""
    subscription.end()
    return [shown(event) async for event in subscription]


# ---- who gets what


async def test_a_subscriber_gets_the_runs_events_as_models_in_order(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    await published(bus, delta(0), recorded(1), own({"a": 1}))
    events = [await anext(subscription) for _ in range(3)]
    assert [event.name for event in events] == ["llm.delta", "tool.cancelled", "my_event"]
    assert isinstance(events[0], LlmDelta)
    assert {event.run_id for event in events} == {"run"}


async def test_a_subscriber_never_sees_another_run(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    await published(bus, delta(0, "other"), delta(1), delta(2, "other"))
    assert await rest(subscription) == [1]


async def test_a_subscriber_to_everything_sees_every_run(bus: Ref[EventBus]):
    subscription = await subscribe(bus, None)
    await published(bus, delta(0, "other"), delta(1), ("config.reloaded", None, None, None, 0.0, None, {"path": "x"}))
    assert [event.run_id for event in [await anext(subscription) for _ in range(3)]] == ["other", "run", None]


async def test_a_subscriber_may_take_some_names_only(bus: Ref[EventBus]):
    subscription = await subscribe(bus, names=frozenset({"tool.cancelled"}))
    await published(bus, delta(0), recorded(1))
    assert await rest(subscription) == ["#1"]


async def test_events_published_before_do_not_come(bus: Ref[EventBus]):
    await published(bus, delta(0))
    subscription = await subscribe(bus)
    await published(bus, delta(1))
    assert await rest(subscription) == [1]


async def test_a_reader_that_waits_is_woken(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    waiting = asyncio.ensure_future(anext(subscription))
    await published(bus, delta(0))
    assert shown(await waiting) == 0


async def test_a_reader_that_gives_up_waiting_can_wait_again(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    waiting = asyncio.ensure_future(anext(subscription))
    await published(bus)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await published(bus, delta(0))
    assert shown(await anext(subscription)) == 0


async def test_a_subscription_has_one_reader(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    waiting = asyncio.ensure_future(anext(subscription))
    await published(bus)
    with pytest.raises(UsageError, match="one reader"):
        await anext(subscription)
    subscription.close()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_models_are_built_for_readers_alone(bus: Ref[EventBus], monkeypatch: pytest.MonkeyPatch):
    def build(raw: RawEvent) -> Event:
        raise AssertionError

    monkeypatch.setattr("callboard.events.subscription.build_event", build)
    subscription = await subscribe(bus)
    await published(bus, delta(0))
    assert len(subscription) == 1


# ---- slow readers


async def test_a_slow_reader_loses_its_oldest_live_events_first_and_is_told_where(bus: Ref[EventBus]):
    subscription = await subscribe(bus, limit=3)
    await published(bus, delta(0), recorded(1), delta(2), recorded(3), delta(4))
    assert await rest(subscription) == ["1 missed", "#1", "1 missed", "#3", 4]


async def test_recorded_events_are_lost_only_when_no_live_one_is_left(bus: Ref[EventBus]):
    subscription = await subscribe(bus, limit=2)
    await published(bus, recorded(0), recorded(1), delta(2), recorded(3), recorded(4))
    assert await rest(subscription) == ["3 missed", "#3", "#4"]


async def test_events_of_the_users_own_are_kept_before_live_ones(bus: Ref[EventBus]):
    subscription = await subscribe(bus, limit=1)
    await published(bus, own("kept"), delta(0))
    assert [event.name async for event in ended(subscription)] == ["my_event", "subscriber.lagged"]


def ended(subscription: Subscription) -> Subscription:
    subscription.end()
    return subscription


async def test_a_reader_that_never_reads_holds_a_bounded_number_of_events(bus: Ref[EventBus]):
    subscription = await subscribe(bus, limit=5)
    await published(bus, recorded(0), *(delta(n) for n in range(500)))
    assert len(subscription) == 5
    assert len(subscription._queue) < 50
    assert await rest(subscription) == ["#0", "496 missed", 496, 497, 498, 499]


async def test_a_slow_reader_keeps_nobody_else_waiting(bus: Ref[EventBus]):
    slow, quick = await subscribe(bus, limit=1), await subscribe(bus)
    await published(bus, *(delta(n) for n in range(10)))
    assert await rest(quick) == list(range(10))
    assert await rest(slow) == ["9 missed", 9]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_whatever_is_lost_is_told_and_order_is_kept(kinds: list[bool], limit: int):
    subscription = Subscription(None, run_id="run", names=frozenset(), limit=limit)  # type: ignore[arg-type]
    for number, live in enumerate(kinds):
        subscription.offer(delta(number) if live else recorded(number))
    seen, missed = [], 0
    while (event := subscription._take()) is not None:
        if isinstance(event, SubscriberLagged):
            missed += event.missed
        else:
            seen.append(event.offset if isinstance(event, LlmDelta) else event.sequence)
    assert seen == sorted(seen)
    assert len(seen) == min(limit, len(kinds))
    assert len(seen) + missed == len(kinds)
    kept = sum(not kinds[number] for number in seen)
    assert kept == min(limit, sum(not live for live in kinds))


# ---- the end


async def test_a_closed_subscription_ends_and_is_forgotten(bus: Ref[EventBus], watchers: Watchers):
    subscription = await subscribe(bus)
    assert watchers.watched("run")
    await published(bus, delta(0))
    async with subscription:
        pass
    assert [event async for event in subscription] == []
    await published(bus, delta(1))
    assert not watchers.watched("run")
    assert len(subscription) == 0


async def test_unsubscribing_lets_the_reader_finish_what_waits(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    bus.tell(PublishEvents(events=[delta(0)]))
    bus.tell(Unsubscribe(subscription=subscription))
    bus.tell(PublishEvents(events=[delta(1)]))
    assert [shown(event) async for event in subscription] == [0]


async def test_a_subscription_ends_when_the_bus_stops(bus: Ref[EventBus]):
    subscription = await subscribe(bus)
    waiting = asyncio.ensure_future(anext(subscription))
    await published(bus)
    await bus.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting
    subscription.close()


async def test_a_restarted_bus_starts_without_subscribers(system: ActorSystem, watchers: Watchers):
    spec = ChildSpec("bus", lambda: EventBus(watchers))
    bus = system.supervise(spec)
    subscription = await subscribe(bus)
    bus.actor_inbox.fail(RuntimeError("broken"), "publish")
    assert [event async for event in subscription] == []
    assert not watchers.watched("run")
    again = await subscribe(system.ref(spec))
    await published(system.ref(spec), delta(0))
    assert await rest(again) == [0]


async def test_an_event_that_fits_no_model_is_skipped(bus: Ref[EventBus], caplog: pytest.LogCaptureFixture):
    subscription = await subscribe(bus)
    await published(bus, ("llm.delta", "run", "s", "a", 0.0, None, {"wrong": 1}), delta(1))
    assert await rest(subscription) == [1]
    assert "does not fit its model" in caplog.text


async def test_what_is_no_event_does_not_end_the_bus(bus: Ref[EventBus], caplog: pytest.LogCaptureFixture):
    subscription = await subscribe(bus)
    await published(bus, (), delta(1))  # type: ignore[arg-type]
    assert await rest(subscription) == [1]
    assert "could not be handed on" in caplog.text


# ---- who watches


async def test_watchers_say_whether_anyone_would_take_an_event(bus: Ref[EventBus], watchers: Watchers):
    assert not watchers.anyone
    some = await subscribe(bus, "run", names=frozenset({"tool.cancelled"}))
    assert (watchers.watched("run"), watchers.watched("other"), watchers.watched(None)) == (True, False, False)
    assert (watchers.watched("run", "tool.cancelled"), watchers.watched("run", "llm.delta")) == (True, False)
    everything = await subscribe(bus, None)
    assert watchers.watched("other", "llm.delta")
    assert watchers.anyone
    some.close()
    everything.close()
    await published(bus)
    assert not watchers.watched("run")


async def test_the_bus_remembers_the_latest_events(system: ActorSystem):
    bus = system.start(EventBus, ring=3)
    events = [delta(0), recorded(1), delta(2, "other"), recorded(3)]
    await published(bus, *events)
    actor = bus.actor_inbox.actor
    assert isinstance(actor, EventBus)
    assert actor.recent() == events[1:]
    assert actor.recent("run") == [events[1], events[3]]

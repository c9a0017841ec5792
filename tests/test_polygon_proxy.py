#!/usr/bin/env python3
"""Checks a filtered-proxy from outside: each client must get what it asked for, all of it, only it.

    pip install websockets
    python3 tests/test_polygon_proxy.py --seconds 10

It finds the key as test_client.py does.

Five clients subscribe to *, T.AAPL, Q.AAPL, T.AAPL,Q.AAPL and T.*. The one on * comes first and
leaves last, so it must get everything that another client gets: byte for byte, in the same order,
without a gap. Any feed will do, simulated or live, if it sends trades and quotes of the symbol.

Exit code: 0 PASS, 1 FAIL, 2 wrong usage, 3 the key was refused, 4 there was no connection, it was
lost, or nothing came to compare.
"""

import asyncio
import contextlib
import sys
import time

from test_client import ANSWER_SECONDS, arguments, run, send, session, split, symbol

FAILED, UNDECIDED = 1, 4

# Two clients may get the same event this far apart, for example from different proxies behind a
# load balancer. So an event that only `*` got this close to another client's begin or end does not
# count as missed.
APART_SECONDS = 0.5


def main():
    options = arguments(__doc__, symbols=False)
    return run(check(options))


async def check(options):
    """Records all clients for a while, compares them, prints the table and the verdict."""
    trades, quotes = f"T.{options.symbol}", f"Q.{options.symbol}"
    reference = Client("*")
    others = [Client(trades), Client(quotes), Client(f"{trades},{quotes}"), Client("T.*")]
    async with contextlib.AsyncExitStack() as stack:
        try:
            for client in [reference, *others]:
                socket = await stack.enter_async_context(session(options.url, options.key))
                await client.begin(socket)
            await asyncio.wait(
                [client.reader for client in [reference, *others]],
                timeout=options.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for client in [*others, reference]:
                await client.end()
            reference.digest()
            for client in others:
                client.digest()
                client.compare(reference)
        except Wrong as wrong:
            print(f"FAIL: {wrong}")
            return FAILED
        finally:
            for client in [reference, *others]:
                client.stop()
    return verdict(reference, others)


def verdict(reference, others):
    """Prints what was found; returns the exit code."""
    print(f"{'client':<20} {'events':>10} {'per second':>12}  what it got")
    for client in [reference, *others]:
        count = len(client.events)
        rate = count / (client.ending - client.begun)
        found = client.problems[0] if client.problems else client.finding
        print(f"{client.params:<20} {count:>10} {rate:>12.1f}  {found}")
    for client in [reference, *others]:
        for text in client.problems[1:] + client.notices:
            print(f"  {client.params}: {text}")
    silent = [client.params for client in others if not client.events]
    if any(client.problems for client in [reference, *others]):
        print("FAIL")
        return FAILED
    if silent:
        print(f"UNDECIDED: nothing came for {' and '.join(silent)}; is the market open?")
        return UNDECIDED
    print("PASS")
    return 0


class Wrong(Exception):
    """The server broke the protocol, so nothing can be compared."""


class Client:
    """One session: what it asked for and what it got."""

    def __init__(self, params):
        self.params = params
        self.wanted = set(params.split(","))
        self.frames = []
        self.events = []
        self.problems = []
        self.notices = []
        self.finding = "everything, to compare with"
        self.reader = None

    async def begin(self, socket):
        """Subscribes, and reads from now on."""
        self.socket = socket
        self.reader = asyncio.create_task(self.read())
        await self.change("subscribe")
        self.begun = time.monotonic()

    async def end(self):
        """Unsubscribes, so that the last event is known to be in."""
        self.ending = time.monotonic()
        await self.change("unsubscribe")

    def stop(self):
        """Reads no more."""
        if self.reader is not None:
            self.reader.cancel()

    async def change(self, action):
        """Sends a request and waits until each of its items is acknowledged."""
        self.unanswered = {f"{action}d to: {item}" for item in self.wanted}
        self.answered = asyncio.get_running_loop().create_future()
        await send(self.socket, action, self.params)
        await asyncio.wait(
            [self.reader, self.answered],
            timeout=ANSWER_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self.reader.done():
            self.reader.result()
        if self.unanswered:
            raise Wrong(f"no status {' and no '.join(sorted(self.unanswered))!r}")

    async def read(self):
        """Keeps every frame for later, because a reader that does more is a slow consumer."""
        while True:
            frame = await self.socket.recv()
            self.frames.append((time.monotonic(), frame))
            if self.unanswered and '"status"' in frame:
                for _, event in objects(frame):
                    self.unanswered.discard(event.get("message"))
                if not self.unanswered:
                    self.answered.set_result(None)

    def digest(self):
        """Sorts the content of the frames: events asked for, other events, and notices."""
        subscribed = set()
        foreign = []
        for arrival, frame in self.frames:
            for text, event in objects(frame):
                if event["ev"] == "status":
                    action, _, item = event["message"].partition("d to: ")
                    if action == "subscribe":
                        subscribed.add(item)
                    elif action == "unsubscribe":
                        subscribed.discard(item)
                    else:
                        self.notices.append(f"{event['status']}: {event['message']}")
                elif matches(event, subscribed):
                    self.events.append((arrival, text, event))
                else:
                    foreign.append(text)
        if foreign:
            self.problems.append(f"{len(foreign)} events not asked for, the first: {foreign[0]}")

    def compare(self, reference):
        """Compares what this client got with what the reference got."""
        expected = [
            (arrival, text)
            for arrival, text, event in reference.events
            if matches(event, self.wanted)
        ]
        texts = [text for _, text in expected]
        got = [text for _, text, _ in self.events]
        start, length = longest_run(got, texts)
        if length < len(got):
            problem = f"from event {length + 1} on not what * got: {got[length]}"
            if start is not None and start + length < len(texts):
                problem += f" instead of {texts[start + length]}"
            self.problems.append(problem)
            return
        # An event that only `*` got is missed, unless it came before or after this client's time.
        since, until = self.begun + APART_SECONDS, self.ending - APART_SECONDS
        outside = expected if start is None else expected[:start] + expected[start + length :]
        missed = [text for arrival, text in outside if since < arrival < until]
        if missed:
            self.problems.append(f"{len(missed)} events missed, the first: {missed[0]}")
        self.finding = "exactly its events" if got else "nothing"


def longest_run(part, whole):
    """Where the longest beginning of `part` stands in `whole`, and how long it is."""
    best = (None, 0)
    for start, item in enumerate(whole):
        if not part or item != part[0]:
            continue
        length = 0
        for one, other in zip(part, whole[start : start + len(part)]):
            if one != other:
                break
            length += 1
        if length > best[1]:
            best = (start, length)
    return best


def matches(event, channels):
    """Whether one of the channels covers an event."""
    kind = event["ev"]
    return not channels.isdisjoint({"*", f"{kind}.*", f"{kind}.{symbol(event)}"})


def objects(frame):
    """The objects of a frame, which must be an array of objects with `ev`."""
    try:
        found = list(split(frame))
        if all("ev" in event for _, event in found):
            return found
    except (AttributeError, IndexError, TypeError, ValueError):
        pass
    raise Wrong(f"a frame that is no array of events: {frame[:200]!r}")


if __name__ == "__main__":
    sys.exit(main())

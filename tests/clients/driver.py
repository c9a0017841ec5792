"""The parts that all Python drivers share: arguments, output and commands.

A driver connects one client, subscribes, and writes one JSON object per line on standard output:

    {"frame": "[...]"}          a frame as the client hands it over, its text unchanged
    {"event": {"class": C, "fields": {...}}}
                                an object that the client made of an event (--parsed)
    {"log": "..."}              a line of the client's own log (--parsed, where it hides frames)
    {"refused": {"by": "AuthError", "message": "..."}}
                                the key was refused, with the message of the client; exit code 3
    {"ended": "..."}            the client stopped by itself; exit code 4

It reads one command per line on standard input: `subscribe T.A,T.B` and `unsubscribe T.A,T.B`. At
the end of the input it closes the connection and exits with 0. The key comes from POLYGON_API_KEY.
"""

import argparse
import asyncio
import json
import os
import sys

REFUSED = 3
ENDED = 4


def arguments(what):
    """A parser for the arguments of all drivers. A driver may add its own."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--url", required=True, help="ws://HOST:PORT, without a path")
    parser.add_argument("--subscribe", default="", help="T.AAPL,Q.AAPL; nothing by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="give up after (60)")
    return parser


def key():
    """The key to authenticate with."""
    return os.environ["POLYGON_API_KEY"]


def channels(params):
    """The items of a comma-separated list."""
    return [item for item in params.split(",") if item]


def say(**line):
    """Writes one line of output."""
    print(json.dumps(line), flush=True)


class Refused(Exception):
    """The key was refused: the error or status that says so, and its message."""

    def __init__(self, by, message):
        super().__init__(message)
        self.by = by


async def commands():
    """Yields `(action, channels)` per line of input, until its end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        action, _, params = line.decode().strip().partition(" ")
        if action not in ("subscribe", "unsubscribe"):
            raise ValueError(f"unknown command {action!r}")
        yield action, channels(params)


async def first(*coroutines):
    """Waits for the first to end, stops the others, and returns or raises its result."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task.result() for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run(client, seconds):
    """Runs the client's coroutine, and exits with the code that it returns."""
    try:
        sys.exit(asyncio.run(asyncio.wait_for(client, seconds)))
    except Refused as refused:
        say(refused={"by": refused.by, "message": str(refused)})
        sys.exit(REFUSED)
    except asyncio.TimeoutError:
        sys.exit(f"still running after {seconds} s")

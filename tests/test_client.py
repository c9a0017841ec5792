#!/usr/bin/env python3
"""Looks at a feed: subscribes, prints what arrives, and sums up at the end.

    pip install websockets
    python3 tests/test_client.py --symbols "T.AAPL,Q.AAPL" --seconds 10

The key comes from --key, from POLYGON_API_KEY in the environment, or from the same .env as that of
the proxies: the nearest one in the working directory or above it, then the nearest one beside this
file or above it. FILTERED_PROXY_PORT there sets the port of the default server.

It knows nothing of the proxy: with --url wss://socket.massive.com/stocks it looks at the vendor's
own feed. Without --seconds it runs until Ctrl-C.

Exit code: 0 events arrived, 1 none did, 2 wrong usage, 3 the key was refused, 4 there was no
connection or it was lost.
"""

import argparse
import asyncio
import collections
import contextlib
import ipaddress
import json
import os
import pathlib
import re
import sys
import time
import urllib.parse

try:
    import websockets
    from websockets.asyncio.client import connect
except ImportError:
    websockets = None

ANSWER_SECONDS = 10
ROWS = 20

NOTHING, USAGE, REFUSED, DISCONNECTED = 1, 2, 3, 4

# A line of a .env: a name, and a value in single quotes, in double quotes, or without a blank.
DOTENV_LINE = re.compile(
    r"""\s*(?:export\s+)?(\w+)\s*=[^\S\n]*(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|((?!#)\S*)?)"""
)

# Where events keep their symbol, if not in `sym`.
SYMBOL_FIELDS = {
    **dict.fromkeys(["LULD", "NOI", "V"], "T"),
    **dict.fromkeys(["CA", "CAS", "XT", "XQ", "XA", "XAS", "XL2"], "pair"),
    "C": "p",
}


class Refused(Exception):
    """The server refused the key, or ended the session with a status."""


def main():
    options = arguments(__doc__, symbols=True)
    feed = Feed(as_json=options.json)
    code = 0
    try:
        code = run(watch(options, feed))
    except KeyboardInterrupt:
        pass
    if feed.since is not None:
        feed.sum_up()
        if code == 0 and not feed.counts:
            code = NOTHING
    return code


async def watch(options, feed):
    """Receives until the time is over."""
    async with session(options.url, options.key) as socket:
        feed.say("authenticated")
        await send(socket, "subscribe", options.symbols)
        feed.since = time.monotonic()
        try:
            await asyncio.wait_for(feed.receive(socket), options.seconds)
        except asyncio.TimeoutError:
            pass
    return 0


class Feed:
    """What arrived, and how it is shown."""

    def __init__(self, as_json):
        self.as_json = as_json
        self.counts = collections.Counter()
        self.since = None

    async def receive(self, socket):
        """Shows every frame, until the connection ends."""
        while True:
            for text, event in split(await socket.recv()):
                if event["ev"] == "status":
                    self.say(f"{event['status']}: {event['message']}")
                    continue
                self.counts[f"{event['ev']}.{symbol(event)}"] += 1
                print(text if self.as_json else line(event))
            sys.stdout.flush()

    def say(self, text):
        """Prints a line that is not an event. With --json it goes to standard error."""
        print(f"-- {text}", file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def sum_up(self):
        """Count and rate of each channel."""
        seconds = time.monotonic() - self.since
        total = sum(self.counts.values())
        self.say(f"{total} events on {len(self.counts)} channels in {seconds:.1f} s")
        for channel, count in self.counts.most_common(ROWS):
            self.say(f"{channel:<24} {count:>10} {count / seconds:>12.1f}/s")
        if len(self.counts) > ROWS:
            rest = total - sum(count for _, count in self.counts.most_common(ROWS))
            self.say(f"{'all others':<24} {rest:>10} {rest / seconds:>12.1f}/s")
        if len(self.counts) > 1:
            self.say(f"{'total':<24} {total:>10} {total / seconds:>12.1f}/s")


def line(event):
    """One event for people: the main fields of the best known kinds, all fields of others."""
    kind = event["ev"]
    try:
        if kind == "T":
            shown = f"{event['p']} x {event['s']}"
        elif kind == "Q":
            shown = f"{event['bp']} x {event['bs']}  /  {event['ap']} x {event['as']}"
        elif kind in ("A", "AM"):
            shown = "o {o}  h {h}  l {l}  c {c}  v {v}".format(**event)
        else:
            raise KeyError(kind)
    except KeyError:
        rest = ((name, value) for name, value in event.items() if name != "ev")
        shown = " ".join(f"{name}={json.dumps(value)}" for name, value in rest)
    return f"{time.strftime('%H:%M:%S')} {kind:<4} {symbol(event):<8} {shown}"


def symbol(event):
    """The symbol of an event, wherever its kind keeps it."""
    kind = event["ev"]
    # A type that this list does not know may keep it in any of the four fields.
    fields = [SYMBOL_FIELDS[kind]] if kind in SYMBOL_FIELDS else ["sym", "pair", "T", "p"]
    return next((event[field] for field in fields if isinstance(event.get(field), str)), "?")


def split(frame):
    """Yields `(text, object)` for each object of a frame, with its text unchanged."""
    decoder = json.JSONDecoder()
    at = frame.index("[") + 1
    while True:
        while frame[at] in " \t\r\n,":
            at += 1
        if frame[at] == "]":
            return
        event, end = decoder.raw_decode(frame, at)
        yield frame[at:end], event
        at = end


# From here on shared with test_polygon_proxy.py.


def arguments(doc, symbols):
    """The command line of both programs. With `symbols` it takes a list to subscribe to."""
    summary, _, text = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        settings = {**dotenv(pathlib.Path(__file__).parent), **dotenv(pathlib.Path()), **os.environ}
        key = account_key(settings)
    except OSError as error:
        parser.error(str(error))
    url = f"ws://localhost:{settings.get('FILTERED_PROXY_PORT') or 8765}"
    parser.add_argument("--url", default=url, help=f"the server ({url})")
    parser.add_argument("--key", help="default POLYGON_API_KEY or MASSIVE_API_KEY; never printed")
    if symbols:
        parser.add_argument("--symbols", default="T.AAPL", help='such as "T.AAPL,Q.*" (T.AAPL)')
        parser.add_argument("--seconds", type=float, help="stop after (never)")
        parser.add_argument("--json", action="store_true", help="one event a line, as it came")
    else:
        parser.add_argument("--symbol", default="AAPL", help="whose trades and quotes (AAPL)")
        parser.add_argument("--seconds", type=float, default=10.0, help="how long to compare (10)")
    options = parser.parse_args()
    if websockets is None or int(websockets.__version__.split(".")[0]) < 15:
        parser.error("needs websockets 15 or newer: pip install -U websockets")
    options.key = options.key or key
    if not options.key:
        parser.error("POLYGON_API_KEY is not set, there is none in a .env, and there is no --key")
    return options


def dotenv(directory):
    """The nearest .env in a directory or above it, as a dict. Of equal names the first counts."""
    directory = directory.resolve()
    paths = (place / ".env" for place in (directory, *directory.parents))
    settings = {}
    for path in filter(pathlib.Path.is_file, paths):
        # The mark at the beginning is that of an editor on Windows.
        for line in path.read_text("utf-8-sig", errors="replace").splitlines():
            found = DOTENV_LINE.match(line)
            if found:
                name, single, double, plain = found.groups()
                value = re.sub(r"\\(.)", r"\1", double or "") or single or plain or ""
                settings.setdefault(name, value)
        break
    return settings


def account_key(settings):
    """The account's key, from a value or from a file."""
    for name in ("POLYGON_API_KEY", "MASSIVE_API_KEY"):
        key, path = settings.get(name, "").strip(), settings.get(f"{name}_FILE")
        if path and not key:
            key = pathlib.Path(path).read_text("utf-8").strip()
        if key:
            return key
    return None


def run(program):
    """Runs a program and returns its exit code. Prints an error in one line."""
    try:
        return asyncio.run(program)
    except BrokenPipeError:
        # The reader has closed our output, so Python must not flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return REFUSED
    except websockets.exceptions.InvalidStatus as error:
        body = (error.response.body or b"").decode(errors="replace").strip()
        print(f"no session: HTTP {error.response.status_code} {body}", file=sys.stderr)
    except websockets.exceptions.InvalidURI as error:
        print(error, file=sys.stderr)
        return USAGE
    except websockets.exceptions.ConnectionClosed as closed:
        print(f"connection lost: {closed}", file=sys.stderr)
    except (OSError, asyncio.TimeoutError, websockets.exceptions.WebSocketException) as error:
        print(f"no connection: {error or 'no answer in time'}", file=sys.stderr)
    return DISCONNECTED


@contextlib.asynccontextmanager
async def session(url, key):
    """An authenticated connection, closed at the end of its block."""
    # A proxy of the environment must not come between programs on one machine.
    async with connect(url, **({"proxy": None} if is_local(url) else {})) as socket:
        await answer(socket, "connected")
        await send(socket, "auth", key)
        await answer(socket, "auth_success")
        yield socket


def is_local(url):
    """Whether a server is on this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def send(socket, action, params):
    """Sends one command."""
    await socket.send(json.dumps({"action": action, "params": params}))


async def answer(socket, expected):
    """Waits for a status. A status that ends the login raises Refused."""
    statuses = []
    while expected not in statuses:
        frame = await asyncio.wait_for(socket.recv(), ANSWER_SECONDS)
        for _, event in split(frame):
            if event["status"] not in ("connected", "auth_success"):
                raise Refused(f"{event['status']}: {event['message']}")
            statuses.append(event["status"])


if __name__ == "__main__":
    sys.exit(main())

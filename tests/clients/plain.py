"""Drives plain `websockets` as the vendor advises, waiting for each answer; see driver.py.

    POLYGON_API_KEY=... python3 plain.py --url ws://127.0.0.1:8765 --subscribe T.AAPL
"""

import json

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import driver


def main():
    options = driver.arguments(__doc__.splitlines()[0]).parse_args()
    driver.run(drive(options.url, options.subscribe), options.seconds)


async def drive(url, subscribe):
    """Runs a session until the input ends or the server closes it."""
    async with connect(f"{url}/stocks") as socket:
        await authenticate(socket)
        if subscribe:
            await send(socket, "subscribe", subscribe)
        return await driver.first(receive(socket), execute(socket))


async def authenticate(socket):
    """Waits for the greeting, presents the key and waits for the verdict."""
    frame = await socket.recv()
    driver.say(frame=frame)
    await send(socket, "auth", driver.key())
    frame = await socket.recv()
    driver.say(frame=frame)
    verdict = json.loads(frame)[0]
    if verdict["status"] != "auth_success":
        raise driver.Refused(verdict["status"], verdict["message"])


async def receive(socket):
    """Parses and prints every frame until the server closes the connection."""
    try:
        while True:
            frame = await socket.recv()
            json.loads(frame)
            driver.say(frame=frame)
    except ConnectionClosed as closed:
        driver.say(ended=str(closed))
        return driver.ENDED


async def execute(socket):
    """Sends the commands until the input ends."""
    async for action, channels in driver.commands():
        await send(socket, action, ",".join(channels))
    return 0


async def send(socket, action, params):
    """Sends one command."""
    await socket.send(json.dumps({"action": action, "params": params}))


if __name__ == "__main__":
    main()

"""Drives the vendor's Python client, under either of its names. driver.py describes its output.

    POLYGON_API_KEY=... python3 official.py --package massive --url ws://127.0.0.1:8765 \\
        --subscribe T.AAPL
"""

import importlib
import logging

import driver


def main():
    parser = driver.arguments(__doc__.splitlines()[0])
    parser.add_argument("--package", required=True, choices=["massive", "polygon"])
    parser.add_argument("--market", default="stocks", help="the client's own setting (stocks)")
    parser.add_argument("--parsed", action="store_true", help="event objects instead of frames")
    options = parser.parse_args()

    package = importlib.import_module(options.package)
    errors = importlib.import_module(f"{options.package}.exceptions")
    # The client's own handler writes to standard output. With `--parsed` statuses appear only in
    # its log.
    logging.getLogger("WebSocketClient").handlers = [Log()]
    scheme, _, feed = options.url.partition("://")
    # The client's own setting for another host. All else is as with the vendor.
    client = package.WebSocketClient(
        api_key=driver.key(),
        feed=feed,
        secure=scheme == "wss",
        market=options.market,
        raw=not options.parsed,
        verbose=options.parsed,
        subscriptions=driver.channels(options.subscribe),
    )
    driver.run(drive(client, errors.AuthError), options.seconds)


async def drive(client, auth_error):
    """Runs the client until the input ends or it stops by itself."""
    try:
        return await driver.first(receive(client), execute(client))
    except auth_error as error:
        raise driver.Refused(type(error).__name__, str(error)) from None


async def receive(client):
    """Prints everything that the client receives, until it stops by itself."""

    async def processor(received):
        if client.raw:
            driver.say(frame=received)
            return
        for event in received:
            driver.say(event={"class": type(event).__name__, "fields": vars(event)})

    await client.connect(processor)
    driver.say(ended="connect() returned")
    return driver.ENDED


async def execute(client):
    """Passes the commands on to the client until the input ends."""
    async for action, channels in driver.commands():
        getattr(client, action)(*channels)
    return 0


class Log(logging.Handler):
    """Passes the client's log on as output."""

    def emit(self, record):
        driver.say(log=record.getMessage())


if __name__ == "__main__":
    main()

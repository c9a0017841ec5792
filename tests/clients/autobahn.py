"""Runs Autobahn cases against a server, or against a client program that it starts.

    autobahn.py server ws://HOST:PORT --cases 1.* 9.1.1 --at-once 8
    autobahn.py client PROGRAM --cases 1.* --at-once 8

PROGRAM is run as `PROGRAM client --at-once N ws://HOST:PORT`. Writes one JSON object per case on standard output:

    {"case": "1.1.1", "behavior": "OK", "close": "OK", "code": 1000, "right_codes": [1000],
     "dropped": false, "why": "..."}

`behavior` and `close` are the suite's verdicts, `code` is the close code that came, `right_codes` are those that the
suite takes, and `dropped` says that it was the suite that ended the connection, for nothing else did.
"""

import argparse
import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient, run_fuzzingserver


async def results(run):
    """What became of each case; a case that failed is no error here."""
    try:
        return await run
    except FailureError as failure:
        return failure.results


async def against_client(program, cases, at_once):
    async with run_fuzzingserver(cases, port=0) as server:
        url = f"ws://{server.address}:{server.port}"
        client = await asyncio.create_subprocess_exec(
            program, "client", "--at-once", str(at_once), url, stdout=sys.stderr
        )
        ended = asyncio.create_task(client.wait())
        outcome = asyncio.create_task(results(server.get_result()))
        await ended
        if client.returncode != 0:
            sys.exit(f"the client ended with {client.returncode}")
        # The client asks for the results with its last request.
        return await asyncio.wait_for(outcome, 10)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["server", "client"])
    parser.add_argument("target")
    parser.add_argument("--cases", nargs="+", required=True)
    parser.add_argument("--at-once", type=int, default=1)
    args = parser.parse_args()
    if args.side == "server":
        run = run_fuzzingclient(args.target, args.cases, concurrency=args.at_once)
        outcome = await results(run)
    else:
        outcome = await against_client(args.target, args.cases, args.at_once)
    for case in outcome:
        line = {
            "case": case.case_id,
            "behavior": case.behavior.value,
            "close": case.behavior_close.value,
            "code": case.remote_close_code,
            "right_codes": (case.expected_close or {}).get("closeCode", []),
            "dropped": case.dropped_by_me,
            "why": f"{case.result} {case.result_close}",
        }
        print(json.dumps(line))


asyncio.run(main())
# Left to end by itself, the interpreter aborts in one run of fifty: threads of the suite outlive it.
sys.stdout.flush()
os._exit(0)

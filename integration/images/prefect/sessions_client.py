"""Prefect's client for custom container pools, unmodified: another endpoint, and a token that is a key."""

import asyncio
import sys

from azure.core.credentials import AccessToken
from prefect_aca_sessions.client import SessionExecutionError, SessionNotFoundError, SessionsClient

ENDPOINT = sys.argv[1]


class Key:
    """What azure-identity would have got."""

    async def get_token(self, *_scopes, **_options):
        return AccessToken("any", 4102444800)

    async def close(self):
        pass


async def followed(client, identifier):
    """What its worker does: polls from where the last answer ended, until there is an exit code."""
    log, offset = "", 0
    async with asyncio.timeout(120):
        while True:
            seen = await client.poll(identifier, offset)
            log, offset = log + seen["log"], seen["offset"]
            if seen["exit_code"] is not None and not seen["more"]:
                return log, seen["exit_code"]
            await asyncio.sleep(0.1)


async def main():
    async with SessionsClient(ENDPOINT, credential=Key()) as client:
        # Also before it has a sandbox.
        nothing = await client.poll("prefect-0001", 0)
        assert (nothing["started"], nothing["exit_code"]) == (False, None), nothing
        await client.start("prefect-0001", 'echo "hi $NAME"; exit 3', {"NAME": "Ada"})
        assert await followed(client, "prefect-0001") == ("hi Ada\n", 3)
        # Its agent takes one start, and its answer passes unchanged.
        try:
            await client.start("prefect-0001", "true", {})
            raise AssertionError("a second start")
        except SessionExecutionError as error:
            assert error.status_code == 409, error

        # Another conversation beside it, with more output than one poll carries, in characters of several bytes.
        await client.start("prefect-0002", "for n in $(seq 20000); do echo \"zeile $n äöü\"; done", {})
        log, code = await followed(client, "prefect-0002")
        assert (code, log.count("\n"), log.endswith("zeile 20000 äöü\n")) == (0, 20000, True), log[-100:]

        # Stopped while it runs: everything of it is gone, and that it is gone is no error to its worker.
        await client.start("prefect-0003", "echo begun; sleep 1000", {})
        while "begun" not in (await client.poll("prefect-0003", 0))["log"]:
            await asyncio.sleep(0.1)
        await client.stop("prefect-0003")
        try:
            await client.stop("prefect-0003")
            raise AssertionError("stopped twice")
        except SessionNotFoundError:
            pass
        for identifier in ["prefect-0001", "prefect-0002"]:
            await client.stop(identifier)


asyncio.run(main())

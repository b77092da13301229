"""The Python SDK: by itself (modern), legacy, HTTP+SSE and stdio; and what it does when a caller gives up."""

import asyncio
import time

import anyio
from mcp import Client, ClientSession, StdioServerParameters
from mcp.client.sse import sse_client
from story import Answer, has, place, story

GREENROOM = place()


def answer(result):
    kinds = [block.type for block in result.content]
    assert set(kinds) <= {"text", "image"}, kinds
    text = "\n".join(block.text for block in result.content if block.type == "text")
    return Answer(text, kinds.count("image"), bool(result.is_error))


class Http:
    """One connection for all conversations, which are named by the argument."""

    def __init__(self, client):
        self.client = client

    async def tools(self):
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, conversation, tool, arguments):
        arguments = {**arguments, "conversation_id": conversation}
        return answer(await self.client.call_tool(tool, arguments))


class Auto(Http):
    pass


class Legacy(Http):
    pass


class Sse(Http):
    pass


class Stdio:
    """One process for each call: its command line names the conversation."""

    def connect(self, conversation):
        command, arguments = GREENROOM.stdio(conversation)
        return Client(StdioServerParameters(command=command, args=arguments))

    async def tools(self):
        async with self.connect("lists-the-tools") as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    async def call(self, conversation, tool, arguments):
        async with self.connect(conversation) as client:
            return answer(await client.call_tool(tool, arguments))


async def progress(client):
    """The first message comes long before the end, and the client sees what is printed."""
    told = []

    async def tell(progress, total, message):
        told.append((time.monotonic(), message))

    began = time.monotonic()
    code = "import time; print('halfway', flush=True); time.sleep(8)"
    arguments = {"code": code, "conversation_id": "python-sees-progress"}
    await client.call_tool("execute_code", arguments, progress_callback=tell)
    assert told and told[0][0] - began < 5, told
    assert any("halfway" in (message or "") for _, message in told), told


async def giving_up(client, name):
    """A call that its caller gives up is stopped; the session goes on."""
    conversation = f"python-gives-up-{name}-{time.time_ns()}"
    http = Http(client)
    has(await http.call(conversation, "execute_code", {"code": "x = 1"}), "session: new")
    with anyio.move_on_after(2):
        await http.call(conversation, "execute_code", {"code": "import time; time.sleep(40)"})
    deadline = time.monotonic() + 60
    while "cancelled" not in (runs := await http.call(conversation, "get_run", {})).text:
        assert time.monotonic() < deadline, runs.text
        await asyncio.sleep(0.2)
    has(await http.call(conversation, "execute_code", {"code": "x"}), "session: existing")


async def main():
    for mode, kind in (("auto", Auto), ("legacy", Legacy)):
        async with Client(GREENROOM.url, mode=mode) as client:
            await timed(kind(client))
            await progress(client)
            await giving_up(client, mode)
    async with sse_client(GREENROOM.sse) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        await timed(Sse(session))
        await giving_up(session, "sse")
    await timed(Stdio())


async def timed(client):
    began = time.monotonic()
    await story(client)
    print(f"{type(client).__name__}: told in {time.monotonic() - began:.1f} s")


asyncio.run(main())

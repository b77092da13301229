"""fastmcp's client, over HTTP."""

import asyncio

from fastmcp import Client
from story import Answer, place, story


class FastMcp:
    def __init__(self, client):
        self.client = client

    async def tools(self):
        return [tool.name for tool in await self.client.list_tools()]

    async def call(self, conversation, tool, arguments):
        arguments = {**arguments, "conversation_id": conversation}
        result = await self.client.call_tool(tool, arguments, raise_on_error=False)
        text = "\n".join(block.text for block in result.content if block.type == "text")
        images = sum(block.type == "image" for block in result.content)
        return Answer(text, images, result.is_error)


async def main():
    async with Client(place().url) as client:
        await story(FastMcp(client))
    print("fastmcp: told")


asyncio.run(main())

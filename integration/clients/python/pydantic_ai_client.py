"""pydantic-ai's toolset, as an agent would use it."""

import asyncio

from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import BinaryContent
from story import Answer, place, story


def parts(result):
    return result if isinstance(result, list) else [result]


class PydanticAi:
    def __init__(self, toolset):
        self.toolset = toolset

    async def tools(self):
        return [tool.name for tool in await self.toolset.list_tools()]

    async def call(self, conversation, tool, arguments):
        result = await self.toolset.direct_call_tool(tool, {**arguments, "conversation_id": conversation})
        texts = [part for part in parts(result) if isinstance(part, str)]
        images = sum(isinstance(part, BinaryContent) for part in parts(result))
        return Answer("\n".join(texts), images)


async def main():
    async with MCPToolset(place().url) as toolset:
        await story(PydanticAi(toolset))
    print("pydantic-ai: told")


asyncio.run(main())

"""The OpenAI Agents SDK: its MCP server object with its own time-out raised, and its strict conversion of schemas."""

import asyncio
import logging

from agents.mcp import MCPServerStreamableHttp, MCPUtil
from story import Answer, place, story


class Agents:
    def __init__(self, server):
        self.server = server

    async def tools(self):
        return [tool.name for tool in await self.server.list_tools()]

    async def call(self, conversation, tool, arguments):
        result = await self.server.call_tool(tool, {**arguments, "conversation_id": conversation})
        text = "\n".join(block.text for block in result.content if block.type == "text")
        return Answer(text, sum(block.type == "image" for block in result.content))


async def schemas(server):
    """Each tool becomes a strict function: the conversion must neither refuse it nor warn."""
    warned = []

    class Ear(logging.Handler):
        def emit(self, record):
            warned.append(record.getMessage())

    logging.getLogger("openai.agents").addHandler(Ear(logging.WARNING))
    for tool in await server.list_tools():
        function = MCPUtil.to_function_tool(tool, server, convert_schemas_to_strict=True)
        schema = function.params_json_schema
        assert function.strict_json_schema, f"{tool.name} is not strict"
        assert set(schema.get("required", [])) == set(schema.get("properties", {})), schema
    assert not warned, warned


async def main():
    # Five seconds by default, in which no first sandbox boots on a busy machine.
    async with MCPServerStreamableHttp({"url": place().url}, client_session_timeout_seconds=60) as server:
        await schemas(server)
        await story(Agents(server))
    print("openai-agents: told")


asyncio.run(main())

"""LangChain's adapters: a new transport session for every call over HTTP, a new process over stdio."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "python"))

from langchain_mcp_adapters.client import MultiServerMCPClient  # noqa: E402
from story import Answer, place, story  # noqa: E402

GREENROOM = place()


def answer(message):
    content = message.content if isinstance(message.content, list) else [message.content]
    text = "\n".join(block if isinstance(block, str) else block.get("text", "") for block in content)
    images = sum(isinstance(block, dict) and block.get("type", "").startswith("image") for block in content)
    return Answer(text, images)


class LangChain:
    """The application names the conversation: by a header, or on the command line."""

    def connection(self, conversation):
        return {
            "transport": "streamable_http",
            "url": GREENROOM.url,
            "headers": {"X-Conversation-Id": conversation},
        }

    async def named(self, conversation):
        client = MultiServerMCPClient({"greenroom": self.connection(conversation)})
        return {tool.name: tool for tool in await client.get_tools(server_name="greenroom")}

    async def tools(self):
        return list(await self.named("lists-the-tools"))

    async def call(self, conversation, tool, arguments):
        tools = await self.named(conversation)
        call = {"type": "tool_call", "id": "1", "name": tool, "args": arguments}
        return answer(await tools[tool].ainvoke(call))


class LangChainStdio(LangChain):
    def connection(self, conversation):
        command, arguments = GREENROOM.stdio(conversation)
        return {"transport": "stdio", "command": command, "args": arguments}


async def main():
    for client in (LangChain(), LangChainStdio()):
        await story(client)
        print(f"{type(client).__name__}: told")


asyncio.run(main())

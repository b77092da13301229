// LangChain's adapters for TypeScript. The application names the conversation by a header.

import { MultiServerMCPClient } from "@langchain/mcp-adapters";
import { answer, story, url } from "./story.mjs";

async function named(conversation, use) {
  const headers = { "X-Conversation-Id": conversation };
  const client = new MultiServerMCPClient({ mcpServers: { greenroom: { transport: "http", url, headers } } });
  try {
    return await use(new Map((await client.getTools()).map((tool) => [tool.name, tool])));
  } finally {
    await client.close();
  }
}

function read(message) {
  const { content } = message;
  return answer(typeof content === "string" ? [{ type: "text", text: content }] : content);
}

await story("langchain-js", {
  tools: () => named("lists-the-tools", async (tools) => [...tools.keys()]),
  call: (conversation, tool, args) =>
    named(conversation, async (tools) => read(await tools.get(tool).invoke({ type: "tool_call", id: "1", name: tool, args }))),
});

// The TypeScript SDK v1, which many hosts have inside: streamable HTTP, HTTP+SSE, and stdio with a process for each call.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { Ajv } from "ajv";
import { answer, givingUp, sse, stdio, story, url } from "./story.mjs";

async function connect(transport) {
  const client = new Client({ name: "story", version: "0" });
  await client.connect(transport);
  return client;
}

for (const [name, transport] of [
  ["sdk-v1-http", new StreamableHTTPClientTransport(new URL(url))],
  ["sdk-v1-sse", new SSEClientTransport(new URL(sse))],
]) {
  const client = await connect(transport);
  const call = async (tool, args, signal) =>
    answer((await client.callTool({ name: tool, arguments: args }, undefined, { signal })).content);
  await story(name, {
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: (conversation_id, tool, args) => call(tool, { ...args, conversation_id }),
  });
  await givingUp(name, call);
  await client.close();
}

// The validator that is inside of the SDK, at its strictest: it throws where it would complain.
const lister = await connect(new StreamableHTTPClientTransport(new URL(url)));
const ajv = new Ajv({ strict: true, validateSchema: true });
for (const tool of (await lister.listTools()).tools) ajv.compile(tool.inputSchema);
await lister.close();

async function once(conversation, use) {
  const [command, args] = stdio(conversation);
  const client = await connect(new StdioClientTransport({ command, args }));
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

await story("sdk-v1-stdio", {
  tools: () => once("lists-the-tools", async (client) => (await client.listTools()).tools.map((tool) => tool.name)),
  call: (conversation, tool, args) =>
    once(conversation, async (client) => answer((await client.callTool({ name: tool, arguments: args })).content)),
});

// The TypeScript SDK v2, in both eras.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { answer, givingUp, story, url } from "./story.mjs";

for (const [name, options] of [
  ["sdk-v2-legacy", {}],
  ["sdk-v2-modern", { versionNegotiation: { mode: "auto" } }],
]) {
  const client = new Client({ name: "story", version: "0" }, options);
  await client.connect(new StreamableHTTPClientTransport(new URL(url)));
  const call = async (tool, args, signal) =>
    answer((await client.callTool({ name: tool, arguments: args }, { signal })).content);
  await story(name, {
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: (conversation_id, tool, args) => call(tool, { ...args, conversation_id }),
  });
  await givingUp(name, call);
  await client.close();
}

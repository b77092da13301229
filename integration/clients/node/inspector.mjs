// The Inspector's command line: a new client for each call, over each transport that it has.

import { execFile } from "node:child_process";
import { createRequire } from "node:module";
import path from "node:path";
import { promisify } from "node:util";
import { answer, sse, story, url } from "./story.mjs";

const require = createRequire(import.meta.url);
const manifest = require.resolve("@modelcontextprotocol/inspector/package.json");
const { bin } = require(manifest);
const inspector = path.join(path.dirname(manifest), typeof bin === "string" ? bin : bin["mcp-inspector"]);

async function inspect(server, transport, conversation, ...what) {
  const where = ["--cli", server, "--transport", transport, "--header", `X-Conversation-Id: ${conversation}`];
  const { stdout } = await promisify(execFile)(process.execPath, [inspector, ...where, ...what, "--format", "json"], {
    maxBuffer: 16 << 20,
  });
  return JSON.parse(stdout);
}

const result = (printed) => printed.result ?? printed;

for (const [name, server, transport] of [
  ["inspector-http", url, "http"],
  ["inspector-sse", sse, "sse"],
]) {
  await story(name, {
    tools: async () => {
      const printed = await inspect(server, transport, "lists-the-tools", "--method", "tools/list");
      return result(printed).tools.map((tool) => tool.name);
    },
    call: async (conversation, tool, args) => {
      const call = ["--method", "tools/call", "--tool-name", tool, "--tool-args-json", JSON.stringify(args)];
      return answer(result(await inspect(server, transport, conversation, ...call)).content);
    },
  });
}

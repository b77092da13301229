// The story that every client tells, as in ../python/story.py: through the client's own interface.
// Scripts are started as `node SCRIPT URL BINARY CONFIG`, and end with 0 if all went well.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

export const [url, binary, config] = process.argv.slice(2);
export const sse = url.replace(/\/mcp$/, "/sse");
export const stdio = (conversation) => [binary, ["stdio", "--config", config, "--conversation", conversation]];

const STANDARD = ["execute_code", "upload_file", "list_files", "download_file", "get_run", "cancel_run", "reset_session"];
const PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.title('sales')";

// A validator that complains of a schema does so on the console.
const complaints = [];
for (const kind of ["warn", "error"]) {
  const say = console[kind];
  console[kind] = (...what) => {
    complaints.push(what.join(" "));
    say(...what);
  };
}

function has(answer, ...texts) {
  for (const text of texts) assert.ok(answer.text.includes(text), `${text} is not in: ${answer.text}`);
}

// What of a result a client hands on: blocks of text and images.
export function answer(content) {
  const texts = content.filter((block) => block.type === "text").map((block) => block.text);
  return { text: texts.join("\n"), images: content.filter((block) => block.type.startsWith("image")).length };
}

export async function story(name, client, { images = true } = {}) {
  const began = performance.now();
  const [one, two] = [0, 1].map(() => `${name}-${randomUUID()}`);
  const python = (conversation, code, more = {}) => client.call(conversation, "execute_code", { code, ...more });
  const names = await client.tools();
  for (const tool of STANDARD) assert.ok(names.includes(tool), `${tool} is not among ${names}`);

  has(await python(one, "x = 41"), "session: new");
  has(await python(one, "x + 1"), "session: existing", "42");
  const plot = await python(one, PLOT);
  has(plot, "ok", ".png");
  if (images) assert.equal(plot.images, 1);

  has(await client.call(one, "upload_file", { path: "in/a.txt", content: "größe\n" }), "8 bytes");
  has(await client.call(one, "list_files", { recursive: true }), "in/a.txt");
  has(await client.call(one, "download_file", { path: "in/a.txt" }), "größe");

  has(await python(one, "while True: pass", { timeout_seconds: 1 }), "timed_out");
  has(await python(one, "x"), "session: existing", "41");

  const background = await python(one, "import time; time.sleep(60)", { background: true });
  const [run_id] = background.text.match(/run-[0-9a-f]+/);
  has(await client.call(one, "cancel_run", { run_id }), "cancelled");

  has(await python(two, "'x' in dir()"), "session: new", "False");
  for (const conversation of [one, two]) await client.call(conversation, "reset_session", {});
  assert.deepEqual(complaints, []);
  console.log(`${name}: told in ${((performance.now() - began) / 1000).toFixed(1)} s`);
}

// A call that its caller gives up is stopped; the session goes on. `call` takes a signal.
export async function givingUp(name, call) {
  const conversation_id = `${name}-gives-up-${randomUUID()}`;
  has(await call("execute_code", { conversation_id, code: "x = 1" }), "session: new");
  const signal = AbortSignal.timeout(2000);
  await assert.rejects(call("execute_code", { conversation_id, code: "import time; time.sleep(40)" }, signal));
  for (const deadline = Date.now() + 20_000; ; ) {
    const runs = await call("get_run", { conversation_id });
    if (runs.text.includes("cancelled")) break;
    assert.ok(Date.now() < deadline, runs.text);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  has(await call("execute_code", { conversation_id, code: "x" }), "session: existing");
}

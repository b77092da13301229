// What Deno's Jupyter kernel lacks for a model, put right before the first cell. Runs once, silently.
{
  // The kernel passes prints on by messages, a thousand a second, out of order with its "idle", and loses what goes to
  // the streams themselves. Descriptors 1 and 2 are the agent's, and take everything as it comes.
  const internals = Deno[Deno.internal];
  const encoder = new TextEncoder();
  // Written to as they are: opening them again by /proc takes owning them, and they are the agent's.
  const { write: put } = Deno.dlopen("libc.so.6", {
    write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  }).symbols;
  const open = (descriptor) => (chunk) => {
    let bytes = typeof chunk === "string" ? encoder.encode(chunk) : chunk;
    // Interrupted writes are made again; after so many in a row nobody reads any more.
    for (let failures = 0; bytes.length && failures < 100;) {
      const written = Number(put(descriptor, bytes, BigInt(bytes.length)));
      failures = written < 0 ? failures + 1 : 0;
      bytes = bytes.subarray(Math.max(written, 0));
    }
  };
  const streams = [["stdout", open(1)], ["stderr", open(2)]];
  Object.assign(console, new internals.Console((text, level) => streams[level > 1 ? 1 : 0][1](text)));
  for (const [name, write] of streams) {
    Deno[name].writeSync = (bytes) => (write(bytes), bytes.length);
    Deno[name].write = async (bytes) => Deno[name].writeSync(bytes);
  }

  // Node's world takes a quarter of a second to come up: only for code that asks for it.
  const lazily = (name, make) => {
    const settle = (value) =>
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    Object.defineProperty(globalThis, name, {
      configurable: true,
      get: () => (settle(make()), globalThis[name]),
      set: settle,
    });
  };
  const { get } = Object.getOwnPropertyDescriptor(globalThis, "process");
  lazily("process", () => {
    const process = get.call(globalThis);
    for (const [name, write] of streams) {
      process[name].write = (chunk, encoding, done) => {
        write(chunk);
        (typeof encoding === "function" ? encoding : done)?.();
        return true;
      };
    }
    return process;
  });
  lazily("require", () => process.getBuiltinModule("node:module").createRequire(`${Deno.cwd()}/cell.js`));

  globalThis.prompt = globalThis.confirm = () => {
    throw new Error("there is no terminal: the code cannot ask anybody; put the value into the code");
  };

  // Uncaught, these would leave the kernel waiting for ever.
  for (const [event, reason] of [["error", "error"], ["unhandledrejection", "reason"]]) {
    globalThis.addEventListener(event, (what) => {
      what.preventDefault();
      console.error("Uncaught (in the background)", what[reason]);
    });
  }

  // The kernel does not say what is wrong with code that it cannot read. Importing it says so, and runs none of it.
  globalThis[Symbol.for("greenroom.explain")] = async (code) => {
    const bytes = new TextEncoder().encode(`throw 0;${code}`);
    const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
    const fault = await import(`data:application/typescript;base64,${btoa(text)}`).catch((error) => error);
    const found = /^SyntaxError: ([^]*?)\n    at data:/.exec(fault?.message ?? "");
    if (found) {
      throw new SyntaxError(found[1].replace("throw 0;", "        "));
    }
  };
}

"""The story that every client tells: what a person's day with Greenroom needs, through that client's own interface.

A client is a class with `tools()` and `call(conversation, tool, arguments)`; it answers with an Answer. Scripts are
started as `python SCRIPT URL BINARY CONFIG`, from any folder, and end with 0 if all went well.
"""

import asyncio
import sys
import time
import uuid
from dataclasses import dataclass, field

STANDARD = {
    "execute_code",
    "upload_file",
    "list_files",
    "download_file",
    "get_run",
    "cancel_run",
    "reset_session",
}
PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.title('sales')"


@dataclass
class Answer:
    """What of a result the client hands on: text always, images where it can."""

    text: str
    images: int = 0
    is_error: bool = False


@dataclass
class Place:
    """Where Greenroom is."""

    url: str
    binary: str
    config: str
    began: float = field(default_factory=time.monotonic)

    @property
    def sse(self):
        return self.url.removesuffix("/mcp") + "/sse"

    def stdio(self, conversation):
        return self.binary, ["stdio", "--config", self.config, "--conversation", conversation]


def place():
    return Place(*sys.argv[1:4])


def has(answer, *texts):
    for text in texts:
        assert text in answer.text, f"{text!r} is not in: {answer.text}"


def run_id(answer):
    words = answer.text.replace(",", " ").replace(".", " ").split()
    return next(word for word in words if word.startswith("run-"))


async def story(client, images=True):
    """Tells it. `images=False`: a client that does not hand images on."""
    one, two = (f"{type(client).__name__.lower()}-{uuid.uuid4()}" for _ in range(2))
    names = set(await client.tools())
    assert STANDARD <= names, names

    async def python(conversation, code, **more):
        return await client.call(conversation, "execute_code", {"code": code, **more})

    has(await python(one, "x = 41"), "session: new")
    has(await python(one, "x + 1"), "session: existing", "42")

    plot = await python(one, PLOT)
    has(plot, "ok", ".png")
    assert not images or plot.images == 1, plot

    has(await client.call(one, "upload_file", {"path": "in/a.txt", "content": "größe\n"}), "8 bytes")
    has(await client.call(one, "list_files", {"recursive": True}), "in/a.txt")
    has(await client.call(one, "download_file", {"path": "in/a.txt"}), "größe")

    has(await python(one, "while True: pass", timeout_seconds=1), "timed_out")
    has(await python(one, "x"), "session: existing", "41")

    background = await python(one, "import time; time.sleep(60)", background=True)
    has(await client.call(one, "cancel_run", {"run_id": run_id(background)}), "cancelled")

    other = await python(two, "'x' in dir()")
    has(other, "session: new", "False")
    for conversation in (one, two):
        await client.call(conversation, "reset_session", {})


def tell(*clients, **how):
    async def all_of_them():
        for client in clients:
            began = time.monotonic()
            await story(client, **how)
            print(f"{type(client).__name__}: told in {time.monotonic() - began:.1f} s")

    asyncio.run(all_of_them())

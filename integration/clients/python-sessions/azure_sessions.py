"""LangChain's tools for Azure's dynamic sessions, unmodified: another endpoint, any token."""

import io
import json
import sys
from urllib.parse import urlsplit

from langchain_azure_dynamic_sessions import SessionsBashTool, SessionsPythonREPLTool
from langchain_azure_dynamic_sessions.backends import SessionsBashBackend

PARTS = urlsplit(sys.argv[1])
ENDPOINT = f"{PARTS.scheme}://{PARTS.netloc}/pools/python"
COMMON = {"pool_management_endpoint": ENDPOINT, "access_token_provider": lambda: "any"}


def python():
    tool = SessionsPythonREPLTool(session_id="langchain-python", **COMMON)
    assert json.loads(tool.invoke("6 * 7"))["result"] == 42
    assert json.loads(tool.invoke("kept = 1; print('out')"))["stdout"] == "out\n"
    assert json.loads(tool.invoke("kept + 1"))["result"] == 2
    failed = json.loads(tool.invoke("1 / 0"))
    assert "ZeroDivisionError" in failed["stderr"], failed
    plot = tool.execute("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert plot["result"]["type"] == "image" and plot["result"]["base64_data"], plot
    stored = tool.upload_file(data=io.BytesIO(b"abc"), remote_file_path="a b.txt")
    assert (stored.filename, stored.size_in_bytes) == ("a b.txt", 3), stored
    assert "a b.txt" in [file.filename for file in tool.list_files()]
    assert tool.download_file(remote_file_path="a b.txt").read() == b"abc"
    assert json.loads(tool.invoke("open('/mnt/data/a b.txt').read()"))["result"] == "'abc'"
    tool.delete_session()


def bash():
    tool = SessionsBashTool(session_id="langchain-bash", **COMMON)
    assert "hello" in str(tool.invoke("echo hello"))
    tool.upload_file(data=io.BytesIO(b"x"), remote_file_path="b.txt")
    assert tool.download_file(remote_file_path="b.txt").read() == b"x"
    tool.close()


def backend():
    box = SessionsBashBackend(ENDPOINT, session_id="langchain-backend", access_token_provider=lambda: "any")
    ran = box.execute("echo hello; exit 3")
    assert "hello" in ran.output and ran.exit_code == 3, ran
    box.write("/mnt/data/x.txt", "one\n")
    assert "one" in box.execute("cat /mnt/data/x.txt").output
    box.upload_files([("/mnt/data/u.txt", b"abc")])
    assert box.download_files(["/mnt/data/u.txt"])[0].content == b"abc"
    big = "y" * 60_000
    box.write("/mnt/data/big.txt", big)
    assert box.download_files(["/mnt/data/big.txt"])[0].content == big.encode()


python()
bash()
backend()

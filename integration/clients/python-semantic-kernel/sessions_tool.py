"""Semantic Kernel's tool for Azure's dynamic sessions, unmodified, over https: another endpoint, and a key."""

import asyncio
import pathlib
import ssl
import sys
import tempfile

import httpx
from semantic_kernel.core_plugins.sessions_python_tool.sessions_python_plugin import SessionsPythonTool
from semantic_kernel.exceptions.function_exceptions import FunctionExecutionException

ENDPOINT, CERTIFICATES, KEY = sys.argv[1:]


def tool(folder, key):
    # Its own time-out is 5 s, which a machine that runs other tests may not keep.
    context = ssl.create_default_context(cafile=CERTIFICATES)
    return SessionsPythonTool(
        auth_callback=lambda: key,
        pool_management_endpoint=ENDPOINT,
        http_client=httpx.AsyncClient(timeout=60, verify=context),
        enable_dangerous_file_uploads=True,
        allowed_upload_directories={folder},
    )


async def main():
    with tempfile.TemporaryDirectory() as folder:
        sample = pathlib.Path(folder, "sample.csv")
        sample.write_text("a,b\n1,2\n")
        own = tool(folder, KEY)
        assert "Result:\n42\n" in await own.execute_code(code="6 * 7")
        await own.execute_code(code="kept = 1")
        assert "Result:\n2\n" in await own.execute_code(code="kept + 1")
        failed = await own.execute_code(code="1 / 0")
        assert failed.startswith("Status:\nFailure\n") and "ZeroDivisionError" in failed, failed
        stored = await own.upload_file(local_file_path=str(sample))
        assert (stored.filename, stored.size_in_bytes) == ("sample.csv", 8), stored
        assert "sample.csv" in [file.filename for file in await own.list_files()]
        assert (await own.download_file(remote_file_name="sample.csv")).read() == b"a,b\n1,2\n"
        assert "Stdout:\na,b\n1,2\n" in await own.execute_code(code="print(open('/mnt/data/sample.csv').read())")
        for wrong in ["", "any", KEY[:-1]]:
            try:
                await tool(folder, wrong).execute_code(code="6 * 7")
            except FunctionExecutionException as refused:
                assert "401" in str(refused), refused
            except httpx.HTTPError:
                # It does not even send a header that ends in a space.
                assert wrong == ""
            else:
                raise AssertionError(f"{wrong!r} was let in")


asyncio.run(main())

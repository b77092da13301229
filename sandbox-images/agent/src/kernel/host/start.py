"""The Python kernel's process: runs the code that the agent sends, shows its results, says how it ended.

Descriptors 1 and 2 are pipes that the agent reads. TALK is a stream socket with one JSON object a line in each
direction. TICK brings a byte now and then while a run lasts, upon which buffered output is flushed. Whatever this
process says is the guest's word: the agent bounds it and believes none of it.

Uses IPython for what is IPython's (magics, `!`, rich displays) and does without where the image has none.

The files of this folder are one program, in this order: start, talk, memory, streams, words, show, errors, languages,
cells, host.
"""

import ast
import base64
import builtins
import collections
import faulthandler
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import io
import json
import linecache
import os
import re
import resource
import signal
import sys
import threading
import traceback
import types

TALK, TICK = 3, 4
OWN_FILE = "<greenroom>"

# One line of a stream is written at once as long as a run has not written many: under gVisor a write costs 40 µs,
# so whoever prints a million lines is buffered, and flushed at each tick.
LINES_AT_ONCE = 100
BUFFER_BYTES = 1 << 16

# The agent's, the platform's and small neighbours', besides an eighth of all.
MEMORY_OF_OTHERS = 32 << 20

TEXT_LIMIT = 64 << 10
DISPLAY_LIMIT = 128 << 10
DISPLAYS = 64
FIGURES = 32
CELLS_REMEMBERED = 200

IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
SVG_AS_TEXT = 4000
FUTURES = 0
for _name in __import__("__future__").all_feature_names:
    FUTURES |= getattr(__import__("__future__"), _name).compiler_flag


def cut(text, limit=TEXT_LIMIT):
    """At most `limit` characters of a text, from both of its ends, with nothing in it that JSON cannot carry."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


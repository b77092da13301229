# Exceptions as the agent is told.


# What Python says nothing about.
WITHOUT_WORDS = {
    KeyboardInterrupt: "interrupted",
    MemoryError: "out of memory: this sandbox has no more; variables are kept",
}
# Where the whole of a traceback is written that is shown in part.
FULL_TRACEBACK = {"path": None}
# Frames of a library that are shown at each end of a row of them.
LIBRARY_ENDS = 1
SHELL = next((shell for shell in ("/bin/bash", "/bin/sh") if os.path.exists(shell)), None)
LANGUAGE = None


def describe(error):
    """An exception as the agent is told: its class, its text, its traceback without our own frames."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception as other:
        message = f"<no text: its __str__ raised {type(other).__name__}>"
    if isinstance(error, SystemExit):
        return {"name": "exit", "message": f"the code ended itself with status {message}; variables are kept", "traceback": ""}
    if not message:
        message = WITHOUT_WORDS.get(type(error), "")
    usage = getattr(LANGUAGE, "usage_error", ())
    text = "" if isinstance(error, usage) else trace(error)
    return {"name": cut(name, 200), "message": cut(message, 4096), "traceback": cut(text, 16 << 10)}


def trace(error):
    """Its traceback with the lines of the user's frames; those of libraries are named, and few."""
    try:
        found = traceback.TracebackException.from_exception(error)
        hide(found, set())
        whole = "".join(found.format())
        shortened = shorten(found, set())
        text = "".join(found.format())
        if shortened:
            text += note_whole(whole)
        return text
    except Exception as other:
        return f"{type(error).__name__} (its traceback cannot be shown: {type(other).__name__})\n"


def note_whole(text):
    """Saves a whole traceback and says where it is."""
    path = FULL_TRACEBACK["path"]
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(cut(text, 1 << 20) + "\n")
    except (OSError, TypeError):
        return ""
    return f"(frames of libraries are shortened; all of them are in {path})\n"


class Short(traceback.StackSummary):
    """Frames as they are shown: those of libraries without their source."""

    def format_frame_summary(self, frame, **keywords):
        if isinstance(frame, Skipped):
            return f"  … {frame.lineno} frames …\n"
        library = library_of(frame.filename)
        if library is None:
            return super().format_frame_summary(frame, **keywords)
        return f"  {library}:{frame.lineno} in {frame.name}\n"


class Skipped(traceback.FrameSummary):
    """Stands for a number of frames."""

    def __init__(self, count):
        super().__init__("…", count, "", lookup_line=False)


def library_of(path):
    """A file of Python or of an installed package, from the folder that is searched for it; `None` for others."""
    for mark in ("/site-packages/", "/dist-packages/"):
        if mark in path:
            return path.rsplit(mark, 1)[1]
    stdlib = os.path.dirname(os.__file__) + os.sep
    if path.startswith(stdlib):
        return path[len(stdlib) :]
    # What compiled modules say of themselves is relative to nowhere.
    return path if path.startswith("<frozen ") or path.endswith((".pyx", ".pxi")) else None


def shorten(found, seen, inner=False):
    """Leaves the ends of each row of library frames. Says whether any is gone."""
    if found is None or id(found) in seen:
        return False
    seen.add(id(found))
    shown, row, gone = Short(), [], False
    for frame in [*found.stack, None]:
        if frame is not None and library_of(frame.filename) is not None:
            row.append(frame)
            continue
        skipped = len(row) - 2 * LIBRARY_ENDS
        if inner and frame is None and not shown:
            # Nothing of the user's is in it: what was raised is enough, with no word on where.
            found.stack, gone = None, gone or bool(row)
            break
        if skipped > 1:
            row[LIBRARY_ENDS:-LIBRARY_ENDS] = [Skipped(skipped)]
            gone = True
        shown.extend(row)
        row = []
        if frame is not None:
            shown.append(frame)
    else:
        found.stack = shown
    for other in (found.__cause__, found.__context__, *(getattr(found, "exceptions", None) or ())):
        gone = shorten(other, seen, inner=True) or gone
    return gone


def hide(found, seen):
    """Takes our frames and IPython's out of a traceback and those behind it."""
    if found is None or id(found) in seen:
        return
    seen.add(id(found))
    hidden = LANGUAGE.hidden
    found.stack[:] = [
        frame for frame in found.stack if frame.filename != OWN_FILE and not frame.filename.startswith(hidden or OWN_FILE)
    ]
    for other in (found.__cause__, found.__context__, *(getattr(found, "exceptions", None) or ())):
        hide(other, seen)

"""The Python kernel's process: runs the code that the agent sends, shows its results, says how it ended.

Descriptors 1 and 2 are pipes that the agent reads. TALK is a stream socket with one JSON object a line in each
direction. TICK brings a byte now and then while a run lasts, upon which buffered output is flushed. Whatever this
process says is the guest's word: the agent bounds it and believes none of it.

Uses IPython for what is IPython's (magics, `!`, rich displays) and does without where the image has none.
"""

import ast
import base64
import builtins
import collections
import faulthandler
import gc
import importlib
import importlib.abc
import importlib.util
import inspect
import io
import json
import linecache
import os
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

IMAGES = {"image/png": "png", "image/jpeg": "jpg"}
FUTURES = 0
for _name in __import__("__future__").all_feature_names:
    FUTURES |= getattr(__import__("__future__"), _name).compiler_flag


def cut(text, limit=TEXT_LIMIT):
    """At most `limit` characters of a text, from both of its ends, with nothing in it that JSON cannot carry."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Interrupts:
    """Ctrl-C reaches the code that is running, and nothing else of this process."""

    def __init__(self):
        self.armed = False
        self.pending = False

    def handle(self, _signum, _frame):
        if self.armed:
            raise KeyboardInterrupt
        self.pending = True

    def install(self):
        """Takes the signal back from code that may have taken it."""
        if signal.getsignal(signal.SIGINT) != self.handle:
            signal.signal(signal.SIGINT, self.handle)

    def arm(self):
        self.armed = True
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt


def bound_memory():
    """Lets this process have somewhat less than all of the memory, so that code which wants too much gets a
    MemoryError and keeps its variables: past the machine's limit the host kills something, often the whole sandbox.
    A limit of address space, since gVisor keeps no other: what is mapped and not used so far does not count."""
    with open("/proc/meminfo") as meminfo:
        total = next(int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemTotal:"))
    with open("/proc/self/statm") as statm:
        size, resident = (int(pages) * resource.getpagesize() for pages in statm.read().split()[:2])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size - resident + total // 8 * 7 - MEMORY_OF_OTHERS, most))


class Talk:
    """The line to the agent."""

    def __init__(self, interrupts):
        self.interrupts = interrupts
        self.lock = threading.Lock()
        self.rest = b""
        self.in_run = False
        os.register_at_fork(after_in_child=self.after_fork)

    def after_fork(self):
        """The line is the parent's. Another thread's hold on the lock was copied, and that thread was not."""
        self.lock = threading.Lock()
        self.in_run = False

    def request(self):
        """Waits for the next run."""
        request = self.receive()
        self.in_run = True
        return request

    def show(self, display):
        """Shows something and waits until the agent has read what was printed before it. Says whether it could:
        between runs there is nobody to show it to."""
        held = threading.current_thread() is threading.main_thread() and self.interrupts.armed
        with self.lock:
            if not self.in_run:
                return False
            if held:
                # An interrupt in the middle of a message would garble the next.
                self.interrupts.armed = False
            self.send({"display": display})
            self.receive()
        if held:
            self.interrupts.arm()
        return True

    def end_run(self, done):
        with self.lock:
            self.in_run = False
            self.send({"done": done})

    def receive(self):
        while b"\n" not in self.rest:
            try:
                chunk = os.read(TALK, 1 << 16)
            except OSError:
                self.lost()
            if not chunk:
                os._exit(0)
            self.rest += chunk
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def send(self, message):
        data = json.dumps(message).encode() + b"\n"
        while data:
            try:
                data = data[os.write(TALK, data) :]
            except OSError:
                self.lost()

    @staticmethod
    def lost():
        """The code has closed the line. The agent sees that, ends this process and says why."""
        while True:
            signal.pause()


class Stream(io.TextIOWrapper):
    """Standard output or error: line by line at first, in blocks for those who write a lot."""

    def __init__(self, descriptor):
        raw = io.FileIO(descriptor, "w", closefd=False)
        buffer = io.BufferedWriter(raw, BUFFER_BYTES)
        super().__init__(buffer, encoding="utf-8", errors="backslashreplace", newline="\n")
        self.mode = "w"
        self.write_line_by_line()

    def write_line_by_line(self):
        self.lines_left = LINES_AT_ONCE
        # Found before the method of the class, which is much quicker and stands behind it again afterwards.
        self.write = self.write_line

    def write_line(self, text):
        written = io.TextIOWrapper.write(self, text)
        if "\n" in text:
            self.flush()
            self.lines_left -= 1
            if self.lines_left <= 0:
                self.__dict__.pop("write", None)
        return written


class Output:
    """Descriptors 1 and 2, and the streams over them: put right before each run, flushed after it."""

    def __init__(self):
        self.is_fork = False
        self.saved = {1: os.dup(1), 2: os.dup(2)}
        self.identity = {fd: self.identify(fd) for fd in self.saved}
        self.streams = {1: Stream(1), 2: Stream(2)}
        self.lock = threading.RLock()
        self.flush_libc = None
        # A fork in the middle of a flush would copy a lock that nobody opens again, and the text in the buffer.
        os.register_at_fork(before=self.before_fork, after_in_parent=self.lock.release, after_in_child=self.after_fork)
        sys.addaudithook(self.audit)
        threading.Thread(target=self.follow_ticks, name="greenroom-flush", daemon=True).start()

    @staticmethod
    def identify(descriptor):
        try:
            found = os.fstat(descriptor)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @staticmethod
    def is_usable(stream):
        try:
            return not stream.closed
        except ValueError:
            # Its buffer was taken from it.
            return False

    def put_right(self):
        """Undoes what the code before may have done: closed or replaced a descriptor or a stream."""
        for fd, saved in self.saved.items():
            if self.identify(fd) != self.identity[fd]:
                os.dup2(saved, fd)
            if not self.is_usable(self.streams[fd]):
                self.streams[fd] = Stream(fd)
            self.streams[fd].write_line_by_line()
        sys.stdout = sys.__stdout__ = self.streams[1]
        sys.stderr = sys.__stderr__ = self.streams[2]

    def flush(self):
        with self.lock:
            for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None), *self.streams.values()):
                try:
                    stream.flush()
                except Exception:
                    # Closed, or something of the code's own that cannot be flushed: it keeps what it has.
                    pass

    def flush_all(self):
        """Flushes the C library's streams as well, once anything could have written into them."""
        self.flush()
        if self.flush_libc is None and "ctypes" in sys.modules:
            self.flush_libc = sys.modules["ctypes"].CDLL(None).fflush
        if self.flush_libc is not None:
            self.flush_libc(None)

    def follow_ticks(self):
        while os.read(TICK, 64):
            self.flush()

    def before_fork(self):
        self.lock.acquire()
        self.flush()

    def after_fork(self):
        self.is_fork = True
        self.lock.release()

    def audit(self, event, _arguments):
        # What a new process writes comes after what this one has written.
        if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"):
            self.flush()


class Display:
    """What the code shows: bundles by MIME type, and figures."""

    def __init__(self, talk, output):
        self.talk = talk
        self.output = output
        self.begin("")

        # A function, since pyplot gives it a signature.
        def show(*_arguments, **_keywords):
            self.show_figures()

        sys.meta_path.insert(0, PyplotWatch(show))

    def begin(self, figures):
        """A new run, whose images are saved as `figures` with a number and an ending."""
        self.figures = figures
        self.shown = 0
        self.images = 0

    def publish(self, bundle):
        """Shows a bundle: as it is, or as its plain text where nothing else is in it or too much was shown."""
        image = self.save_image(bundle)
        texts = {kind: value for kind, value in bundle.items() if kind not in IMAGES}
        rich = image or any(kind != "text/plain" for kind in texts)
        if not rich or self.shown >= DISPLAYS or not self.show(texts, image):
            print(texts.get("text/plain", ""))

    def show(self, texts, image):
        self.shown += 1
        data = {}
        for kind, value in texts.items():
            if not isinstance(value, str):
                value = json.dumps(value, default=repr)
            if len(value) <= DISPLAY_LIMIT or kind == "text/plain":
                data[kind] = cut(value, DISPLAY_LIMIT)
        # What was printed before stands before it.
        self.output.flush()
        return self.talk.show({"data": data, "image": image})

    def save_image(self, bundle):
        """Saves the first image of a bundle; the agent makes what is sent of it, from the file."""
        for kind, ending in IMAGES.items():
            if kind in bundle and self.images < FIGURES:
                image = bundle[kind]
                if isinstance(image, str):
                    image = base64.b64decode(image)
                self.images += 1
                path = f"{self.figures}-{self.images}.{ending}"
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(image)
                return {"number": self.images, "ending": ending}
        return None

    def show_figures(self):
        """Sends pyplot's open figures, once, and closes them."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        for number in pyplot.get_fignums():
            self.show_figure(pyplot.figure(number))

    def show_figure(self, figure):
        try:
            if figure.axes or figure.texts or figure.images:
                self.publish({"image/png": draw(figure), "text/plain": repr(figure)})
        finally:
            sys.modules["matplotlib.pyplot"].close(figure)


def draw(figure):
    """A figure as the bytes of a PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi, bbox_inches="tight")
    return png.getvalue()


class PyplotWatch(importlib.abc.MetaPathFinder):
    """Gives `plt.show()` its meaning as soon as pyplot is there: the figures up to here belong together."""

    def __init__(self, show):
        self.show = show

    def find_spec(self, name, _path, _target=None):
        if name != "matplotlib.pyplot":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_adopt(module):
            execute(module)
            module.show = self.show

        spec.loader.exec_module = execute_and_adopt
        return spec


class Plain:
    """The language as it is without IPython."""

    def __init__(self, display):
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        main.__dict__["__builtins__"] = builtins
        self.namespace = main.__dict__
        self.version = f"Python {sys.version.split()[0]}"
        self.hidden = ()
        self.display = display
        self.failed = None
        builtins.display = self.show

    def transform(self, _code):
        return None

    def before(self):
        pass

    def after(self):
        pass

    def show(self, *values):
        for value in values:
            self.display.publish(self.bundle(value))

    def bundle(self, value, kinds=("text/html", "text/markdown", "text/latex", "image/svg+xml", *IMAGES)):
        bundle = {}
        figure = sys.modules.get("matplotlib.figure")
        if figure is not None and isinstance(value, figure.Figure) and "image/png" in kinds:
            bundle["image/png"] = draw(value)
        names = {"image/svg+xml": "svg", "image/jpeg": "jpeg"}
        for kind in kinds:
            method = getattr(type(value), f"_repr_{names.get(kind, kind.split('/')[1])}_", None)
            shown = method(value) if method else None
            if shown is not None:
                bundle[kind] = shown
        bundle["text/plain"] = repr(value)
        return bundle

    def result(self, value):
        previous = self.namespace.get("_")
        self.namespace["_"] = value
        del previous
        return self.bundle(value, tuple(IMAGES))


def with_ipython(display):
    """The language as IPython has it: what `get_ipython()` answers, without a terminal, history or colours."""
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.error import UsageError
    from IPython.core.interactiveshell import InteractiveShell
    import IPython
    from traitlets.config import Config

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, **_keywords):
            display.publish(data)

        def clear_output(self, wait=False):
            pass

    class Shell(InteractiveShell):
        """Shows errors as this kernel does, wherever in IPython they come up."""

        failed = None

        def showtraceback(self, exc_tuple=None, *_arguments, **_keywords):
            error = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
            self.failed = describe(error)
            print(self.failed["traceback"] or self.failed["message"], file=sys.stderr)

        def showsyntaxerror(self, *_arguments, **_keywords):
            self.showtraceback()

        def enable_gui(self, gui=None):
            pass

        def ask_exit(self):
            raise SystemExit

        def system(self, command):
            """`!command`: a child that writes where we write, and is interrupted when we are."""
            import subprocess

            status = subprocess.call(self.var_expand(command, depth=1), shell=True, executable=SHELL)
            self.user_ns["_exit_code"] = status

    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryAccessor.enabled = False
    shell = Shell.instance(config=config, display_pub_class=Publisher, colors="nocolor", cache_size=0)
    shell.builtin_trap.activate()
    shell.display_formatter.active_types = shell.display_formatter.format_types
    shell.display_formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", draw)
    for name in ("exit", "quit", "open"):
        shell.user_ns.pop(name, None)
        shell.user_ns_hidden.pop(name, None)

    class WithIPython:
        namespace = shell.user_ns
        version = f"Python {sys.version.split()[0]}, IPython {IPython.__version__}"
        hidden = (os.path.dirname(IPython.__file__) + os.sep,)
        usage_error = UsageError

        @property
        def failed(self):
            return shell.failed

        def transform(self, code):
            return shell.transform_cell(code)

        def before(self):
            shell.failed = None
            shell.events.trigger("pre_execute")

        def after(self):
            shell.events.trigger("post_execute")

        def result(self, value):
            names = shell.user_ns
            names["_"], names["__"], names["___"] = value, names.get("_"), names.get("__")
            bundle, _metadata = shell.display_formatter.format(value, include={"text/plain", *IMAGES})
            return bundle

    return WithIPython()


# What Python says nothing about.
WITHOUT_WORDS = {
    KeyboardInterrupt: "interrupted",
    MemoryError: "out of memory: this sandbox has no more; variables are kept",
}
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
    try:
        found = traceback.TracebackException.from_exception(error)
        hide(found, set())
        return "".join(found.format())
    except Exception as other:
        return f"{type(error).__name__} (its traceback cannot be shown: {type(other).__name__})\n"


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


class Cells:
    """Code as it comes in: compiled under a name of its own, so that tracebacks can show its lines."""

    def __init__(self):
        self.count = 0
        self.names = collections.deque()
        self.futures = 0

    def compile(self, code):
        """The statements of a cell, and the expression at its end whose value is shown, each or neither."""
        self.count += 1
        name = f"<cell {self.count}>"
        tree, code = self.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)
        statements = self.finish(tree, name, "exec") if tree.body else None
        return statements, self.finish(last, name, "eval") if last else None

    def parse(self, code, name):
        magic = code.strip()
        if not magic.isidentifier() or magic in LANGUAGE.namespace or hasattr(builtins, magic):
            try:
                return self.parse_plain(code, name), code
            except SyntaxError as error:
                problem = error
        else:
            problem = None
        try:
            transformed = LANGUAGE.transform(code)
        except SyntaxError:
            transformed = None
        if transformed is None or transformed == code:
            if problem is not None:
                raise problem
            transformed = code
        return self.parse_plain(transformed, name), transformed

    def parse_plain(self, code, name):
        self.remember(name, code)
        return compile(code, name, "exec", ast.PyCF_ONLY_AST | self.flags(), dont_inherit=True)

    def finish(self, tree, name, mode):
        code = compile(tree, name, mode, self.flags(), dont_inherit=True)
        self.futures |= code.co_flags & FUTURES
        return code

    def flags(self):
        return self.futures | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    def remember(self, name, code):
        lines = [line + "\n" for line in code.splitlines()]
        linecache.cache[name] = (len(code), None, lines, name)
        if not self.names or self.names[-1] != name:
            self.names.append(name)
        if len(self.names) > CELLS_REMEMBERED:
            linecache.cache.pop(self.names.popleft(), None)


class Loop:
    """The event loop of cells that await; made when the first one does."""

    def __init__(self):
        self.loop = None

    def run(self, coroutine):
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                self.loop.run_until_complete(asyncio.wait([task]))
            raise


class Host:
    """The process: takes one request after the other."""

    def __init__(self):
        self.interrupts = Interrupts()
        self.interrupts.install()
        self.talk = Talk(self.interrupts)
        self.output = Output()
        self.output.put_right()
        self.display = Display(self.talk, self.output)
        self.cells = Cells()
        self.loop = Loop()

    def prepare(self, settings):
        """Makes the language and imports what is wanted before the first run."""
        global LANGUAGE
        try:
            LANGUAGE = with_ipython(self.display)
        except ImportError:
            LANGUAGE = Plain(self.display)
        builtins.input = no_terminal
        builtins.exit = builtins.quit = sys.exit
        os._exit = self.leave(os._exit)
        sys.argv = [""]
        for name in settings["preload"]:
            importlib.import_module(name)
        # Not before: a file called json.py in the work directory is for the code to import, not for us.
        sys.path.insert(0, "")
        gc.collect()
        gc.freeze()
        bound_memory()

    def leave(self, leave):
        def leave_flushed(status):
            self.output.flush()
            leave(status)

        return leave_flushed

    def serve(self):
        while True:
            request = self.talk.request()
            try:
                done = self.run(request)
            except KeyboardInterrupt as error:
                # Between the end of the code and that of the run.
                self.interrupts.armed = False
                done = {"error": describe(error), "result": None}
            self.talk.end_run(done)

    def run(self, request):
        self.output.put_right()
        self.interrupts.install()
        if request["stale"]:
            self.interrupts.pending = False
        self.display.begin(request["figures"])
        error = result = None
        try:
            self.interrupts.arm()
            try:
                result = self.execute(request["code"])
            except SystemExit as exit:
                error = describe(exit) if exit.code not in (None, 0) else None
            except BaseException as raised:
                error = describe(raised)
            self.end_fork(error)
            self.display.show_figures()
        except KeyboardInterrupt as interrupt:
            error = error or describe(interrupt)
        except Exception as raised:
            error = error or describe(raised)
        finally:
            self.interrupts.armed = False
        self.output.flush_all()
        return {"error": error or LANGUAGE.failed, "result": result}

    def execute(self, code):
        LANGUAGE.before()
        statements, expression = self.cells.compile(code)
        try:
            if statements is not None:
                self.perform(statements)
            value = None if expression is None else self.perform(expression)
        finally:
            LANGUAGE.after()
        return None if value is None else self.show_result(value)

    def perform(self, code):
        if code.co_flags & inspect.CO_COROUTINE:
            return self.loop.run(eval(code, LANGUAGE.namespace))
        return eval(code, LANGUAGE.namespace)

    def show_result(self, value):
        bundle = LANGUAGE.result(value)
        if any(kind in IMAGES for kind in bundle):
            self.display.publish(bundle)
            pyplot = sys.modules.get("matplotlib.pyplot")
            if pyplot is not None and isinstance(value, pyplot.Figure):
                pyplot.close(value)
        text = bundle.get("text/plain")
        return None if text is None else cut(text)

    def end_fork(self, error):
        """A child that the code forked, and that comes out of the code, ends here: there is one kernel."""
        if self.output.is_fork:
            if error:
                print(error["traceback"], file=sys.stderr)
            os._exit(1 if error else 0)


def no_terminal(_prompt=""):
    raise EOFError("there is no terminal: input() cannot ask anybody; put the value into the code")


def main():
    for descriptor in (TALK, TICK):
        os.set_inheritable(descriptor, False)
    host = Host()
    faulthandler.enable(file=host.output.saved[2], all_threads=False)
    settings = host.talk.receive()
    try:
        host.prepare(settings)
    except BaseException as error:
        host.output.flush_all()
        host.talk.send({"failed": "".join(traceback.format_exception_only(type(error), error)).strip()[-4096:]})
        os._exit(1)
    host.output.flush_all()
    host.talk.send({"ready": LANGUAGE.version})
    host.serve()


main()

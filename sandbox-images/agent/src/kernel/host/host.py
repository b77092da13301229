# The process: takes one request after the other.


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
        self.memory = None

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
        self.memory = Memory()

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
        self.display.begin(request["figures"])
        FULL_TRACEBACK["path"] = request["traceback"]
        error = result = None
        try:
            self.interrupts.arm()
            try:
                result = self.execute(request["code"])
            except SystemExit as exit:
                error = describe(exit) if exit.code not in (None, 0) else None
            except MemoryError as raised:
                self.memory.refresh()
                error = describe(raised)
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
        is_picture = any(kind in IMAGES for kind in bundle)
        if is_picture:
            self.display.publish(bundle)
            pyplot = sys.modules.get("matplotlib.pyplot")
            if pyplot is not None and isinstance(value, pyplot.Figure):
                pyplot.close(value)
        if is_picture and BARE.fullmatch(bundle.get("text/plain", "")):
            # It was shown, and its name says nothing more.
            return None
        return cut(words(bundle)) if "text/plain" in bundle else None

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

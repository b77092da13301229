# Python with IPython, and as it is without.


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

    def bundle(self, value, kinds=("text/html", "text/markdown", "text/latex", *IMAGES)):
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
        pandas = sys.modules.get("pandas")
        is_frame = pandas is not None and isinstance(value, getattr(pandas, "DataFrame", ()))
        bundle["text/plain"] = frame_text(value) if is_frame else repr(value)
        return bundle

    def result(self, value):
        self.namespace["_"] = value
        figure = sys.modules.get("plotly.basedatatypes")
        if figure is not None and isinstance(value, figure.BaseFigure):
            value.show()
            return {}
        bundle = self.bundle(value, tuple(IMAGES))
        return self.bundle(value) if BARE.fullmatch(bundle["text/plain"]) else bundle


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
    # Where pandas says that it has its frames from, by its version.
    for module in ("pandas", "pandas.core.frame"):
        plain = shell.display_formatter.formatters["text/plain"]
        plain.for_type_by_name(module, "DataFrame", lambda frame, printer, _cycle: printer.text(frame_text(frame)))
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
            # Only for those that have nothing better, since HTML takes time.
            if BARE.fullmatch(bundle.get("text/plain", "")):
                more, _metadata = shell.display_formatter.format(value, include=set(RICH))
                bundle |= more
            return bundle

    return WithIPython()

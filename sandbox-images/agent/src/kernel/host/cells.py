# Code as it comes in, and the event loop of what it awaits.


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

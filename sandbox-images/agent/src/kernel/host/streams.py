# Standard output and error.


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

# The line to the agent, and interrupts from it.


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
        """Waits for the next run. Before one the agent may ask whether an interrupt of the last is over: it has come by
        then, if it comes at all."""
        request = self.receive()
        while "settle" in request:
            self.interrupts.pending = False
            self.send({"settled": None})
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

# How much memory the code may have.


class Memory:
    """Lets this process have somewhat less than all of the memory, so that code which wants too much gets a
    MemoryError and keeps its variables: past the machine's limit the host kills something, often the whole sandbox.

    A limit of address space, since gVisor keeps no other. What is mapped and not used does not count: what there was
    at the start, and libraries, which map hundreds of megabytes that they never touch."""

    def __init__(self):
        with open("/proc/meminfo") as meminfo:
            total = next(int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemTotal:"))
        self.allowed = total // 8 * 7 - MEMORY_OF_OTHERS
        self.limit = 0
        self.refresh()
        self.watch(importlib.machinery.ExtensionFileLoader)

    def refresh(self):
        """Counts again what is mapped and not used."""
        with open("/proc/self/statm") as statm:
            size, resident = (int(pages) * resource.getpagesize() for pages in statm.read().split()[:2])
        self.allow(size - resident + self.allowed)

    def allow(self, limit):
        if limit > self.limit:
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
            self.limit = limit

    def watch(self, loader):
        """Lets what a compiled module maps as it is loaded count for nothing."""
        create_module = loader.create_module

        def create_uncounted(this, spec):
            before = mapped()
            try:
                return create_module(this, spec)
            finally:
                self.allow(self.limit + max(0, mapped() - before))

        loader.create_module = create_uncounted


def mapped():
    """Bytes of this process's address space."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()

//! More than a sandbox has: memory, processes, disk, files, and what is left afterwards.

use crate::case::{Group, bash, python};

pub(crate) fn group() -> Group {
    Group {
        name: "limits",
        cases: vec![
            python("a conversation begins", "kept = 1"),
            python("libraries do not count as memory", "import statsmodels.api, scipy.stats, sklearn.linear_model, pyarrow.dataset, duckdb, polars, numpy as np\nones = np.ones(40_000_000)\nscipy.linalg.pinv(np.ones((20, 2))).shape")
                .gives("(2, 20)"),
            python("are given back", "del ones").then("kept", "1"),
            python("too large a list", "x = [bytearray(b'1' * (64 << 20)) for _ in range(64)]")
                .ends("error|kernel_died")
                .says("memory")
                .then("1 + 1", "2"),
            python("too large an array", "import numpy as np\nnp.ones((1 << 20, 1 << 20))").ends("error").says("Unable to allocate").says("variables are kept").then("1 + 1", "2"),
            python("too many files at once", "files = []\ntry:\n    while True: files.append(open('/dev/null'))\nexcept OSError as error:\n    print(error)\nfiles.clear()").says("Too many open files").then("1 + 1", "2"),
            python("too many threads", "import threading\nstop = threading.Event()\nthreads = []\ntry:\n    for n in range(5000):\n        t = threading.Thread(target=stop.wait); t.start(); threads.append(t)\nexcept RuntimeError as error:\n    print(error)\nstop.set()\nfor t in threads: t.join()\n'alive'")
                .gives("'alive'"),
            python("too many children", "import subprocess\nchildren = []\ntry:\n    while True: children.append(subprocess.Popen(['sleep', '600']))\nexcept OSError as error:\n    print('stopped by', error.errno)\nfor child in children: child.kill(); child.wait()\nlen(children) > 50")
                .gives("True")
                .says("stopped by 11"),
            bash("output without end", "yes").limited(10).ends("timed_out").says("its first 64.0 MiB are in").within(60),
            python("a full disk", "with open('big', 'wb') as f:\n    for _ in range(4096): f.write(b'x' * (1 << 20))").ends("error").says("No space left on device").says("the sandbox's disk is full"),
            bash("is still usable", "echo tiny > small 2>/dev/null; rm -f big; df --output=pcent / | tail -1; echo freed").says("freed"),
            python("a sparse file is not its size", "f = open('sparse', 'wb'); f.truncate(600 << 20); f.close(); 'made'").gives("'made'").says("created sparse (600.0 MiB)"),
            python("a deep folder", "import os, shutil\npath = '/'.join(['d'] * 200)\nos.makedirs(path)\nshutil.rmtree('d'); 'gone'").gives("'gone'"),
            bash("a bomb of forks in the foreground", "b() { b | b; }; b").limited(5).ends("error|timed_out|kernel_died|ok").within(60),
            bash("leaves a usable shell", "echo alive").says("alive"),
            bash("a bomb of forks in the background", ":(){ :|:& };:").ends("ok|error"),
            bash("is ended when the next needs room", "sleep 3; ps -e | wc -l").ends("ok|error"),
            bash("and the shell works on", "/bin/echo alive").says("alive"),
            bash("a full house of what does nothing", "kept=1; (for i in $(seq 114); do sleep 1000 & done) 2>/dev/null; echo filled").ends("ok|error").within(60),
            bash("makes room without a word to the shell", "sleep 2; echo \"kept=$kept\"").says("kept=1").then_bash("echo $kept", "1"),
            python("and the other kernel can be restarted", "import os\nos._exit(1)").ends("kernel_died").then("1 + 1", "2"),
        ],
    }
}

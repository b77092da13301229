//! How runs end that do not just return, and what is left of the state then.

use crate::case::{Group, bash, python};

pub(crate) fn group() -> Group {
    Group {
        name: "ends",
        cases: vec![
            bash("a shell beside it", "n=7"),
            python("a time-out that is obeyed", "import time\nkept = 1\nprint('working', flush=True)\ntime.sleep(60)")
                .limited(2)
                .ends("timed_out")
                .says("working")
                .says("stopped at its limit of 2.0 s")
                .says("Variables and files are kept")
                .says("timeout_seconds")
                .then("kept", "1"),
            python("a time-out in a child", "import subprocess\nsubprocess.run(['sleep', '60'])").limited(2).ends("timed_out").then("kept", "1"),
            python("a time-out in a regular expression", "import re\nre.match('(a+)+$', 'a' * 40 + 'b')").limited(2).ends("timed_out").then("kept", "1"),
            python("a time-out that is cleaned up after", "try:\n    time.sleep(60)\nfinally:\n    print('cleaned up')").limited(2).ends("timed_out").says("cleaned up"),
            bash("a time-out in bash", "echo before; sleep 60; echo after").limited(2).ends("timed_out").says("before").never("after").then_bash("echo $n", "7"),
            bash("a time-out in a loop of bash", "while true; do :; done").limited(2).ends("timed_out").then_bash("echo $n", "7"),
            python("a time-out that is ignored", "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass")
                .limited(2)
                .ends("timed_out")
                .says("python was restarted: its variables and imports are gone, files are kept"),
            python("a name from before it", "kept").ends("error").says("NameError").never("python was restarted (").says("what python knew was lost").says("(timed_out)"),
            bash("the shell beside it was not touched", "echo $n").says("7"),
            python("os._exit", "kept = 2\nprint('last words')\nimport os\nos._exit(3)")
                .ends("kernel_died")
                .says("exit code 3")
                .says("last words")
                .says("the code ended the python process itself. python was restarted")
                .then("1 + 1", "2"),
            python("a bad access", "import ctypes\nctypes.string_at(0)").ends("kernel_died").says("SIGSEGV").then("1 + 1", "2"),
            python("native code gives up", "import os\nos.abort()").ends("kernel_died").says("SIGABRT").then("1 + 1", "2"),
            python("killed by itself", "import os\nos.kill(os.getpid(), 9)").ends("kernel_died").says("signal 9").then("1 + 1", "2"),
            python("ended by itself", "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)").ends("kernel_died").says("SIGTERM").then("1 + 1", "2"),
            python("stopped by itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)").limited(2).ends("timed_out").says("python was restarted"),
            python("its line to the agent closed", "import os\nos.closerange(3, 100)").ends("ok|error|kernel_died").then("1 + 1", "2"),
            python("an interrupt of its own", "import _thread, time\n_thread.interrupt_main()\ntime.sleep(1)").ends("error").says("KeyboardInterrupt").then("1 + 1", "2"),
            python("a handler for interrupts is undone", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN);").then("1 + 1", "2"),
            python("so that a time-out works", "import time\nstill = 1\ntime.sleep(60)").limited(2).ends("timed_out").says("Variables and files are kept").then("still", "1"),
            bash("a shell killed by itself", "n=8; kill -9 $$").ends("kernel_died").says("bash was restarted").then_bash("echo \"[$n]\"", "[]"),
            bash("a shell ended by itself", "kill $$; sleep 0.2; echo on").ends("ok|kernel_died").then_bash("echo alive", "alive"),
            bash("all that one may kill", "kill -9 -1; sleep 1; echo still here").says("still here"),
            python("is said by the kernel it took along", "'again'").gives("'again'").says("python was restarted ("),
            python("a thread that raises is not the run", "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join(); 'on'").gives("'on'").says("ZeroDivisionError").never("python was restarted ("),
            python("a module named as one of ours", "open('json.py', 'w').write('raise SystemExit')\nopen('re.py', 'w').write('raise SystemExit')\n'written'").gives("'written'"),
            python("does not end the next kernel", "import os\nos._exit(0)").ends("kernel_died").then("os = __import__('os'); os.remove('json.py'); os.remove('re.py'); 'fine'", "'fine'"),
        ],
    }
}

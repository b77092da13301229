//! Python as a notebook has it.

use crate::case::{Group, bash, python};

pub(crate) fn group() -> Group {
    Group {
        name: "python",
        cases: vec![
            python("an expression", "6 * 7").gives("42").says("session: new"),
            python("a variable stays", "x = [1, 2]").then("x", "[1, 2]"),
            python("a semicolon hides the value", "x;").never("result:"),
            python("nothing is no result", "None").never("result:"),
            python("the last value is _", "40 + 1").then("_ + 1", "42"),
            python("a function and its use", "def f(n):\n    return n * 2\n\nf(21)").gives("42"),
            python("a loop shows nothing of itself", "for n in range(3):\n    n").never("result:"),
            python("await at the top", "import asyncio\nawait asyncio.sleep(0, 'slept')").gives("'slept'"),
            python("await keeps its loop", "task = asyncio.ensure_future(asyncio.sleep(0, 5))").then("await task", "5"),
            python("async for at the top", "async def g():\n    yield 1\n[n async for n in g()]").gives("[1]"),
            python("letters of the world", "print('größer 東京 🙂 اللغة')").says("größer 東京 🙂 اللغة"),
            python("the work directory", "import os; os.getcwd()").gives("'/mnt/data'"),
            python("a module of one's own", "open('mine.py', 'w').write('answer = 42')\nimport mine\nmine.answer")
                .gives("42")
                .says("created mine.py"),
            python("it is not root", "os.getuid(), os.access('/etc/shadow', os.R_OK)").gives("(65532, False)"),
            python("stderr stands apart", "import sys\nprint('out')\nprint('err', file=sys.stderr)")
                .says("stdout:\nout")
                .says("stderr:\nerr"),
            python("a warning goes to stderr", "import warnings; warnings.warn('careful')").says("UserWarning: careful"),
            python("a shell command", "!echo from a shell; echo $((6*7))").says("from a shell\n42"),
            python("a shell command's output as a value", "lines = !printf 'a\\nb\\n'\nlist(lines)").gives("['a', 'b']"),
            python("a cell of bash", "%%bash\necho in bash $0").says("in bash"),
            python("a magic writes a file", "%%writefile note.txt\nhello").says("created note.txt"),
            python("a magic runs a file", "open('prog.py', 'w').write('y = 7')\n%run prog.py").then("y", "7"),
            python("time is measured", "%timeit -n 1 -r 1 1 + 1").says("per loop"),
            python("an unknown magic", "%nosuchmagic").ends("error").says("UsageError"),
            python("what is known of a thing", "len?").ends("ok"),
            python("processes and threads are seen in order", "import subprocess\nprint('1')\nsubprocess.run(['echo', '2'])\nprint('3')\nos.system('echo 4')\nos.write(1, b'5\\n');")
                .says("stdout:\n1\n2\n3\n4\n5"),
            python("a thread's output", "import threading\nt = threading.Thread(target=lambda: print('in a thread'))\nt.start(); t.join()")
                .says("in a thread"),
            python("a pool of processes", "from multiprocessing import Pool\nwith Pool(2) as pool:\n    r = pool.map(abs, [-1, -2])\nr").gives("[1, 2]"),
            python("a fork ends where the code does", "pid = os.fork()\nif pid == 0:\n    print('child')\nelse:\n    os.waitpid(pid, 0)\nprint('both')")
                .says("child")
                .then("os.getpid() != pid", "True"),
            python("an exception", "def inner(n):\n    return n / 0\n\ndef outer():\n    return inner(1)\n\nouter()")
                .ends("error")
                .says("status: error (ZeroDivisionError)")
                .says("line 2, in inner")
                .says("return n / 0")
                .says("ZeroDivisionError: division by zero")
                .never("<greenroom>")
                .then("x", "[1, 2]"),
            python("what ran before an exception stays", "before = 1\nraise KeyError('k')").ends("error").says("KeyError: 'k'").then("before", "1"),
            python("a syntax error", "def f(:\n    pass").ends("error").says("SyntaxError").says("def f(:"),
            python("a wrong indent", "if True:\nprint(1)").ends("error").says("IndentationError"),
            python("an unknown name", "no_such_name").ends("error").says("NameError").never("was lost"),
            python("a missing file", "open('nowhere.csv')").ends("error").says("No such file or directory: 'nowhere.csv'"),
            python("an assertion", "assert 1 == 2, 'not equal'").ends("error").says("AssertionError: not equal"),
            python("a cause and its effect", "try:\n    int('x')\nexcept ValueError as error:\n    raise RuntimeError('could not read') from error")
                .ends("error")
                .says("invalid literal for int()")
                .says("direct cause")
                .says("RuntimeError: could not read"),
            python("several at once", "raise ExceptionGroup('many', [ValueError(1), TypeError(2)])").ends("error").says("ExceptionGroup").says("TypeError: 2"),
            python("frames of libraries are short", "import json\njson.loads('{bad}')")
                .ends("error")
                .says("json.loads('{bad}')")
                .says("json/decoder.py:")
                .says("Expecting property name")
                .never("def raw_decode"),
            python("the whole traceback is a file", "import pandas as pd\npd.read_csv('missing.csv')")
                .ends("error")
                .says("FileNotFoundError")
                .says("frames of libraries are shortened")
                .then("import glob; 'get_handle' in open(sorted(glob.glob('/mnt/data/.greenroom/runs/*.traceback.txt'))[-1]).read()", "True"),
            python("endless recursion", "def r(): return r()\nr()").ends("error").says("RecursionError").says("more times").then("1", "1"),
            python("a broken repr", "class B:\n    def __repr__(self): raise ValueError('no repr')\nB()").ends("error").says("no repr"),
            python("leaving with success", "import sys\nsys.exit()").then("x", "[1, 2]"),
            python("leaving with a number", "sys.exit(3)").ends("error").says("status 3; variables are kept").then("x", "[1, 2]"),
            python("leaving with words", "sys.exit('bad input')").ends("error").says("bad input"),
            python("quitting", "quit()").then("x", "[1, 2]"),
            python("nobody can be asked", "name = input('name? ')").ends("error").says("there is no terminal"),
            python("nobody types a password", "import getpass\ngetpass.getpass()").ends("error").says("no terminal"),
            python("standard input is empty", "sys.stdin.read()").gives("''"),
            python("a child has no input either", "subprocess.run(['cat'], timeout=5).returncode").gives("0"),
            python("a child that asks", "subprocess.run([sys.executable, '-c', 'input()']).returncode")
                .gives("1")
                .says("nobody can answer a prompt here"),
            python("closing stdout lasts for its run", "sys.stdout.close()").ends("ok|error").then("print('x'); 'back'", "'back'"),
            python("closing descriptor 1 lasts for its run", "os.close(1)").ends("ok|error").then("os.system('true')", "0"),
            python("what is printed after that is there", "print('here again')\nos.system('echo and there')").says("here again\nand there"),
            python("dup2 over stdout lasts for its run", "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)\nprint('unseen')").never("unseen"),
            python("and is undone", "print('seen')").says("stdout:\nseen"),
            python("replacing sys.stdout lasts for its run", "import io\nsys.stdout = io.StringIO()\nprint('into a string')\nkept = sys.stdout").never("into a string").then("kept.getvalue()", "'into a string\\n'"),
            python("output of a thread that outlives its run", "import time\ndef late():\n    while not os.path.exists('/tmp/go'): time.sleep(0.05)\n    print('late word', flush=True)\n    open('/tmp/said', 'w').close()\nt = threading.Thread(target=late)\nt.start()")
                .never("late word"),
            bash("it prints between runs", "touch /tmp/go; until [ -e /tmp/said ]; do sleep 0.05; done").limited(30),
            python("is given to the next answer", "'next'").gives("'next'").says("by what that left behind:\nlate word"),
            python("that of a process left behind", "p = subprocess.Popen('until [ -e /tmp/go-too ]; do sleep 0.05; done; echo late line; touch /tmp/said-too', shell=True)")
                .never("late line"),
            bash("it prints between runs as well", "touch /tmp/go-too; until [ -e /tmp/said-too ]; do sleep 0.05; done").limited(30),
            python("is marked as late as well", "p.wait()").gives("0").says("late line"),
            python("deleting a name", "del x").then("'x' in dir()", "False"),
        ],
    }
}

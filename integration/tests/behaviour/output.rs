//! What is printed, however much and however strange.

use crate::case::{Group, bash, python};

pub(crate) fn group() -> Group {
    Group {
        name: "output",
        cases: vec![
            python("colours go", "print('\\x1b[1;31mred\\x1b[0m and plain')").says("stdout:\nred and plain"),
            python("a window's title goes", "print('\\x1b]0;title\\x07text')").says("stdout:\ntext").never("title"),
            python("control characters are spelled out", "print('bell \\x07 nul \\0 back \\x08')").says("bell \\x07 nul \\x00 back \\x08"),
            python("control characters of Unicode too", "print('next \\x85 line')").says("next \\u{85} line"),
            bash("bytes that are no text are spelled out", "printf 'caf\\xe9 \\xff\\xfe end\\n'").says("caf\\xe9 \\xff\\xfe end"),
            python("a progress bar is its last state", "import sys\nfor n in range(101):\n    sys.stderr.write(f'\\r{n:3}%|{\"#\" * n}')\nsys.stderr.write('\\n')\nprint('over')")
                .says("stderr:\n100%|#")
                .never(" 50%|")
                .says("over"),
            python("many bars cost what is left of them", "import time\nfor n in range(30_000):\n    sys.stderr.write(f'\\rstep {n} ' + '-' * 60)\nprint('\\nover')")
                .says("step 29999 ---")
                .never("step 1 ")
                .says("over"),
            python("lines of Windows", "print('a\\r\\nb\\r\\n')").says("stdout:\na\nb"),
            python("no newline at the end", "print('open end', end='')").says("stdout:\nopen end"),
            python("long output keeps both ends and counts", "for n in range(50_000): print('line', n)")
                .says("line 0\n")
                .says("line 49999")
                .says("bytes left out; all of it is in /mnt/data/.greenroom/runs/")
                .never("line 25000\n")
                .then("import glob, os\nopen(sorted(glob.glob('/mnt/data/.greenroom/runs/*stdout*'), key=os.path.getmtime)[-1]).read().count('line')", "50000"),
            python("one long line", "print('x' * 1_000_000)").says("bytes left out"),
            python("both streams share the room", "print('o' * 100_000); print('e' * 100_000, file=sys.stderr)").says("stdout:\noo").says("stderr:\nee"),
            python("fewer characters on request", "for n in range(5000): print('row', n)").chars(1000).says("row 0\n").says("row 4999").says("bytes left out"),
            python("equal lines are counted", "for n in range(500): print('again')").says("[… the same line 499 more times …]"),
            bash("a flood is counted", "head -c 50000000 /dev/zero | tr '\\0' 'y'; echo; echo over").says("bytes left out").says("over"),
            bash("binary to a terminal", "head -c 3000 /dev/urandom").ends("ok"),
            python("the order within a stream is exact", "import os\nfor n in range(3):\n    print('p', n)\n    os.system(f'echo s {n}')").says("p 0\ns 0\np 1\ns 1\np 2\ns 2"),
            bash("late output of a process is marked", "(until [ -e /tmp/go ]; do sleep 0.05; done; echo a late word; touch /tmp/said) & echo started")
                .says("started")
                .never("a late word"),
            python("which comes between runs", "open('/tmp/go', 'w').close()\nwhile not os.path.exists('/tmp/said'): time.sleep(0.05)").limited(30),
            bash("in the answer after it", "echo now").says("by what that left behind:\na late word").says("stdout:\nnow"),
            python("created, changed and deleted files are named", "os.makedirs('d', exist_ok=True)\nopen('d/new.csv', 'w').write('a,b\\n' * 1000)\nopen('gone', 'w').close()")
                .says("created d/new.csv (3.9 KiB)")
                .says("created gone (0 B)"),
            python("each with what became of it", "open('d/new.csv', 'a').write('more')\nos.remove('gone')").says("changed d/new.csv").says("deleted gone"),
            python("many files are bounded", "os.makedirs('many', exist_ok=True)\nfor n in range(300): open(f'many/{n}', 'w').close()").says("… and perhaps more: list_files shows all"),
            python("a name on two lines stays on one", "open('two\\nlines', 'w').close()").says("created two\\nlines"),
        ],
    }
}

//! One shell that lives on.

use crate::case::{Group, bash};

pub(crate) fn group() -> Group {
    Group {
        name: "bash",
        cases: vec![
            bash("a command", "echo hello; echo oops >&2")
                .says("session: new")
                .says("stdout:\nhello")
                .says("stderr:\noops"),
            bash("the directory stays", "mkdir -p sub && cd sub").then_bash("pwd", "/mnt/data/sub"),
            bash("a variable stays", "n=7; export E=8").then_bash("echo $n; bash -c 'echo $E'", "7\n8"),
            bash("a function stays", "twice() { echo $(($1 * 2)); }").then_bash("twice 21", "42"),
            bash("an array", "a=(x 'y z'); echo ${#a[@]} \"${a[1]}\"").says("2 y z"),
            bash("an exit code", "ls /nowhere")
                .ends("error")
                .says("exit code 2")
                .says("No such file or directory"),
            bash("a pipe's end counts", "false | true"),
            bash(
                "an option lasts for its run",
                "set -euo pipefail; false; echo unreachable",
            )
            .ends("kernel_died")
            .never("unreachable")
            .then_bash("false; echo $undefined on", "on"),
            bash("an open quote", "echo 'never closed")
                .ends("error")
                .says("unexpected EOF"),
            bash("an if without its fi", "if true; then echo x")
                .ends("error")
                .says("syntax error"),
            bash("a here-document", "cat <<EOF\n$((6 * 7)) lines\nEOF").says("42 lines"),
            bash("many lines", "for i in 1 2 3\ndo\n  echo \"line $i\"\ndone").says("line 1\nline 2\nline 3"),
            bash("nobody types", "read -r answer; echo \"code $?\"").says("code 1"),
            bash("cat without a file ends", "cat; echo over").says("over"),
            bash("a prompt of a program", "python3 -c 'input()'")
                .ends("error")
                .says("nobody can answer a prompt here"),
            bash("an unknown command", "nosuchcommand")
                .ends("error")
                .says("exit code 127")
                .says("command not found"),
            bash("there is no sudo", "sudo ls")
                .ends("error")
                .says("no root here"),
            bash("a file that may not be read", "cat /etc/shadow")
                .ends("error")
                .says("Permission denied"),
            bash("leaving the shell", "exit 3")
                .ends("kernel_died")
                .says("exit code 3")
                .says("functions, current directory")
                .then_bash("pwd", "/mnt/data"),
            bash("closing stdout lasts for its run", "exec 1>&-")
                .ends("ok|error")
                .then_bash("echo back", "back"),
            bash(
                "redirecting all lasts for its run",
                "exec >/dev/null 2>&1; echo unseen",
            )
            .never("unseen")
            .then_bash("echo seen", "seen"),
            bash(
                "a function called builtin",
                "builtin() { echo masked; }; builtin echo x",
            )
            .says("masked")
            .then_bash("echo free", "free"),
            bash(
                "functions called as our words",
                "printf() { :; }; eval() { :; }; set() { :; }; unset() { :; }; echo defined",
            )
            .says("defined")
            .then_bash("echo alive", "alive"),
            bash(
                "aliases called as our words",
                "shopt -s expand_aliases; alias printf=false eval=false set=false; echo a",
            )
            .says("a")
            .then_bash("echo alive", "alive"),
            bash(
                "a readonly variable",
                "readonly PS1=x PROMPT_COMMAND='echo y'; echo r",
            )
            .says("r")
            .then_bash("echo alive", "alive"),
            bash("a trap for all ends", "trap 'echo trapped' EXIT INT; echo set")
                .says("set")
                .then_bash("trap - EXIT INT; echo alive", "alive"),
            bash("another posix", "set -o posix; POSIXLY_CORRECT=1; echo p")
                .says("p")
                .then_bash("shopt -o posix; true", "posix          \toff"),
            bash(
                "standing elsewhere when that is removed",
                "mkdir -p /tmp/gone && cd /tmp/gone && rmdir /tmp/gone; echo ok",
            )
            .says("ok")
            .then_bash("cd /mnt/data; pwd", "/mnt/data"),
            bash("a job in the background", "sleep 300 & echo started").says("started"),
            bash("lives on", "jobs -r | wc -l").says("1"),
            bash(
                "also through another's interrupt",
                "( sleep 301 ) & disown; sleep 60",
            )
            .ends("timed_out")
            .limited(2)
            .then_bash("jobs -r | wc -l", "1"),
            bash("is ended by its number", "kill %1; wait; jobs -r | wc -l").says("0"),
            bash(
                "files are shared with python",
                "cd /mnt/data && echo 'from bash' > shared.txt",
            )
            .then("open('/mnt/data/shared.txt').read()", "'from bash\\n'"),
            bash("processes are limited", "ulimit -u; ulimit -c").says("128"),
            bash(
                "a long line of code",
                "x=$(seq 20000 | tr -d '\\n' | head -c 20000); echo ${#x}",
            )
            .says("20000"),
            bash("odd characters in code", "echo 'a\"b`c$d\\e' \"tab\there\" ünï")
                .says("a\"b`c$d\\e tab\there ünï"),
        ],
    }
}

//! A plain POSIX shell, where there is no bash: the same promises, as far as such a shell can keep them.

use greenroom_agent::kernel::Ending;
use greenroom_protocol::Language;

use crate::support::{Bench, lives, until};

#[tokio::test]
async fn state_is_kept() {
    let mut sh = Bench::sh().await;
    assert_eq!((sh.kernel.language(), &*sh.version), (Language::Sh, "sh (dash)"));
    let seen = sh
        .run(
            "mkdir sub && cd sub; x=4; f() { echo \"f $1\"; }; export Y=5; alias hi='echo hello'; set -- a b",
        )
        .await
        .ended(Ending::Ok);
    assert_eq!((&*seen.stdout, &*seen.stderr), ("", ""));
    let seen = sh
        .run("basename \"$PWD\"; echo $x $#; f 6; printenv Y; hi; exec 5>kept")
        .await;
    assert_eq!(
        (&*seen.stdout, seen.outcome.exit_code),
        ("sub\n4 2\nf 6\n5\nhello\n", Some(0))
    );
    assert_eq!(sh.run("echo six >&5; cat kept").await.stdout, "six\n");
}

#[tokio::test]
async fn the_last_command_decides() {
    let mut sh = Bench::sh().await;
    for (code, exit_code) in [
        ("true", 0),
        ("(exit 42)", 42),
        ("no_such_command", 127),
        ("", 0),
        ("false; true", 0),
    ] {
        let seen = sh.run(code).await;
        assert_eq!(seen.outcome.exit_code, Some(exit_code), "{code}");
    }
    let seen = sh.run("echo out; echo err >&2; no_such_command").await;
    assert_eq!(seen.stdout, "out\n");
    assert!(
        seen.stderr.starts_with("err\nsh: ") && seen.stderr.contains("no_such_command: not found"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn no_code_leaves_it_waiting() {
    let mut sh = Bench::sh().await;
    for code in [
        "echo 'open",
        "echo \"open",
        "echo `open",
        "echo $(open",
        "if true; then echo open",
        "for x in 1 2; do",
        "f() {",
        "echo )",
        "case x in",
        "cat <<END\nopen",
        "((",
        "[[ a",
        "}",
        "set -v; set -x",
        "set -u; echo $undefined",
        "set -o posix; set -o pipefail",
        "echo ${x:?}",
        "x=$((1 / 0))",
        "readonly r=1; r=2",
        ". ./no_such_file",
        "exec 3<no_such_file",
        "IFS=1234567890",
        "PS1=prompt PS2=more PS4='$(false)'",
        "exec >/dev/null 2>&1",
        "exec <&-",
        "exec 0</dev/zero",
        "exec 1>&-",
        "exec 8>&- 9>&-",
        "exec 8>taken 9>&8; echo x >&9",
        "read x",
        "cat",
        "trap '' INT",
        "command() { return 1; }; echo() { return 1; }; printf() { return 1; }",
        "unset -f command echo printf; alias command=false eval=false unset=false; alias",
        "unalias -a",
        "eval() { return 1; }",
        "LANG=xx_XX LC_ALL=C",
        "cd /; rm -rf --no-such-option 2>/dev/null",
        "set -f; set -C; set -m; set -b",
        "break",
        "echo \\",
        "# a comment",
        "\n\n\n",
        "echo a &&",
        "sleep 0 & sleep 0 & sleep 0 &",
    ] {
        let seen = sh.run(code).await;
        assert_ne!(seen.outcome.ending, Ending::Died, "{code}: {seen:?}");
        let seen = sh
            .run("\\command printf 'here\\n'; \\command printf 'there\\n' >&2")
            .await;
        assert!(
            (&*seen.stdout, &*seen.stderr) == ("here\n", "there\n")
                // The function of that name is the code's own until it takes it back.
                || code.starts_with("command()"),
            "after {code}: {seen:?}"
        );
    }
}

#[tokio::test]
async fn code_arrives_as_it_was_written() {
    let mut sh = Bench::sh().await;
    let code = "cat <<'END'\n'single' \"double\" `back` $dollar \\back !bang\n\ttab é 東京 🙂\nEND\necho \"a'b\" 'c\"d' \\$g";
    let seen = sh.run(code).await.ended(Ending::Ok);
    assert_eq!(
        seen.stdout,
        "'single' \"double\" `back` $dollar \\back !bang\n\ttab é 東京 🙂\na'b c\"d $g\n"
    );
    let long = format!("echo {} | wc -c", "x".repeat(100_000));
    assert_eq!(sh.run(&long).await.stdout.trim(), "100001");
    let many: String = (0..20_000).map(|n| format!("x{n}={n}\n")).collect();
    sh.run(&many).await.ended(Ending::Ok);
    assert_eq!(sh.run("echo $x19999").await.stdout, "19999\n");
}

#[tokio::test]
async fn an_end_of_the_shell_is_a_result() {
    let mut sh = Bench::sh().await;
    for (code, name, exit_code) in [
        ("echo said; exit 3", "exit", Some(3)),
        ("echo said; return 3", "exit", Some(3)),
        ("set -e; echo said; false; echo never", "exit", Some(1)),
        ("echo said; exec sh -c 'exit 9'", "exit", Some(9)),
        ("echo said; kill -9 $$", "killed", None),
        ("echo said; trap 'exit 4' EXIT; exit 5", "exit", Some(4)),
    ] {
        let seen = sh.run(code).await.ended(Ending::Died);
        assert_eq!(
            (&*seen.error().name, seen.outcome.exit_code, &*seen.stdout),
            (name, exit_code, "said\n"),
            "{code}"
        );
        sh.restart().await;
        assert_eq!(sh.run("echo here").await.ended(Ending::Ok).stdout, "here\n");
    }
}

#[tokio::test]
async fn options_last_for_their_run() {
    let mut sh = Bench::sh().await;
    sh.run("set -eux; true").await.ended(Ending::Ok);
    let seen = sh
        .run("false; echo $undefined; echo here")
        .await
        .ended(Ending::Ok);
    assert_eq!((&*seen.stdout, &*seen.stderr), ("\nhere\n", ""));
}

#[tokio::test]
async fn background_jobs_live_on_and_their_output_is_late() {
    let mut sh = Bench::sh().await;
    // A hundred that end between two runs.
    let seen = sh
        .run("n=0; while [ $n -lt 100 ]; do sleep 0.2 & n=$((n + 1)); done; (while [ ! -e go ]; do sleep 0.01; done; echo finished; touch done) & echo started")
        .await;
    assert_eq!(seen.ended(Ending::Ok).stdout, "started\n");
    std::fs::write(sh.path("go"), "").unwrap();
    let done = sh.path("done");
    until("the job is done", || done.exists()).await;
    let seen = sh.run("wait; echo mine").await;
    assert_eq!((&*seen.late, &*seen.stdout), ("finished\n", "mine\n"));
}

#[tokio::test]
async fn an_interrupt_stops_what_runs_and_keeps_the_state() {
    let mut sh = Bench::sh().await;
    sh.run("kept=kept; sleep 1000 & job=$!").await;
    for code in [
        "sh -c 'echo go; exec sleep 1000'; echo never",
        "echo go; while true; do :; done; echo never",
        "echo go; while true; do sleep 0.01; done; echo never",
        "f() { sh -c 'echo go; exec sleep 1000'; echo never; }; f; echo never",
        "(sh -c 'echo go; exec sleep 1000'; echo never); echo never",
        "sh -c 'echo go; exec sleep 1000' | cat; echo never",
        "x=$(sh -c 'echo go >&2; exec sleep 1000'); echo never",
        "echo go; wait; echo never",
        "python3 -c 'import time; print(\"go\", flush=True); time.sleep(1000)' 2>/dev/null; echo never",
    ] {
        let seen = sh
            .run_and(code, |_, control| control.interrupt())
            .await
            .ended(Ending::Error);
        assert_eq!(seen.outcome.exit_code, Some(130), "{code}: {seen:?}");
        assert!(!seen.stdout.contains("never"), "{code}: {seen:?}");
        let seen = sh.run("echo $kept").await.ended(Ending::Ok);
        assert_eq!(seen.stdout, "kept\n", "after {code}");
    }
    let job = sh.run("echo $job").await.stdout;
    assert!(lives(&job), "a background job is not interrupted");
    sh.control().interrupt();
    assert_eq!(
        sh.run("echo $kept").await.stdout,
        "kept\n",
        "between runs it interrupts nothing"
    );
}

#[tokio::test]
async fn code_that_ignores_interrupts_is_killed() {
    let mut sh = Bench::sh().await;
    let code = "trap '' INT; setsid sleep 1000 & echo $!; while true; do sleep 1; done";
    let mut told = String::new();
    sh.run_and(code, |event, control| {
        if let greenroom_agent::kernel::KernelEvent::Output { text, .. } = event {
            told.push_str(text);
            control.interrupt();
            control.kill();
        }
    })
    .await
    .ended(Ending::Died);
    until("the job is gone", || !lives(&told)).await;
    sh.restart().await;
    assert_eq!(sh.run("echo here").await.stdout, "here\n");
}

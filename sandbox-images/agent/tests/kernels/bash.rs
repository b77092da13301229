//! Bash: one shell that lives on, whatever it is given to read.

use std::{sync::Arc, time::Duration};

use greenroom_agent::kernel::{Ending, KernelEvent};

use crate::support::{Bench, lives, until};

#[tokio::test]
async fn state_is_kept() {
    let mut bash = Bench::bash().await;
    assert!(bash.version.starts_with("bash "), "{}", bash.version);
    let seen = bash
        .run("mkdir sub && cd sub; x=4; f() { echo \"f $1\"; }; export Y=5; declare -a list=(a b)")
        .await;
    let seen = seen.ended(Ending::Ok);
    assert_eq!((&*seen.stdout, &*seen.stderr), ("", ""));
    let seen = bash
        .run("basename \"$PWD\"; echo $x; f 6; printenv Y; echo ${list[1]}; exec 5>kept")
        .await;
    assert_eq!(
        (&*seen.stdout, seen.outcome.exit_code),
        ("sub\n4\nf 6\n5\nb\n", Some(0))
    );
    assert_eq!(bash.run("echo six >&5; cat kept").await.stdout, "six\n");
    bash.run("shopt -s expand_aliases; alias hi='echo hello'").await;
    assert_eq!(bash.run("hi").await.stdout, "hello\n");
}

#[tokio::test]
async fn the_last_command_decides() {
    let mut bash = Bench::bash().await;
    for (code, exit_code) in [
        ("true", 0),
        ("false", 1),
        ("(exit 42)", 42),
        ("no_such_command", 127),
        ("", 0),
        ("false; true", 0),
    ] {
        let seen = bash.run(code).await;
        assert_eq!(seen.outcome.exit_code, Some(exit_code), "{code}");
        assert_eq!(
            seen.outcome.ending,
            if exit_code == 0 { Ending::Ok } else { Ending::Error },
            "{code}"
        );
    }
    let seen = bash.run("echo out; echo err >&2; no_such_command").await;
    assert_eq!(seen.stdout, "out\n");
    assert!(
        seen.stderr.starts_with("err\n") && seen.stderr.contains("no_such_command: command not found"),
        "{seen:?}"
    );
    assert!(seen.error().message.contains("127"));
}

#[tokio::test]
async fn no_code_leaves_it_waiting() {
    let mut bash = Bench::bash().await;
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
        "done",
        "set -n",
        "set -v; set -x",
        "set -u; echo $undefined",
        "IFS=1234567890",
        "PS1=prompt PS2=more PROMPT_COMMAND='echo prompted'",
        "exec >/dev/null 2>&1",
        "exec <&-",
        "exec 0</dev/zero",
        "exec 1>&-",
        "exec 200>&- 201>&- 202>&-",
        "read x",
        "cat",
        "select x in a b; do echo $x; break; done",
        "trap 'echo trapped' DEBUG; trap - DEBUG",
        "trap '' INT",
        "printf() { return 1; }; eval() { return 1; }; set() { return 1; }",
        "unset -f printf eval set",
        "alias builtin=false",
        "unalias -a",
        "enable -n printf; enable printf",
        "LANG=xx_XX LC_ALL=C",
        "cd /; rm -rf --no-such-option 2>/dev/null",
        "set -o posix",
        "set -f; set -C; set -m; set +B; set -k",
        "return 3",
        "break",
        "echo \\",
        "!!",
        "echo $'a\\'b'",
        "# a comment",
        "\n\n\n",
        "echo a &&",
        "sleep 0 &",
    ] {
        let seen = bash.run(code).await;
        assert_ne!(seen.outcome.ending, Ending::Died, "{code}: {seen:?}");
        let seen = bash.run("echo here; echo there >&2").await.ended(Ending::Ok);
        assert_eq!(
            (&*seen.stdout, &*seen.stderr),
            ("here\n", "there\n"),
            "after {code}"
        );
    }
}

#[tokio::test]
async fn code_arrives_as_it_was_written() {
    let mut bash = Bench::bash().await;
    let code = "cat <<'END'\n'single' \"double\" `back` $dollar \\back !bang\n\ttab é 東京 🙂\nEND\necho \"a'b\" 'c\"d' $'e\\'f' \\$g";
    let seen = bash.run(code).await.ended(Ending::Ok);
    assert_eq!(
        seen.stdout,
        "'single' \"double\" `back` $dollar \\back !bang\n\ttab é 東京 🙂\na'b c\"d e'f $g\n"
    );
    let long = format!("echo {} | wc -c", "x".repeat(100_000));
    assert_eq!(bash.run(&long).await.stdout.trim(), "100001");
    let many: String = (0..20_000).map(|n| format!("x{n}={n}\n")).collect();
    bash.run(&many).await.ended(Ending::Ok);
    assert_eq!(bash.run("echo $x19999").await.stdout, "19999\n");
}

#[tokio::test]
async fn an_end_of_the_shell_is_a_result() {
    let mut bash = Bench::bash().await;
    for (code, name, exit_code) in [
        ("echo said; exit 3", "exit", Some(3)),
        ("echo said; exit", "exit", Some(0)),
        ("set -e; echo said; false; echo never", "exit", Some(1)),
        (
            "set -euo pipefail; echo said; false | true; echo never",
            "exit",
            Some(1),
        ),
        ("echo said; exec sh -c 'exit 9'", "exit", Some(9)),
        ("echo said; kill -9 $$", "killed", None),
        ("echo said; trap 'exit 4' EXIT; exit 5", "exit", Some(4)),
    ] {
        let seen = bash.run(code).await.ended(Ending::Died);
        assert_eq!(
            (&*seen.error().name, seen.outcome.exit_code, &*seen.stdout),
            (name, exit_code, "said\n"),
            "{code}"
        );
        bash.restart().await;
        assert_eq!(bash.run("echo here").await.ended(Ending::Ok).stdout, "here\n");
    }
}

#[tokio::test]
async fn options_last_for_their_run() {
    let mut bash = Bench::bash().await;
    bash.run("set -euo pipefail; set -x; true")
        .await
        .ended(Ending::Ok);
    let seen = bash
        .run("false; echo $undefined; false | true; echo here")
        .await
        .ended(Ending::Ok);
    assert_eq!((&*seen.stdout, &*seen.stderr), ("\nhere\n", ""));
}

#[tokio::test]
async fn background_jobs_live_on_and_their_output_is_late() {
    let mut bash = Bench::bash().await;
    let seen = bash
        .run("(while [ ! -e go ]; do sleep 0.01; done; echo finished; touch done) & echo started")
        .await;
    assert_eq!(seen.ended(Ending::Ok).stdout, "started\n");
    assert_eq!(bash.run("jobs -p | wc -l").await.stdout.trim(), "1");
    std::fs::write(bash.path("go"), "").unwrap();
    let done = bash.path("done");
    until("the job is done", || done.exists()).await;
    let seen = bash.run("wait; echo mine").await;
    assert_eq!((&*seen.late, &*seen.stdout), ("finished\n", "mine\n"));
}

#[tokio::test]
async fn an_interrupt_stops_what_runs_and_keeps_the_state() {
    let mut bash = Bench::bash().await;
    bash.run("kept=kept; sleep 1000 & job=$!").await;
    // Each says that it runs from within what runs: an interrupt between two commands, or before bash waits for what it
    // has started, may let it go on to the second.
    for code in [
        "sh -c 'echo go; exec sleep 1000'; echo never",
        "echo go; while true; do :; done; echo never",
        "echo go; while true; do sleep 0.01; done; echo never",
        "f() { sh -c 'echo go; exec sleep 1000'; echo never; }; f; echo never",
        "(sh -c 'echo go; exec sleep 1000'; echo never); echo never",
        "sh -c 'echo go; exec sleep 1000' | cat; echo never",
        "x=$(sh -c 'echo go >&2; exec sleep 1000'); echo never",
        "read x < <(echo go >&2; sleep 1000); echo never",
        "echo go; wait; echo never",
        "python3 -c 'import time; print(\"go\", flush=True); time.sleep(1000)' 2>/dev/null; echo never",
    ] {
        let (control, mut shown) = (bash.control(), 0);
        let seen = bash.run_and(code, |_, _| {
            shown += 1;
            if shown == 1 {
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    control.interrupt();
                });
            }
        });
        let seen = seen.await;
        assert_eq!(seen.outcome.exit_code, Some(130), "{code}: {seen:?}");
        assert!(!seen.stdout.contains("never"), "{code}: {seen:?}");
        let seen = bash.run("echo $kept").await.ended(Ending::Ok);
        assert_eq!(seen.stdout, "kept\n", "after {code}");
    }
    let job = bash.run("echo $job").await.stdout;
    assert!(lives(&job), "a background job is not interrupted");
    bash.control().interrupt();
    assert_eq!(
        bash.run("echo $kept").await.stdout,
        "kept\n",
        "between runs it interrupts nothing"
    );
}

#[tokio::test]
async fn an_interrupt_before_the_first_line_is_not_lost() {
    let mut bash = Bench::bash().await;
    for n in 0..20 {
        let seen = bash
            .run_interrupted_after(n % 5, "sleep 1000; echo never")
            .await
            .ended(Ending::Error);
        assert_eq!((seen.outcome.exit_code, &*seen.stdout), (Some(130), ""));
    }
    assert_eq!(bash.run("echo unharmed").await.stdout, "unharmed\n");
}

#[tokio::test]
async fn an_interrupt_leaves_alone_what_earlier_runs_started() {
    let mut bash = Bench::bash().await;
    // Bash has its background jobs ignore interrupts; this one takes them.
    let job = "python3 -c 'import signal, time; signal.signal(2, signal.SIG_DFL); print(1, flush=True); time.sleep(1000)' & \
               echo $!; sleep 0.5";
    let seen = bash.run(job).await;
    let job: String = seen.stdout.lines().filter(|line| *line != "1").collect();
    // Ages are told in hundredths of a second.
    tokio::time::sleep(Duration::from_millis(50)).await;
    bash.run_and("echo ready; while true; do sleep 1; done", |_, control| {
        control.interrupt()
    })
    .await
    .ended(Ending::Error);
    assert!(lives(&job), "{job}");
}

#[tokio::test]
async fn no_name_that_code_gives_away_masks_ours() {
    let mut bash = Bench::bash().await;
    for name in ["builtin", "printf", "eval", "set", "unset", "shopt", "command"] {
        bash.run(&format!("{name}() {{ false; }}"))
            .await
            .ended(Ending::Ok);
        let seen = bash.run("(exit 3)").await.ended(Ending::Error);
        assert_eq!(seen.outcome.exit_code, Some(3), "{name}");
    }
    assert_eq!(
        bash.run("\\builtin shopt -o posix").await.stdout,
        "posix          \toff\n"
    );
}

#[tokio::test]
async fn code_that_ignores_interrupts_is_killed_with_its_jobs() {
    let mut bash = Bench::bash().await;
    let code = "trap '' INT; setsid sleep 1000 & sleep 1000 & echo $!; while true; do sleep 1; done";
    let mut told = String::new();
    let seen = bash
        .run_and(code, |event, control| {
            if let KernelEvent::Output {
                text,
                stream: greenroom_protocol::Stream::Stdout,
                ..
            } = event
            {
                told.push_str(text);
                control.interrupt();
                control.kill();
            }
        })
        .await
        .ended(Ending::Died);
    assert_eq!(seen.error().name, "killed");
    until("the job is gone", || !lives(&told)).await;
    bash.restart().await;
    assert_eq!(bash.run("echo here").await.stdout, "here\n");
}

#[tokio::test]
async fn a_kernel_leaves_its_neighbours_alone() {
    let mut bash = Bench::bash().await;
    let mut other = Bench::bash().await;
    let pid = other.run("sleep 1000 & echo $!").await.stdout;
    bash.control().kill();
    assert_eq!(bash.died().await.name, "killed");
    bash.restart().await;
    assert!(lives(&pid));
    assert_eq!(other.run("echo here").await.stdout, "here\n");
}

#[tokio::test]
async fn a_flood_is_bounded() {
    let mut bash = Bench::bash().await;
    let seen = bash.run("yes | head -c 50000000").await.ended(Ending::Ok);
    assert_eq!(seen.outcome.stdout.bytes, 50_000_000);
    assert!(seen.stdout.len() <= 128 << 10);
    let seen = bash
        .run("head -c 5000000 /dev/zero; echo end")
        .await
        .ended(Ending::Ok);
    assert!(seen.stdout.ends_with("\\x00end\n"));
    assert_eq!(seen.outcome.stdout.bytes, 5_000_004);
}

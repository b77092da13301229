//! Answers word for word: a change of what models read is a reviewable diff.

use std::{collections::BTreeMap, time::Duration};

use greenroom_protocol::{
    ArchiveFault, FileChange, FileChangeKind, FileEntry, FileKind, FileList, FilesFate, KernelFate, Language,
    Loss, LossCause, Pixels, RunError, RunEvent, RunEventKind, RunId, RunOutcome, RunState, RunStatus,
    RunSummary, Standing, Stream, StreamSummary,
};
use serde_json::json;

use super::{
    super::{arguments::Form, transcript::Transcript},
    *,
};
use crate::{config::ErrorStyle, guest::Picture};

const STYLE: RunStyle = RunStyle {
    chars: 24_000,
    errors: ErrorStyle::Result,
    timeout: None,
    form: Form::Text,
};

fn heading(session: Session, tell: Tell) -> Heading {
    Heading {
        conversation: ConversationId::parse("gr-0123456789abcdefghjkm").unwrap(),
        tell,
        session,
    }
}

fn existing() -> Heading {
    heading(Session::Existing, Tell::No)
}

fn outcome(status: RunStatus) -> RunOutcome {
    RunOutcome {
        status,
        language: Language::Python,
        duration_ms: 12.3,
        stdout: StreamSummary::default(),
        stderr: StreamSummary::default(),
        error: None,
        result: None,
        exit_code: None,
        kernel: KernelFate::Kept,
        files: Vec::new(),
        images_omitted: 0,
        background_ended: 0,
        lost: None,
        standing: Standing::Existing,
    }
}

fn output(stream: Stream, text: &str) -> RunEventKind {
    RunEventKind::Output {
        stream,
        text: text.to_owned(),
        late: false,
        omitted: 0,
    }
}

fn transcript(kinds: Vec<RunEventKind>) -> Transcript {
    let mut transcript = Transcript::new(RunId("run-1".into()), Some(Language::Python));
    for (seq, kind) in kinds.into_iter().enumerate() {
        transcript.push(RunEvent {
            seq: seq as u64,
            at_ms: 3200,
            kind,
        });
    }
    transcript
}

fn started(rest: Vec<RunEventKind>) -> Transcript {
    let first = vec![
        RunEventKind::Accepted {
            standing: Standing::Existing,
        },
        RunEventKind::Started {
            kernel_boot_ms: None,
            lost: None,
        },
    ];
    transcript(first.into_iter().chain(rest).collect())
}

#[test]
fn the_smallest_answer_is_small() {
    let sum = RunOutcome {
        result: Some("2".into()),
        ..outcome(RunStatus::Ok)
    };
    let answer = run(&existing(), &started(vec![RunEventKind::Finished(sum)]), STYLE);
    assert_eq!(
        answer.text,
        "status: ok · 12 ms · session: existing\n\nresult:\n2"
    );
    assert_eq!(
        serde_json::to_value(&answer.meta).unwrap(),
        json!({
            "conversation_id": "gr-0123456789abcdefghjkm",
            "session": "existing",
            "run_id": "run-1",
            "status": "ok",
            "language": "python",
            "duration_ms": 12.3,
            "stdout": {"bytes": 0, "truncated": false},
            "stderr": {"bytes": 0, "truncated": false},
            "result": "2",
            "images": 0,
            "next": 3,
            "files": [],
        })
    );
}

#[test]
fn everything_at_once_stands_in_order() {
    let error = RunError {
        name: "ZeroDivisionError".into(),
        message: "division by zero".into(),
        traceback: "Traceback (most recent call last):\n  …\nZeroDivisionError: division by zero\n".into(),
    };
    let image = BTreeMap::from([
        ("image/png".to_owned(), "aGk=".to_owned()),
        ("text/plain".to_owned(), "<Figure>".to_owned()),
    ]);
    let frame = BTreeMap::from([("text/plain".to_owned(), "  a\n0 1".to_owned())]);
    let file = |path: &str, change| FileChange {
        path: path.into(),
        size: 1536,
        change,
    };
    let ended = RunOutcome {
        error: Some(error),
        files: vec![
            file("a.csv", FileChangeKind::Created),
            file("b/c.txt", FileChangeKind::Modified),
            file("old", FileChangeKind::Deleted),
        ],
        images_omitted: 2,
        ..outcome(RunStatus::Error)
    };
    let transcript = started(vec![
        RunEventKind::Output {
            stream: Stream::Stdout,
            text: "thread\n".into(),
            late: true,
            omitted: 0,
        },
        output(Stream::Stdout, "hello\n"),
        output(Stream::Stderr, "careful\n"),
        RunEventKind::Display {
            data: image,
            path: Some(".greenroom/fig-1.png".into()),
        },
        RunEventKind::Display {
            data: frame,
            path: None,
        },
        RunEventKind::Finished(ended),
    ]);
    let restarted = heading(
        Session::Restarted(RestartReason::OutOfMemory, FilesFate::Gone),
        Tell::Yes,
    );
    let answer = run(&restarted, &transcript, STYLE);
    assert_eq!(
        answer.text,
        "\
status: error (ZeroDivisionError) · 12 ms · session: restarted (the earlier sandbox is gone, with its variables and files: it \
ran out of memory; this one is fresh)
conversation_id: gr-0123456789abcdefghjkm (pass it on in every later call)

printed since the last run, by what that left behind:
thread

stdout:
hello

display:
  a
0 1

stderr:
careful

traceback:
Traceback (most recent call last):
  …
ZeroDivisionError: division by zero

files:
  created a.csv (1.5 KiB)
  changed b/c.txt (1.5 KiB)
  deleted old

note: image 1: saved as /mnt/data/.greenroom/fig-1.png.
note: 2 more image(s) are not shown: an answer has at most 4."
    );
    assert_eq!(
        answer.images,
        [Image {
            data: "aGk=".into(),
            mime: "image/png"
        }]
    );
    assert!(!answer.is_error, "what user code did is a result");
    assert_eq!(answer.meta.restart_reason.as_deref(), Some("out_of_memory"));
}

#[test]
fn what_is_left_of_the_state_is_said() {
    let ended = |status, kernel, error: Option<&str>| {
        let error = error.map(|name| RunError {
            name: name.into(),
            message: "out of memory".into(),
            traceback: String::new(),
        });
        let outcome = RunOutcome {
            kernel,
            error,
            ..outcome(status)
        };
        let style = RunStyle {
            timeout: Some(Duration::from_secs(600)),
            ..STYLE
        };
        run(
            &existing(),
            &started(vec![RunEventKind::Finished(outcome)]),
            style,
        )
        .text
    };
    use KernelFate::{Kept, Restarted};
    for (text, says) in [
        (
            ended(RunStatus::TimedOut, Kept, None),
            "note: the run was stopped at its limit of 10 min 0 s. Variables and files are kept. If it needs longer, pass a larger \
             timeout_seconds, with background true where that is minutes.",
        ),
        (
            ended(RunStatus::TimedOut, Restarted, None),
            "note: the run was stopped at its limit of 10 min 0 s. python was restarted: its variables and imports are gone, files are kept. \
             If it needs longer, pass",
        ),
        (
            ended(RunStatus::Cancelled, Kept, None),
            "note: the run was cancelled. Variables and files are kept.",
        ),
        (
            ended(RunStatus::KernelDied, Restarted, Some("killed")),
            "status: kernel_died (killed) · 12 ms · session: existing\n\ntraceback:\nkilled: out of memory\n\n\
             note: python died during the run. python was restarted: its variables and imports are gone, files are kept.",
        ),
    ] {
        assert!(text.contains(says), "{text}");
    }
    assert!(
        !ended(RunStatus::Error, Kept, None).contains("note:"),
        "an exception needs no note"
    );
}

#[test]
fn a_kernel_that_died_between_runs_is_said_at_the_top() {
    let error = RunError {
        name: "killed".into(),
        message: "signal 9".into(),
        traceback: String::new(),
    };
    let transcript = transcript(vec![
        RunEventKind::Accepted {
            standing: Standing::Existing,
        },
        RunEventKind::Started {
            kernel_boot_ms: Some(400),
            lost: Some(error),
        },
        RunEventKind::Finished(outcome(RunStatus::Ok)),
    ]);
    assert_eq!(
        run(&existing(), &transcript, STYLE).text,
        "status: ok · 12 ms · session: existing\n\
         python was restarted (killed: signal 9): its earlier variables and imports are gone, files are kept"
    );
}

#[test]
fn a_run_that_goes_on_says_how_to_get_the_rest() {
    let answer = run(
        &heading(Session::New, Tell::Yes),
        &started(vec![output(Stream::Stdout, "tick 0\n")]),
        STYLE,
    );
    assert_eq!(
        answer.text,
        "\
status: running · run_id: run-1 · 3.2 s so far · session: new (nothing from earlier exists)
conversation_id: gr-0123456789abcdefghjkm (pass it on in every later call)

stdout:
tick 0

note: the run goes on in the background. For the rest call get_run with run_id \"run-1\", since 3 and wait_seconds 50; cancel_run \
stops it."
    );
    assert!(!answer.text.contains("was started for this run"));
}

#[test]
fn a_busy_kernel_says_behind_what_since_when_and_what_is_free() {
    let mut queued = transcript(vec![
        RunEventKind::Accepted {
            standing: Standing::Existing,
        },
        RunEventKind::Queued {
            behind: RunId("run-0".into()),
            running_ms: 60_000,
        },
    ]);
    queued.wait(Duration::from_millis(45_200));
    let answer = run(&existing(), &queued, STYLE);
    assert_eq!(
        answer.text,
        "\
status: queued · run_id: run-1 · 45.2 s so far · session: existing

note: python is busy: run run-0 has been at work for 1 min 42 s. This run waits behind it and starts by itself, so do not send it \
again. get_run with run_id \"run-1\", since 2 and wait_seconds 50 follows it; cancel_run with run_id \"run-0\" ends the one before \
it, with \"run-1\" it withdraws this one; bash has a queue of its own and can be used meanwhile."
    );
}

#[test]
fn a_poll_from_the_middle_learns_from_the_list_behind_what_it_waits() {
    let entry = |id: &str, language, state, age_ms| RunSummary {
        id: RunId(id.into()),
        language,
        state,
        title: String::new(),
        age_ms,
        next: 2,
    };
    let list = [
        entry("run-1", Language::Bash, RunState::Queued, 5_000),
        entry("run-0", Language::Bash, RunState::Running, 9_000),
        entry("run-p", Language::Python, RunState::Running, 99_000),
    ];
    let mut polled = Transcript::new(RunId("run-1".into()), None);
    assert!(polled.place(&list));
    let text = run(&existing(), &polled, STYLE).text;
    assert!(
        text.contains("bash is busy: run run-0 has been at work for 9.0 s.")
            && text.contains("python has a queue of its own"),
        "{text}"
    );
    assert!(!Transcript::new(RunId("run-2".into()), None).place(&list));
}

#[test]
fn a_name_that_is_missed_after_a_loss_brings_its_story() {
    let note = |cause| {
        let lost = Some(Loss {
            cause,
            ago_ms: 125_000,
        });
        let ended = RunOutcome {
            lost,
            background_ended: 31,
            ..outcome(RunStatus::Error)
        };
        run(&existing(), &started(vec![RunEventKind::Finished(ended)]), STYLE).text
    };
    let (run, status) = (RunId("run-0".into()), RunStatus::TimedOut);
    for (cause, how) in [
        (LossCause::Run { run, status }, "with run run-0 (timed_out)"),
        (LossCause::Between, "since it died between two runs"),
        (
            LossCause::Sandbox {
                reason: RestartReason::Idle,
            },
            "with the earlier sandbox (it was idle for too long)",
        ),
    ] {
        let text = note(cause);
        let all = format!(
            "note: what python knew was lost 2 min 5 s ago {how}: define and import again what the code needs.\n\
             note: the sandbox was full of processes, so 31 that earlier runs had left in the background were ended."
        );
        assert!(text.contains(&all), "{text}");
    }
}

#[test]
fn a_kernel_that_does_not_start_is_no_run_that_died() {
    let error = RunError {
        name: "kernel_start".into(),
        message: "python did not start: it did not answer within 60 s".into(),
        traceback: String::new(),
    };
    let ended = RunOutcome {
        error: Some(error),
        ..outcome(RunStatus::KernelDied)
    };
    let text = run(&existing(), &started(vec![RunEventKind::Finished(ended)]), STYLE).text;
    assert!(
        text.ends_with(
            "note: python could not be started, so the code did not run. Its variables and imports are gone, files are kept. \
             Send it again; if that fails too, reset_session gives a fresh sandbox."
        ),
        "{text}"
    );
}

#[test]
fn what_is_shown_as_a_file_only_is_named() {
    let display = |kind: &str, value: &str, path: &str| RunEventKind::Display {
        data: BTreeMap::from([(kind.to_owned(), value.to_owned())]),
        path: Some(path.into()),
    };
    let shown = started(vec![
        display("text/plain", "plotly figure, 1 trace(s)", "f-1.html"),
        display("image/svg+xml", "<svg/>", "f-2.svg"),
        RunEventKind::Finished(outcome(RunStatus::Ok)),
    ]);
    assert_eq!(
        run(&existing(), &shown, STYLE).text,
        "status: ok · 12 ms · session: existing\n\ndisplay:\nplotly figure, 1 trace(s)\n\n<svg/>\n\n\
         note: display 1: saved as /mnt/data/f-1.html.\nnote: display 2: saved as /mnt/data/f-2.svg."
    );
}

#[test]
fn a_kernel_that_was_slow_to_start_is_mentioned() {
    for (boot, said) in [(None, false), (Some(900), false), (Some(3200), true)] {
        let started = transcript(vec![
            RunEventKind::Started {
                kernel_boot_ms: boot,
                lost: None,
            },
            RunEventKind::Finished(outcome(RunStatus::Ok)),
        ]);
        let text = run(&existing(), &started, STYLE).text;
        let word =
            "note: python was started for this run, which took 3.2 s; later runs do not wait for that.";
        assert_eq!(text.contains(word), said, "{text}");
    }
}

#[test]
fn who_asks_for_bash_hears_that_the_image_has_a_plain_shell() {
    for (asked, ran, said) in [
        (Language::Bash, Language::Sh, true),
        (Language::Sh, Language::Sh, false),
        (Language::Sh, Language::Bash, false),
        (Language::Bash, Language::Bash, false),
    ] {
        let mut shown = started(vec![]);
        shown.language = Some(asked);
        shown.push(RunEvent {
            seq: shown.next,
            at_ms: 3200,
            kind: RunEventKind::Finished(RunOutcome {
                language: ran,
                ..outcome(RunStatus::Ok)
            }),
        });
        let text = run(&existing(), &shown, STYLE).text;
        assert_eq!(
            text.contains("note: this image has no bash: its sh ran this"),
            said,
            "{text}"
        );
    }
}

#[test]
fn a_failure_that_the_sandbox_is_the_reason_of_names_the_next_step() {
    let raised = |language, name: &str, message: &str, out: &str, err: &str| {
        let error = (!name.is_empty()).then(|| RunError {
            name: name.into(),
            message: message.into(),
            traceback: String::new(),
        });
        let status = if error.is_some() {
            RunStatus::Error
        } else {
            RunStatus::Ok
        };
        let ended = RunOutcome {
            error,
            language,
            ..outcome(status)
        };
        let shown = started(vec![
            output(Stream::Stdout, out),
            output(Stream::Stderr, err),
            RunEventKind::Finished(ended),
        ]);
        run(&existing(), &shown, STYLE).text
    };
    use Language::{Bash, Python};
    let pip = "ERROR: No matching distribution found for foo\n";
    for (text, says) in [
        (
            raised(Python, "ModuleNotFoundError", "No module named 'foo'", "", ""),
            "has no network",
        ),
        (raised(Python, "", "", "", pip), "upload a wheel with upload_file"),
        (raised(Bash, "", "", pip, ""), "has no network"),
        (
            raised(Bash, "exit", "", "", "curl: (6) Could not resolve host: x"),
            "trying again does not help",
        ),
        (
            raised(Bash, "exit", "", "", "bash: sudo: command not found"),
            "no root",
        ),
        (raised(Python, "MemoryError", "", "", ""), "variables are kept"),
        (
            raised(
                Python,
                "ValueError",
                "Kaleido requires Google Chrome to be installed",
                "",
                "",
            ),
            "fig.show() saves",
        ),
        (
            raised(Python, "OSError", "[Errno 28] No space left on device", "", ""),
            "disk is full",
        ),
        (
            raised(
                Bash,
                "exit",
                "",
                "",
                "bash: fork: retry: Resource temporarily unavailable",
            ),
            "limit of processes",
        ),
        (
            raised(Bash, "exit", "", "", "EOFError: EOF when reading a line"),
            "no terminal",
        ),
    ] {
        assert!(text.contains("note: ") && text.contains(says), "{says}: {text}");
    }
    for text in [
        raised(Python, "", "", "the log says: Network is unreachable", ""),
        raised(Python, "ValueError", "no", "", ""),
    ] {
        assert!(!text.contains("note:"), "{text}");
    }
}

#[test]
fn long_output_keeps_head_tail_counts_and_budget() {
    let big: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let ended = RunOutcome {
        stdout: StreamSummary {
            bytes: 5_000_000,
            omitted: 4_000_000,
            path: Some(".greenroom/out.txt".into()),
            spilled: None,
        },
        result: Some("r".repeat(50_000)),
        ..outcome(RunStatus::Ok)
    };
    let (head, rest) = big.split_at(big.len() / 2);
    let transcript = started(vec![
        output(Stream::Stdout, head),
        RunEventKind::Output {
            stream: Stream::Stdout,
            text: rest.to_owned(),
            late: false,
            omitted: 4_000_000,
        },
        RunEventKind::Finished(ended),
    ]);
    let answer = run(&existing(), &transcript, RunStyle { chars: 4000, ..STYLE });
    let chars = answer.text.chars().count();
    assert!((3500..4200).contains(&chars), "{chars}");
    assert!(answer.text.contains("line 0\n") && answer.text.contains("line 19999\n"));
    let cut = 4_000_000 + big.len() as u64
        - answer
            .text
            .lines()
            .filter(|l| l.starts_with("line"))
            .map(|l| l.len() as u64 + 1)
            .sum::<u64>();
    // A line that was cut in two is counted in part.
    let said = answer
        .text
        .split_once("[… ")
        .unwrap()
        .1
        .split_once(" bytes left out; all of it is in /mnt/data/.greenroom/out.txt")
        .unwrap()
        .0;
    let said: u64 = said.replace(',', "").parse().unwrap();
    assert!(said.abs_diff(cut) < 20, "{said} {cut}");
    let meta = answer.meta.run.unwrap();
    assert_eq!(
        (meta.stdout.bytes, meta.stdout.truncated, meta.stderr.truncated),
        (5_000_000, true, false)
    );
    assert_eq!(meta.stdout.path.as_deref(), Some("/mnt/data/.greenroom/out.txt"));
}

#[test]
fn flagged_errors_put_the_traceback_first() {
    let error = RunError {
        name: "ValueError".into(),
        message: "no".into(),
        traceback: String::new(),
    };
    let ended = RunOutcome {
        error: Some(error),
        ..outcome(RunStatus::Error)
    };
    let transcript = started(vec![
        output(Stream::Stdout, &"x".repeat(50_000)),
        RunEventKind::Finished(ended),
    ]);
    let answer = run(
        &existing(),
        &transcript,
        RunStyle {
            errors: ErrorStyle::Flag,
            ..STYLE
        },
    );
    assert!(answer.is_error);
    assert!(answer.text.chars().count() < 10_300, "{}", answer.text.len());
    let at = |what: &str| answer.text.find(what).unwrap();
    assert!(at("traceback:\nValueError: no") < at("stdout:\n"));
}

#[test]
fn images_that_are_none_or_too_large_are_not_sent() {
    let image = |data: String| RunEventKind::Display {
        data: BTreeMap::from([("image/png".to_owned(), data)]),
        path: Some("p.png".into()),
    };
    let mut kinds = vec![image("no base64!".into()), image("A".repeat(500_000))];
    kinds.extend((0..6).map(|_| image("A".repeat(250_000))));
    kinds.push(RunEventKind::Finished(outcome(RunStatus::Ok)));
    let answer = run(&existing(), &started(kinds), STYLE);
    let bytes: usize = answer.images.iter().map(|image| image.data.len()).sum::<usize>() + answer.text.len();
    assert!(!answer.images.is_empty() && bytes < ANSWER_BYTES, "{bytes}");
    assert!(
        answer.text.contains("did not fit, saved as /mnt/data/p.png"),
        "{}",
        answer.text
    );
}

#[test]
fn files_are_listed_with_their_sizes() {
    let entry = |path: &str, kind, size| FileEntry {
        path: path.into(),
        kind,
        size,
        modified_ms: 1_700_000_000_000,
    };
    let list = FileList {
        entries: vec![
            entry("a", FileKind::Directory, 0),
            entry("a/b.csv", FileKind::File, 2048),
            entry("l", FileKind::Symlink, 0),
            entry("p", FileKind::Other, 0),
        ],
        omitted: 1234,
    };
    assert_eq!(
        listed(&existing(), "", &list, 1000).text,
        "4 entries in /mnt/data · session: existing\na/\na/b.csv (2.0 KiB, 2023-11-14 22:13)\nl (symbolic link)\np (neither file nor folder)\n\
         … at least 1,234 more are not listed: name a folder below"
    );
    let cut = listed(&existing(), "", &list, 45);
    assert_eq!(
        cut.text,
        "4 entries in /mnt/data · session: existing\na/\na/b.csv (2.0 KiB, 2023-11-14 22:13)\n… at least 1,236 more are not listed: name a folder below"
    );
    let files = cut.meta.files.unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(files[1].mime.as_deref(), Some("text/csv"));
    assert_eq!(files[1].modified.as_deref(), Some("2023-11-14T22:13:20Z"));
    let none = heading(Session::None, Tell::Yes).sentence("nothing to list", "There is no sandbox.");
    assert_eq!(
        none.text,
        "nothing to list · session: none\n\nThere is no sandbox."
    );
}

#[test]
fn a_download_says_which_part_it_is() {
    let text = |text: &str, bytes, encoding| {
        Content::Text(Text {
            text: text.into(),
            bytes,
            encoding,
        })
    };
    let whole = downloaded(&existing(), "a.txt", 0, 5, text("hello", 5, None));
    assert_eq!(whole.text, "ok · a.txt · 5 bytes · session: existing\n\nhello");
    let decoded = downloaded(&existing(), "a.txt", 0, 6, text("hi", 6, Some("UTF-16LE")));
    assert_eq!(
        decoded.text,
        "ok · a.txt · 6 bytes · decoded from UTF-16LE · session: existing\n\nhi"
    );
    let part = downloaded(&existing(), "a.bin", 10, 5000, Content::Bytes(vec![0, 1, 2]));
    assert_eq!(
        part.text,
        "ok · a.bin · bytes 10–13 of 5,000 as base64 · session: existing\nnote: this is a part; the next begins at offset 13.\n\nAAEC"
    );
    let image = downloaded(
        &existing(),
        "a.png",
        0,
        2,
        Content::Image(Picture {
            mime: "image/png",
            pixels: Pixels {
                file: [3000, 2000],
                sent: [1500, 1000],
            },
            bytes: "hi".into(),
        }),
    );
    assert_eq!(
        image.text,
        "ok · a.png · 2 bytes · image of 3000 × 2000, shown as 1500 × 1000 · session: existing"
    );
    assert_eq!(
        image.images,
        [Image {
            data: "aGk=".into(),
            mime: "image/png"
        }]
    );
}

/// What programs that were made for Azure's tools read.
#[test]
fn azures_form_is_json_and_says_what_was_lost() {
    let style = RunStyle {
        form: Form::Azure,
        ..STYLE
    };
    let run_of = |session, status, events: Vec<RunEventKind>| {
        let mut all = vec![RunEventKind::Started {
            kernel_boot_ms: None,
            lost: None,
        }];
        all.extend(events);
        all.push(RunEventKind::Finished(outcome(status)));
        run(&heading(session, Tell::Yes), &transcript(all), style)
    };
    let answer = run_of(
        Session::Existing,
        RunStatus::Ok,
        vec![output(Stream::Stdout, "a\na\n")],
    );
    assert_eq!(
        answer.structured,
        Some(json!({"stdout": "a\na\n", "stderr": "", "exitCode": 0, "executionTimeInMilliseconds": 12}))
    );
    assert_eq!(
        serde_json::from_str::<Value>(&answer.text).unwrap(),
        answer.structured.unwrap(),
        "the text says the same"
    );
    let restarted = run_of(
        Session::Restarted(RestartReason::Idle, FilesFate::Gone),
        RunStatus::TimedOut,
        vec![],
    );
    let fields = restarted.structured.unwrap();
    assert_eq!(fields["exitCode"], 124);
    assert!(
        fields["session"].as_str().unwrap().starts_with("restarted"),
        "{fields}"
    );
    assert!(fields["notes"][0].as_str().unwrap().contains("limit"), "{fields}");
}

#[test]
fn what_became_of_files_is_said() {
    let kept = |as_of_ms, left_out| FilesFate::Kept { as_of_ms, left_out };
    let refused = |fault| FilesFate::Refused { fault };
    for (files, line, as_of) in [
        (
            FilesFate::Gone,
            "(the earlier sandbox is gone, with its variables and files: it was idle for too long; this one is fresh)",
            None,
        ),
        (
            kept(1_700_000_000_999, 0),
            "(the earlier sandbox is gone: it was idle for too long; variables are lost, files are kept as of \
             2023-11-14T22:13:20Z)",
            Some("2023-11-14T22:13:20Z"),
        ),
        (
            kept(1_700_000_000_000, 2),
            "files are kept as of 2023-11-14T22:13:20Z, but for 2 that could not be read)",
            Some("2023-11-14T22:13:20Z"),
        ),
        // An agent may say anything.
        (kept(u64::MAX, 0), "files are kept as of an unknown time)", None),
        (
            refused(ArchiveFault::Corrupt),
            "with its variables and files: it was idle for too long; the archive of its files is damaged, so none of it is \
             used; this one is fresh)",
            None,
        ),
        (refused(ArchiveFault::TooLarge), "is larger than is allowed", None),
        (refused(ArchiveFault::Unreadable), "could not be read", None),
        (refused(ArchiveFault::NotUnpacked), "could not be unpacked", None),
    ] {
        let standing = Standing::Restarted {
            reason: RestartReason::Idle,
            files,
        };
        let answer = heading(Session::from(&standing), Tell::No).sentence("ok", "");
        assert!(answer.text.contains(line), "{}", answer.text);
        assert_eq!(answer.meta.files_kept_as_of.as_deref(), as_of, "{files:?}");
        assert_eq!(answer.meta.restart_reason.as_deref(), Some("idle"));
    }
}

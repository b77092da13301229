//! The examples of the wire contract, and what results become.

use greenroom_protocol::{
    FilesFate, Language, RestartReason, RunEvent, RunEventKind, RunId, Standing, Stream, StreamSummary,
};
use serde_json::{Value, json};

use super::*;

fn outcome(status: RunStatus) -> RunOutcome {
    RunOutcome {
        status,
        language: Language::Python,
        duration_ms: 9.7,
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

fn transcript(kinds: impl IntoIterator<Item = RunEventKind>) -> Transcript {
    let mut transcript = Transcript::new(RunId("5f0c".into()), None);
    for (seq, kind) in kinds.into_iter().enumerate() {
        let seq = seq as u64;
        transcript.push(RunEvent {
            seq,
            at_ms: seq,
            kind,
        });
    }
    transcript
}

fn render(dialect: Dialect, transcript: &Transcript, change: impl FnOnce(&mut Execution<'_>)) -> Value {
    let printed = |text: &str| Printed::cut(text, text.len() as u64, usize::MAX);
    let (stdout, stderr) = (printed(&transcript.stdout.text), printed(&transcript.stderr.text));
    let news = News::default();
    let mut execution = Execution {
        identifier: "conv-0001",
        mode: Mode::Synchronous,
        kind: Kind::Code,
        transcript,
        stdout: &stdout,
        stderr: &stderr,
        timeout: Some(Duration::from_secs(60)),
        outputs: Outputs::Last,
        news: &news,
        lost: None,
    };
    change(&mut execution);
    serde_json::from_slice(&execution.render(dialect)).unwrap()
}

fn finished(change: impl FnOnce(&mut RunOutcome)) -> Transcript {
    let mut outcome = outcome(RunStatus::Ok);
    change(&mut outcome);
    transcript([RunEventKind::Finished(outcome)])
}

fn output(stream: Stream, text: &str) -> RunEventKind {
    RunEventKind::Output {
        stream,
        text: text.to_owned(),
        late: false,
        omitted: 0,
    }
}

#[test]
fn success_has_the_documented_members_and_no_others() {
    let done = finished(|outcome| outcome.result = Some("42".into()));
    let flat = json!({ "$id": "5f0c", "status": "Success", "stdout": "", "stderr": "", "result": 42, "executionResult": 42,
        "executionTimeInMilliseconds": 9 });
    assert_eq!(render(Dialect::A0, &done, |_| ()), flat);
    assert_eq!(
        render(Dialect::A, &done, |_| ()),
        json!({ "$id": "1", "properties": flat })
    );
    assert_eq!(
        render(Dialect::B, &done, |_| ()),
        json!({ "id": "5f0c", "identifier": "conv-0001", "sessionId": "conv-0001", "executionType": "Synchronous",
            "status": "Succeeded", "result":
            { "stdout": "", "stderr": "", "executionResult": 42, "executionTimeInMilliseconds": 9 } })
    );
}

#[test]
fn who_asks_for_all_outputs_gets_them_in_every_dialect() {
    let shown = |data: &[(&str, &str)], path: Option<&str>| RunEventKind::Display {
        data: data
            .iter()
            .map(|(kind, value)| ((*kind).into(), (*value).into()))
            .collect(),
        path: path.map(str::to_owned),
    };
    let mut ended = outcome(RunStatus::Ok);
    ended.result = Some("42".into());
    let many = transcript([
        shown(&[("text/html", "<b>one</b>"), ("text/plain", "one")], None),
        shown(&[("image/png", "iVBOR")], Some(".greenroom/figures/1.png")),
        RunEventKind::Finished(ended),
    ]);
    let outputs = json!([
        { "type": "display_data", "data": { "text/html": "<b>one</b>", "text/plain": "one" } },
        { "type": "display_data", "data": { "image/png": "iVBOR" }, "path": ".greenroom/figures/1.png" },
        { "type": "execute_result", "data": { "text/plain": "42" } }
    ]);
    let all = |execution: &mut Execution<'_>| execution.outputs = Outputs::All;
    let image = json!({ "type": "image", "format": "png", "base64_data": "iVBOR" });
    let old = render(Dialect::A0, &many, all);
    assert_eq!((&old["outputs"], &old["result"]), (&outputs, &image));
    assert_eq!(render(Dialect::A, &many, all)["properties"]["outputs"], outputs);
    assert_eq!(render(Dialect::B, &many, all)["result"]["outputs"], outputs);
    assert_eq!(render(Dialect::B, &many, |_| ())["result"].get("outputs"), None);
    let command = |execution: &mut Execution<'_>| {
        execution.outputs = Outputs::All;
        execution.kind = Kind::Shell;
    };
    assert_eq!(render(Dialect::B, &many, command)["result"].get("outputs"), None);
    let flood = transcript(
        (0..70)
            .map(|n| shown(&[("text/plain", &n.to_string())], None))
            .chain([RunEventKind::Finished(outcome(RunStatus::Ok))]),
    );
    let flood = &render(Dialect::B, &flood, all)["result"];
    assert_eq!(
        (
            flood["outputs"].as_array().map(Vec::len),
            &flood["truncated"]["outputs"]
        ),
        (Some(64), &json!(6))
    );
}

#[test]
fn failure_has_its_error_nested_twice_and_its_traceback_in_stderr() {
    let mut failed = outcome(RunStatus::Error);
    failed.error = Some(RunError {
        name: "KeyError".into(),
        message: "'x'".into(),
        traceback: "Traceback …\nKeyError: 'x'\n".into(),
    });
    let failed = transcript([
        output(Stream::Stdout, "before\n"),
        output(Stream::Stderr, "warned"),
        RunEventKind::Finished(failed),
    ]);
    assert_eq!(
        render(Dialect::B, &failed, |_| ()),
        json!({ "id": "5f0c", "identifier": "conv-0001", "sessionId": "conv-0001", "executionType": "Synchronous",
            "status": "Failed", "error": { "error": { "code": "ExecutionFailed", "message": "KeyError: 'x'" } },
            "result": { "stdout": "before\n", "stderr": "warned\nTraceback …\nKeyError: 'x'\n", "executionResult": "",
                "executionTimeInMilliseconds": 9 } })
    );
    let flat = render(Dialect::A0, &failed, |_| ());
    assert_eq!(
        (&flat["status"], &flat["result"]),
        (&json!("Failure"), &json!(""))
    );
}

#[test]
fn results_are_json_where_they_are_strictly_that() {
    for (text, value) in [
        (None, json!("")),
        (Some("42"), json!(42)),
        (Some("[1, 2]"), json!([1, 2])),
        (Some("['a', 'b']"), json!("['a', 'b']")),
        (Some("{'a': 1}"), json!("{'a': 1}")),
        (Some("True"), json!("True")),
        (Some("'abc'"), json!("'abc'")),
        (Some("nan"), json!("nan")),
        (Some("null"), json!("null")),
        (Some("0.5"), json!(0.5)),
        (Some("007"), json!("007")),
    ] {
        let done = finished(|outcome| outcome.result = text.map(str::to_owned));
        assert_eq!(render(Dialect::A0, &done, |_| ())["result"], value, "{text:?}");
    }
    let (digits, deep) = (
        "123456789012345678901234567890",
        "[".repeat(100) + &"]".repeat(100),
    );
    for (text, sent) in [(digits, digits.to_owned()), (&deep, format!("{deep:?}"))] {
        let done = finished(|outcome| outcome.result = Some(text.to_owned()));
        let news = News::default();
        let printed = Printed::default();
        let execution = Execution {
            identifier: "x",
            mode: Mode::Synchronous,
            kind: Kind::Code,
            transcript: &done,
            stdout: &printed,
            stderr: &printed,
            timeout: None,
            outputs: Outputs::Last,
            news: &news,
            lost: None,
        };
        let body = String::from_utf8(execution.render(Dialect::A0)).unwrap();
        assert!(body.contains(&format!("\"result\":{sent},")), "{body}");
    }
}

#[test]
fn the_last_picture_wins() {
    let show = |mime: &str, data: &str| RunEventKind::Display {
        data: [
            (mime.to_owned(), data.to_owned()),
            ("text/plain".to_owned(), "shown".to_owned()),
        ]
        .into(),
        path: None,
    };
    let mut done = outcome(RunStatus::Ok);
    done.result = Some("[<Line2D>]".into());
    let picture = transcript([show("image/png", "aGk=\n"), RunEventKind::Finished(done.clone())]);
    let expected = json!({ "type": "image", "format": "png", "base64_data": "aGk=" });
    assert_eq!(
        render(Dialect::A, &picture, |_| ())["properties"]["result"],
        expected
    );
    let table = transcript([show("text/html", "<table>"), RunEventKind::Finished(done.clone())]);
    assert_eq!(render(Dialect::A0, &table, |_| ())["result"], "[<Line2D>]");
    done.result = None;
    let table = transcript([show("text/html", "<table>"), RunEventKind::Finished(done)]);
    assert_eq!(render(Dialect::A0, &table, |_| ())["result"], "shown");
}

#[test]
fn commands_have_their_exit_code_as_a_string() {
    let done = |status: RunStatus, exit_code| {
        let mut done = outcome(status);
        done.language = Language::Bash;
        done.exit_code = exit_code;
        transcript([output(Stream::Stdout, "hello\n"), RunEventKind::Finished(done)])
    };
    let shell = |execution: &mut Execution<'_>| execution.kind = Kind::Shell;
    assert_eq!(
        render(Dialect::B, &done(RunStatus::Ok, Some(0)), shell),
        json!({ "id": "5f0c", "identifier": "conv-0001", "executionType": "Synchronous", "status": "0", "exitCode": 0,
            "result": { "stdout": "hello\n", "stderr": "", "executionTimeInMilliseconds": 9 } })
    );
    for (status, code, word) in [
        (RunStatus::Error, Some(3), "3"),
        (RunStatus::TimedOut, Some(130), "-1"),
        (RunStatus::KernelDied, None, "-1"),
    ] {
        assert_eq!(render(Dialect::B, &done(status, code), shell)["status"], word);
    }
}

#[test]
fn what_is_not_over_has_no_result() {
    let accepted = || RunEventKind::Accepted {
        standing: Standing::Existing,
    };
    let started = || RunEventKind::Started {
        kernel_boot_ms: None,
        lost: None,
    };
    for (seen, word) in [
        (transcript([accepted()]), "NotStarted"),
        (transcript([accepted(), started()]), "Running"),
    ] {
        for kind in [Kind::Code, Kind::Shell] {
            let answer = render(Dialect::B, &seen, |execution| {
                (execution.mode, execution.kind) = (Mode::Asynchronous, kind);
            });
            assert_eq!((&answer["status"], answer.get("result")), (&json!(word), None));
        }
    }
}

#[test]
fn what_was_cut_or_lost_is_said() {
    let mut stopped = outcome(RunStatus::TimedOut);
    stopped.kernel = KernelFate::Restarted;
    let stopped = transcript([RunEventKind::Finished(stopped)]);
    let news = News::of(&Standing::Restarted {
        reason: RestartReason::Idle,
        files: FilesFate::Gone,
    });
    let cut = Printed::cut("äbc", 1000, 1);
    assert_eq!(
        cut,
        Printed {
            text: String::new(),
            dropped: 1000
        },
        "never half a character"
    );
    let bytes = Printed::of_bytes("aä".as_bytes().split_last().unwrap().1, 9);
    assert_eq!(
        bytes,
        Printed {
            text: "a".into(),
            dropped: 8
        }
    );
    let answer = render(Dialect::B, &stopped, |execution| {
        execution.stdout = Box::leak(Box::new(cut));
        execution.news = Box::leak(Box::new(news));
    });
    assert_eq!(
        answer["result"]["truncated"],
        json!({ "stdout": 1000, "stderr": 0 })
    );
    assert_eq!(
        answer["greenroom"],
        json!({ "session": "restarted", "reason": "idle", "files": "gone" })
    );
    let note = "greenroom: the execution was stopped at its limit of 60 s; variables and imports are lost, files are kept";
    assert_eq!(answer["result"]["stderr"], format!("{note}\n"));
    assert_eq!(answer["error"]["error"]["message"], note);
    let gone = render(Dialect::B, &transcript([]), |execution| {
        execution.lost = Some("greenroom: the sandbox ended")
    });
    assert_eq!(
        (&gone["status"], &gone["result"]["stderr"]),
        (&json!("Failed"), &json!("greenroom: the sandbox ended\n"))
    );
}

//! What a person's day with Greenroom looks like: through a real client, the built server, Docker and gVisor.

use anyhow::Result;
use greenroom_integration::{Config, Era, Greenroom};
use serde_json::{Value, json};

const PLOT: &str = "\
import csv, matplotlib.pyplot as plt
with open('sales.csv', 'w', newline='') as f:
    csv.writer(f).writerows([('month', 'sales'), (1, 10), (2, 30), (3, 20)])
plt.plot([1, 2, 3], [10, 30, 20]); plt.title('sales')
";

async fn a_day(era: Era) -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(era).await?;
    let conversation = "story-of-one-day";

    let first = client.python(conversation, "x = 41").await?;
    assert_eq!((first.status(), first.session()), ("ok", "new"), "{}", first.text);
    let second = client.python(conversation, "x + 1").await?;
    assert_eq!(
        (second.result(), second.session()),
        ("42", "existing"),
        "{}",
        second.text
    );

    let plot = client.python(conversation, PLOT).await?;
    assert_eq!(plot.status(), "ok", "{}", plot.text);
    assert_eq!(plot.images.len(), 1, "{}", plot.text);
    assert!(
        plot.images[0].starts_with(b"\x89PNG") || plot.images[0].starts_with(b"\xff\xd8"),
        "a picture"
    );
    assert!(
        plot.text.contains("sales.csv"),
        "the changed file is named: {}",
        plot.text
    );

    let shell = client
        .bash(conversation, "cd /tmp && n=7; wc -l < /mnt/data/sales.csv")
        .await?;
    assert_eq!(
        (shell.status(), shell.session()),
        ("ok", "existing"),
        "{}",
        shell.text
    );
    let shell = client.bash(conversation, "pwd; echo $n").await?;
    assert!(
        shell.text.contains("/tmp\n7"),
        "bash keeps its state: {}",
        shell.text
    );

    let sent = client
        .call(
            "upload_file",
            json!({ "conversation_id": conversation, "path": "in/greeting.txt", "content": "hullo\n" }),
        )
        .await?;
    assert!(!sent.is_error, "{}", sent.text);
    let read = client
        .python(conversation, "open('in/greeting.txt').read()")
        .await?;
    assert_eq!(read.result(), r"'hullo\n'");
    let listed = client
        .call(
            "list_files",
            json!({ "conversation_id": conversation, "recursive": true }),
        )
        .await?;
    let paths: Vec<&str> = listed.meta["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f["path"].as_str())
        .collect();
    assert!(
        paths.contains(&"in/greeting.txt") && paths.contains(&"sales.csv"),
        "{paths:?}"
    );
    let fetched = client
        .call(
            "download_file",
            json!({ "conversation_id": conversation, "path": "sales.csv" }),
        )
        .await?;
    assert!(fetched.text.contains("2,30"), "{}", fetched.text);

    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_day_over_the_legacy_protocol() -> Result<()> {
    a_day(Era::Legacy).await
}

#[tokio::test]
async fn a_day_over_the_modern_protocol() -> Result<()> {
    a_day(Era::Modern).await
}

#[tokio::test]
async fn two_conversations_cannot_see_each_other() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    let secret = "open('secret', 'w').write('mine'); s = 'mine'; open('/tmp/secret', 'w').write('mine')";
    client.python("the-first-conversation", secret).await?;
    let other = client
        .python(
            "the-other-conversation",
            "import os; ('s' in dir(), os.listdir('.'), os.path.exists('/tmp/secret'))",
        )
        .await?;
    assert_eq!(
        (other.result(), other.session()),
        ("(False, [], False)", "new"),
        "{}",
        other.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_killed_server_finds_its_conversation_again() -> Result<()> {
    let mut greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    client.python("survives-the-server", "x = 'still here'").await?;
    let slow = "import time; time.sleep(4); y = 'ran on'; print('over')";
    let run = client
        .call(
            "execute_code",
            json!({ "conversation_id": "survives-the-server", "code": slow, "background": true }),
        )
        .await?;
    assert!(["queued", "running"].contains(&run.status()), "{}", run.text);
    greenroom.kill_and_restart().await?;

    let client = greenroom.client(Era::Modern).await?;
    let got = client
        .call(
            "get_run",
            json!({ "conversation_id": "survives-the-server", "run_id": run.field("run_id"), "wait_seconds": 30 }),
        )
        .await?;
    assert!(got.status() == "ok" && got.text.contains("over"), "{}", got.text);
    let after = client.python("survives-the-server", "x, y").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("('still here', 'ran on')", "existing"),
        "{}",
        after.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_slow_run_is_handed_back_and_fetched() -> Result<()> {
    let top = "patience = \"3s\"\n".to_owned();
    let greenroom = Greenroom::start(&Config {
        top,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Legacy).await?;
    // A caller's patience counts from its call, and so would the boot of its sandbox.
    client.python("needs-patience", "1").await?;
    let code = "import os, time\nprint('tick', 0, flush=True)\nfor _ in range(1200):\n    \
                if os.path.exists('go'): break\n    time.sleep(0.1)\n'done'";
    let handed = client.python("needs-patience", code).await?;
    assert_eq!(handed.status(), "running", "{}", handed.text);
    assert!(
        handed.text.contains("tick 0") && handed.text.contains(handed.field("run_id")),
        "{}",
        handed.text
    );
    client.bash("needs-patience", "touch go").await?;
    let run =
        json!({ "conversation_id": "needs-patience", "run_id": handed.field("run_id"), "wait_seconds": 30 });
    let over = client.call("get_run", run).await?;
    assert_eq!((over.status(), over.result()), ("ok", "'done'"), "{}", over.text);
    let list = client
        .call("get_run", json!({ "conversation_id": "needs-patience" }))
        .await?;
    assert!(list.text.contains(handed.field("run_id")), "{}", list.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn reading_tools_never_make_a_sandbox() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    for (tool, arguments) in [
        ("list_files", json!({ "conversation_id": "nobody-was-here" })),
        (
            "download_file",
            json!({ "conversation_id": "nobody-was-here", "path": "x" }),
        ),
        ("get_run", json!({ "conversation_id": "nobody-was-here" })),
    ] {
        assert_eq!(client.call(tool, arguments).await?.session(), "none", "{tool}");
    }
    let first = client.python("nobody-was-here", "1").await?;
    assert_eq!(first.session(), "new", "{}", first.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_reset_is_said_once_and_told() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    client.python("wants-a-reset", "x = 1").await?;
    let reset = client
        .call("reset_session", json!({ "conversation_id": "wants-a-reset" }))
        .await?;
    assert!(!reset.is_error, "{}", reset.text);
    let after = client.python("wants-a-reset", "'x' in dir()").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("False", "restarted"),
        "{}",
        after.text
    );
    assert_eq!(after.field("restart_reason"), "reset", "{}", after.text);
    let later = client.python("wants-a-reset", "1").await?;
    assert_eq!(later.session(), "existing", "{}", later.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn what_cannot_be_done_says_which_limit() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let id = "sends-garbage";
    let long = "x".repeat(5000);
    let code = "#".repeat((1 << 20) + 1);
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "execute_code",
            json!({ "conversation_id": id, "code": code }),
            "1048576",
        ),
        (
            "execute_code",
            json!({ "conversation_id": id, "code": "1", "language": "cobol" }),
            "python",
        ),
        (
            "execute_code",
            json!({ "conversation_id": id, "code": "1", "colour": "red" }),
            "timeout_seconds",
        ),
        (
            "execute_code",
            json!({ "conversation_id": "default", "code": "1" }),
            "conversation_id",
        ),
        ("execute_code", json!({ "conversation_id": id }), "code"),
        (
            "execute_code",
            json!({ "conversation_id": id, "code": 7 }),
            "code",
        ),
        (
            "upload_file",
            json!({ "conversation_id": id, "path": "../x", "content": "x" }),
            "..",
        ),
        (
            "upload_file",
            json!({ "conversation_id": id, "path": "/etc/x", "content": "x" }),
            "/mnt/data",
        ),
        (
            "upload_file",
            json!({ "conversation_id": id, "path": "a\u{0}b", "content": "x" }),
            "NUL",
        ),
        (
            "upload_file",
            json!({ "conversation_id": id, "path": long, "content": "x" }),
            "1024",
        ),
        (
            "upload_file",
            json!({ "conversation_id": id, "path": "x", "content": "%%", "encoding": "base64" }),
            "base64",
        ),
    ];
    client.python(id, "1").await?;
    for (tool, arguments, names) in cases {
        let shown: String = arguments.to_string().chars().take(80).collect();
        let answer = client.call(tool, arguments).await?;
        assert!(answer.is_error, "{tool} {shown}: {}", answer.text);
        assert!(
            answer.text.contains(names),
            "{tool} {shown} names {names}: {}",
            answer.text
        );
    }
    client.bash(id, "ln -s /etc/passwd out; mkfifo pipe").await?;
    for path in ["out", "pipe"] {
        let answer = client
            .call("download_file", json!({ "conversation_id": id, "path": path }))
            .await?;
        assert!(
            answer.is_error && !answer.text.contains("root:"),
            "{path}: {}",
            answer.text
        );
    }
    let after = client.python(id, "import os; sorted(os.listdir())").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("['out', 'pipe']", "existing"),
        "nothing half-written"
    );
    client.close().await?;
    greenroom.finish().await
}

/// A program that was made for the tools of Azure's dynamic sessions.
#[tokio::test]
async fn azures_tools_reach_the_same_sandboxes() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        top: "aliases = \"azure\"\n".to_owned(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Legacy).await?;
    let launched = client.call("launchShell", json!({})).await?;
    let id = serde_json::from_str::<Value>(&launched.text)?["environmentId"].clone();
    let run = async |tool: &str, name: &str, code: Value| -> Result<Value> {
        let mut arguments = json!({ "environmentId": id });
        arguments[name] = code;
        Ok(serde_json::from_str(&client.call(tool, arguments).await?.text)?)
    };
    let python = "runPythonCodeInRemoteEnvironment";
    let shell = "runShellCommandInRemoteEnvironment";
    let first = run(
        python,
        "pythonCode",
        "x = 41\nopen('f.txt', 'w').write('hi')\nprint(x)".into(),
    )
    .await?;
    assert_eq!(
        (&first["stdout"], &first["exitCode"]),
        (&json!("41\n"), &json!(0)),
        "{first}"
    );
    assert!(
        first["session"]
            .as_str()
            .is_some_and(|said| said.starts_with("new")),
        "{first}"
    );
    let second = run(python, "pythonCode", "print(x + 1)\n1 / 0".into()).await?;
    assert_eq!(
        (&second["stdout"], &second["exitCode"]),
        (&json!("42\n"), &json!(1)),
        "{second}"
    );
    assert!(
        second["stderr"]
            .as_str()
            .is_some_and(|text| text.contains("ZeroDivisionError")),
        "{second}"
    );
    assert!(second.get("session").is_none(), "{second}");
    let words = run(shell, "execCommandAndArgs", json!(["cat", "f.txt"])).await?;
    assert_eq!(words["stdout"], "hi", "{words}");
    let failed = run(shell, "shellCommand", "echo out; echo err >&2; (exit 3)".into()).await?;
    assert_eq!(
        (&failed["stdout"], &failed["stderr"], &failed["exitCode"]),
        (&json!("out\n"), &json!("err\n"), &json!(3)),
        "{failed}"
    );
    let own = json!({ "conversation_id": id, "code": "x" });
    let own = client.call("execute_code", own).await?;
    assert_eq!((own.result(), own.session()), ("41", "existing"), "{}", own.text);
    client.close().await?;
    greenroom.finish().await
}

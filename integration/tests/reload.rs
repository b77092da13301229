//! The configuration of a running server read again: by `greenroom reload` and by SIGHUP, with sessions that go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use greenroom_integration::{Client, Config, Era, Greenroom, MANY_BOOTS, binary};
use serde_json::json;
use tokio::process::Command;

/// What a reload that was taken over told.
async fn reloaded(server: &Greenroom) -> Result<String> {
    let output = server.types(&["reload"]).await?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        server.log()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// What a reload that was not taken over told.
async fn refused(server: &Greenroom) -> Result<String> {
    let output = server.types(&["reload"]).await?;
    let text = String::from_utf8(output.stderr)?;
    // A file that is wrong is not shown to any server.
    ensure!(
        matches!(output.status.code(), Some(1 | 64)),
        "{text}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(text)
}

/// Edits the configuration file.
fn edit(server: &Greenroom, change: impl FnOnce(String) -> String) -> Result<()> {
    let path = server.config_path();
    let text = change(std::fs::read_to_string(&path)?);
    Ok(std::fs::write(path, text)?)
}

async fn in_pool(client: &Client, pool: &str, code: &str) -> Result<greenroom_integration::Answer> {
    let arguments = json!({ "conversation_id": "reloaded-0001", "pool": pool, "code": code });
    client.call("execute_code", arguments).await
}

const SECOND: &str = "\n[pool.second]\ndescription = \"No packages\"\npreload = []\nwarm = 1\nmax = 4\n";

#[tokio::test(flavor = "multi_thread")]
async fn pools_come_change_and_go_and_sessions_stay() -> Result<()> {
    let server = Greenroom::start(&Config::default()).await?;
    let client = server.client(Era::Modern).await?;
    client.python("reloaded-0001", "kept = 42").await?;
    assert_eq!(
        reloaded(&server).await?,
        format!("server {}: no pool has changed\n", pid(&server)?)
    );

    edit(&server, |text| text + SECOND)?;
    assert!(reloaded(&server).await?.ends_with(": pool second added\n"));
    let ready = reqwest::get(server.url("/readyz")).await?.text().await?;
    assert_eq!(
        ready, "python: ready\nsecond: ready\n",
        "it was proven before it was offered"
    );
    let tools = list(&server).await?;
    assert!(tools.contains("- second: No packages"), "{tools}");
    assert_eq!(in_pool(&client, "second", "mine = 1").await?.session(), "new");

    // A pool that changes under a session, and one in whose sandbox a run goes on.
    let long =
        json!({ "conversation_id": "reloaded-0001", "code": "import time; time.sleep(5); print('through')" });
    let run = tokio::spawn({
        let client = server.client(Era::Modern).await?;
        async move { client.call("execute_code", long).await }
    });
    edit(&server, |text| {
        text.replace("max = 8", "max = 7\nlanguages = [\"bash\", \"python\"]")
            .replace("max = 4", "max = 4\nenv = { MODE = \"later\" }")
    })?;
    let told = reloaded(&server).await?;
    assert!(
        told.ends_with(": pool python changed, pool second changed\n"),
        "{told}"
    );
    let answer = run.await??;
    assert!(answer.text.contains("through"), "{}", answer.text);
    let answer = client.run("reloaded-0001", "python", "print(kept)").await?;
    assert_eq!((answer.session(), answer.text.contains("42")), ("existing", true));
    // What begins now begins by the new configuration; its first language is the default.
    let arguments = json!({ "conversation_id": "reloaded-0002", "code": "echo $BASH_VERSION" });
    let answer = client.call("execute_code", arguments).await?;
    assert_eq!(
        (answer.session(), answer.status()),
        ("new", "ok"),
        "{}",
        answer.text
    );
    let answer = in_pool(
        &client,
        "second",
        "import os; print(mine, os.environ.get('MODE'))",
    )
    .await?;
    assert_eq!(answer.session(), "existing");
    assert!(
        answer.text.contains("None"),
        "a session keeps the sandbox that it has: {}",
        answer.text
    );

    edit(&server, |text| text.replace("[pool.second]", "[pool.third]"))?;
    let told = reloaded(&server).await?;
    assert!(
        told.ends_with(": pool second removed, pool third added\n"),
        "{told}"
    );
    let answer = in_pool(&client, "second", "1").await?;
    assert!(
        answer.is_error && answer.text.contains("there are: python, third"),
        "{}",
        answer.text
    );
    // Its session has not ended, and is there again when its pool is.
    edit(&server, |text| text.replace("[pool.third]", "[pool.second]"))?;
    reloaded(&server).await?;
    let answer = in_pool(&client, "second", "print(mine)").await?;
    assert_eq!(answer.session(), "existing", "{}", answer.text);

    client.close().await?;
    server.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_changes_nothing() -> Result<()> {
    let server = Greenroom::start(&Config::default()).await?;
    let client = server.client(Era::Modern).await?;
    client.python("reloaded-0001", "kept = 42").await?;
    let good = std::fs::read_to_string(server.config_path())?;

    for (wrong, told) in [
        ("\n[pool.second]\nmax = 0\nidel = \"5m\"\n", "idel"),
        (
            "\n[pool.second]\nimage = \"greenroom/no-such-image:1\"\n",
            "no-such-image",
        ),
        (
            "\n[pool.second]\npreload = []\nlanguages = [\"cobol\"]\nwarm = 1\n",
            "cobol",
        ),
    ] {
        edit(&server, |_| good.clone() + wrong)?;
        let text = refused(&server).await?;
        assert!(text.contains(told), "{text}");
        assert!(!list(&server).await?.contains("- second"), "{wrong}");
    }
    edit(&server, |_| {
        good.replace("[engine]", "[engine]\nbuild_network = \"elsewhere\"")
    })?;
    let text = refused(&server).await?;
    assert!(text.contains("[engine] cannot change"), "{text}");
    std::fs::remove_file(server.config_path())?;
    server.signal("HUP").await?;
    server.wait_log("the configuration was not taken over").await?;
    let answer = client.python("reloaded-0001", "print(kept)").await?;
    assert_eq!(answer.session(), "existing");

    // What needs a restart is named, and the rest is done.
    let text = good.replace("max = 8", "max = 6");
    std::fs::write(server.config_path(), format!("patience = \"30s\"\n{text}"))?;
    server.signal("HUP").await?;
    server
        .wait_log("pool python changed; after a restart only: patience")
        .await?;
    client.close().await?;
    server.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_hears_it_and_callers_in_the_queue_go_over() -> Result<()> {
    // None is warm, and they boot one after the other.
    let none = Config {
        warm: 0,
        pool: format!("{MANY_BOOTS}boots = 1\n"),
        ..Config::default()
    };
    let server = Greenroom::start(&none).await?;
    let mut twin = server.twin(&none).await?;
    let client = server.client(Era::Modern).await?;
    let waiting = (0..6).map(|n| {
        let client = &client;
        async move {
            client
                .python(&format!("reloaded-000{n}"), "print('served')")
                .await
        }
    });
    let waiting = join_all(waiting);
    tokio::pin!(waiting);
    let begun = tokio::time::sleep(Duration::from_millis(300));
    tokio::select! {
        _ = &mut waiting => anyhow::bail!("they were served before anything changed"),
        () = begun => {}
    }
    for server in [&server, &twin] {
        edit(server, |text| text.replace("max = 8", "max = 7"))?;
    }
    let (told, answers) = tokio::join!(reloaded(&server), waiting);
    let told = told?;
    let mut lines: Vec<_> = told.lines().collect();
    lines.retain(|line| line.ends_with(": pool python changed"));
    assert_eq!(lines.len(), 2, "{told}");
    for answer in answers {
        let answer = answer?;
        assert!(answer.text.contains("served"), "{}", answer.text);
    }
    twin.stop().await?;
    server.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_room_is_changed_too() -> Result<()> {
    // What is warm leaves one place, which no other warm one may take.
    let small = Config {
        warm: 1,
        max: 2,
        ..Config::default()
    };
    let server = Greenroom::start(&small).await?;
    let client = server.client(Era::Modern).await?;
    edit(&server, |text| text + "idle = \"90m\"\n")?;
    assert!(reloaded(&server).await?.ends_with(": pool python changed\n"));
    client.python("reloaded-0001", "kept = 42").await?;
    client.python("reloaded-0002", "kept = 43").await?;
    // Now both are in use.
    edit(&server, |text| text.replace("90m", "80m"))?;
    assert!(reloaded(&server).await?.ends_with(": pool python changed\n"));
    edit(&server, |text| text + "image = \"greenroom/no-such-image:1\"\n")?;
    let told = refused(&server).await?;
    assert!(told.contains("no-such-image"), "{told}");
    for (conversation, kept) in [("reloaded-0001", "42"), ("reloaded-0002", "43")] {
        let answer = client.python(conversation, "kept").await?;
        assert_eq!((answer.session(), answer.result()), ("existing", kept));
    }
    client.close().await?;
    server.finish().await
}

/// A server in a terminal that closes, started in this way: how it ended, once it was told to if it did not by itself.
async fn in_a_terminal(server: &Greenroom, start: &str) -> Result<String> {
    const SCRIPT: &str = r"
import os, pty, signal, sys, time
pid, terminal = pty.fork()
if pid == 0:
    # Whatever this test was started by.
    signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == 'nohup' else signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
while b'MCP is at' not in os.read(terminal, 65536):
    pass
os.close(terminal)
def ended(seconds):
    for _ in range(seconds * 10):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
if (code := ended(5 if sys.argv[1] == 'nohup' else 60)) is not None:
    print('left', code)
else:
    os.kill(pid, signal.SIGTERM)
    print('stayed', ended(60))
";
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let output = Command::new("python3")
        .args(["-c", SCRIPT, start])
        .arg(binary()?)
        .arg("--config")
        .arg(server.config_path())
        .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
        .output()
        .await?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A terminal that closes is no wish to have the configuration read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_closes_ends_the_server() -> Result<()> {
    let server = Greenroom::start(&Config::default()).await?;
    assert_eq!(in_a_terminal(&server, "plainly").await?, "left 0");
    assert_eq!(in_a_terminal(&server, "nohup").await?, "stayed 0");
    server.finish().await
}

fn pid(server: &Greenroom) -> Result<u32> {
    server.pid().context("it runs")
}

/// `tools/list` as it is sent.
async fn list(server: &Greenroom) -> Result<String> {
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let reply = reqwest::Client::new()
        .post(server.url("/mcp"))
        .header("accept", "application/json, text/event-stream")
        .json(&list)
        .send()
        .await?;
    Ok(reply.text().await?)
}

//! Images that know nothing of Greenroom, made by `scripts/test-images`: one whose only program is busybox.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use greenroom_integration::{Client, Config, Docker, Era, Greenroom, Reply};
use serde_json::{Value, json};
use tokio::time::sleep;

/// A server with no pool that is used but this one.
async fn serving(pool: &str) -> Result<Greenroom> {
    let config = Config {
        warm: 0,
        pool: format!("preload = []\n{pool}"),
        ..Config::default()
    };
    Greenroom::start(&config).await
}

/// The name of a test image.
///
/// # Errors
/// It is not there.
async fn image(name: &str) -> Result<String> {
    let image = format!("greenroom-test/{name}:latest");
    let docker = Docker::connect().await?;
    docker
        .api()
        .inspect_image(&image)
        .await
        .context("an image of the tests is not made: type `scripts/test-images`")?;
    Ok(image)
}

#[tokio::test]
async fn a_plain_shell_runs_code_where_there_is_no_bash() -> Result<()> {
    let image = image("ash").await?;
    // One as a container with a program of its own, one as a code interpreter that wants its shell ready.
    let greenroom = serving(&format!(
        "[pool.app]\nkind = \"container\"\nimage = \"{image}\"\nmax = 4\n\
         [pool.tiny]\nimage = \"{image}\"\nlanguages = [\"bash\"]\npreload = []\nmax = 4\n"
    ))
    .await?;
    let client = greenroom.client(Era::Legacy).await?;
    for pool in ["app", "tiny"] {
        by_mcp(&client, pool).await?;
    }
    by_rest(&greenroom).await?;
    greenroom.finish().await
}

async fn by_mcp(client: &Client, pool: &str) -> Result<()> {
    let run = async |language: &str, code: &str, seconds: u32| {
        let arguments = json!({ "pool": pool, "conversation_id": "conv-0001", "code": code, "language": language,
            "timeout_seconds": seconds });
        client.call("execute_code", arguments).await
    };
    let first = run("sh", "cd /tmp && x=4 && f() { echo \"f $x\"; }; pwd", 60).await?;
    ensure!(
        first.meta["language"] == "sh" && first.text.contains("/tmp\n"),
        "{first:?}"
    );
    ensure!(!first.text.contains("no bash"), "{first:?}");
    // Who asks for bash is told what he got.
    let asked = run("bash", "f; pwd; printf '%s\\n' \"it's\"; (exit 3)", 60).await?;
    ensure!(
        asked.text.contains("f 4\n/tmp\nit's\n") && asked.text.contains("has no bash: its sh ran this"),
        "{asked:?}"
    );
    ensure!(
        asked.meta["language"] == "sh" && asked.meta["status"] == "error",
        "{asked:?}"
    );
    // Its own limit ends the code and not the shell.
    let late = run("sh", "echo begun; while :; do sleep 0.1; done", 2).await?;
    ensure!(
        late.meta["status"] == "timed_out" && late.text.contains("begun"),
        "{late:?}"
    );
    let kept = run("sh", "f; sleep 0.1 & sleep 0.1 &", 60).await?;
    ensure!(
        kept.meta["status"] == "ok" && kept.text.contains("f 4"),
        "{kept:?}"
    );
    sleep(Duration::from_millis(500)).await;
    let still = run("sh", "f", 60).await?;
    ensure!(
        still.meta["session"] == "existing" && still.text.contains("f 4"),
        "{still:?}"
    );
    let died = run("sh", "exit 7", 60).await?;
    ensure!(died.meta["status"] == "kernel_died", "{died:?}");
    let again = run("shell", "echo \"again $x\"", 60).await?;
    ensure!(again.text.contains("again \n"), "{again:?}");
    let python = run("python", "1", 60).await?;
    ensure!(python.text.contains("python is not in this image"), "{python:?}");
    let none = run("klingon", "1", 60).await?;
    ensure!(none.text.contains("there are: python, sh"), "{none:?}");
    Ok(())
}

/// Azure's shell executions run in every image that has a shell; one that names bash wants bash.
async fn by_rest(greenroom: &Greenroom) -> Result<()> {
    let http = reqwest::Client::new();
    let shell = async |body: Value| {
        let url = "/pools/tiny/executions?identifier=conv-0002&api-version=2025-02-02-preview";
        let request = http.post(greenroom.url(url)).body(body.to_string());
        Reply::of(request.send().await?).await?.json()
    };
    for (body, code, stdout) in [
        (
            json!({ "shellCommand": "echo \"it's $0\"; exit 4" }),
            4,
            "it's sh\n",
        ),
        (
            json!({ "shellCommand": "pwd", "shellType": "sh" }),
            0,
            "/mnt/data\n",
        ),
        (json!({ "shellCommand": "pwd", "shellType": "bash" }), 127, ""),
        (
            json!({ "execCommandAndArgs": ["cat", "-"], "stdin": "a'b\n" }),
            0,
            "a'b\n",
        ),
    ] {
        let done = shell(body.clone()).await?;
        ensure!(
            done["exitCode"] == code && done["result"]["stdout"] == stdout,
            "{body} was answered {done}"
        );
    }
    let code = shell(json!({ "code": "echo here" })).await?;
    ensure!(code["result"]["stdout"] == "here\n", "{code}");
    Ok(())
}

//! Images that know nothing of Greenroom, made by `scripts/test-images`: one whose only program is busybox, and
//! PostgreSQL behind `greenroom forward`, and Prefect's agent with its client.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use greenroom_integration::{Client, Config, Docker, Era, Greenroom, Reply};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// For what a machine does at once that has nothing else to do.
const SOON: Duration = Duration::from_secs(180);

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

/// A `greenroom forward` and the address that it opened.
async fn forward(greenroom: &Greenroom, pool: &str, conversation: &str, port: u16) -> Result<(Child, u16)> {
    let mut command = Command::new(greenroom_integration::binary()?)
        .args(["forward", "--pool", pool, "--conversation", conversation])
        .arg(format!("0:{port}"))
        .arg("--config")
        .arg(greenroom.config_path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(command.stdout.take().context("no output")?).lines();
    let line = timeout(SOON, lines.next_line()).await??.context("it ended")?;
    let address = line.split(' ').next().unwrap_or_default();
    let (_, opened) = address.rsplit_once(':').context("no address")?;
    Ok((command, opened.parse()?))
}

/// Runs a program of an image on the host's own network, to its end.
async fn beside(image: &str, program: &str, arguments: &[&str], input: &[u8]) -> Result<String> {
    let mut child = Command::new("docker")
        .args([
            "run",
            "--rm",
            "--interactive",
            "--network",
            "host",
            "--entrypoint",
        ])
        .args([program, image])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    stdin.write_all(input).await?;
    drop(stdin);
    let output = timeout(SOON, child.wait_with_output())
        .await
        .with_context(|| format!("{program} is not through after {SOON:?}"))??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} ended with {}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

#[tokio::test]
async fn psql_reaches_a_postgresql_inside() -> Result<()> {
    let image = image("postgres").await?;
    let greenroom = serving(&format!(
        "[pool.db]\nkind = \"container\"\nimage = \"{image}\"\nport = 5432\nmax = 4\nboot_timeout = \"90s\"\nclaim_wait = \"90s\"\n\
         [pool.db.startup]\ntcp = true\n"
    ))
    .await?;
    let (mut forward, port) = forward(&greenroom, "db", "conv-0001", 5432).await?;
    let port = port.to_string();
    let psql = async |sql: &str| {
        let connection = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
        let plain = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"];
        beside(
            &image,
            "psql",
            &[&connection[..], &plain[..]].concat(),
            sql.as_bytes(),
        )
        .await
    };
    psql("create table t (n int primary key, text text); insert into t select n, repeat('x', n) from generate_series(1, 1000) n;")
        .await?;
    // Another connection sees it, and more of it than fits into one packet.
    let seen = psql("select count(*), sum(length(text)) from t; select text from t where n >= 900;").await?;
    ensure!(seen.starts_with("1000|500500\n"), "{seen:.100}");
    ensure!(seen.lines().count() == 102, "{}", seen.lines().count());
    let refused = psql("select * from nowhere;").await;
    ensure!(refused.is_err(), "{refused:?}");
    // Two at once.
    let (one, two) = tokio::join!(
        psql("begin; update t set text = 'one' where n = 1; select pg_sleep(1); commit;"),
        psql("select 2;")
    );
    one?;
    ensure!(two?.trim() == "2", "a second connection");
    ensure!(
        psql("select text from t where n = 1;").await?.trim() == "one",
        "lost"
    );
    forward.kill().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn prefects_client_runs_its_agent() -> Result<()> {
    let image = image("prefect").await?;
    // Importing all of Prefect takes its agent seconds.
    let greenroom = serving(&format!(
        "[pool.prefect]\nkind = \"container\"\nimage = \"{image}\"\nport = 8080\nmax = 4\nboot_timeout = \"120s\"\nclaim_wait = \"120s\"\n\
         [pool.prefect.startup]\nhttp = \"/healthz\"\n"
    ))
    .await?;
    let script = include_bytes!("../images/prefect/sessions_client.py");
    let endpoint = greenroom.url("/pools/prefect");
    if let Err(error) = beside(&image, "python3", &["-", &endpoint], script).await {
        bail!("{error:#}\nthe server's log:\n{}", greenroom.log());
    }
    greenroom.finish().await
}

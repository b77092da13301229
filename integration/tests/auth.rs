//! Keys on the built server and real sandboxes: made and revoked at the command line while it runs, over REST and MCP,
//! and by Semantic Kernel over https.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use greenroom_integration::{Config, Greenroom, Scheme, binary, packages};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

/// A script's work takes some seconds, on a busy machine some more.
const IN_TIME: Duration = Duration::from_secs(120);

/// Programs with a key, or without one.
struct Caller<'a> {
    server: &'a Greenroom,
    key: &'a str,
    http: reqwest::Client,
}

impl<'a> Caller<'a> {
    fn new(server: &'a Greenroom, key: &'a str) -> Self {
        let http = reqwest::Client::new();
        Self { server, key, http }
    }

    fn ask(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let request = self.http.post(self.server.url(path)).body(body.to_string());
        let request = request.header("content-type", "application/json");
        match self.key {
            "" => request,
            key => request.bearer_auth(key),
        }
    }

    async fn over_rest(&self, code: &str) -> Result<(StatusCode, Value)> {
        let path = "/pools/python/executions?identifier=the-same-conversation&api-version=2025-02-02-preview";
        let reply = self.ask(path, &json!({ "code": code })).send().await?;
        Ok((reply.status(), reply.json().await?))
    }

    async fn over_mcp(&self, code: &str) -> Result<(StatusCode, String)> {
        let params = json!({ "name": "execute_code",
            "arguments": { "code": code, "conversation_id": "the-same-conversation" } });
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
        let request = self
            .ask("/mcp", &call)
            .header("accept", "application/json, text/event-stream");
        let reply = request.send().await?;
        Ok((reply.status(), reply.text().await?))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_and_go_while_the_server_runs() -> Result<()> {
    let server = Greenroom::start(&Config {
        warm: 2,
        ..Config::default()
    })
    .await?;
    // As ever on loopback, until there is a key.
    let nobody = Caller::new(&server, "");
    assert_eq!(
        nobody.over_rest("6 * 7").await?.1["result"]["executionResult"],
        42
    );
    let ann = server.prints(&["key", "create", "--name", "ann"]).await?;
    let bob = server
        .prints(&["key", "create", "--name", "bob", "--scope", "run"])
        .await?;
    assert_eq!(nobody.over_rest("6 * 7").await?.0, StatusCode::UNAUTHORIZED);
    assert_eq!(nobody.over_mcp("6 * 7").await?.0, StatusCode::UNAUTHORIZED);
    let (ann, bob) = (Caller::new(&server, &ann), Caller::new(&server, &bob));
    // One key and one identifier: what MCP has set is there over REST, and the other way round.
    let (status, first) = ann.over_mcp("kept = 41").await?;
    ensure!(
        status == StatusCode::OK && first.contains("\"session\":\"new\""),
        "{first}"
    );
    assert_eq!(
        ann.over_rest("kept += 1; kept").await?.1["result"]["executionResult"],
        42
    );
    let (_, again) = ann.over_mcp("kept + 1").await?;
    ensure!(
        again.contains("\"session\":\"existing\"") && again.contains("43"),
        "{again}"
    );
    // Another key, and who had none before: another computer.
    let (status, other) = bob.over_rest("kept").await?;
    ensure!(status == StatusCode::OK && other["status"] == "Failed", "{other}");
    let list = server.prints(&["key", "list"]).await?;
    ensure!(
        list.contains("ann") && list.contains("run,files") && !list.contains(ann.key),
        "{list}"
    );
    let upload = bob
        .http
        .put(server.url("/pools/python/files/a.txt?identifier=the-same-conversation"));
    let refused = upload.bearer_auth(bob.key).body("abc").send().await?;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    server.prints(&["key", "revoke", bob.key]).await?;
    assert_eq!(bob.over_rest("1").await?.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ann.over_rest("kept").await?.1["result"]["executionResult"], 42);
    // No key is in the log, nor in a sandbox.
    let (_, seen) = ann.over_rest("import os; str(dict(os.environ))").await?;
    for secret in [ann.key, bob.key] {
        ensure!(!server.log().contains(&secret[12..44]), "a key is in the log");
        ensure!(
            !seen.to_string().contains(&secret[12..44]),
            "a key is in a sandbox"
        );
    }
    server.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens_off_loopback_for_nobody() -> Result<()> {
    let state = tempfile::tempdir()?;
    let serve = async |settings: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(binary()?);
        command
            .arg("--set")
            .arg(format!("state_dir={}", state.path().display()));
        for setting in settings {
            command.args(["--set", setting]);
        }
        // An engine that is not there: a server that gets this far would listen.
        command
            .args(["--set", "engine.socket=/nowhere/docker.sock", "serve"])
            .stdin(Stdio::null());
        let output = timeout(IN_TIME, command.kill_on_drop(true).output())
            .await
            .context("it serves")??;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, said) = serve(&["listen=0.0.0.0:8484"]).await?;
    ensure!(
        code == Some(64) && said.contains("greenroom key create"),
        "{code:?} {said}"
    );
    let (code, said) = serve(&["listen=0.0.0.0:8484", "auth.required=never"]).await?;
    ensure!(
        code == Some(64) && said.contains("auth.required cannot be"),
        "{code:?} {said}"
    );
    for allowed in [
        &["listen=0.0.0.0:8484", "auth.required=always"][..],
        &["listen=127.0.0.1:8484"],
    ] {
        let (code, said) = serve(allowed).await?;
        ensure!(code == Some(1) && said.contains("engine"), "{code:?} {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn semantic_kernel_runs_code_over_https() -> Result<()> {
    let client = packages().join("python-semantic-kernel");
    ensure!(
        client.join("stamp").is_file(),
        "the clients are not installed: type `scripts/test-clients`"
    );
    let server = Greenroom::start(&Config {
        scheme: Scheme::Https,
        ..Config::default()
    })
    .await?;
    let key = server.prints(&["key", "create"]).await?;
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/clients/python-semantic-kernel/sessions_tool.py"
    );
    let mut python = Command::new(client.join("bin/python3"));
    python
        .args(["-B", script, &server.url("/pools/python")])
        .arg(server.certificates())
        .arg(&key)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(IN_TIME, python.output())
        .await
        .context("it is not through")??;
    ensure!(
        output.status.success(),
        "{}{}\nthe server's log:\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        server.log()
    );
    server.finish().await
}

//! What nobody should send, sent to the built server over real sockets: clear errors, bounded memory, and the others
//! do not notice.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use greenroom_integration::{Config, Era, Greenroom, resident};
use reqwest::{Client as Http, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

/// Headers, a body, and the status and words that answer them.
type Case<'a> = (&'a [(&'a str, &'a str)], String, u16, &'a str);

/// Many more than the server has places for: those that say nothing make room.
const CONNECTIONS: usize = 600;

/// One message to `/mcp`: headers beside the usual ones, and the body.
async fn send(greenroom: &Greenroom, headers: &[(&str, &str)], body: String) -> Result<(StatusCode, String)> {
    let mut request = Http::new()
        .post(greenroom.url("/mcp"))
        .header("accept", "application/json, text/event-stream");
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = timeout(Duration::from_secs(20), request.body(body).send()).await??;
    Ok((response.status(), response.text().await?))
}

fn modern(version: &str, method: &str) -> String {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": version, "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": { "_meta": meta } }).to_string()
}

fn call(arguments: &Value) -> String {
    let params = json!({ "name": "execute_code", "arguments": arguments });
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string()
}

#[tokio::test]
async fn each_mistake_gets_its_own_error() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 0,
        ..Config::default()
    })
    .await?;
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let long = "a".repeat(70_000);
    let bomb = [("x-bomb", long.as_str())];
    let new = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "no/such")];
    let future = [
        ("mcp-protocol-version", "2099-01-01"),
        ("mcp-method", "tools/list"),
    ];
    let unknown = r#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#.to_owned();
    let cases: Vec<Case<'_>> = vec![
        (&[], "{".into(), 400, "-32700"),
        (&new[..1], "\u{1f600}".into(), 400, "-32700"),
        (&[], deep, 400, "-32600"),
        (&[], "[]".into(), 400, "-32600"),
        (
            &[],
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#.into(),
            400,
            "-32600",
        ),
        (&[], unknown.clone(), 200, "-32601"),
        (&new, modern("2026-07-28", "no/such"), 404, "-32601"),
        (
            &[("mcp-protocol-version", "1999-01-01")],
            unknown,
            400,
            "1999-01-01",
        ),
        (&future, modern("2099-01-01", "tools/list"), 400, "-32022"),
        (
            &[],
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}"#.into(),
            200,
            "-32602",
        ),
        (
            &[],
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"nothing"}}"#.into(),
            200,
            "-32602",
        ),
        (&[], call(&json!([1])), 200, "-32602"),
        (&[], call(&json!({ "code": 7 })), 200, "code: invalid type"),
        (
            &[],
            call(&json!({ "code": "1", "colour": "red" })),
            200,
            "has no argument",
        ),
        (
            &[("content-type", "text/plain")],
            "{}".into(),
            415,
            "application/json",
        ),
        (&bomb, "{}".into(), 431, ""),
        (&[("host", "evil.example")], "{}".into(), 403, "allowed_hosts"),
        (
            &[("origin", "https://evil.example")],
            "{}".into(),
            403,
            "allowed_origins",
        ),
    ];
    for (headers, body, status, says) in cases {
        let shown: String = body.chars().take(100).collect();
        let (got, text) = send(&greenroom, headers, body).await.context(shown.clone())?;
        ensure!(
            got.as_u16() == status && text.contains(says),
            "{shown}: {got}, {text:.300}; not {status} with {says}"
        );
    }
    for path in ["/sse", "/messages?sessionId=00"] {
        let request = if path == "/sse" {
            Http::new().get(greenroom.url(path))
        } else {
            Http::new().post(greenroom.url(path)).body("{}")
        };
        let status = request
            .header("origin", "https://evil.example")
            .send()
            .await?
            .status();
        ensure!(status == StatusCode::FORBIDDEN, "{path}: {status}");
    }
    greenroom.finish().await
}

/// Resident memory in MiB.
fn mebibytes(greenroom: &Greenroom) -> Result<u64> {
    Ok(resident(greenroom.pid().context("it runs")?)? >> 20)
}

#[tokio::test]
async fn floods_are_bounded_and_the_others_do_not_notice() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        top: "[limits]\nconnections = 300\n".to_owned(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Legacy).await?;
    client.python("is-there-before-all", "x = 1").await?;
    let before = mebibytes(&greenroom)?;

    // Bodies of 100 MB, with and without a length that says so.
    let huge = join_all((0..6).map(|n| {
        let greenroom = &greenroom;
        async move {
            let chunk = vec![b' '; 1 << 20];
            let body = if n % 2 == 0 {
                reqwest::Body::from(vec![b' '; 100_000_000])
            } else {
                let chunks = (0..100).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
                reqwest::Body::wrap_stream(futures_util::stream::iter(chunks))
            };
            let request = Http::new().post(greenroom.url("/mcp")).body(body);
            // A server that answers early may close before all was sent, which is an error for this client.
            Some(request.send().await.ok()?.status())
        }
    }))
    .await;
    ensure!(
        huge.iter()
            .flatten()
            .all(|status| *status == StatusCode::PAYLOAD_TOO_LARGE),
        "{huge:?}"
    );

    // Heads and bodies that never end, and connections that say nothing.
    let address = greenroom.url("/mcp").replace("http://", "").replace("/mcp", "");
    let idle = try_join_all((0..CONNECTIONS).map(|n| {
        let address = &address;
        async move {
            let mut stream = TcpStream::connect(address).await?;
            let says: &[u8] = match n % 3 {
                0 => b"",
                1 => b"POST /mcp HTTP/1.1\r\nhost: localhost\r\nx-slow",
                _ => b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
            };
            stream.write_all(says).await?;
            Ok::<_, std::io::Error>(stream)
        }
    }))
    .await?;
    let began = Instant::now();
    let answer = client.python("is-there-before-all", "x").await?;
    ensure!(answer.result() == "1", "{}", answer.text);
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let after = mebibytes(&greenroom)?;
    ensure!(after < before + 100, "from {before} MiB to {after} MiB");

    // A body that stalls is given up by the server, after half a minute.
    let mut stalled = idle.into_iter().nth(CONNECTIONS - 1).context("one with a body")?;
    let mut text = vec![0; 64];
    let read = timeout(Duration::from_secs(60), stalled.read(&mut text)).await??;
    let text = String::from_utf8_lossy(&text[..read]).into_owned();
    // Its answer may be lost when the connection is closed under what is still being sent.
    ensure!(text.is_empty() || text.contains("408"), "{text:?}");
    client.close().await?;
    greenroom.finish().await
}

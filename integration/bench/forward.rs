//! What forwarding costs: small requests, bulk each way, WebSocket frames, to a static program inside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use greenroom_integration::{Config, Greenroom, images};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{Effort, report::Report};

/// A body that no buffer holds.
const BULK: usize = 1 << 30;

/// Forwarded requests of each kind.
pub(crate) async fn forwarded(report: &mut Report, effort: Effort) -> Result<()> {
    let image = images::static_app().await?;
    let pool = format!(
        "preload = []\n[pool.app]\nkind = \"container\"\nimage = \"{image}\"\nport = 8080\nwarm = 1\n"
    );
    let config = Config {
        warm: 0,
        pool,
        ..Config::default()
    };
    let greenroom = Greenroom::start(&config).await?;
    let http = reqwest::Client::new();
    let url = |path: &str| greenroom.url(&format!("/pools/app/{path}?identifier=bench-forward"));
    let mut times = Vec::new();
    for round in 0..effort.hot + 20 {
        let start = Instant::now();
        let answer = http.get(url("")).send().await?;
        ensure!(answer.text().await? == "hello", "another answer");
        if round >= 20 {
            times.push(start.elapsed());
        }
    }
    report.times("forwarded GET to a tiny server inside", &times, "≤ 3 ms");
    bulk(report, &http, &url).await?;
    frames(report, effort, &greenroom).await?;
    greenroom.finish().await
}

async fn bulk(report: &mut Report, http: &reqwest::Client, url: &impl Fn(&str) -> String) -> Result<()> {
    let rate = |start: Instant| BULK as f64 / 1e6 / start.elapsed().as_secs_f64();
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let start = Instant::now();
        let mut body = http
            .get(url(&format!("bytes/{BULK}")))
            .send()
            .await?
            .bytes_stream();
        let mut count = 0;
        while let Some(piece) = body.next().await {
            count += piece?.len();
        }
        ensure!(count == BULK, "{count}");
        down.push(rate(start));
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let pieces = stream::iter(0..BULK >> 20).map(move |_| Ok::<_, std::io::Error>(piece.clone()));
        let start = Instant::now();
        let sent = http
            .post(url("sink"))
            .body(reqwest::Body::wrap_stream(pieces))
            .send()
            .await?;
        ensure!(sent.text().await? == BULK.to_string(), "not all of it");
        up.push(rate(start));
    }
    report.values("forwarded download of 1 GiB", "MB/s", &down, "≥ 100 MB/s");
    report.values("forwarded upload of 1 GiB", "MB/s", &up, "≥ 100 MB/s");
    Ok(())
}

async fn frames(report: &mut Report, effort: Effort, greenroom: &Greenroom) -> Result<()> {
    let url = greenroom.url("");
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let upgrade = format!(
        "GET /pools/app/ws?identifier=bench-forward HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(upgrade.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.context("no answer")?);
    }
    ensure!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // A masked text frame of four bytes; a mask of noughts is one.
    let frame = [0x81, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g'];
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..effort.hot + 20 {
        let start = Instant::now();
        socket.write_all(&frame).await?;
        let mut back = [0; 6];
        socket.read_exact(&mut back).await?;
        if round >= 20 {
            times.push(start.elapsed());
        }
    }
    report.times("WebSocket echo through a sandbox", &times, "≤ 2 ms");
    Ok(())
}

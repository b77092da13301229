//! Pools of containers on real sandboxes: an image's own program, what is forwarded to it, and what is told of its end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use greenroom_integration::{Config, Era, Greenroom, Reply, images, resident};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// More than a server should ever hold of one body.
const LARGE: usize = 256 << 20;

/// What a server may grow by while such a body passes through, on a busy machine.
const GROWS: u64 = 64 << 20;

/// A server with pools of one image.
struct Apps {
    greenroom: Greenroom,
    http: reqwest::Client,
}

impl Apps {
    /// Pools of the static program, each with further lines.
    async fn start(pools: &[(&str, &str)]) -> Result<Self> {
        let image = images::static_app().await?;
        let mut tables = String::from("preload = []\n");
        for (name, lines) in pools {
            tables.push_str(&format!(
                "[pool.{name}]\nkind = \"container\"\nimage = \"{image}\"\nmax = 4\n{lines}\n"
            ));
        }
        Self::with(tables).await
    }

    async fn with(pool: String) -> Result<Self> {
        let config = Config {
            warm: 0,
            pool,
            ..Config::default()
        };
        Ok(Self {
            greenroom: Greenroom::start(&config).await?,
            http: reqwest::Client::new(),
        })
    }

    fn url(&self, pool: &str, target: &str) -> String {
        self.greenroom.url(&format!("/pools/{pool}/{target}"))
    }

    async fn ask(
        &self,
        method: Method,
        pool: &str,
        target: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Reply> {
        let request = self.http.request(method, self.url(pool, target)).body(body);
        Reply::of(request.send().await?).await
    }

    async fn get(&self, pool: &str, target: &str) -> Result<Reply> {
        self.ask(Method::GET, pool, target, "").await
    }

    /// Asks until the answer is as it should be.
    async fn until(&self, pool: &str, target: &str, is: impl Fn(&Reply) -> bool) -> Result<Reply> {
        let started = Instant::now();
        loop {
            let reply = self.get(pool, target).await?;
            if is(&reply) {
                return Ok(reply);
            }
            ensure!(
                started.elapsed() < Duration::from_secs(60),
                "never: {} {}",
                reply.status,
                reply.text()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// A connection of its own, with the head of a request written to it.
    async fn raw(&self, head: &str) -> Result<TcpStream> {
        let url = self.greenroom.url("");
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let mut stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        stream
            .write_all(head.replace("HOST", &address).as_bytes())
            .await?;
        Ok(stream)
    }

    /// Bytes of memory that the server has.
    fn memory(&self) -> Result<u64> {
        resident(self.greenroom.pid().context("no server")?)
    }
}

/// The head of an answer.
async fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            ensure!(
                stream.read(&mut byte).await? == 1,
                "it ended: {:?}",
                String::from_utf8_lossy(&head)
            );
            head.push(byte[0]);
        }
        Ok(())
    };
    timeout(Duration::from_secs(30), read).await??;
    Ok(String::from_utf8(head)?)
}

#[tokio::test]
async fn an_image_with_nothing_but_a_program_serves() -> Result<()> {
    let apps = Apps::start(&[(
        "app",
        "port = 8080\nenv = { SECRET = \"hush-hush\", OTHER = \"more\" }\n[pool.app.startup]\nhttp = \"/healthz\"\n",
    )])
    .await?;
    let first = apps.get("app", "?identifier=conv-0001").await?;
    ensure!(
        (first.status, first.text().as_str()) == (200, "hello"),
        "{}",
        first.text()
    );
    ensure!(
        first.header("x-greenroom-session") == "new",
        "{:?}",
        first.headers
    );
    let again = apps.get("app", "nowhere?identifier=conv-0001").await?;
    ensure!(
        (again.status, again.text().as_str()) == (404, "not here"),
        "{}",
        again.text()
    );
    ensure!(
        again.header("x-greenroom-session") == "existing",
        "{:?}",
        again.headers
    );

    let env = apps.get("app", "env?identifier=conv-0001").await?.text();
    for line in ["GREETING=from-image", "SECRET=hush-hush", "OTHER=more"] {
        ensure!(env.lines().any(|has| has == line), "{line} is not in {env}");
    }
    let who = apps.get("app", "whoami?identifier=conv-0001").await?.text();
    ensure!(
        who.contains("Uid:\t1000\t1000") && who.contains("Cwd:\t/\n"),
        "{who}"
    );
    ensure!(who.contains("CapEff:\t0000000000000000"), "{who}");

    // Neither the engine nor a log nor what is printed of the configuration knows the secret.
    let docker = greenroom_integration::Docker::connect().await?;
    for container in docker.containers(apps.greenroom.deployment()).await? {
        let id = container.id.context("no id")?;
        let inspected = docker.api().inspect_container(&id, None).await?;
        ensure!(!format!("{inspected:?}").contains("hush-hush"), "baked in");
    }
    ensure!(!apps.greenroom.log().contains("hush-hush"), "logged");
    let printed = std::process::Command::new(greenroom_integration::binary()?)
        .arg("config")
        .arg("--config")
        .arg(apps.greenroom.config_path())
        .output()?;
    let printed = String::from_utf8(printed.stdout)?;
    ensure!(
        printed.contains("SECRET = \"****\"") && !printed.contains("hush-hush"),
        "{printed}"
    );

    // Files work in every image; code where something can run it, and it says so.
    let client = apps.greenroom.client(Era::Legacy).await?;
    let arguments = json!({"pool": "app", "conversation_id": "conv-0001", "path": "a.txt", "content": "abc"});
    let answer = client.call("upload_file", arguments).await?;
    ensure!(!answer.is_error, "{answer:?}");
    let arguments = json!({"pool": "app", "conversation_id": "conv-0001", "path": "a.txt"});
    let answer = client.call("download_file", arguments).await?;
    ensure!(answer.text.contains("abc"), "{answer:?}");
    let arguments = json!({"pool": "app", "conversation_id": "conv-0001", "code": "echo x"});
    let answer = client.call("execute_code", arguments).await?;
    ensure!(answer.text.contains("bash is not in this image"), "{answer:?}");

    let listed = apps
        .ask(Method::POST, "app", ".management/listSessions", "")
        .await?;
    let listed: Value = serde_json::from_slice(&listed.body)?;
    ensure!(listed["value"][0]["identifier"] == "conv-0001", "{listed}");
    let log = apps.get("app", ".management/logs?identifier=conv-0001").await?;
    ensure!(
        log.text().contains("up as [\"/app\", \"from-image\"]"),
        "{}",
        log.text()
    );
    let stopped = apps
        .ask(
            Method::POST,
            "app",
            ".management/stopSession?identifier=conv-0001",
            "",
        )
        .await?;
    ensure!(stopped.status == 200, "{}", stopped.text());
    let fresh = apps.get("app", "?identifier=conv-0001").await?;
    ensure!(
        fresh.header("x-greenroom-session") == "restarted (reset)",
        "{:?}",
        fresh.headers
    );
    apps.greenroom.finish().await
}

#[tokio::test]
async fn the_end_of_a_program_is_told() -> Result<()> {
    let apps = Apps::start(&[
        ("app", "port = 8080\nwarm = 0\n"),
        ("ill", "port = 8080\nwarm = 0\nuser = \"0\"\n[pool.ill.liveness]\nhttp = \"/healthz\"\nperiod = \"100ms\"\nfailures = 2\n"),
        ("job", "warm = 0\nport = 8080\nlifecycle = \"on_exit\"\nargs = [\"exit=3\"]\nclaim_wait = \"3s\"\n"),
    ])
    .await?;
    // While somebody asks …
    let died = apps.get("app", "die/7?identifier=conv-0001").await?.fault()?;
    ensure!((died.0, died.1.as_str()) == (502, "ContainerExited"), "{died:?}");
    ensure!(
        died.2.contains("exit code 7") && died.2.contains("about to die"),
        "{died:?}"
    );
    // … and not again: the next one reaches a fresh one.
    let next = apps.get("app", "?identifier=conv-0001").await?;
    ensure!(
        (next.status, next.header("x-greenroom-session")) == (200, "restarted (exited)"),
        "{:?}",
        next.headers
    );
    let log = apps.get("app", ".management/logs?identifier=conv-0001").await?;
    ensure!(log.text().contains("up as"), "{}", log.text());

    // While nobody asks: the next one hears of it, once.
    let who = apps.get("ill", "whoami?identifier=conv-0002").await?.text();
    ensure!(who.contains("Uid:\t0\t0"), "{who}");
    apps.get("ill", "ill?identifier=conv-0002").await?;
    let told = apps
        .until("ill", "?identifier=conv-0002", |reply| reply.status != 200)
        .await?;
    let told = told.fault()?;
    ensure!(
        told.1 == "ContainerExited" && told.2.contains("liveness probe"),
        "{told:?}"
    );
    let next = apps.get("ill", "?identifier=conv-0002").await?;
    ensure!(next.status == 200, "{}", next.text());

    // A program that ends before it is up is no sandbox; its caller hears why.
    let none = apps.get("job", "?identifier=conv-0003").await?;
    ensure!(none.status == 503, "{}", none.text());
    for told in ["exit code 3", "last line"] {
        apps.greenroom.wait_log(told).await?;
    }

    let broken = apps.get("app", "hang-up?identifier=conv-0001").await?.fault()?;
    ensure!(
        (broken.0, broken.1.as_str()) == (502, "ContainerBadAnswer"),
        "{broken:?}"
    );
    let garbage = apps.get("app", "garbage?identifier=conv-0001").await?.fault()?;
    ensure!(
        (garbage.0, garbage.1.as_str()) == (502, "ContainerBadAnswer"),
        "{garbage:?}"
    );
    let unnamed = apps.get("app", "").await?.fault()?;
    ensure!(unnamed.0 == 400, "{unnamed:?}");
    apps.greenroom.finish().await
}

#[tokio::test]
async fn requests_are_forwarded_by_the_book() -> Result<()> {
    let apps = Apps::start(&[
        ("app", "port = 8080\n"),
        (
            "hasty",
            "port = 8080\nwarm = 0\nanswer_timeout = \"2s\"\nclaim_wait = \"50s\"\n",
        ),
    ])
    .await?;
    let asked = apps
        .http
        .post(apps.url("app", "headers?identifier=conv-0001&a=b%20c"))
        .header("authorization", "Bearer s3cret")
        .header("x-ms-apikey", "s3cret")
        .header("cookie", "other=1")
        .header("x-own", "stays")
        .body("")
        .send()
        .await?;
    let seen = Reply::of(asked).await?.text().to_lowercase();
    ensure!(
        seen.starts_with("post /headers?identifier=conv-0001&a=b%20c http/1.1"),
        "{seen}"
    );
    ensure!(
        seen.contains("x-own: stays") && seen.contains("x-forwarded-prefix: /pools/app"),
        "{seen}"
    );
    ensure!(!seen.contains("s3cret") && !seen.contains("cookie"), "{seen}");

    let hostile = apps.get("app", "hostile?identifier=conv-0001").await?;
    ensure!(
        hostile.headers.get("set-cookie").is_none(),
        "{:?}",
        hostile.headers
    );
    ensure!(
        hostile.header("content-security-policy").starts_with("sandbox"),
        "{:?}",
        hostile.headers
    );
    ensure!(
        hostile.header("x-content-type-options") == "nosniff",
        "{:?}",
        hostile.headers
    );
    ensure!(
        hostile.header("x-ms-error-code").is_empty(),
        "{:?}",
        hostile.headers
    );

    let late = apps.get("hasty", "sleep/5?identifier=conv-0001").await?.fault()?;
    ensure!((late.0, late.1.as_str()) == (504, "ContainerTimeout"), "{late:?}");

    // Events arrive one by one: the last of these is a minute away.
    let started = Instant::now();
    let events = apps
        .http
        .get(apps.url("app", "events/200?identifier=conv-0001"))
        .send()
        .await?;
    let mut events = events.bytes_stream();
    let first = events.next().await.context("no event")??;
    ensure!(
        first.starts_with(b"data: 0\n\n") && started.elapsed() < Duration::from_secs(30),
        "{first:?}"
    );
    drop(events);

    // 100 at a time.
    let answers: Vec<Result<Reply>> = stream::iter(0..100)
        .map(|_| apps.get("app", "?identifier=conv-0001"))
        .buffer_unordered(100)
        .collect()
        .await;
    for answer in answers {
        let answer = answer?;
        ensure!(
            (answer.status, answer.text().as_str()) == (200, "hello"),
            "{}",
            answer.text()
        );
    }
    expect_continue(&apps).await?;
    smuggle(&apps).await?;
    apps.greenroom.finish().await
}

async fn expect_continue(apps: &Apps) -> Result<()> {
    let request = |path: &str| {
        format!(
            "POST /pools/app/{path}?identifier=conv-0001 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut stream = apps.raw(&request("sink")).await?;
    let asked = head(&mut stream).await?;
    ensure!(asked.starts_with("HTTP/1.1 100"), "{asked}");
    stream.write_all(b"abc").await?;
    let answer = head(&mut stream).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A program that does not want the body is not sent it, and its caller is not asked for it.
    let mut stream = apps.raw(&request("refuse")).await?;
    let answer = head(&mut stream).await?;
    ensure!(answer.starts_with("HTTP/1.1 417"), "{answer}");
    Ok(())
}

/// What two readers could read as two different requests is refused, and its program sees nothing of it.
async fn smuggle(apps: &Apps) -> Result<()> {
    for framing in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length : 3\r\n",
    ] {
        let head_text =
            format!("POST /pools/app/sink?identifier=conv-0001 HTTP/1.1\r\nHost: HOST\r\n{framing}\r\n");
        let mut stream = apps.raw(&head_text).await?;
        stream.write_all(b"3\r\nabc\r\n0\r\n\r\n").await?;
        let answer = head(&mut stream).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 400"),
            "{framing:?} was answered {answer}"
        );
    }
    // With both the coding counts, and nothing else is read from that connection.
    for framing in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    ] {
        let head_text =
            format!("POST /pools/app/sink?identifier=conv-0001 HTTP/1.1\r\nHost: HOST\r\n{framing}\r\n");
        let mut stream = apps.raw(&head_text).await?;
        stream
            .write_all(b"3\r\nabc\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        let mut answers = String::new();
        timeout(Duration::from_secs(30), stream.read_to_string(&mut answers)).await??;
        let refused = answers.starts_with("HTTP/1.1 400");
        let closed = answers.contains("connection: close") && answers.ends_with("\r\n\r\n3");
        ensure!(refused || closed, "{framing:?} was answered {answers}");
    }
    for chunks in [
        "-1\r\n",
        "3;\nabc",
        "ffffffffffffffffff\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
    ] {
        let text = "POST /pools/app/sink?identifier=conv-0001 HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut stream = apps.raw(text).await?;
        stream.write_all(chunks.as_bytes()).await?;
        // Refused, or closed in the middle of it.
        if let Ok(answer) = head(&mut stream).await {
            ensure!(
                !answer.starts_with("HTTP/1.1 2"),
                "{chunks:?} was answered {answer}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn bodies_stream_in_constant_memory() -> Result<()> {
    let apps = Apps::start(&[("app", "port = 8080\n")]).await?;
    apps.get("app", "?identifier=conv-0001").await?;
    let before = apps.memory()?;
    let mut most = before;
    let down = apps
        .http
        .get(apps.url("app", &format!("bytes/{LARGE}?identifier=conv-0001")))
        .send()
        .await?;
    let (mut down, mut count) = (down.bytes_stream(), 0);
    while let Some(piece) = down.next().await {
        let piece = piece?;
        if (count >> 24) != ((count + piece.len()) >> 24) {
            most = most.max(apps.memory()?);
        }
        count += piece.len();
    }
    ensure!(count == LARGE, "{count}");
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = stream::iter(0..LARGE >> 20).map(move |_| Ok::<_, std::io::Error>(piece.clone()));
    let up = apps.ask(
        Method::POST,
        "app",
        "sink?identifier=conv-0001",
        reqwest::Body::wrap_stream(pieces),
    );
    let up = up.await?;
    ensure!(up.text() == LARGE.to_string(), "{}", up.text());
    most = most.max(apps.memory()?);

    // A reader that does not read holds back its program, not the server's memory, nor its neighbours.
    let slow = apps
        .http
        .get(apps.url("app", "endless?identifier=conv-0001"))
        .send()
        .await?;
    sleep(Duration::from_secs(2)).await;
    most = most.max(apps.memory()?);
    ensure!(
        apps.get("app", "?identifier=conv-0001").await?.status == 200,
        "a neighbour"
    );
    // One that goes away ends it.
    drop(slow);
    apps.until("app", ".management/logs?identifier=conv-0001", |log| {
        log.text().contains("endless is over")
    })
    .await?;
    ensure!(
        most < before + GROWS,
        "the server grew from {before} to {most} bytes"
    );
    apps.greenroom.finish().await
}

#[tokio::test]
async fn web_sockets_and_raw_streams_pass() -> Result<()> {
    let apps = Apps::start(&[("app", "port = 8080\nidle = \"3s\"\n")]).await?;
    let upgrade = "GET /pools/app/ws?identifier=conv-0001 HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut socket = apps.raw(upgrade).await?;
    let answer = head(&mut socket).await?;
    ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    ensure!(
        answer
            .to_lowercase()
            .contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{answer}"
    );
    for text in ["hello", "again"] {
        socket.write_all(&masked(text)).await?;
        let mut frame = vec![0; 2 + text.len()];
        socket.read_exact(&mut frame).await?;
        ensure!(&frame[2..] == text.as_bytes(), "{frame:?}");
    }
    // An open one holds the sandbox, longer than it may be idle.
    sleep(Duration::from_secs(6)).await;
    socket.write_all(&masked("still")).await?;
    let mut frame = vec![0; 7];
    socket.read_exact(&mut frame).await?;
    let same = apps.get("app", "?identifier=conv-0001").await?;
    ensure!(
        same.header("x-greenroom-session") == "existing",
        "{:?}",
        same.headers
    );
    drop(socket);

    let tunnel = |port: u16| {
        format!(
            "GET /pools/app/tunnel/{port}?identifier=conv-0001 HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\n\
             Upgrade: greenroom-tunnel\r\n\r\n"
        )
    };
    let mut stream = apps.raw(&tunnel(7000)).await?;
    let answer = head(&mut stream).await?;
    ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream.write_all(b"ping").await?;
    stream.shutdown().await?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await?;
    ensure!(back == b"ping", "{back:?}");
    let mut refused = apps.raw(&tunnel(7001)).await?;
    let answer = head(&mut refused).await?;
    ensure!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    // Without the token it is a path like any other.
    let plain = apps.get("app", "tunnel/7000?identifier=conv-0001").await?;
    ensure!(
        (plain.status, plain.text().as_str()) == (404, "not here"),
        "{}",
        plain.text()
    );

    // Nothing is open any more but what is kept for a moment: it ends when it has been idle.
    let started = Instant::now();
    let name = apps.greenroom.deployment().to_owned();
    let docker = greenroom_integration::Docker::connect().await?;
    while docker.running(&name).await? > docker.unadopted(&name).await?.len() {
        ensure!(started.elapsed() < Duration::from_secs(60), "it never ends");
        sleep(Duration::from_millis(200)).await;
    }
    apps.greenroom.finish().await
}

/// A text frame as clients send it.
fn masked(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend(mask);
    frame.extend(text.bytes().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}

#[tokio::test]
async fn a_second_listener_is_the_programs_own_origin() -> Result<()> {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?;
        free.local_addr()?.port()
    };
    let image = images::static_app().await?;
    let config = Config {
        warm: 0,
        pool: format!(
            "preload = []\n[pool.app]\nkind = \"container\"\nimage = \"{image}\"\nport = 8080\nwarm = 0\n"
        ),
        top: format!("[http]\nforward_listen = \"127.0.0.1:{port}\"\n"),
        ..Config::default()
    };
    let apps = Apps {
        greenroom: Greenroom::start(&config).await?,
        http: reqwest::Client::new(),
    };
    let own = |target: &str| format!("http://127.0.0.1:{port}/pools/{target}");
    let asked = apps.http.get(own("app/hostile?identifier=conv-0001")).send();
    let answer = Reply::of(asked.await?).await?;
    ensure!(
        answer.headers.get_all("set-cookie").iter().count() == 2,
        "{:?}",
        answer.headers
    );
    ensure!(
        answer.header("content-security-policy").is_empty(),
        "{:?}",
        answer.headers
    );
    let asked = apps
        .http
        .get(own("app/headers?identifier=conv-0001"))
        .header("cookie", "a=1");
    let seen = Reply::of(asked.send().await?).await?.text().to_lowercase();
    ensure!(seen.contains("cookie: a=1"), "{seen}");
    // Nothing of Greenroom's own is there, and pages from there get nothing of it.
    for target in [
        "app/.management/listSessions",
        "python/executions?identifier=conv-0001",
    ] {
        let refused = Reply::of(apps.http.post(own(target)).body("{}").send().await?).await?;
        ensure!(refused.status == 400, "{target}: {}", refused.text());
    }
    let mcp = apps
        .http
        .post(format!("http://127.0.0.1:{port}/mcp"))
        .body("{}")
        .send()
        .await?;
    ensure!(mcp.status() == 404, "{}", mcp.status());
    let cross = apps
        .http
        .post(apps.greenroom.url("/mcp"))
        .header("origin", format!("http://127.0.0.1:{port}"))
        .body("{}")
        .send()
        .await?;
    ensure!(cross.status() == 403, "{}", cross.status());
    apps.greenroom.finish().await
}

#[tokio::test]
async fn a_port_of_this_machine_leads_inside_without_a_server() -> Result<()> {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let apps = Apps::start(&[("app", "port = 8080\nwarm = 0\n")]).await?;
    let first = apps.get("app", "?identifier=conv-0001").await?;
    let mut command = tokio::process::Command::new(greenroom_integration::binary()?)
        .args([
            "forward",
            "--pool",
            "app",
            "--conversation",
            "conv-0001",
            "0:7000",
            "--config",
        ])
        .arg(apps.greenroom.config_path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(command.stdout.take().context("no output")?).lines();
    let line = timeout(Duration::from_secs(60), lines.next_line()).await??;
    let line = line.context("it ended")?;
    let address = line.split(' ').next().unwrap_or_default().to_owned();
    for text in [&b"one"[..], b"two"] {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(text).await?;
        stream.shutdown().await?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await?;
        ensure!(back == text, "{back:?} by {line}");
    }
    // It is the same sandbox that requests reach.
    let again = apps.get("app", "?identifier=conv-0001").await?;
    ensure!(
        again.header("x-ms-session-guid") == first.header("x-ms-session-guid"),
        "another one"
    );
    command.kill().await?;
    apps.greenroom.finish().await
}

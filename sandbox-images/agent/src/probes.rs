//! Probes: questions to the image's own program, over loopback, each with its deadline.

use std::{net::Ipv4Addr, time::Duration};

use greenroom_protocol::{Check, Probe};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

/// Enough of an answer to see its status.
const STATUS_BYTES: usize = 16;

/// Asks until it succeeds.
///
/// # Errors
/// What the last one met, where it fails too often in a row.
pub(crate) async fn until_up(probe: &Probe) -> Result<(), String> {
    let mut failures = 0;
    loop {
        match ask(probe).await {
            Ok(()) => return Ok(()),
            Err(met) => {
                failures += 1;
                if failures >= probe.failures.max(1) {
                    return Err(met);
                }
            }
        }
        pause(probe).await;
    }
}

/// Asks until it has failed too often in a row, and says what the last one met.
pub(crate) async fn until_down(probe: &Probe) -> String {
    let mut failures = 0;
    loop {
        pause(probe).await;
        match ask(probe).await {
            Ok(()) => failures = 0,
            Err(met) => {
                failures += 1;
                if failures >= probe.failures.max(1) {
                    return met;
                }
            }
        }
    }
}

async fn pause(probe: &Probe) {
    sleep(Duration::from_millis(probe.period_ms.max(10))).await;
}

async fn ask(probe: &Probe) -> Result<(), String> {
    let deadline = Duration::from_millis(probe.timeout_ms.max(1));
    match timeout(deadline, answer(&probe.check)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", deadline.as_millis())),
    }
}

async fn answer(check: &Check) -> Result<(), String> {
    let (port, path) = match check {
        Check::Http { port, path } => (*port, Some(path)),
        Check::Tcp { port } => (*port, None),
    };
    let failed = |error: std::io::Error| format!("port {port}: {error}");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(failed)?;
    let Some(path) = path else { return Ok(()) };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: greenroom-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(STATUS_BYTES);
    while head.len() < STATUS_BYTES && stream.read_buf(&mut head).await.map_err(failed)? > 0 {}
    match status(&head) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("GET {path} answered {status}")),
        None => Err(format!("GET {path} was not answered in HTTP")),
    }
}

/// The status of an answer that begins like this.
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?;
    std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_status_is_in_the_first_line() {
        for (head, expected) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 404", Some(404)),
            (b"HTTP/1.1 20", None),
            (b"HTTP/2 200 OK", None),
            (b"SSH-2.0-OpenSSH", None),
            (b"", None),
        ] {
            assert_eq!(status(head), expected);
        }
    }

    fn probe(check: Check) -> Probe {
        Probe {
            check,
            period_ms: 10,
            timeout_ms: 200,
            failures: 3,
        }
    }

    #[tokio::test]
    async fn a_program_is_up_once_it_answers_and_down_once_it_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let http = probe(Check::Http {
            port,
            path: "/ready".into(),
        });
        until_up(&probe(Check::Tcp { port })).await.unwrap();
        let silent = until_up(&http).await.unwrap_err();
        assert_eq!(silent, "no answer within 200 ms");
        let answers = [
            "503 No",
            "503 No",
            "204 Yes",
            "302 Found",
            "500 Oh",
            "500 Oh",
            "500 Oh",
        ];
        let server = tokio::spawn(async move {
            // Those that were not answered above are still in the backlog.
            for answer in ["", "", "", ""].iter().chain(&answers) {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = format!("HTTP/1.1 {answer}\r\n\r\n");
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        until_up(&http).await.unwrap();
        assert_eq!(until_down(&http).await, "GET /ready answered 500");
        server.await.unwrap();
    }
}

//! Tunnels to real listeners on loopback.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::Duration;

use greenroom_agent::tunnel;
use greenroom_protocol::RefusalKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

/// Far more than loopback ever takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn tunnel_to_listener() -> (DuplexStream, TcpStream, JoinHandle<std::io::Result<(u64, u64)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (inside, accepted) = tokio::join!(tunnel::connect(port), listener.accept());
    let mut inside = inside.unwrap();
    let (ours, mut outside) = duplex(1024);
    let splice = tokio::spawn(async move { tunnel::splice(&mut outside, &mut inside).await });
    (ours, accepted.unwrap().0, splice)
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let (mut ours, mut app, splice) = tunnel_to_listener().await;
    ours.write_all(b"request").await.unwrap();
    ours.shutdown().await.unwrap();

    let mut request = Vec::new();
    timeout(PATIENCE, app.read_to_end(&mut request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(request, b"request", "the app sees the end of what was sent");
    app.write_all(b"an answer after the request's end").await.unwrap();
    drop(app);

    let mut answer = Vec::new();
    timeout(PATIENCE, ours.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"an answer after the request's end");
    let copied = timeout(PATIENCE, splice).await.unwrap().unwrap().unwrap();
    assert_eq!(copied, (7, 33));
}

#[tokio::test]
async fn the_app_may_close_first() {
    let (mut ours, mut app, splice) = tunnel_to_listener().await;
    app.write_all(b"hello").await.unwrap();
    app.shutdown().await.unwrap();
    let mut greeting = Vec::new();
    timeout(PATIENCE, ours.read_to_end(&mut greeting))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(greeting, b"hello");

    ours.write_all(b"still heard").await.unwrap();
    drop(ours);
    let mut rest = Vec::new();
    timeout(PATIENCE, app.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest, b"still heard");
    timeout(PATIENCE, splice).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_holds_the_writer_back() {
    let (mut ours, mut outside) = duplex(1024);
    let (mut inside, _app) = duplex(1024);
    let _splice = tokio::spawn(async move { tunnel::splice(&mut outside, &mut inside).await });
    let mut written = 0;
    // The clock stands still as long as a byte moves, so this ends only once nothing moves any more.
    let stalled: Result<(), _> = timeout(PATIENCE, async {
        loop {
            written += ours.write(&[7; 1024]).await.unwrap();
        }
    })
    .await;
    assert!(stalled.is_err());
    assert!(
        written <= 144 << 10,
        "{written} bytes went into a tunnel that nobody reads"
    );
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_not_found() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let refusal = tunnel::connect(port).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NotFound);
    assert!(refusal.message.contains(&port.to_string()), "{}", refusal.message);
}

//! Who gets onto a listener whose places are all taken, and whose place is noticed to be nobody's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, net::SocketAddr, time::Duration};

use bytes::Bytes;
use greenroom::engine::Engine as _;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use support::house::House;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_place_is_free_once_who_has_it_was_answered() {
    let house = House::open("[limits]\nconnections = 1\n").await;
    let stream = TcpStream::connect(house.address).await.unwrap();
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("/pools/python/executions?identifier=holder-0001")
        .header(header::HOST, house.address.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from_static(
            br#"{"code":"wait 1000\nresult 7"}"#,
        )))
        .unwrap();
    let answered = async {
        let response = send.send_request(request).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let other = async {
        // The place is taken, by one that is being answered.
        while !house.engine.list().await.unwrap().iter().any(|one| one.adopted) {
            sleep(Duration::from_millis(10)).await;
        }
        house.send("GET", "/healthz", &[], "").await
    };
    let (answer, other) = timeout(PATIENCE, async { tokio::join!(answered, other) })
        .await
        .unwrap();
    assert!(answer.ends_with(b"}"), "{answer:?}");
    assert_eq!(other.status, 200);
    // Who had the place would have gone on.
    connection.await.unwrap().unwrap();
    drop(send);
    house.end().await;
}

/// The kernel's timer of the server's end of a connection; 2 is that of keep-alive.
fn timer(server: SocketAddr, client: SocketAddr) -> String {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&port(server)) && row[2].ends_with(&port(client)));
    row.unwrap()[5].to_owned()
}

#[tokio::test]
async fn a_client_that_vanishes_is_asked_for() {
    let house = House::open("").await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let head = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", house.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let asks = async {
        // Until it is acknowledged, what was sent has a timer of its own.
        while !timer(house.address, stream.local_addr().unwrap()).starts_with("02:") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asks).await.unwrap();
    drop(stream);
    house.end().await;
}

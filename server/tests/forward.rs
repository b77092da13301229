//! Requests and streams into a sandbox, as they come over a real socket. The program inside is the test's own: the fake
//! engine's sandboxes have this host's ports.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{convert::Infallible, time::Duration};

use futures_util::future::join_all;
use greenroom::config::{Inputs, Loaded, Offer};
use http::Response;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use support::house::House;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(20);

/// A program that answers each request after a moment with its own words, and keeps its connections.
async fn program(words: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(async move |_| {
                sleep(MOMENT).await;
                Ok::<_, Infallible>(Response::new(words.to_owned()))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    port
}

fn pool(port: u16) -> String {
    format!("[pool.python]\nkind = \"container\"\nimage = \"image\"\nport = {port}\n")
}

/// Asks for a raw stream, and answers the head of what comes back.
async fn tunnel(house: &House, port: u16) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let asks = format!(
        "GET /pools/python/tunnel/{port}?identifier=conv-0001 HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\n\
         Upgrade: greenroom-tunnel\r\n\r\n",
        house.address
    );
    stream.write_all(asks.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

#[tokio::test]
async fn streams_into_a_sandbox_are_bounded_and_refused_at_once() {
    let port = program("here").await;
    let house = House::open(&pool(port)).await;
    let line = "GET /?identifier=conv-0001";
    let asked = async {
        assert_eq!(house.ask(line, "").await.body, "here");
        let mut open = Vec::new();
        for number in 1..=48 {
            // The last takes the place of the connection that the first request has left behind.
            let (head, stream) = tunnel(&house, port).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{number}: {head}");
            open.push(stream);
        }
        let (head, _) = tunnel(&house, port).await;
        assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
        assert!(head.to_ascii_lowercase().contains("\r\nretry-after: "), "{head}");
        let refused = house.ask(line, "").await;
        assert_eq!(refused.code(), (429, "TooManyRequests".into()));
        assert!(
            refused.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains("48")
        );
        open.pop();
        while house.ask(line, "").await.status != 200 {
            sleep(MOMENT).await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap();
    house.end().await;
}

#[tokio::test]
async fn requests_wait_for_each_other() {
    let house = House::open(&pool(program("here").await)).await;
    let line = "GET /?identifier=conv-0001";
    let answers = join_all((0..100).map(|_| house.ask(line, ""))).await;
    for answer in answers {
        assert_eq!((answer.status, &*answer.body), (200, &b"here"[..]));
    }
    house.end().await;
}

#[tokio::test]
async fn a_session_keeps_its_port_when_its_pool_gets_another() {
    let (old, new) = (program("old").await, program("new").await);
    let house = House::open(&pool(old)).await;
    assert_eq!(house.ask("GET /?identifier=conv-0001", "").await.body, "old");
    let inputs = Inputs {
        text: pool(new),
        ..Inputs::default()
    };
    let offer = Offer::of(&Loaded::read(&inputs).unwrap().config);
    house.offers.replace(offer);
    assert_eq!(house.ask("GET /?identifier=conv-0001", "").await.body, "old");
    house.end().await;
}

//! Who gets onto a listener whose places are all taken.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use support::house::House;
use tokio::{
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
        .body(Full::new(Bytes::from_static(br#"{"code":"wait 500\nresult 7"}"#)))
        .unwrap();
    let answered = async {
        let response = send.send_request(request).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let other = async {
        // The place is taken by now, by one that is being answered.
        sleep(Duration::from_millis(100)).await;
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

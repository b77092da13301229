//! https: real handshakes over a real socket, and clients that do not shake hands.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, path::Path, sync::Arc, time::Duration};

use greenroom::{
    config::{Inputs, Loaded},
    http::Http,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use support::house::House;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Writes a certificate for `localhost` and its key, and gives the certificate.
fn write(folder: &Path) -> String {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    cert.pem()
}

async fn house(folder: &Path) -> House {
    House::open(&format!(
        "[http]\ntls_cert = {:?}\ntls_key = {:?}\n",
        folder.join("cert.pem"),
        folder.join("key.pem")
    ))
    .await
}

async fn connect(house: &House, trusted: &str, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(house.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// One request over HTTP/1, which lies about how it came, and the whole answer.
async fn ask(mut stream: TlsStream<TcpStream>, line: &str, body: &str) -> String {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nx-forwarded-proto: http\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn https_is_served_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = write(folder.path());
    let house = house(folder.path()).await;
    let stream = connect(&house, &certificate, "http/1.1").await.unwrap();
    let run = "POST /pools/python/executions?identifier=conv-0001&api-version=2025-02-02-preview";
    let answer = ask(stream, run, r#"{"code":"result 1"}"#).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("operation-location: https://localhost/pools/python/executions/"),
        "{answer}"
    );
    let stream = connect(&house, &certificate, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    house.end().await;
}

#[tokio::test]
async fn whoever_does_not_shake_hands_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = write(folder.path());
    let house = house(folder.path()).await;
    // http on an https port.
    let mut plain = TcpStream::connect(house.address).await.unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(20), plain.read_to_end(&mut answer))
        .await
        .expect("an end")
        .ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // Nothing at all: the deadline ends it.
    let mut silent = TcpStream::connect(house.address).await.unwrap();
    let ended = timeout(Duration::from_secs(30), silent.read(&mut [0; 16]))
        .await
        .expect("an end");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let stream = connect(&house, &certificate, "http/1.1").await.unwrap();
    assert!(ask(stream, "GET /healthz", "").await.starts_with("HTTP/1.1 200"));
    house.end().await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let old = write(folder.path());
    let house = house(folder.path()).await;
    assert!(connect(&house, &old, "h2").await.is_ok());
    let pass = async || {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
    };
    // Half of it: what is shown stays.
    let key = fs::read(folder.path().join("key.pem")).unwrap();
    let new = write(folder.path());
    let new_key = fs::read(folder.path().join("key.pem")).unwrap();
    fs::write(folder.path().join("key.pem"), key).unwrap();
    pass().await;
    assert!(connect(&house, &old, "h2").await.is_ok());
    fs::write(folder.path().join("key.pem"), new_key).unwrap();
    pass().await;
    assert!(connect(&house, &old, "h2").await.is_err());
    assert!(connect(&house, &new, "h2").await.is_ok());
    house.end().await;
}

#[tokio::test]
async fn a_server_without_its_certificate_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = || {
        let text = format!(
            "listen = \"127.0.0.1:0\"\n[http]\ntls_cert = {:?}\ntls_key = {:?}\n",
            folder.path().join("cert.pem"),
            folder.path().join("key.pem")
        );
        let inputs = Inputs {
            text,
            ..Inputs::default()
        };
        Loaded::read(&inputs).unwrap().config
    };
    let refused = async || Http::bind(&config()).await.unwrap_err().to_string();
    assert!(refused().await.contains("cert.pem cannot be used for TLS"));
    write(folder.path());
    let cert = fs::read(folder.path().join("cert.pem")).unwrap();
    assert!(Http::bind(&config()).await.is_ok());
    write(folder.path());
    fs::write(folder.path().join("cert.pem"), cert).unwrap();
    assert!(
        refused().await.contains("do not go together"),
        "{}",
        refused().await
    );
    fs::write(folder.path().join("cert.pem"), "none").unwrap();
    assert!(
        refused().await.contains("there is no certificate in it"),
        "{}",
        refused().await
    );
    let half = Inputs {
        text: "[http]\ntls_key = \"/key.pem\"\n".to_owned(),
        ..Inputs::default()
    };
    let report = Loaded::read(&half).unwrap_err().to_string();
    assert!(
        report.contains("http.tls_key: goes with http.tls_cert"),
        "{report}"
    );
}

//! Tokens of an issuer: a real HTTP server with real keys in front of a real listener, and bearers of every kind of
//! token that is none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use greenroom::auth::{KeyFile, Order, Scopes};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};
use support::house::{House, Reply};
use tokio::net::TcpListener;

const AUDIENCE: &str = "https://greenroom.example/mcp";

/// A key of an issuer.
#[derive(Clone)]
struct Key {
    id: String,
    algorithm: Algorithm,
    private: EncodingKey,
}

impl Key {
    fn rsa(id: &str) -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        // What stands in front of the key proper in PKCS#8 of a key of 2048 bits.
        let private = EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]);
        Self::new(id, Algorithm::RS256, private)
    }

    fn ec(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let private = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
        Self::new(id, Algorithm::ES256, private)
    }

    fn new(id: &str, algorithm: Algorithm, private: EncodingKey) -> Self {
        let id = id.to_owned();
        Self {
            id,
            algorithm,
            private,
        }
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.private, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.clone());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.algorithm, claims)
    }

    fn sign_as(&self, algorithm: Algorithm, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = Some(self.id.clone());
        encode(&header, claims, &self.private).unwrap()
    }
}

/// An issuer, and what it was asked.
#[derive(Clone)]
struct Issuer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    keys: Vec<Value>,
    asked: Vec<String>,
    /// Where its metadata is.
    metadata: &'static str,
    /// Who it says that it is, if not itself.
    claims_to_be: Option<String>,
    is_down: bool,
}

impl Issuer {
    async fn start(metadata: &'static str, keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        issuer.state.lock().unwrap().metadata = metadata;
        issuer.rotate(keys);
        let serving = issuer.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let issuer = serving.clone();
                let service = service_fn(move |request| {
                    let answer = issuer.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new();
                    drop(serving.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        issuer
    }

    fn url(&self) -> String {
        format!("http://{}/realm", self.address)
    }

    fn rotate(&self, keys: &[&Key]) {
        let mut state = self.state.lock().unwrap();
        state.keys = keys.iter().map(|key| key.public()).collect();
        // What an issuer may have beside them.
        state
            .keys
            .push(json!({ "kty": "oct", "kid": "shared", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0" }));
        state.keys.push(json!({ "kty": "of tomorrow", "kid": "odd" }));
        state.keys.push(json!("no key at all"));
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut state = self.state.lock().unwrap();
        let path = request.uri().path().to_owned();
        state.asked.push(path.clone());
        let body = match path.as_str() {
            _ if state.is_down => None,
            path if path == state.metadata => {
                let issuer = state.claims_to_be.clone().unwrap_or_else(|| self.url());
                Some(json!({ "issuer": issuer, "jwks_uri": format!("{}/jwks", self.url()) }))
            }
            "/realm/jwks" => Some(json!({ "keys": state.keys })),
            _ => None,
        };
        let (status, body) = body.map_or((404, String::new()), |body| (200, body.to_string()));
        let answer = Response::builder().status(status);
        answer.body(Full::new(Bytes::from(body))).unwrap()
    }

    /// How often its keys were asked for.
    fn asked_for_keys(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|path| *path == "/realm/jwks").count()
    }

    fn claims(&self, subject: &str) -> Value {
        let now = now();
        json!({ "iss": self.url(), "sub": subject, "aud": [AUDIENCE, "other"], "exp": now + 600, "nbf": now - 10,
            "iat": now, "scope": "openid sandbox:run sandbox:files" })
    }

    async fn house(&self, more: &str) -> House {
        House::open(&format!(
            "[auth.issuer.test]\nissuer = {:?}\naudience = [{AUDIENCE:?}]\n{more}\n",
            self.url()
        ))
        .await
    }
}

const OPENID: &str = "/realm/.well-known/openid-configuration";
const OAUTH: &str = "/.well-known/oauth-authorization-server/realm";

fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

async fn run(house: &House, token: &str) -> Reply {
    let authorization = format!("Bearer {token}");
    let path = "/pools/python/executions?identifier=conv-0001";
    let headers = [("authorization", authorization.as_str())];
    house.send("POST", path, &headers, r#"{"code":"result 1"}"#).await
}

/// A call of the modern era, its headers, and its answer.
async fn call(house: &House, token: &str, tool: &str, arguments: Value) -> Reply {
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}, "openai/session": "the-same-conversation" });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": tool, "arguments": arguments, "_meta": meta } });
    let authorization = format!("Bearer {token}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", tool),
    ];
    house.send("POST", "/mcp", &headers, body.to_string()).await
}

#[tokio::test]
async fn a_token_is_good_whoever_signed_it_of_the_issuers_keys() {
    let (rsa, ec) = (Key::rsa("one"), Key::ec("two"));
    for metadata in [OPENID, OAUTH] {
        let issuer = Issuer::start(metadata, &[&rsa, &ec]).await;
        let house = issuer.house("").await;
        for key in [&rsa, &ec] {
            let reply = run(&house, &key.sign(&issuer.claims("ann"))).await;
            assert_eq!(reply.status, 200, "{metadata} {:?}", reply.body);
        }
        let reply = run(&house, &rsa.sign_as(Algorithm::PS512, &issuer.claims("ann"))).await;
        assert_eq!(reply.status, 401, "the key says that it signs by RS256 only");
        assert_eq!(issuer.asked_for_keys(), 1);
        house.end().await;
    }
}

#[tokio::test]
async fn subjects_and_keys_do_not_share_sessions() {
    let key = Key::ec("one");
    let issuer = Issuer::start(OPENID, &[&key]).await;
    let house = issuer.house("").await;
    let order = Order {
        scopes: Scopes::ALL,
        ..Order::default()
    };
    let (api_key, _) = KeyFile::of(house.state.path())
        .create(order, SystemTime::now())
        .unwrap();
    let guid = async |token: &str| run(&house, token).await.header("x-ms-session-guid").to_owned();
    let (ann, bob) = (key.sign(&issuer.claims("ann")), key.sign(&issuer.claims("bob")));
    let seen = [guid(&ann).await, guid(&bob).await, guid(api_key.reveal()).await];
    assert!(seen.iter().all(|guid| !guid.is_empty()), "{seen:?}");
    assert!(
        seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2],
        "{seen:?}"
    );
    // Another token of the same subject is the same principal.
    let later = with(issuer.claims("ann"), "jti", "another".into());
    assert_eq!(guid(&key.sign(&later)).await, seen[0]);
    house.end().await;
}

#[tokio::test]
async fn what_is_no_token_of_the_issuer_for_us_now_is_refused() {
    let (key, stranger) = (Key::rsa("one"), Key::rsa("one"));
    let issuer = Issuer::start(OPENID, &[&key]).await;
    let house = issuer.house("leeway = \"10s\"").await;
    let claims = issuer.claims("ann");
    let good = key.sign(&claims);
    assert_eq!(run(&house, &good).await.status, 200);
    let now = now();
    let sealed = |header: Value| {
        let part = |value: &Value| BASE64.encode(value.to_string());
        format!("{}.{}.", part(&header), part(&claims))
    };
    // The public key as the secret of a symmetric signature, as it is served and as its modulus.
    let public = key.public();
    let by_public = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("one".to_owned());
        encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
    };
    let mut shared = Header::new(Algorithm::HS256);
    shared.kid = Some("shared".to_owned());
    let by_shared = EncodingKey::from_base64_secret("c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0").unwrap();
    let mut critical = Header::new(Algorithm::RS256);
    (critical.kid, critical.crit) = (Some("one".to_owned()), Some(vec!["exp".to_owned()]));
    let mut parts: Vec<&str> = good.split('.').collect();
    let other = BASE64.encode(with(claims.clone(), "sub", "bob".into()).to_string());
    parts[1] = &other;
    let wrong = [
        ("none", sealed(json!({ "alg": "none", "kid": "one" }))),
        ("None", sealed(json!({ "alg": "None" }))),
        ("no signature", sealed(json!({ "alg": "RS256", "kid": "one" }))),
        ("HS256 by the JWK", by_public(public.to_string().as_bytes())),
        (
            "HS256 by the modulus",
            by_public(&BASE64.decode(public["n"].as_str().unwrap()).unwrap()),
        ),
        (
            "HS256 by a secret in the JWKS",
            encode(&shared, &claims, &by_shared).unwrap(),
        ),
        ("another's signature", stranger.sign(&claims)),
        ("changed claims", parts.join(".")),
        (
            "critical extension",
            encode(&critical, &claims, &key.private).unwrap(),
        ),
        (
            "expired",
            key.sign(&with(claims.clone(), "exp", (now - 11).into())),
        ),
        (
            "expiry as text",
            key.sign(&with(claims.clone(), "exp", "9999999999".into())),
        ),
        ("no expiry", key.sign(&with(claims.clone(), "exp", Value::Null))),
        (
            "not yet",
            key.sign(&with(claims.clone(), "nbf", (now + 60).into())),
        ),
        (
            "for another",
            key.sign(&with(claims.clone(), "aud", "https://other.example".into())),
        ),
        ("for nobody", key.sign(&with(claims.clone(), "aud", Value::Null))),
        (
            "for a beginning",
            key.sign(&with(claims.clone(), "aud", "https://greenroom.example".into())),
        ),
        (
            "by another issuer",
            key.sign(&with(claims.clone(), "iss", "https://other.example".into())),
        ),
        (
            "by a list of issuers",
            key.sign(&with(claims.clone(), "iss", json!([issuer.url()]))),
        ),
        ("by nobody", key.sign(&with(claims.clone(), "iss", Value::Null))),
        (
            "about nobody",
            key.sign(&with(claims.clone(), "sub", Value::Null)),
        ),
        (
            "about an empty subject",
            key.sign(&with(claims.clone(), "sub", "".into())),
        ),
        ("empty parts", "..".to_owned()),
        ("no parts", "token".to_owned()),
        ("cut", good[..good.len() - 1].to_owned()),
        ("four parts", format!("{good}.x")),
    ];
    for (what, token) in wrong {
        let reply = run(&house, &token).await;
        assert_eq!(reply.code(), (401, "Unauthorized".to_owned()), "{what}");
        let challenge = reply.header("www-authenticate");
        assert!(
            challenge.contains("error=\"invalid_token\""),
            "{what}: {challenge}"
        );
    }
    assert_eq!(issuer.asked_for_keys(), 1, "none of it makes us ask again");
    let within = key.sign(&with(claims, "exp", (now - 2).into()));
    assert_eq!(run(&house, &within).await.status, 200, "clocks differ a little");
    house.end().await;
}

#[tokio::test]
async fn a_made_up_key_makes_one_question_and_not_a_flood() {
    let (key, unknown) = (Key::ec("one"), Key::ec("made-up"));
    let issuer = Issuer::start(OPENID, &[&key]).await;
    let house = issuer.house("").await;
    let token = unknown.sign(&issuer.claims("ann"));
    let asked = (0..20).map(|_| run(&house, &token));
    for reply in futures_util::future::join_all(asked).await {
        assert_eq!(reply.status, 401);
    }
    assert_eq!(issuer.asked_for_keys(), 1);
    assert_eq!(run(&house, &key.sign(&issuer.claims("ann"))).await.status, 200);
    house.end().await;
}

#[tokio::test]
async fn keys_are_rotated() {
    let (old, new) = (Key::rsa("old"), Key::ec("new"));
    let issuer = Issuer::start(OPENID, &[&old]).await;
    let house = issuer.house("").await;
    let token = |key: &Key| key.sign(&with(issuer.claims("ann"), "exp", (now() + 10_000).into()));
    assert_eq!(run(&house, &token(&old)).await.status, 200);
    issuer.rotate(&[&old, &new]);
    assert_eq!(run(&house, &token(&new)).await.status, 401, "asked a moment ago");
    pass(Duration::from_secs(61)).await;
    assert_eq!(run(&house, &token(&new)).await.status, 200);
    assert_eq!(run(&house, &token(&old)).await.status, 200);
    // What is withdrawn is good for ten minutes at most.
    issuer.rotate(&[&new]);
    assert_eq!(run(&house, &token(&old)).await.status, 200);
    pass(Duration::from_secs(601)).await;
    assert_eq!(run(&house, &token(&old)).await.status, 401);
    // An issuer that is down does not take its bearers with it, for an hour.
    issuer.state.lock().unwrap().is_down = true;
    pass(Duration::from_secs(700)).await;
    assert_eq!(run(&house, &token(&new)).await.status, 200);
    pass(Duration::from_secs(3601)).await;
    assert_eq!(run(&house, &token(&new)).await.status, 401);
    issuer.state.lock().unwrap().is_down = false;
    pass(Duration::from_secs(6)).await;
    assert_eq!(run(&house, &token(&new)).await.status, 200);
    house.end().await;
}

/// Time goes by, but for sockets.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_issuer_that_says_it_is_another_is_not_believed() {
    let key = Key::ec("one");
    let issuer = Issuer::start(OPENID, &[&key]).await;
    issuer.state.lock().unwrap().claims_to_be = Some("https://other.example".to_owned());
    let house = issuer.house("").await;
    assert_eq!(run(&house, &key.sign(&issuer.claims("ann"))).await.status, 401);
    assert_eq!(issuer.asked_for_keys(), 0);
    house.end().await;
    // Where its keys are named outright nobody asks it who it is.
    let more = format!("jwks_url = \"{}/jwks\"", issuer.url());
    let house = issuer.house(&more).await;
    assert_eq!(run(&house, &key.sign(&issuer.claims("ann"))).await.status, 200);
    house.end().await;
}

#[tokio::test]
async fn scopes_are_the_issuers_words_and_the_clients_are_told_which() {
    let key = Key::ec("one");
    let issuer = Issuer::start(OPENID, &[&key]).await;
    let more = "run = [\"code.run\", \"code.all\"]\ngrants = [\"admin\"]\npools = [\"python\"]";
    let house = issuer.house(more).await;
    let token = |name: &str, scopes: Value| {
        key.sign(&with(
            with(issuer.claims("ann"), "scope", Value::Null),
            name,
            scopes,
        ))
    };
    for (name, scopes, status) in [
        ("scope", json!("code.all x"), 200),
        ("scp", json!("code.run"), 200),
        ("scp", json!(["x", "code.run"]), 200),
        ("scope", json!("code.running sandbox:run run"), 403),
        ("scope", json!(7), 401),
        ("roles", json!("code.run"), 403),
    ] {
        let reply = run(&house, &token(name, scopes.clone())).await;
        assert_eq!(reply.status, status, "{name} {scopes}");
    }
    let code = json!({ "code": "result 1" });
    let refused = call(
        &house,
        &token("scope", json!("sandbox:files")),
        "execute_code",
        code.clone(),
    )
    .await;
    let at = house.address;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (
            403,
            format!(
                "Bearer realm=\"greenroom\", error=\"insufficient_scope\", resource_metadata=\
            \"http://{at}/.well-known/oauth-protected-resource/mcp\", scope=\"code.run code.all\""
            )
            .as_str()
        )
    );
    let files = call(
        &house,
        &token("scope", json!("sandbox:files")),
        "list_files",
        json!({}),
    )
    .await;
    assert_eq!(files.status, 200, "{:?}", files.body);
    let lacks = run(&house, &token("scope", json!("sandbox:files"))).await;
    assert_eq!(
        (lacks.code(), lacks.header("www-authenticate")),
        (
            (403, "Forbidden".into()),
            format!(
                "Bearer realm=\"greenroom\", error=\"insufficient_scope\", resource_metadata=\
            \"http://{at}/.well-known/oauth-protected-resource\", scope=\"code.run code.all\""
            )
            .as_str()
        )
    );
    // What grants is every token's; other pools are not.
    let authorization = format!("Bearer {}", token("scope", json!("")));
    let headers = [("authorization", authorization.as_str())];
    assert_eq!(house.send("GET", "/metrics", &headers, "").await.status, 200);
    let elsewhere = house.send("GET", "/pools/other/listSessions", &headers, "").await;
    assert_eq!(
        (elsewhere.status, elsewhere.header("www-authenticate")),
        (403, "")
    );
    house.end().await;
}

#[tokio::test]
async fn a_bearers_word_of_conversations_counts_only_where_it_is_said_so() {
    let key = Key::ec("one");
    let issuer = Issuer::start(OPENID, &[&key]).await;
    for (more, named) in [("", false), ("asserts_conversations = true", true)] {
        let house = issuer.house(more).await;
        let token = key.sign(&issuer.claims("ann"));
        let reply = call(&house, &token, "execute_code", json!({ "code": "result 1" })).await;
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        assert_eq!(text.contains("the-same-conversation"), named, "{text}");
        house.end().await;
    }
}

#[tokio::test]
async fn clients_find_the_authorization_server() {
    let key = Key::ec("one");
    let issuer = Issuer::start(OPENID, &[&key]).await;
    let house = issuer.house("").await;
    let at = house.address;
    for (path, resource) in [("", ""), ("/mcp", "/mcp"), ("/sse", "/sse")] {
        let path = format!("/.well-known/oauth-protected-resource{path}");
        let reply = house.send("GET", &path, &[], "").await;
        let metadata: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(
            metadata,
            json!({ "resource": format!("http://{at}{resource}"), "resource_name": "Greenroom",
                "authorization_servers": [issuer.url()], "bearer_methods_supported": ["header"],
                "scopes_supported": ["sandbox:run", "sandbox:files", "sandbox:admin"] })
        );
    }
    for (path, resource) in [("/mcp", "/mcp"), ("/messages", "/sse"), ("/metrics", "")] {
        let method = if path == "/metrics" { "GET" } else { "POST" };
        let reply = house.send(method, path, &[], "{}").await;
        assert_eq!(
            (reply.status, reply.header("www-authenticate")),
            (401, format!("Bearer realm=\"greenroom\", resource_metadata=\
                \"http://{at}/.well-known/oauth-protected-resource{resource}\", scope=\"sandbox:run sandbox:files\"").as_str())
        );
    }
    house.end().await;
    let house = House::open("[links]\nurl = \"https://greenroom.example/\"\n[auth.issuer.a]\nissuer = \"https://login.example\"\naudience = [\"x\"]\n").await;
    let reply = house
        .send("GET", "/.well-known/oauth-protected-resource/mcp", &[], "")
        .await;
    let metadata: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(metadata["resource"], "https://greenroom.example/mcp");
    house.end().await;
    let house = House::open("").await;
    let reply = house
        .send("GET", "/.well-known/oauth-protected-resource/mcp", &[], "")
        .await;
    assert_eq!(reply.status, 404, "without an issuer there is none to find");
    house.end().await;
}

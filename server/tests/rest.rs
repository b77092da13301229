//! What programs get over REST: a real socket, the fake engine, real agents with a scripted kernel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use greenroom::engine::Engine as _;
use http::StatusCode;
use serde_json::{Value, json};
use support::{fake_engine::Op, house::House};

const OLD: &str = "api-version=2024-02-02-preview";
const NEW: &str = "api-version=2025-02-02-preview";

/// What differs from run to run.
fn masked(mut value: Value) -> Value {
    fn mask(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let volatile = [
                        "id",
                        "$id",
                        "executionTimeInMilliseconds",
                        "lastModifiedTime",
                        "last_modified_time",
                        "lastModifiedAt",
                    ];
                    if volatile.contains(&name.as_str()) {
                        *value = "*".into();
                    } else {
                        mask(value);
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(mask),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    mask(&mut value);
    value
}

#[tokio::test]
async fn every_dialect_runs_code_in_the_same_session_and_mcp_does_too() {
    let house = House::open("").await;
    let first = house.front.run("conv-0001", "result 1").await;
    assert_eq!(first.state(), ("ok", "new"));
    let a0 = json!({ "properties": { "identifier": "conv-0001", "codeInputType": "inline", "pythonCode": "result 42" } });
    let a0 = house.ask("POST /python/execute/", a0.to_string()).await;
    let flat = json!({ "$id": "*", "status": "Success", "stdout": "", "stderr": "", "result": 42, "executionResult": 42,
        "executionTimeInMilliseconds": "*" });
    assert_eq!((a0.status, masked(a0.json())), (200, flat.clone()));
    let a = json!({ "properties": { "codeInputType": "inline", "executionType": "synchronous", "code": "result 42" } });
    let a = house
        .ask(
            &format!("POST /code/execute?identifier=conv-0001&{OLD}"),
            a.to_string(),
        )
        .await;
    assert_eq!(
        (a.status, masked(a.json())),
        (200, json!({ "$id": "*", "properties": flat }))
    );
    let headers = [("operation-id", "my-own-1")];
    let b = house.ask_with(
        "POST /executions?identifier=conv-0001&api-version=2025-10-02-preview",
        &headers,
        r#"{"code":"result 42"}"#,
    );
    let b = b.await;
    assert_eq!(
        (b.status, masked(b.json())),
        (
            200,
            json!({ "id": "*", "identifier": "conv-0001", "sessionId": "conv-0001", "executionType": "Synchronous",
            "status": "Succeeded", "result": { "stdout": "", "stderr": "", "executionResult": 42,
            "executionTimeInMilliseconds": "*" } })
        )
    );
    assert_eq!(b.header("operation-id"), "my-own-1");
    let location = format!(
        "http://{}/pools/python/executions/my-own-1?api-version=2025-10-02-preview&identifier=conv-0001",
        house.address
    );
    assert_eq!(b.header("operation-location"), location);
    assert_eq!(b.header("x-ms-session-guid"), a.header("x-ms-session-guid"));
    assert_eq!(
        (b.header("x-ms-new-allocation"), b.header("x-greenroom-session")),
        ("false", "existing")
    );
    let polled = house
        .ask("GET /executions/my-own-1?identifier=conv-0001", "")
        .await
        .json();
    assert_eq!(
        (&polled["status"], &polled["result"]["executionResult"]),
        (&json!("Succeeded"), &json!(42))
    );
    let last = house.front.run("conv-0001", "result 2").await;
    assert_eq!(last.state(), ("ok", "existing"));
    house.end().await;
}

#[tokio::test]
async fn code_that_fails_is_an_answer() {
    let house = House::open("").await;
    let failed = house.run("fails-1", "print before\nraise no").await;
    let body = failed.json();
    assert_eq!((failed.status, &body["status"]), (200, &json!("Failed")));
    assert_eq!(body["error"]["error"]["code"], "ExecutionFailed");
    assert_eq!(
        (&body["result"]["stdout"], &body["result"]["executionResult"]),
        (&json!("before"), &json!(""))
    );
    assert!(
        body["result"]["stderr"].as_str().unwrap().contains("ValueError"),
        "{body}"
    );
    let code = json!({ "code": "hold", "timeoutInSeconds": "1" }).to_string();
    let late = house.ask("POST /executions?identifier=fails-1", code).await;
    let body = late.json();
    assert_eq!((late.status, &body["status"]), (200, &json!("Failed")));
    assert!(
        body["result"]["stderr"]
            .as_str()
            .unwrap()
            .contains("stopped at its limit of 1 s"),
        "{body}"
    );
    let died = house.run("fails-1", "exit 3").await.json();
    assert!(
        died["result"]["stderr"]
            .as_str()
            .unwrap()
            .contains("variables and imports are lost"),
        "{died}"
    );
    assert_eq!(died["greenroom"]["kernel"], "restarted", "{died}");
    house.end().await;
}

#[tokio::test]
async fn a_loss_is_told_until_it_was_heard() {
    let house = House::open("").await;
    let first = house.run("lost-1", "result 1").await;
    assert_eq!(
        (
            first.header("x-greenroom-session"),
            first.header("x-ms-new-allocation")
        ),
        ("new", "true")
    );
    assert_eq!(first.json()["greenroom"], json!({ "session": "new" }));
    let second = house.run("lost-1", "result 1").await;
    assert_eq!(
        (
            second.header("x-greenroom-session"),
            second.json().get("greenroom")
        ),
        ("existing", None)
    );
    let ended = house
        .ask(&format!("DELETE /session?identifier=lost-1&{NEW}"), "")
        .await;
    assert_eq!((ended.status, ended.body.len()), (204, 0));
    let gone = house
        .ask(&format!("DELETE /session?identifier=lost-1&{NEW}"), "")
        .await;
    assert_eq!(gone.code(), (404, "SessionWithIdentifierNotFound".into()));
    // A look does not use the news up.
    let listed = house.ask("GET /files?identifier=lost-1", "").await;
    assert_eq!(
        (listed.json(), listed.header("x-greenroom-session")),
        (json!({ "value": [], "nextLink": null }), "restarted (reset)")
    );
    let told = house.run("lost-1", "result 1").await;
    assert_eq!(
        told.json()["greenroom"],
        json!({ "session": "restarted", "reason": "reset", "files": "gone" })
    );
    assert_ne!(
        told.header("x-ms-session-guid"),
        first.header("x-ms-session-guid")
    );
    let again = house.run("lost-1", "result 1").await;
    assert_eq!(again.json().get("greenroom"), None);
    house.end().await;
}

fn form(name: &str, content: &str) -> String {
    format!(
        "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{content}\r\n--X--\r\n"
    )
}

#[tokio::test]
async fn files_come_and_go_in_every_dialect() {
    let house = House::open("").await;
    let line = |text: &str| {
        text.replace("ID", "identifier=files-0001")
            .replace("OLD", OLD)
            .replace("NEW", NEW)
    };
    // The body is a form, whatever is said of it.
    let a = house
        .ask(
            &line("POST /files/upload?ID&OLD"),
            form("/mnt/data/a b.txt", "abc"),
        )
        .await;
    let entry = json!({ "$id": "*", "properties": { "$id": "*", "filename": "a b.txt", "size": 3, "lastModifiedTime": "*" } });
    assert_eq!(
        (a.status, masked(a.json())),
        (200, json!({ "$id": "*", "value": [entry] }))
    );
    let to_folder = line("POST //files?ID&NEW&path=sub/deep");
    let b = house.ask_with(
        &to_folder,
        &[("content-type", "multipart/form-data; boundary=X")],
        form("c.csv", "1,2"),
    );
    let b = b.await;
    let object = |name: &str, kind: &str, mime: &str, size: u64, directory: &str| json!({ "name": name, "type": kind, "contentType": mime, "sizeInBytes": size, "lastModifiedAt": "*", "directory": directory });
    assert_eq!(
        (b.status, masked(b.json())),
        (200, object("c.csv", "file", "text/csv; charset=utf-8", 3, "."))
    );
    let a0 = house.ask(&line("GET /python/files?ID"), "").await.json();
    assert_eq!(
        masked(a0),
        json!({ "$id": "*", "$values": [{ "$id": "*", "filename": "a b.txt", "size": 3, "bytes": 3, "last_modified_time": "*" }] })
    );
    let listed = house
        .ask(
            &line("GET /files/?path=%2Fmnt%2Fdata%2Fsub&recursive=true&ID&NEW"),
            "",
        )
        .await
        .json();
    assert_eq!(listed["value"][0]["name"], "c.csv");
    assert_eq!(listed["value"][0]["directory"], "deep");
    let put = house
        .ask(&line("PUT /files/sub%2Fraw.bin?ID"), "0123456789")
        .await;
    assert_eq!((put.status, &put.json()["sizeInBytes"]), (200, &json!(10)));
    for target in [
        "GET /files/content/a%20b.txt?ID&OLD",
        "GET /files/a%20b.txt/content?ID&NEW",
        "GET /python/downloadFile?ID&filename=a%20b.txt",
    ] {
        let read = house.ask(&line(target), "").await;
        assert_eq!((read.status, &read.body[..]), (200, &b"abc"[..]), "{target}");
        assert_eq!(
            (read.header("content-type"), read.header("content-length")),
            ("text/plain; charset=utf-8", "3")
        );
        assert!(read.header("content-disposition").starts_with("attachment"));
    }
    let part = house
        .ask_with(
            &line("GET /files/raw.bin/content?path=sub&ID&NEW"),
            &[("range", "bytes=2-4")],
            "",
        )
        .await;
    assert_eq!(
        (part.status, &part.body[..], part.header("content-range")),
        (206, &b"234"[..], "bytes 2-4/10")
    );
    let beyond = house
        .ask_with(
            &line("GET /files/raw.bin/content?path=sub&ID&NEW"),
            &[("range", "bytes=10-")],
            "",
        )
        .await;
    assert_eq!(
        (beyond.code(), beyond.header("content-range")),
        ((416, "RangeNotSatisfiable".into()), "bytes */10")
    );
    let seen = house.ask(&line("GET /files/a%20b.txt?ID&OLD"), "").await.json();
    assert_eq!(seen["value"][0]["properties"]["filename"], "a b.txt");
    let folder = house
        .ask(&line("GET /files/deep?path=sub&ID&NEW"), "")
        .await
        .json();
    assert_eq!(
        (&folder["type"], &folder["name"]),
        (&json!("directory"), &json!("deep"))
    );
    let gone = house.ask(&line("DELETE /files/a%20b.txt?ID&OLD"), "").await;
    assert_eq!(
        (gone.status, gone.json()),
        (200, json!({ "message": "file deleted successfully" }))
    );
    let gone = house
        .ask(&line("DELETE /files/raw.bin?path=sub&ID&NEW"), "")
        .await;
    assert_eq!((gone.status, gone.body.len()), (204, 0));
    for (target, code) in [
        ("GET /files/a%20b.txt?ID&OLD", (404, "FileNotFound")),
        ("GET /files/nothing/content?ID&NEW", (404, "FileNotFound")),
        ("DELETE /files/sub?ID&NEW", (404, "FileNotFound")),
        ("GET /files?path=sub/deep/c.csv&ID&NEW", (400, "FilePathInvalid")),
        (
            "GET /files/..%2F..%2Fetc%2Fpasswd/content?ID&NEW",
            (400, "FilePathInvalid"),
        ),
    ] {
        let (status, word) = house.ask(&line(target), "").await.code();
        assert_eq!((status, word.as_str()), code, "{target}");
    }
    house.end().await;
}

#[tokio::test]
async fn uploads_are_whole_or_not_there() {
    let house = House::open("[links]\nupload = \"1KiB\"\n").await;
    let query = format!("identifier=whole-0001&{NEW}");
    for (body, code) in [
        (form("big.txt", &"x".repeat(2000)), (413, "RequestBodyTooLarge")),
        (
            form("cut.txt", "abc").replace("\r\n--X--\r\n", ""),
            (400, "SessionRequestValidationFailed"),
        ),
        (form("../out.txt", "abc"), (400, "FilePathInvalid")),
        (
            "--X\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nx\r\n--X--".into(),
            (400, "SessionPropertiesMissing"),
        ),
        ("no form".into(), (400, "SessionRequestValidationFailed")),
    ] {
        let (status, word) = house
            .ask(&format!("POST /files?{query}"), body.clone())
            .await
            .code();
        assert_eq!((status, word.as_str()), code, "{body}");
    }
    let listed = house
        .ask(&format!("GET /files?{query}&recursive=true"), "")
        .await
        .json();
    assert_eq!(listed["value"], json!([]));
    house.end().await;
}

#[tokio::test]
async fn bad_requests_are_answered_in_azures_envelope() {
    let house = House::open("[limits]\nrequest = \"4KiB\"\n").await;
    let long = format!("{{\"code\":\"{}\"}}", "x".repeat(5000));
    for (line, body, code) in [
        (
            "POST /executions",
            r#"{"code":"1"}"#,
            (400, "SessionRequestValidationFailed"),
        ),
        (
            "POST /executions?identifier=abc",
            r#"{"code":"1"}"#,
            (400, "SessionRequestValidationFailed"),
        ),
        (
            "POST /executions?identifier=gr-garbled-copy",
            r#"{"code":"1"}"#,
            (400, "SessionRequestValidationFailed"),
        ),
        (
            "POST /executions?identifier=bad-0001",
            "{",
            (400, "SessionRequestValidationFailed"),
        ),
        (
            "POST /executions?identifier=bad-0001",
            "{}",
            (400, "SessionPropertiesMissing"),
        ),
        (
            "POST /executions?identifier=bad-0001",
            &long,
            (413, "RequestBodyTooLarge"),
        ),
        (
            "POST /executions?identifier=bad-0001&api-version=soon",
            r#"{"code":"1"}"#,
            (400, "InvalidApiVersion"),
        ),
        (
            "POST /code/execute?identifier=bad-0001",
            r#"{"shellCommand":"ls"}"#,
            (400, "SessionRequestNotSupported"),
        ),
        (
            "POST /code/execute?identifier=bad-0001",
            r#"{"code":"1","executionType":"Asynchronous"}"#,
            (400, "SessionRequestNotSupported"),
        ),
        (
            "GET /executions/none?identifier=bad-0001",
            "",
            (404, "ExecutionNotFound"),
        ),
        (
            "GET /session?identifier=bad-0001",
            "",
            (404, "SessionWithIdentifierNotFound"),
        ),
        (
            "POST /.management/stopSession?identifier=bad-0001",
            "",
            (404, "SessionWithIdentifierNotFound"),
        ),
        (
            "PATCH /files/a?identifier=bad-0001",
            "",
            (400, "SessionRequestNotSupported"),
        ),
        (
            "GET /../other/files?identifier=bad-0001",
            "",
            (400, "SessionRequestNotSupported"),
        ),
    ] {
        let (status, word) = house.ask(line, body.to_owned()).await.code();
        assert_eq!((status, word.as_str()), code, "{line} {body:.60}");
    }
    let other = house.ask("GET x/files?identifier=bad-0001", "").await;
    assert_eq!(other.code(), (404, "PoolNotFound".into()));
    let bound = house
        .engine
        .list()
        .await
        .unwrap()
        .iter()
        .filter(|one| one.adopted)
        .count();
    assert_eq!(bound, 0, "none of them took a sandbox");
    house.end().await;
}

/// What a browser says of an image on another site's page, and of a link there that was followed.
const EMBEDDED: [(&str, &str); 2] = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
const FOLLOWED: [(&str, &str); 4] = [
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-user", "?1"),
];

async fn bound(house: &House) -> usize {
    let listed = house.engine.list().await.unwrap();
    listed.iter().filter(|one| one.adopted).count()
}

#[tokio::test]
async fn pages_of_other_sites_take_no_sandbox() {
    let house = House::open("").await;
    let line = "GET /files?identifier=page-0001";
    for headers in [&[("origin", "http://evil.example")][..], &EMBEDDED, &FOLLOWED] {
        let page = house.ask_with(line, headers, "").await;
        assert_eq!(page.status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    assert_eq!(bound(&house).await, 0);
    let typed = house.ask_with(line, &[("sec-fetch-site", "none")], "").await;
    assert_eq!(typed.status, StatusCode::OK);
    for line in [
        line,
        "GET /.management/logs?identifier=page-0001",
        "GET /metadata",
    ] {
        let page = house.ask_with(line, &EMBEDDED, "").await;
        assert_eq!(page.code(), (403, "Forbidden".into()), "nor do they reach one");
    }
    house.end().await;
}

#[tokio::test]
async fn pages_of_other_sites_reach_programs_that_are_there() {
    let house = House::open("[pool.python]\nkind = \"container\"\nimage = \"image\"\nport = 8080\n").await;
    let line = "GET /x.png?identifier=page-0002";
    let page = house.ask_with(line, &EMBEDDED, "").await;
    assert_eq!(page.code(), (403, "Forbidden".into()));
    assert_eq!(bound(&house).await, 0);
    for headers in [&FOLLOWED[..], &EMBEDDED] {
        let page = house.ask_with(line, headers, "").await;
        assert_eq!(page.code(), (502, "ContainerNotListening".into()), "{headers:?}");
    }
    assert_eq!(bound(&house).await, 1);
    house.end().await;
}

/// What a pool holds is asked of one that is given back: nobody loses their sandbox for it.
#[tokio::test]
async fn asking_what_a_pool_is_costs_no_sandbox() {
    let house = House::open("[pool.python]\nwarm = 1\nmax = 2\nevict_after = \"1s\"").await;
    let mut census = house.front.server.pool.census();
    census.wait_for(|census| census.counts.warm == 1).await.unwrap();
    let warm = house.engine.names();
    let asked = house.ask("GET /metadata", "").await;
    assert_eq!(asked.status, 200, "{:?}", asked.body);
    assert!(asked.json()["runtimes"][0]["name"].is_string());
    census.wait_for(|census| census.counts.warm == 1).await.unwrap();
    assert_eq!((house.engine.names(), house.engine.calls(Op::Destroy)), (warm, 0));
    house.end().await;

    let house = House::open("[pool.python]\nwarm = 0\nmax = 1\nevict_after = \"1s\"").await;
    assert_eq!(house.run("full-0001", "result 1").await.status, 200);
    // It is idle for longer than it may be where somebody else needs its place.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = house.ask("GET /metadata", "").await;
    assert_eq!(refused.status, 429, "{:?}", refused.body);
    let again = house.run("full-0001", "result 1").await;
    assert_eq!(again.header("x-greenroom-session"), "existing");
    house.end().await;
}

#[tokio::test]
async fn what_takes_long_is_polled_or_streamed() {
    let house = House::open("").await;
    let code =
        json!({ "code": "print working\nwait 300\nresult 7", "executionType": "Asynchronous" }).to_string();
    let begun = house
        .ask_with(
            &format!("POST /executions?identifier=long-0001&{NEW}"),
            &[("operation-id", "op-1")],
            code,
        )
        .await;
    assert_eq!(
        (begun.status, &begun.json()["status"], begun.json().get("result")),
        (202, &json!("Running"), None)
    );
    let ended = loop {
        let polled = house
            .ask(&format!("GET /executions/op-1?identifier=long-0001&{NEW}"), "")
            .await;
        let body = polled.json();
        assert_eq!(polled.status, 200);
        if body["status"] != "Running" {
            break body;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (
            &ended["status"],
            &ended["result"]["executionResult"],
            &ended["result"]["stdout"]
        ),
        (&json!("Succeeded"), &json!(7), &json!("working"))
    );
    let other = house.ask("GET /executions/op-1?identifier=long-0002", "").await;
    assert_eq!(other.code(), (404, "ExecutionNotFound".into()));

    let code = r#"{"code":"print one\nwait 50\nprint two\nresult 7"}"#;
    let lines = house
        .ask_with(
            "POST /executions?identifier=long-0001",
            &[("accept", "application/x-ndjson")],
            code,
        )
        .await;
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let events: Vec<Value> = lines
        .body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let names: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["accepted", "started", "stdout", "stdout", "finished"]);
    let last = events.last().unwrap();
    assert_eq!(
        (
            &last["execution"]["result"]["stdout"],
            &last["execution"]["result"]["executionResult"]
        ),
        (&json!("onetwo"), &json!(7))
    );
    let events = house
        .ask_with(
            "POST /code/execute?identifier=long-0001",
            &[("accept", "text/event-stream")],
            code,
        )
        .await;
    let text = String::from_utf8(events.body.to_vec()).unwrap();
    assert!(
        text.starts_with("event: accepted\ndata: {")
            && text
                .contains("\n\nevent: finished\ndata: {\"event\":\"finished\",\"execution\":{\"$id\":\"1\","),
        "{text}"
    );
    house.end().await;
}

#[tokio::test]
async fn sessions_are_shown_listed_and_stopped() {
    let house = House::open("").await;
    for identifier in ["shown-0001", "shown-0002"] {
        house.run(identifier, "result 1").await;
    }
    let shown = house
        .ask(
            &format!("POST /.management/getSession?identifier=shown-0001&{NEW}"),
            "",
        )
        .await;
    let body = shown.json();
    assert_eq!(
        (&body["identifier"], body["expiresAt"].as_str()),
        (&json!("shown-0001"), body["expireAt"].as_str())
    );
    assert_eq!(shown.header("x-ms-session-etag"), body["etag"]);
    let listed = house
        .ask(&format!("POST /.management/listSessions?skip=1&{NEW}"), "")
        .await
        .json();
    assert_eq!(
        (
            &listed["count"],
            &listed["value"][0]["identifier"],
            &listed["nextLink"]
        ),
        (&json!(1), &json!("shown-0002"), &Value::Null)
    );
    assert_eq!(listed["value"], listed["sessions"]);
    let stopped = house
        .ask(
            &format!("POST /.management/stopSession?identifier=shown-0001&{NEW}"),
            "",
        )
        .await;
    assert_eq!(
        (stopped.status, stopped.header("content-type")),
        (200, "text/plain; charset=utf-8")
    );
    let listed = house.ask("GET /listSessions", "").await.json();
    assert_eq!(
        (&listed["count"], &listed["value"][0]["identifier"]),
        (&json!(1), &json!("shown-0002"))
    );
    house.end().await;
}

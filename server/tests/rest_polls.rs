//! What programs hear over REST of executions that they ask for again: which of them are lost, and which are not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use greenroom::{engine::Engine as _, sandbox::SandboxId};
use greenroom_protocol::RunState;
use serde_json::{Value, json};
use support::{
    fake_engine::{Fault, Op},
    house::{House, Reply},
    server::key,
};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(20);

/// An execution of a session.
struct Asked<'a> {
    house: &'a House,
    identifier: &'a str,
    id: &'a str,
}

impl Asked<'_> {
    async fn begin(&self, mut body: Value) -> Reply {
        body["executionType"] = "Asynchronous".into();
        self.send(body).await
    }

    async fn send(&self, body: Value) -> Reply {
        let line = format!("POST /executions?identifier={}", self.identifier);
        let headers = [("operation-id", self.id)];
        self.house.ask_with(&line, &headers, body.to_string()).await
    }

    async fn poll(&self) -> Reply {
        let line = format!("GET /executions/{}?identifier={}", self.id, self.identifier);
        self.house.ask(&line, "").await
    }

    /// Polls until it is answered as it should be.
    async fn until(&self, is: impl Fn(&Reply) -> bool) -> Reply {
        let wait = async {
            loop {
                let reply = self.poll().await;
                if is(&reply) {
                    break reply;
                }
                sleep(MOMENT).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap()
    }

    async fn assert_lost(&self) {
        let body = self.poll().await.json();
        assert_eq!(body["status"], "Failed", "{body}");
        let text = body["result"]["stderr"].as_str().unwrap();
        assert!(
            text.contains("the sandbox ended before anybody was told"),
            "{body}"
        );
    }

    async fn assert_not_found(&self, why: &str) {
        let reply = self.poll().await;
        assert_eq!(reply.code(), (404, "ExecutionNotFound".into()));
        let body = reply.json();
        assert!(body["error"]["message"].as_str().unwrap().contains(why), "{body}");
    }
}

/// The only sandbox that is bound.
async fn bound(house: &House) -> SandboxId {
    let mut listed = house.engine.list().await.unwrap();
    listed.retain(|one| one.adopted);
    assert_eq!(listed.len(), 1);
    listed.remove(0).id
}

#[tokio::test]
async fn one_that_the_sandbox_forgot_is_not_lost() {
    let house = House::open("").await;
    let asked = Asked {
        house: &house,
        identifier: "forgets-0001",
        id: "first",
    };
    asked.begin(json!({ "code": "result 1" })).await;
    for _ in 0..65 {
        assert_eq!(house.run("forgets-0001", "result 2").await.status, 200);
    }
    asked.assert_not_found("no longer kept").await;
    house.end().await;
}

#[tokio::test]
async fn one_whose_sandbox_ended_is_lost_until_its_session_is_ended() {
    let house = House::open("").await;
    let asked = Asked {
        house: &house,
        identifier: "loses-0001",
        id: "first",
    };
    let done = Asked { id: "done", ..asked };
    assert_eq!(done.send(json!({ "code": "result 1" })).await.status, 200);
    asked.begin(json!({ "code": "hold" })).await;
    asked.until(|reply| reply.json()["status"] == "Running").await;
    house.engine.kill(&bound(&house).await, 137, false);
    asked.assert_lost().await;
    assert_eq!(house.run("loses-0001", "result 2").await.status, 200);
    // The session has another sandbox by now.
    asked.assert_lost().await;
    done.assert_not_found("no longer kept").await;
    let ended = house.ask("DELETE /session?identifier=loses-0001", "").await;
    assert_eq!(ended.status, 204);
    asked.assert_not_found("no such execution").await;
    house.end().await;
}

#[tokio::test]
async fn a_session_that_could_not_be_ended_is_known_as_before() {
    let house = House::open("").await;
    let asked = Asked {
        house: &house,
        identifier: "remains-0001",
        id: "first",
    };
    asked.begin(json!({ "code": "hold" })).await;
    asked.until(|reply| reply.json()["status"] == "Running").await;
    house.engine.script(Op::Find, [Fault::Refused]);
    let failed = house.ask("DELETE /session?identifier=remains-0001", "").await;
    assert_eq!(failed.status, 503);
    let listed = house.ask("GET /listSessions", "").await.json();
    assert_eq!(listed["value"][0]["identifier"], "remains-0001", "{listed}");
    house.engine.kill(&bound(&house).await, 137, false);
    asked.assert_lost().await;
    house.end().await;
}

#[tokio::test]
async fn one_whose_client_left_is_lost_with_its_sandbox_too() {
    for accept in ["application/json", "application/x-ndjson"] {
        let house = House::open("").await;
        let asked = Asked {
            house: &house,
            identifier: "leaves-0001",
            id: "left",
        };
        let headers = [("operation-id", "left"), ("accept", accept)];
        let left = house.ask_with(
            "POST /executions?identifier=leaves-0001",
            &headers,
            r#"{"code":"hold"}"#,
        );
        let begun = asked.until(|reply| reply.status == 200 && reply.json()["status"] == "Running");
        tokio::select! {
            _ = left => panic!("it holds"),
            _ = begun => {}
        }
        // The client has left.
        sleep(MOMENT).await;
        house.engine.kill(&bound(&house).await, 137, false);
        asked.assert_lost().await;
        house.end().await;
    }
}

#[tokio::test]
async fn an_end_that_nobody_heard_is_lost_with_its_sandbox() {
    let house = House::open("").await;
    let asked = Asked {
        house: &house,
        identifier: "unheard-0001",
        id: "left",
    };
    let headers = [("operation-id", "left"), ("accept", "application/x-ndjson")];
    let left = house.ask_with(
        "POST /executions?identifier=unheard-0001",
        &headers,
        r#"{"code":"wait 500\nresult 1"}"#,
    );
    let begun = asked.until(|reply| reply.status == 200 && reply.json()["status"] == "Running");
    tokio::select! {
        _ = left => panic!("it waits"),
        _ = begun => {}
    }
    // The client has left. That it has ended is seen from behind: a poll would hear of it.
    let session = house
        .front
        .server
        .sessions
        .look(&key("unheard-0001"))
        .await
        .unwrap()
        .unwrap();
    let ends = async {
        while session.guest.runs().await.unwrap().runs[0].state == RunState::Running {
            sleep(MOMENT).await;
        }
    };
    timeout(PATIENCE, ends).await.unwrap();
    sleep(10 * MOMENT).await;
    house.engine.kill(&bound(&house).await, 137, false);
    asked.assert_lost().await;
    house.end().await;
}

#[tokio::test]
async fn a_command_stays_a_command_where_code_is_shell_too() {
    let house = House::open("[pool.python]\nlanguages = [\"bash\"]\n").await;
    let command = Asked {
        house: &house,
        identifier: "shell-0001",
        id: "command",
    };
    let code = Asked {
        id: "code",
        ..command
    };
    code.begin(json!({ "code": "hold" })).await;
    // It stays behind the other: the scripted kernel knows no such line.
    command.begin(json!({ "shellCommand": "ls" })).await;
    let (code, command) = (code.poll().await.json(), command.poll().await.json());
    assert_eq!(
        (&code["status"], &code["sessionId"]),
        (&json!("Running"), &json!("shell-0001")),
        "{code}"
    );
    assert_eq!(
        (&command["status"], command.get("sessionId")),
        (&json!("NotStarted"), None),
        "{command}"
    );
    house.end().await;
}

//! The data plane of Azure's dynamic sessions on real sandboxes: the examples of each dialect, and what is more than they.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bollard::{models::ContainerSummaryStateEnum, query_parameters::KillContainerOptions};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use greenroom_integration::{Config, Docker, Era, Greenroom, Reply, resident};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const OLD: &str = "api-version=2024-02-02-preview";
const NEW: &str = "api-version=2025-02-02-preview";

/// A file that no memory of a server should hold.
const LARGE: usize = 512 << 20;

/// What a server may grow by while such a file passes through, on a busy machine.
const GROWS: u64 = 64 << 20;

/// A program that uses one pool.
struct Program {
    greenroom: Greenroom,
    http: reqwest::Client,
}

impl Program {
    async fn start() -> Result<Self> {
        Self::with(&Config::default()).await
    }

    async fn with(config: &Config) -> Result<Self> {
        Ok(Self {
            greenroom: Greenroom::start(config).await?,
            http: reqwest::Client::new(),
        })
    }

    /// `METHOD path?query` below the pool.
    async fn ask(&self, line: &str, body: impl Into<reqwest::Body>) -> Result<Reply> {
        self.ask_with(line, &[], body).await
    }

    async fn ask_with(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Reply> {
        let (method, target) = line.split_once(' ').context("METHOD path")?;
        let url = self.greenroom.url(&format!("/pools/python{target}"));
        let mut request = self.http.request(method.parse::<Method>()?, url).body(body);
        // Sent by every client, and of no consequence on loopback.
        request = request
            .header("authorization", "Bearer whatever")
            .header("x-ms-apikey", "whatever");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::of(request.send().await?).await
    }

    /// Runs code in dialect B.
    async fn run(&self, identifier: &str, code: &str) -> Result<Value> {
        let body = json!({ "code": code }).to_string();
        self.ask(&format!("POST /executions?identifier={identifier}&{NEW}"), body)
            .await?
            .json()
    }

    /// Runs a command.
    async fn shell(&self, identifier: &str, body: Value) -> Result<Value> {
        let reply = self
            .ask(
                &format!("POST /executions?identifier={identifier}&{NEW}"),
                body.to_string(),
            )
            .await?;
        ensure!(reply.status == 200, "{:?}", reply.body);
        reply.json()
    }
}

/// What differs from run to run.
fn masked(mut value: Value) -> Value {
    fn mask(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match name.as_str() {
                        "id"
                        | "$id"
                        | "executionTimeInMilliseconds"
                        | "lastModifiedTime"
                        | "last_modified_time"
                        | "lastModifiedAt" => *value = "*".into(),
                        _ => mask(value),
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
async fn the_examples_of_every_dialect_are_answered_as_documented() -> Result<()> {
    let program = Program::start().await?;
    program.run("conv-0001", "pass").await?;
    let flat = json!({ "$id": "*", "status": "Success", "stdout": "", "stderr": "", "result": 42, "executionResult": 42,
        "executionTimeInMilliseconds": "*" });
    let a0 = json!({ "properties": { "identifier": "conv-0001", "codeInputType": "inline", "executionType": "synchronous",
        "pythonCode": "6*7" } });
    let a0 = program.ask("POST /python/execute/", a0.to_string()).await?;
    assert_eq!((a0.status, masked(a0.json()?)), (200, flat.clone()));
    let a = json!({ "properties": { "codeInputType": "inline", "executionType": "synchronous", "code": "6*7",
        "timeoutInSeconds": 100 } });
    let a = program
        .ask(
            &format!("POST /code/execute?identifier=conv-0001&{OLD}"),
            a.to_string(),
        )
        .await?;
    assert_eq!(
        (a.status, masked(a.json()?)),
        (200, json!({ "$id": "*", "properties": flat }))
    );
    let b = json!({ "codeInputType": "Inline", "executionType": "Synchronous", "code": "6*7", "timeoutInSeconds": 60,
        "outputStreamsMaxLength": 65536 });
    let b = program
        .ask(
            "POST /executions?identifier=conv-0001&api-version=2025-10-02-preview",
            b.to_string(),
        )
        .await?;
    assert_eq!(
        (b.status, masked(b.json()?)),
        (
            200,
            json!({ "id": "*", "identifier": "conv-0001", "sessionId": "conv-0001", "executionType": "Synchronous",
            "status": "Succeeded", "result":
            { "stdout": "", "stderr": "", "executionResult": 42, "executionTimeInMilliseconds": "*" } })
        )
    );
    assert_eq!(b.header("content-type"), "application/json; charset=utf-8");

    let failed = program.run("conv-0001", "print('before')\n{}['x']").await?;
    assert_eq!(
        (&failed["status"], &failed["result"]["stdout"]),
        (&json!("Failed"), &json!("before\n"))
    );
    assert_eq!(
        failed["error"]["error"],
        json!({ "code": "ExecutionFailed", "message": "KeyError: 'x'" })
    );
    assert_eq!(failed["result"]["executionResult"], "");
    let stderr = failed["result"]["stderr"].as_str().unwrap_or_default();
    assert!(
        stderr.contains("Traceback") && stderr.ends_with("KeyError: 'x'\n") && !stderr.contains('\u{1b}'),
        "{stderr}"
    );

    let slow =
        json!({ "properties": { "code": "kept = 1\nimport time; time.sleep(60)", "timeoutInSeconds": "1" } });
    let slow = program
        .ask(
            &format!("POST /code/execute?identifier=conv-0001&{OLD}"),
            slow.to_string(),
        )
        .await?;
    let body = slow.json()?;
    assert_eq!(
        (slow.status, &body["properties"]["status"]),
        (200, &json!("Failure"))
    );
    assert!(
        body["properties"]["stderr"]
            .as_str()
            .unwrap_or_default()
            .contains("stopped at its limit of 1 s"),
        "{body}"
    );
    assert_eq!(
        program.run("conv-0001", "kept").await?["result"]["executionResult"],
        1,
        "the session survives"
    );
    program.greenroom.finish().await
}

#[tokio::test]
async fn results_are_what_a_notebook_shows() -> Result<()> {
    let program = Program::start().await?;
    for (code, result) in [
        ("6*7", json!(42)),
        ("[1,2]", json!([1, 2])),
        ("print(1)", json!("")),
        ("None", json!("")),
        ("['a','b']", json!("['a', 'b']")),
        ("{'a':1}", json!("{'a': 1}")),
        ("True", json!("True")),
        ("'abc'", json!("'abc'")),
        ("float('nan')", json!("nan")),
        ("0.5", json!(0.5)),
    ] {
        let answer = program.run("results-0001", code).await?;
        assert_eq!(answer["result"]["executionResult"], result, "{code}: {answer}");
    }
    let body = json!({ "code": "2**100" }).to_string();
    let large = program
        .ask("POST /executions?identifier=results-0001", body)
        .await?;
    let text = String::from_utf8(large.body.to_vec())?;
    assert!(
        text.contains("\"executionResult\":1267650600228229401496703205376,"),
        "{text}"
    );
    let plot = program
        .run("results-0001", "import matplotlib.pyplot as plt; plt.plot([1])")
        .await?;
    let image = &plot["result"]["executionResult"];
    assert_eq!(
        (&image["type"], &image["format"]),
        (&json!("image"), &json!("png")),
        "{plot}"
    );
    assert!(
        image["base64_data"]
            .as_str()
            .is_some_and(|data| data.starts_with("iVBOR") && !data.contains('\n'))
    );
    let code = "from IPython.display import HTML\nfor n in 'ab': display(HTML(f'<b>{n}</b>'))\n3";
    let all = [("x-greenroom-outputs", "all")];
    let all = program
        .ask_with(
            "POST /executions?identifier=results-0001",
            &all,
            json!({ "code": code }).to_string(),
        )
        .await?
        .json()?;
    let outputs = all["result"]["outputs"].as_array().context("no outputs")?;
    let shown: Vec<&Value> = outputs
        .iter()
        .map(|output| {
            let html = &output["data"]["text/html"];
            if html.is_null() {
                &output["data"]["text/plain"]
            } else {
                html
            }
        })
        .collect();
    assert_eq!(shown, ["<b>a</b>", "<b>b</b>", "3"], "{all}");
    let quiet = program.run("results-0001", "x = 1").await?;
    assert_eq!(quiet["result"]["executionResult"], "");
    program.greenroom.finish().await
}

#[tokio::test]
async fn no_output_is_cut_in_silence() -> Result<()> {
    let program = Program::start().await?;
    let whole = program.run("output-0001", "print('x' * 500_000)").await?;
    assert_eq!(whole["result"]["stdout"].as_str().map(str::len), Some(500_001));
    assert_eq!(whole["result"].get("truncated"), None);
    let body =
        json!({ "code": "import sys; print('é' * 3_000_000); print('end', file=sys.stderr)" }).to_string();
    let cut = program
        .ask("POST /executions?identifier=output-0001", body)
        .await?;
    assert_eq!(cut.header("x-greenroom-truncated"), "stdout");
    let body = cut.json()?;
    assert_eq!(body["result"]["stdout"].as_str().map(str::len), Some(1 << 20));
    assert_eq!(
        body["result"]["truncated"],
        json!({ "stdout": 6_000_001 - (1 << 20), "stderr": 0 })
    );
    assert_eq!(body["result"]["stderr"], "end\n");
    let body = json!({ "code": "print('abcdef')", "outputStreamsMaxLength": 3 }).to_string();
    let asked = program
        .ask("POST /executions?identifier=output-0001", body)
        .await?
        .json()?;
    assert_eq!(
        (
            &asked["result"]["stdout"],
            &asked["result"]["truncated"]["stdout"]
        ),
        (&json!("abc"), &json!(4))
    );
    program.greenroom.finish().await
}

#[tokio::test]
async fn commands_run_in_shells_of_their_own() -> Result<()> {
    let program = Program::start().await?;
    let id = "conv-0002";
    program.shell(id, json!({ "shellCommand": "true" })).await?;
    let hello = program.shell(id, json!({ "shellCommand": "echo hello" })).await?;
    assert_eq!(
        masked(hello),
        json!({ "id": "*", "identifier": id, "executionType": "Synchronous", "status": "0", "exitCode": 0,
            "result": { "stdout": "hello\n", "stderr": "", "executionTimeInMilliseconds": "*" } })
    );
    let words = json!({ "execCommandAndArgs": ["python3", "-c", "import sys; print(sys.stdin.read() + sys.argv[1])", "it's $HOME"],
        "stdin": "in'put\n", "timeoutInSeconds": 30 });
    let words = program.shell(id, words).await?;
    assert_eq!(
        (&words["status"], &words["result"]["stdout"]),
        (&json!("0"), &json!("in'put\nit's $HOME\n"))
    );
    for (body, status) in [
        (json!({ "shellCommand": "exit 3" }), "3"),
        (json!({ "shellCommand": "kill -9 $$" }), "137"),
        (json!({ "execCommandAndArgs": ["false"] }), "1"),
        (json!({ "execCommandAndArgs": ["no-such-program"] }), "127"),
        (json!({ "shellCommand": "sleep 60", "timeoutInSeconds": 1 }), "-1"),
        (
            json!({ "shellCommand": "cd /; export LEFT=behind; exec 1>&-" }),
            "0",
        ),
        (
            json!({ "shellCommand": "test \"$PWD $LEFT\" = '/mnt/data '" }),
            "0",
        ),
        (
            json!({ "shellCommand": "[ -z \"$BASH_VERSION\" ]", "shellType": "sh" }),
            "0",
        ),
    ] {
        let answer = program.shell(id, body.clone()).await?;
        assert_eq!(answer["status"], status, "{body}: {answer}");
    }
    let script = format!("printf %s '{}' | wc -c", "y".repeat(90_000));
    let long = program.shell(id, json!({ "shellCommand": script })).await?;
    assert_eq!(
        long["result"]["stdout"].as_str().map(str::trim),
        Some("90000"),
        "{long}"
    );
    let both = json!({ "shellCommand": "a", "execCommandAndArgs": ["a"] }).to_string();
    let both = program
        .ask(&format!("POST /executions?identifier={id}"), both)
        .await?;
    assert_eq!(both.code()?, (400, "SessionRequestValidationFailed".into()));
    // Code and commands share the files.
    program.run(id, "open('made.txt', 'w').write('by code')").await?;
    let read = program
        .shell(id, json!({ "shellCommand": "cat made.txt" }))
        .await?;
    assert_eq!(read["result"]["stdout"], "by code");
    program.greenroom.finish().await
}

#[tokio::test]
async fn a_long_execution_is_polled_and_streamed() -> Result<()> {
    let program = Program::start().await?;
    let code = "import os, time\nwhile not os.path.exists('go'): time.sleep(.05)\nprint('done'); state = 5";
    let body = json!({ "codeInputType": "Inline", "executionType": "Asynchronous", "code": code, "timeoutInSeconds": 100 });
    let begun = program
        .ask(
            "POST /executions?identifier=conv-0001&api-version=2024-10-02-preview",
            body.to_string(),
        )
        .await?;
    let first = begun.json()?;
    assert_eq!(
        (begun.status, &first["status"], first.get("result")),
        (202, &json!("Running"), None),
        "{first}"
    );
    let location = begun.header("operation-location").to_owned();
    let expected = program.greenroom.url(&format!(
        "/pools/python/executions/{}?",
        begun.header("operation-id")
    ));
    assert!(location.starts_with(&expected), "{location}");
    program
        .shell("conv-0001", json!({ "shellCommand": "touch go" }))
        .await?;
    let ended = loop {
        let body: Value = program.http.get(&location).send().await?.json().await?;
        if body["status"] != "Running" {
            break body;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(
        (
            &ended["status"],
            &ended["executionType"],
            &ended["result"]["stdout"]
        ),
        (&json!("Succeeded"), &json!("Asynchronous"), &json!("done\n"))
    );
    assert_eq!(
        program.run("conv-0001", "state").await?["result"]["executionResult"],
        5,
        "the same kernel"
    );
    // The same operation-id again is the same execution.
    let once = json!({ "code": "state += 1; state" }).to_string();
    for _ in 0..2 {
        let own = [("operation-id", "only-once")];
        let again = program
            .ask_with("POST /executions?identifier=conv-0001", &own, once.clone())
            .await?
            .json()?;
        assert_eq!(
            (&again["id"], &again["result"]["executionResult"]),
            (&json!("only-once"), &json!(6)),
            "{again}"
        );
    }
    // Each line is printed once the one before has been read.
    let code = "for n in range(3):\n    print(n, flush=True)\n    while not os.path.exists(f'read-{n}'): time.sleep(.05)\n'end'";
    let code = json!({ "code": code }).to_string();
    let url = program
        .greenroom
        .url("/pools/python/executions?identifier=conv-0001");
    let request = program
        .http
        .post(url)
        .header("accept", "application/x-ndjson")
        .body(code);
    let mut body = request.send().await?.bytes_stream();
    let (mut text, mut lines) = (String::new(), 0);
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece?)?);
        if text.contains(&format!("\"text\":\"{lines}\\n\"")) {
            let read = json!({ "shellCommand": format!("touch read-{lines}") });
            program.shell("conv-0001", read).await?;
            lines += 1;
        }
    }
    assert_eq!(lines, 3, "told as it happens: {text}");
    let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    assert_eq!(last["execution"]["result"]["stdout"], "0\n1\n2\n", "{text}");
    program.greenroom.finish().await
}

#[tokio::test]
async fn an_accepted_execution_whose_sandbox_dies_has_failed() -> Result<()> {
    let program = Program::start().await?;
    let accepted = async |identifier: &str, body: Value| -> Result<String> {
        let line = format!("POST /executions?identifier={identifier}&api-version=2025-10-02-preview");
        let begun = program.ask(&line, body.to_string()).await?;
        ensure!(
            begun.status == 200 && begun.json()?.get("result").is_none(),
            "{}",
            begun.text()
        );
        Ok(begun.header("operation-id").to_owned())
    };
    let poll = async |identifier: &str, id: &str| {
        program
            .ask(&format!("GET /executions/{id}?identifier={identifier}&{NEW}"), "")
            .await
    };
    let code = json!({ "code": "import time; time.sleep(600)", "executionType": "Asynchronous" });
    let command = json!({ "shellCommand": "sleep 600", "executionType": "Asynchronous" });
    let code = accepted("dies-0001", code).await?;
    let command = accepted("dies-0001", command).await?;
    let running = poll("dies-0001", &code).await?;
    assert_eq!(
        (running.status, &running.json()?["status"]),
        (200, &json!("Running"))
    );

    let docker = Docker::connect().await?;
    for container in docker.containers(program.greenroom.deployment()).await? {
        let names = container.names.unwrap_or_default();
        // Those that wait for a conversation are called otherwise.
        if container.state == Some(ContainerSummaryStateEnum::RUNNING)
            && names.iter().any(|name| name.starts_with("/gr-"))
        {
            let id = container.id.context("no id")?;
            docker
                .api()
                .kill_container(&id, None::<KillContainerOptions>)
                .await?;
        }
    }
    let told = || async {
        let told = loop {
            let told = poll("dies-0001", &code).await?;
            ensure!(told.status == 200, "{} {}", told.status, told.text());
            if told.json()?["status"] != "Running" {
                break told.json()?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(
            told["status"] == "Failed" && told["executionType"] == "Asynchronous" && told["id"] == *code,
            "{told}"
        );
        ensure!(told["error"]["error"]["code"] == "ExecutionFailed", "{told}");
        let why = told["error"]["error"]["message"].as_str().unwrap_or_default();
        ensure!(why.contains("the sandbox ended"), "{told}");
        ensure!(
            told["result"]["stdout"] == "" && told["result"]["executionResult"] == "",
            "{told}"
        );
        let told = poll("dies-0001", &command).await?.json()?;
        ensure!(told["status"] == "-1" && told["exitCode"] == -1, "{told}");
        Ok(())
    };
    timeout(Duration::from_secs(60), told()).await??;
    // Nothing is made by asking; and what was never accepted is not there.
    assert_eq!(
        poll("dies-0001", "never").await?.code()?,
        (404, "ExecutionNotFound".into())
    );
    let other = poll("dies-0002", &code).await?;
    assert_eq!(
        other.code()?,
        (404, "ExecutionNotFound".into()),
        "somebody else's"
    );
    // The next execution says what became of the session, and the lost one stays lost.
    let next = program.run("dies-0001", "1").await?;
    assert_eq!(
        (&next["greenroom"]["session"], &next["greenroom"]["reason"]),
        (&json!("restarted"), &json!("ended_inside")),
        "{next}"
    );
    timeout(Duration::from_secs(60), told()).await??;
    program
        .ask(&format!("DELETE /session?identifier=dies-0001&{NEW}"), "")
        .await?;
    assert_eq!(
        poll("dies-0001", &code).await?.code()?,
        (404, "ExecutionNotFound".into())
    );
    program.greenroom.finish().await
}

#[tokio::test]
async fn a_model_and_a_program_share_a_session() -> Result<()> {
    let program = Program::start().await?;
    let model = program.greenroom.client(Era::Modern).await?;
    let first = model.python("shared-by-both", "x = 41").await?;
    assert_eq!(first.session(), "new");
    let answer = program.run("shared-by-both", "x += 1; x").await?;
    assert_eq!(
        (&answer["result"]["executionResult"], answer.get("greenroom")),
        (&json!(42), None)
    );
    let again = model.python("shared-by-both", "x").await?;
    assert_eq!((again.result(), again.session()), ("42", "existing"));
    // An id that Greenroom minted, and one that was copied wrongly.
    let minted = model.call("execute_code", json!({ "code": "y = 7" })).await?;
    let id = minted.field("conversation_id").to_owned();
    assert_eq!(program.run(&id, "y").await?["result"]["executionResult"], 7);
    let garbled = format!("{}zz", &id[..id.len() - 2]);
    let garbled = program
        .ask(
            &format!("POST /executions?identifier={garbled}"),
            "{\"code\":\"1\"}",
        )
        .await?;
    assert_eq!(garbled.code()?, (400, "SessionRequestValidationFailed".into()));
    // Ended by one, told to the other, once.
    let ended = program
        .ask(&format!("DELETE /session?identifier=shared-by-both&{NEW}"), "")
        .await?;
    assert_eq!(ended.status, 204);
    let told = model.python("shared-by-both", "1").await?;
    assert_eq!(told.session(), "restarted", "{}", told.text);
    let after = program.run("shared-by-both", "1").await?;
    assert_eq!(after.get("greenroom"), None, "{after}");
    let died = program.run("shared-by-both", "import os; os._exit(3)").await?;
    assert_eq!(
        (&died["status"], &died["greenroom"]["kernel"]),
        (&json!("Failed"), &json!("restarted")),
        "{died}"
    );
    model.close().await?;
    program.greenroom.finish().await
}

fn form(disposition: &str, content: &str) -> String {
    format!(
        "--X\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: application/octet-stream\r\n\r\n{content}\r\n--X--\r\n"
    )
}

#[tokio::test]
async fn files_with_odd_names_come_and_go() -> Result<()> {
    let program = Program::start().await?;
    let id = "identifier=files-0001";
    for (name, escaped) in [
        ("a b.txt", "a%20b.txt"),
        (
            "ünï_çode-日本.csv",
            "%C3%BCn%C3%AF_%C3%A7ode-%E6%97%A5%E6%9C%AC.csv",
        ),
        ("c++ & co; $@=#^(1).txt", "c++%20%26%20co;%20$@=%23%5E(1).txt"),
        ("100%.txt", "100%25.txt"),
        ("sub/deep/x.txt", "sub%2Fdeep%2Fx.txt"),
    ] {
        let stored = program
            .ask(
                &format!("POST /files?{id}&{NEW}"),
                form(&format!("name=\"file\"; filename=\"{name}\""), "abc"),
            )
            .await?;
        assert_eq!(stored.status, 200, "{name}: {:?}", stored.body);
        assert_eq!(stored.json()?["sizeInBytes"], 3);
        for target in [
            format!("/files/{escaped}/content?{id}&{NEW}"),
            format!("/files/content/{escaped}?{id}&{OLD}"),
        ] {
            let read = program.ask(&format!("GET {target}"), "").await?;
            assert_eq!((read.status, &read.body[..]), (200, &b"abc"[..]), "{target}");
        }
        let read = program
            .run(
                "files-0001",
                &format!("open('/mnt/data/' + {}).read()", json!(name)),
            )
            .await?;
        assert_eq!(read["result"]["executionResult"], "'abc'", "{read}");
        let gone = program
            .ask(&format!("DELETE /files/{escaped}?{id}&{NEW}"), "")
            .await?;
        assert_eq!(gone.status, 204, "{name}");
        let missing = program
            .ask(&format!("GET /files/{escaped}?{id}&{NEW}"), "")
            .await?;
        assert_eq!(missing.code()?, (404, "FileNotFound".into()));
    }
    // As two libraries write their parts.
    let odd = "name=file; filename=plain.txt; filename*=utf-8''%C3%A4%20b.txt";
    let to_a = format!("POST /files/upload?{id}&{OLD}");
    let stored = program.ask_with(&to_a, &[("content-type", "application/json")], form(odd, "ä"));
    assert_eq!(
        stored.await?.json()?["value"][0]["properties"]["filename"],
        "ä b.txt"
    );
    let list = program.ask(&format!("GET /files?{id}&{OLD}"), "").await?.json()?;
    assert_eq!(
        masked(list),
        json!({ "$id": "*", "value": [{ "$id": "*", "properties":
            { "$id": "*", "filename": "ä b.txt", "size": 2, "lastModifiedTime": "*" } }] })
    );
    program
        .run(
            "files-0001",
            "import os; os.symlink('/etc/passwd', 'out'); os.mkfifo('pipe')",
        )
        .await?;
    for (name, code) in [("out", (400, "FilePathInvalid")), ("pipe", (404, "FileNotFound"))] {
        let read = program
            .ask(&format!("GET /files/{name}/content?{id}&{NEW}"), "")
            .await?;
        let (status, word) = read.code()?;
        assert_eq!((status, word.as_str()), code, "{name}");
    }
    program.greenroom.finish().await
}

/// Memory of the server's process.
fn memory(program: &Program) -> Result<u64> {
    resident(program.greenroom.pid().context("it runs")?)
}

#[tokio::test]
async fn large_files_pass_in_constant_memory() -> Result<()> {
    let program = Program::start().await?;
    let id = "identifier=large-0001";
    let small = program
        .ask(
            &format!("POST /files?{id}&{NEW}"),
            form("name=file; filename=small", "x"),
        )
        .await?;
    assert_eq!(small.status, 200);
    let before = memory(&program)?;
    let block = Bytes::from(vec![b'z'; 1 << 20]);
    let head =
        Bytes::from("--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"large.bin\"\r\n\r\n");
    let blocks = std::iter::repeat_n(block, LARGE >> 20);
    let pieces = std::iter::once(head)
        .chain(blocks)
        .chain([Bytes::from("\r\n--X--\r\n")]);
    let body = reqwest::Body::wrap_stream(stream::iter(pieces.map(Ok::<_, std::io::Error>)));
    let stored = program.ask(&format!("POST /files?{id}&{NEW}"), body).await?;
    assert_eq!(
        (stored.status, &stored.json()?["sizeInBytes"]),
        (200, &json!(LARGE))
    );
    let uploaded = memory(&program)?;
    let url = program
        .greenroom
        .url(&format!("/pools/python/files/large.bin/content?{id}&{NEW}"));
    let mut read = program.http.get(url).send().await?.bytes_stream();
    let (mut bytes, mut most) = (0, uploaded);
    while let Some(piece) = read.next().await {
        bytes += piece?.len();
        most = most.max(memory(&program)?);
    }
    assert_eq!(bytes, LARGE);
    assert!(most < before + GROWS, "from {before} to {most} bytes");
    program.greenroom.finish().await
}

#[tokio::test]
async fn garbage_is_refused_and_leaves_nothing() -> Result<()> {
    let program = Program::start().await?;
    let address = program.greenroom.url("").replace("http://", "");
    for request in [
        "GET /pools/python/%ff%fe/%00?identifier=%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "GET /pools//////?&&&=== HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "POST /pools/python/executions?identifier=abcd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\u{1}{}",
        "POST /pools/python/files?identifier=abcd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 12\r\n\r\n--\r\n--\r\n--\r\n",
        "POST /pools/python/files?identifier=abcd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "DELETE /pools/python/files/%2e%2e%2f%2e%2e?identifier=abcd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address.trim_end_matches('/')).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer));
        read.await
            .with_context(|| format!("no answer to {request:?}"))??;
        let status = String::from_utf8_lossy(&answer)
            .chars()
            .skip(9)
            .take(3)
            .collect::<String>();
        assert!(status.starts_with('4'), "{request:?}: {status}");
    }
    // Uploads that break off leave no half of a file.
    let mut stream = TcpStream::connect(address.trim_end_matches('/')).await?;
    let head = "POST /pools/python/files?identifier=half-0001 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
    stream
        .write_all(
            format!(
                "{head}{}",
                &form("name=file; filename=half", &"x".repeat(5000))[..4000]
            )
            .as_bytes(),
        )
        .await?;
    stream.flush().await?;
    drop(stream);
    let list = program
        .ask("GET /files?identifier=half-0001&recursive=true", "")
        .await?
        .json()?;
    assert_eq!(list["value"], json!([]));
    let fine = program.run("half-0001", "6*7").await?;
    assert_eq!(fine["result"]["executionResult"], 42);
    program.greenroom.finish().await
}

#[tokio::test]
async fn a_pool_says_what_it_is_and_when_it_is_full() -> Result<()> {
    let config = Config {
        warm: 0,
        max: 2,
        pool: "preload = []\nevict_after = \"never\"\n".into(),
        ..Config::default()
    };
    let program = Program::with(&config).await?;
    let pool = program.ask(&format!("GET /metadata?{NEW}"), "").await?;
    let body = pool.json()?;
    assert_eq!(
        (pool.status, &body["runtimes"][0]["name"]),
        (200, &json!("python")),
        "{body}"
    );
    assert!(
        body["runtimes"][0]["version"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.")),
        "{}",
        body["runtimes"]
    );
    let packages = body["preInstalledPackages"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert!(
        packages.iter().any(|package| package["name"] == "numpy"),
        "{packages:?}"
    );
    assert_eq!(body["jupyterKernel"]["name"], "python3");
    for identifier in ["full-0001", "full-0002"] {
        program.run(identifier, "1").await?;
    }
    let full = program
        .ask("POST /executions?identifier=full-0003", "{\"code\":\"1\"}")
        .await?;
    assert_eq!(full.code()?, (429, "SessionsCountExceedsLimit".into()));
    assert_eq!(
        (full.header("retry-after"), &full.json()?["code"]),
        ("5", &json!("SessionsCountExceedsLimit"))
    );
    let listed = program
        .ask(&format!("POST /.management/listSessions?skip=0&{NEW}"), "")
        .await?
        .json()?;
    let names: Vec<&str> = listed["value"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["identifier"].as_str())
        .collect();
    assert_eq!(names, ["full-0001", "full-0002"]);
    program.greenroom.finish().await
}

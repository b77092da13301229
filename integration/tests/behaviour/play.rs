//! Plays the groups through a client, beside each other, and gathers all that went otherwise than expected.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, stream};
use greenroom_integration::{Answer, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::case::{Act, Case, Group, Then};

/// Conversations at once: as many as there are processors on a small machine.
const AT_ONCE: usize = 2;
/// Characters of an answer that a failure shows.
const SHOWN: usize = 3000;

/// Plays all groups.
///
/// # Errors
/// Something was not as expected: all of it is said.
pub(crate) async fn all(client: &Client, groups: Vec<Group>) -> Result<()> {
    let failures: Vec<String> = stream::iter(groups)
        .map(|group| play(client, group))
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .concat();
    ensure!(
        failures.is_empty(),
        "{} failures:\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    Ok(())
}

async fn play(client: &Client, group: Group) -> Vec<String> {
    let conversation = format!("behaviour-{}", group.name);
    let started = Instant::now();
    let mut player = Player {
        client,
        conversation,
        runs: HashMap::new(),
    };
    let mut failures = Vec::new();
    for case in &group.cases {
        let found = player.case(case).await;
        failures.extend(
            found
                .into_iter()
                .map(|why| format!("== {}: {}: {why}", group.name, case.name)),
        );
    }
    eprintln!(
        "{}: {} cases in {:.1} s",
        group.name,
        group.cases.len(),
        started.elapsed().as_secs_f64()
    );
    failures
}

struct Player<'a> {
    client: &'a Client,
    conversation: String,
    runs: HashMap<&'static str, String>,
}

impl Player<'_> {
    async fn case(&mut self, case: &Case) -> Vec<String> {
        let started = Instant::now();
        let answer = match self.act(case).await {
            Ok(answer) => answer,
            Err(error) => return vec![format!("{error:#}")],
        };
        let mut failures = expect(case, &answer);
        if started.elapsed() > case.within {
            failures.push(format!(
                "it took {:?}, at most {:?} is right",
                started.elapsed(),
                case.within
            ));
        }
        for then in &case.then {
            let failure = self.then(then).await;
            let failure = failure.unwrap_or_else(|error| Some(format!("{error:#}")));
            // Why the state is another is mostly said by the answer that left it.
            failures.extend(
                failure.map(|why| format!("{why}\n-- after this answer of its own:\n{}", shown(&answer))),
            );
        }
        failures
    }

    async fn act(&mut self, case: &Case) -> Result<Answer> {
        let run = |of: &str| self.runs.get(of).cloned().unwrap_or_default();
        let (tool, mut arguments) = match case.act {
            Act::Run { language, code } => ("execute_code", json!({ "language": language, "code": code })),
            Act::Background { language, code } => (
                "execute_code",
                json!({ "language": language, "code": code, "background": true }),
            ),
            Act::Poll(of) => ("get_run", json!({ "run_id": run(of), "wait_seconds": 30 })),
            Act::List => ("get_run", json!({})),
            Act::Cancel(of) => ("cancel_run", json!({ "run_id": run(of) })),
        };
        arguments["conversation_id"] = self.conversation.clone().into();
        for (name, value) in [
            ("timeout_seconds", case.timeout.map(Value::from)),
            ("max_output_chars", case.chars.map(Value::from)),
        ] {
            if let Some(value) = value {
                arguments[name] = value;
            }
        }
        let answer = self.client.call(tool, arguments).await?;
        self.runs.insert(case.name, answer.field("run_id").to_owned());
        Ok(answer)
    }

    async fn then(&self, then: &Then) -> Result<Option<String>> {
        let arguments =
            json!({ "conversation_id": self.conversation, "language": then.language, "code": then.code });
        let answer = self.client.call("execute_code", arguments).await?;
        let gave = if then.language == "python" {
            answer.result().to_owned()
        } else {
            let text = answer.text.split_once("stdout:\n").map_or("", |(_, rest)| rest);
            text.split("\n\n")
                .next()
                .unwrap_or_default()
                .trim_end()
                .to_owned()
        };
        Ok((gave != then.gives).then(|| {
            format!(
                "afterwards {:?} gave {gave:?}, not {:?}:\n{}",
                then.code, then.gives, answer.text
            )
        }))
    }
}

/// Of an answer's text what a failure shows.
fn shown(answer: &Answer) -> String {
    if answer.text.len() <= SHOWN {
        return answer.text.clone();
    }
    format!("{}…", &answer.text[..answer.text.floor_char_boundary(SHOWN)])
}

/// What of an answer is not as it has to be.
fn expect(case: &Case, answer: &Answer) -> Vec<String> {
    let mut failures = Vec::new();
    let shown = shown(answer);
    let mut wrong = |what: String| failures.push(format!("{what}:\n{shown}"));
    if !case.status.split('|').any(|status| status == answer.status()) {
        wrong(format!(
            "it ended as {:?}, not {:?}",
            answer.status(),
            case.status
        ));
    }
    if let Some(result) = case.result
        && result != answer.result()
    {
        wrong(format!("it gave {:?}, not {result:?}", answer.result()));
    }
    for text in case.says.iter().filter(|text| !answer.text.contains(**text)) {
        wrong(format!("it does not say {text:?}"));
    }
    for text in case.never.iter().filter(|text| answer.text.contains(**text)) {
        wrong(format!("it says {text:?}"));
    }
    if let Some(images) = case.images
        && images != answer.images.len()
    {
        wrong(format!("it has {} images, not {images}", answer.images.len()));
    }
    if answer.is_error {
        wrong("it is flagged as a failure of Greenroom".to_owned());
    }
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    if answer.text.contains(control) {
        wrong("its text has control characters".to_owned());
    }
    failures
}

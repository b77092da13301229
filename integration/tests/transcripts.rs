//! An agent's day, replayed: each task of `transcripts/` against the real thing, its answers word for word.
//!
//! `BLESS=1` writes the answers anew: what models read is then a diff that a person reviews.

use std::{collections::HashMap, fs};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use greenroom_integration::{
    Answer, Client, Config, Era, Greenroom,
    transcripts::{Part, Transcript, arguments, masked},
};
use serde_json::{Value, json};

#[tokio::test]
async fn answers_are_as_they_were_read() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        max: 8,
        pool: "disk = \"1GiB\"\n".to_owned(),
        // Longer than anything takes that is not meant to be handed back, on a busy machine.
        top: "patience = \"40s\"\n".to_owned(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    let transcripts = Transcript::all()?;
    ensure!(
        transcripts.len() >= 30,
        "thirty tasks are replayed, there are {}",
        transcripts.len()
    );
    let bless = std::env::var_os("BLESS").is_some();
    let play = |transcript| {
        let (greenroom, client) = (&greenroom, &client);
        async move {
            // A caller's patience counts from its call, and so would the boot of its sandbox.
            greenroom.wait_warm(1).await?;
            check(client, transcript, bless).await
        }
    };
    // Some outlast a caller's patience, and mostly wait: the others go on beside them, one by one.
    let (outlasting, others): (Vec<_>, Vec<_>) = transcripts.iter().partition(|one| outlasts(one));
    let outlasting = future::try_join_all(outlasting.into_iter().map(play));
    let others = stream::iter(others).then(play).try_collect::<Vec<_>>();
    let (outlasting, others) = future::try_join(outlasting, others).await?;
    let failures = [outlasting.concat(), others.concat()].concat();
    ensure!(
        failures.is_empty(),
        "{} differ; BLESS=1 writes them anew\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    client.close().await?;
    greenroom.finish().await
}

/// Every answer of a failure says what to do, or shows what the code itself says.
#[test]
fn failures_name_the_next_step() -> Result<()> {
    for transcript in Transcript::all()? {
        let name = transcript.name();
        for answer in transcript.answers() {
            let status = answer.lines().next().unwrap_or_default();
            let word = |words: &[&str]| words.iter().any(|word| status.starts_with(word));
            if word(&[
                "status: timed_out",
                "status: kernel_died",
                "status: running",
                "status: queued",
            ]) {
                ensure!(
                    answer.contains("\nnote: "),
                    "{name}: nothing says what is next:\n{answer}"
                );
            }
            if word(&["status: error"]) {
                let says = ["\ntraceback:", "\nstderr:", "\nnote: "]
                    .iter()
                    .any(|part| answer.contains(part));
                ensure!(says, "{name}: nothing says what went wrong:\n{answer}");
            }
        }
    }
    Ok(())
}

/// Whether one of its answers is that its run goes on.
fn outlasts(transcript: &Transcript) -> bool {
    let goes_on =
        |answer: &str| answer.starts_with("status: running") || answer.starts_with("status: queued");
    transcript.answers().any(goes_on)
}

async fn check(client: &Client, transcript: &Transcript, bless: bool) -> Result<Vec<String>> {
    let name = transcript.name();
    let replayed = replay(client, transcript).await.with_context(|| name.clone())?;
    if bless {
        fs::write(&transcript.path, replayed.text())?;
        return Ok(Vec::new());
    }
    let pairs = transcript.answers().zip(replayed.answers());
    let differ = pairs.filter(|(before, now)| before != now);
    let mut failures: Vec<String> = differ
        .map(|(before, now)| format!("== {name}\n-- as it was\n{before}\n-- now\n{now}"))
        .collect();
    if transcript.answers().count() != replayed.answers().count() {
        failures.push(format!("== {name}: a call has no answer yet"));
    }
    Ok(failures)
}

/// The same calls, with the answers of now.
async fn replay(client: &Client, transcript: &Transcript) -> Result<Transcript> {
    let mut parts = Vec::new();
    let mut runs = HashMap::new();
    for part in &transcript.parts {
        match part {
            Part::Prose(_) => parts.push(part.clone()),
            Part::Answer(_) => {}
            Part::Call(language, text) => {
                let (tool, mut arguments) = arguments(language, text)?;
                arguments["conversation_id"] = format!("task-{}", transcript.name()).into();
                remembered(&mut arguments, &runs);
                let answer = client.call(&tool, arguments).await?;
                runs.insert(runs.len() + 1, answer.field("run_id").to_owned());
                parts.push(part.clone());
                parts.push(Part::Answer(shown(&answer)));
            }
        }
    }
    let end = json!({ "conversation_id": format!("task-{}", transcript.name()) });
    client.call("reset_session", end).await?;
    Ok(Transcript {
        path: transcript.path.clone(),
        parts,
    })
}

/// A run is named in a transcript by the number of its call.
fn remembered(arguments: &mut Value, runs: &HashMap<usize, String>) {
    let number = arguments["run_id"]
        .as_u64()
        .and_then(|number| usize::try_from(number).ok());
    if let Some(run) = number.and_then(|number| runs.get(&number)) {
        arguments["run_id"] = run.clone().into();
    }
}

fn shown(answer: &Answer) -> String {
    let mut text = masked(answer.text.trim_end());
    for image in &answer.images {
        let kind = if image.starts_with(b"\x89PNG") {
            "PNG"
        } else {
            "JPEG"
        };
        text.push_str(&format!("\n\n<{kind} image>"));
    }
    text
}

//! Files outlive their sandbox: whatever ends it, the next one has them, and the answer says what is kept and what is
//! lost.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use greenroom_integration::{Answer, Client, Config, Docker, Era, Greenroom, S3};
use serde_json::json;
use tokio::time::{sleep, timeout};

const STORED: &str = "greenroom_archives_total{outcome=\"stored\"}";

fn config(pool: &str, top: &str) -> Config {
    Config {
        pool: format!("preload = []\n{pool}"),
        top: top.to_owned(),
        ..Config::default()
    }
}

/// The containers that conversations have or had.
async fn bound(docker: &Docker, greenroom: &Greenroom) -> Result<Vec<ContainerSummary>> {
    let mut containers = docker.containers(greenroom.deployment()).await?;
    containers.retain(|container| {
        let names = container.names.iter().flatten();
        names.into_iter().any(|name| name.starts_with("/gr-"))
    });
    Ok(containers)
}

/// Waits until a conversation's sandbox has ended by itself.
async fn ended(docker: &Docker, greenroom: &Greenroom) -> Result<()> {
    let exited = async {
        loop {
            let all = bound(docker, greenroom).await?;
            if all
                .iter()
                .any(|container| container.state == Some(ContainerSummaryStateEnum::EXITED))
            {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(90), exited)
        .await
        .context("no sandbox has ended")?
}

/// Removes a conversation's sandbox behind everybody's back.
async fn remove(docker: &Docker, greenroom: &Greenroom) -> Result<()> {
    let all = bound(docker, greenroom).await?;
    ensure!(all.len() == 1, "{all:?}");
    docker.remove(all[0].id.as_deref().context("an id")?).await
}

/// The one archive that there is.
fn archive(greenroom: &Greenroom) -> Result<PathBuf> {
    let home = greenroom.config_path();
    let folder = home.with_file_name("state/archives").join(greenroom.deployment());
    let mut files = std::fs::read_dir(folder)?;
    let file = files.next().context("no archive")??;
    ensure!(files.next().is_none(), "more than one archive");
    Ok(file.path())
}

async fn reset(client: &Client, conversation: &str, keep: bool) -> Result<Answer> {
    let arguments = json!({ "conversation_id": conversation, "keep_files": keep });
    client.call("reset_session", arguments).await
}

fn assert_kept(answer: &Answer, reason: &str) {
    assert_eq!(
        (answer.session(), answer.field("restart_reason")),
        ("restarted", reason),
        "{}",
        answer.text
    );
    assert!(
        answer
            .text
            .contains("variables are lost, files are kept as of 20"),
        "{}",
        answer.text
    );
    assert!(answer.field("files_kept_as_of").ends_with('Z'), "{}", answer.meta);
}

fn assert_lost(answer: &Answer, reason: &str) {
    assert_eq!(
        (answer.session(), answer.field("restart_reason")),
        ("restarted", reason),
        "{}",
        answer.text
    );
    assert!(
        answer.text.contains("gone, with its variables and files"),
        "{}",
        answer.text
    );
    assert_eq!(answer.field("files_kept_as_of"), "", "{}", answer.meta);
}

/// What is written by what a run has left behind counts too: it is archived shortly before the end.
#[tokio::test]
async fn a_conversation_that_was_idle_too_long_has_its_files_back() -> Result<()> {
    let greenroom = Greenroom::start(&config("idle = \"16s\"\n", "")).await?;
    let (docker, client) = (Docker::connect().await?, greenroom.client(Era::Modern).await?);
    let conversation = "comes-back-later";
    let code = "import os, subprocess\nx = 41\nos.makedirs('d/e')\nopen('d/e/f', 'w').write('before')\nos.symlink('d/e/f', 'l')\n\
                subprocess.Popen('sleep 5; echo late > late', shell=True)\n1";
    assert_eq!(client.python(conversation, code).await?.session(), "new");
    ended(&docker, &greenroom).await?;
    let look = "('x' in dir(), open('l').read(), open('late').read())";
    let back = client.python(conversation, look).await?;
    assert_eq!(back.result(), "(False, 'before', 'late\\n')", "{}", back.text);
    assert_kept(&back, "idle");
    let later = client.python(conversation, "1").await?;
    assert_eq!(later.session(), "existing", "{}", later.text);
    client.close().await?;
    greenroom.finish().await
}

/// Nobody is left who knew the sandbox, and no tombstone: the archive alone tells.
#[tokio::test]
async fn a_server_that_is_killed_and_a_sandbox_that_is_removed_cost_no_files() -> Result<()> {
    let mut greenroom = Greenroom::start(&config("", "")).await?;
    let (docker, client) = (Docker::connect().await?, greenroom.client(Era::Modern).await?);
    let conversation = "loses-everybody";
    client
        .python(conversation, "x = 41; open('f', 'w').write('kept')")
        .await?;
    greenroom.wait_metric(STORED, 1.0).await?;
    drop(client);
    greenroom.kill().await?;
    remove(&docker, &greenroom).await?;
    greenroom.restart().await?;
    let client = greenroom.client(Era::Modern).await?;
    let back = client
        .python(conversation, "('x' in dir(), open('f').read())")
        .await?;
    assert_eq!(back.result(), "(False, 'kept')", "{}", back.text);
    assert_kept(&back, "removed");

    // What has changed is archived before a server leaves, too.
    client.python(conversation, "open('f', 'a').write(' on')").await?;
    drop(client);
    assert!(greenroom.terminate().await?.success());
    remove(&docker, &greenroom).await?;
    // An archive that is damaged is refused as a whole, and that is said.
    greenroom.restart().await?;
    let client = greenroom.client(Era::Modern).await?;
    let back = client.python(conversation, "open('f').read()").await?;
    assert_eq!(back.result(), "'kept on'", "{}", back.text);
    drop(client);
    greenroom.kill().await?;
    remove(&docker, &greenroom).await?;
    let file = archive(&greenroom)?;
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() - 20;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    greenroom.restart().await?;
    let client = greenroom.client(Era::Modern).await?;
    let lost = client
        .bash(conversation, "ls -A /mnt/data | grep -v '^.greenroom$' | wc -l")
        .await?;
    assert!(lost.text.contains("\n0\n"), "{}", lost.text);
    assert_lost(&lost, "no_longer_on_record");
    assert!(
        lost.text.contains("the archive of its files is damaged"),
        "{}",
        lost.text
    );
    client.close().await?;
    greenroom.finish().await
}

/// A pool's seed is for new conversations: what a conversation has made of it is its own.
#[tokio::test]
async fn a_reset_keeps_the_files_if_it_is_asked_to() -> Result<()> {
    let seed = tempfile::tempdir()?;
    std::fs::write(seed.path().join("seed"), "as it was")?;
    std::fs::write(seed.path().join("unwanted"), "")?;
    let greenroom = Greenroom::start(&config(&format!("seed = {:?}\n", seed.path()), "")).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "starts-afresh";
    let code = "x = 41\nopen('seed', 'w').write('changed')\nimport os; os.remove('unwanted')";
    client.python(conversation, code).await?;
    let kept = reset(&client, conversation, true).await?;
    assert!(kept.text.contains("its files are kept"), "{}", kept.text);
    let look = "import os; ('x' in dir(), open('seed').read(), os.path.exists('unwanted'))";
    let after = client.python(conversation, look).await?;
    assert_eq!(after.result(), "(False, 'changed', False)", "{}", after.text);
    assert_kept(&after, "reset");
    let dropped = reset(&client, conversation, false).await?;
    assert!(
        dropped.text.contains("variables, files and runs are gone"),
        "{}",
        dropped.text
    );
    let after = client.python(conversation, look).await?;
    assert_eq!(after.result(), "(False, 'as it was', True)", "{}", after.text);
    assert_lost(&after, "reset");
    client.close().await?;
    greenroom.finish().await
}

/// It changes no time of the file: nobody sees that anything has changed.
#[tokio::test]
async fn what_was_written_through_a_mapping_is_kept() -> Result<()> {
    let greenroom = Greenroom::start(&config("", "")).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "maps-its-files";
    client
        .python(conversation, "open('f', 'wb').write(b'before')")
        .await?;
    let kept = reset(&client, conversation, true).await?;
    assert!(!kept.is_error, "{}", kept.text);
    let write = "import mmap\nwith open('f', 'r+b') as f:\n    with mmap.mmap(f.fileno(), 0) as m:\n        m[:] = b'after!'\n        m.flush()";
    client.python(conversation, write).await?;
    let kept = reset(&client, conversation, true).await?;
    assert!(!kept.is_error, "{}", kept.text);
    let back = client.python(conversation, "open('f').read()").await?;
    assert_eq!(back.result(), "'after!'", "{}", back.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn what_cannot_be_kept_is_said_before_it_is_lost() -> Result<()> {
    let greenroom = Greenroom::start(&config("", "archive_session = \"1MiB\"\n")).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "has-too-much";
    client
        .python(conversation, "x = 41; open('f', 'w').truncate(2 << 20)")
        .await?;
    let refused = reset(&client, conversation, true).await?;
    assert!(refused.is_error, "{}", refused.text);
    assert!(
        refused.text.contains("nothing was reset") && refused.text.contains("more than 1048576 bytes"),
        "{}",
        refused.text
    );
    let after = client.python(conversation, "x").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("41", "existing"),
        "{}",
        after.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn archives_can_be_off() -> Result<()> {
    let greenroom = Greenroom::start(&config("idle = \"4s\"\n", "archive = \"off\"\n")).await?;
    let (docker, client) = (Docker::connect().await?, greenroom.client(Era::Modern).await?);
    let conversation = "keeps-nothing";
    client.python(conversation, "open('f', 'w').write('x')").await?;
    let refused = reset(&client, conversation, true).await?;
    assert!(
        refused.is_error && refused.text.contains("setting archive"),
        "{}",
        refused.text
    );
    ended(&docker, &greenroom).await?;
    let after = client
        .python(conversation, "import os; os.path.exists('f')")
        .await?;
    assert_eq!(after.result(), "False", "{}", after.text);
    assert_lost(&after, "idle");
    assert!(archive(&greenroom).is_err(), "nothing was written");
    client.close().await?;
    greenroom.finish().await
}

/// The session that was idle longest makes room in a full pool, and has its files back when it is called again.
#[tokio::test]
async fn who_makes_room_for_another_loses_no_files() -> Result<()> {
    let config = Config {
        max: 2,
        ..config("evict_after = \"3s\"\n", "")
    };
    let greenroom = Greenroom::start(&config).await?;
    let client = greenroom.client(Era::Modern).await?;
    let (first, second) = ("makes-room-first", "makes-room-second");
    client
        .python(first, "x = 41; open('f', 'w').write('kept')")
        .await?;
    client.python(second, "y = 42").await?;
    sleep(Duration::from_secs(4)).await;
    let third = client.python("comes-to-a-full-house", "1").await?;
    assert_eq!(third.session(), "new", "{}", third.text);
    let stays = client.python(second, "y").await?;
    assert_eq!(
        (stays.result(), stays.session()),
        ("42", "existing"),
        "{}",
        stays.text
    );
    sleep(Duration::from_secs(4)).await;
    let back = client.python(first, "('x' in dir(), open('f').read())").await?;
    assert_eq!(back.result(), "(False, 'kept')", "{}", back.text);
    assert_kept(&back, "evicted");
    client.close().await?;
    greenroom.finish().await
}

fn in_bucket(store: &S3, key: &str) -> Config {
    let top = format!(
        "archive = \"s3://{}/green/room\"\narchive_endpoint = \"{}\"\n",
        S3::BUCKET,
        store.endpoint()
    );
    Config {
        env: S3::credentials(key),
        ..config("", &top)
    }
}

/// Twelve megabytes that do not compress go out in three parts.
#[tokio::test]
async fn archives_can_lie_in_a_bucket() -> Result<()> {
    let mut store = S3::start().await?;
    let greenroom = Greenroom::start(&in_bucket(&store, S3::KEY)).await?;
    let folder = format!("green/room/{}", greenroom.deployment());
    let (docker, client) = (Docker::connect().await?, greenroom.client(Era::Modern).await?);
    let conversation = "lies-in-a-bucket";
    let digest = "import hashlib; hashlib.sha256(open('f', 'rb').read()).hexdigest()";
    client
        .python(
            conversation,
            "import os; n = open('f', 'wb').write(os.urandom(12 << 20))",
        )
        .await?;
    let written = client.python(conversation, digest).await?;
    greenroom.wait_metric(STORED, 1.0).await?;
    assert_eq!(store.objects(&folder)?.len(), 1);

    remove(&docker, &greenroom).await?;
    let back = client.python(conversation, digest).await?;
    assert_kept(&back, "removed");
    assert_eq!(back.result(), written.result(), "{}", back.text);

    // Without the store everything works but this: and that is said.
    store.stop().await?;
    let unkept = reset(&client, conversation, true).await?;
    assert!(unkept.is_error, "{}", unkept.text);
    let still = client
        .python(conversation, "open('g', 'w').write('later')")
        .await?;
    assert_eq!(
        (still.status(), still.session()),
        ("ok", "existing"),
        "{}",
        still.text
    );
    store.resume().await?;
    let kept = reset(&client, conversation, true).await?;
    assert!(!kept.is_error, "{}", kept.text);
    let back = client.python(conversation, "open('g').read()").await?;
    assert_eq!(back.result(), "'later'", "{}", back.text);
    assert_kept(&back, "reset");

    // Who forgets the files forgets them there too: only the mark is left that says so.
    reset(&client, conversation, false).await?;
    let left = store.objects(&folder)?;
    assert!(
        left.len() == 1 && left[0].to_string_lossy().contains(".forgotten"),
        "{left:?}"
    );
    client.close().await?;
    greenroom.finish().await
}

/// A wrong key is met when the first archive is written; nobody's call fails for it.
#[tokio::test]
async fn a_bucket_that_lets_nobody_in_costs_the_files_and_no_call() -> Result<()> {
    let store = S3::start().await?;
    let greenroom = Greenroom::start(&in_bucket(&store, "SOMEBODY")).await?;
    let (docker, client) = (Docker::connect().await?, greenroom.client(Era::Modern).await?);
    let conversation = "has-no-place-there";
    let first = client
        .python(conversation, "open('f', 'w').write('lost')")
        .await?;
    assert_eq!(first.status(), "ok", "{}", first.text);
    greenroom
        .wait_metric("greenroom_archives_total{outcome=\"store\"}", 1.0)
        .await?;
    greenroom.wait_log("files were not archived").await?;
    greenroom.wait_log("403 Forbidden").await?;
    remove(&docker, &greenroom).await?;
    let after = client.python(conversation, "import os; os.listdir()").await?;
    assert_eq!(
        (after.session(), after.result(), after.field("restart_reason")),
        ("restarted", "[]", "removed"),
        "{}",
        after.text
    );
    client.close().await?;
    greenroom.finish().await
}

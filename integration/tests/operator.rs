//! What an operator sees and does from the command line, beside a running server and without one.

use anyhow::{Context, Result};
use greenroom_integration::{Config, Era, Greenroom};
use serde_json::Value;

const CONVERSATIONS: [&str; 3] = ["is-ended-by-name", "is-ended-with-all", "goes-on-for-now"];

async fn listed(server: &Greenroom, state: &str) -> Result<Vec<Value>> {
    let list: Vec<Value> = serde_json::from_str(&server.prints(&["sessions", "--json"]).await?)?;
    Ok(list.into_iter().filter(|one| one["state"] == state).collect())
}

#[tokio::test]
async fn sessions_are_listed_and_ended_and_their_callers_hear_of_it() -> Result<()> {
    let server = Greenroom::start(&Config::default()).await?;
    let client = server.client(Era::Modern).await?;
    for conversation in CONVERSATIONS {
        let code = "x = bytearray(64 << 20); open('f', 'wb').write(bytes(4 << 20))";
        client.python(conversation, code).await?;
    }
    server.wait_warm(1).await?;
    let bound = listed(&server, "bound").await?;
    assert_eq!((bound.len(), listed(&server, "warm").await?.len()), (3, 1));
    for session in &bound {
        let memory = session["memory_bytes"].as_u64().context("memory")?;
        assert!((64 << 20..1 << 30).contains(&memory), "{session}");
        let disk = session["disk_bytes"].as_u64().context("disk")?;
        assert!((3 << 20..64 << 20).contains(&disk), "{session}");
        assert!(session["cpu_milliseconds"].as_u64() > Some(0), "{session}");
        assert!(
            session["ends_in_seconds"].as_u64() <= Some(2 * 60 * 60),
            "{session}"
        );
        let shown = session.to_string();
        assert!(
            !shown.contains("ended"),
            "nothing of the conversation's id: {shown}"
        );
    }
    let table = server.prints(&["sessions"]).await?;
    assert_eq!(table.lines().count(), 5, "{table}");

    // One of them by its beginning, with the server running, which has a channel open to it and may not have archived
    // what was written just now.
    for conversation in CONVERSATIONS {
        client
            .python(conversation, "open('late', 'w').write('late')")
            .await?;
    }
    let one = bound[0]["session"].as_str().context("session")?;
    let ended = server.prints(&["sessions", "end", &one[..8]]).await?;
    assert!(
        ended.contains("ended 1 sessions") && ended.contains(one),
        "{ended}"
    );
    assert_eq!(listed(&server, "bound").await?.len(), 2);
    let unknown = server.prints(&["sessions", "end", &one[..8]]).await;
    assert!(
        format!("{:#}", unknown.unwrap_err()).contains("no session"),
        "it has ended"
    );
    let mut restarted = 0;
    for conversation in CONVERSATIONS {
        let after = client
            .python(conversation, "('x' in dir(), open('late').read())")
            .await?;
        let lost = after.session() == "restarted";
        assert_eq!(
            after.result(),
            if lost { "(False, 'late')" } else { "(True, 'late')" },
            "{}",
            after.text
        );
        assert!(
            !lost || after.field("restart_reason") == "reset",
            "{}",
            after.text
        );
        restarted += usize::from(lost);
    }
    assert_eq!(restarted, 1);

    // A sweep finds nothing to clear away while all is well.
    let swept = server.prints(&["sweep", "--dry-run"]).await?;
    assert_eq!(swept, "0 sandboxes and 0 images would be removed");
    let ended = server.prints(&["sessions", "end", "--all"]).await?;
    assert!(ended.contains("ended 3 sessions"), "{ended}");
    client.close().await?;
    server.finish().await
}

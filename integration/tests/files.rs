//! Files that mean harm, through the tools: what is refused, what is shown, and that nothing waits for ever.

use std::time::Duration;

use anyhow::Result;
use greenroom_integration::{Client, Config, Era, Greenroom};
use serde_json::{Value, json};
use tokio::time::timeout;

/// What a FIFO or a huge sparse file must not turn into for ever, on the busiest machine.
const PROMPT: Duration = Duration::from_secs(60);

async fn fresh() -> Result<(Greenroom, Client)> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    Ok((greenroom, client))
}

#[tokio::test]
async fn no_path_leads_out_and_none_waits_for_ever() -> Result<()> {
    let (greenroom, client) = fresh().await?;
    let id = "files-that-mean-harm";
    let traps = "set -e
ln -s /etc/passwd out; ln -s / root; ln -s ../../etc up; ln -s loop loop; ln -s fifo to_fifo
mkfifo fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'
mkdir inside; echo real > inside/real; ln -s inside/real link; echo laid";
    let laid = client.bash(id, traps).await?;
    assert!(laid.text.contains("laid"), "{}", laid.text);
    for path in [
        "out",
        "root/etc/passwd",
        "up/passwd",
        "loop",
        "fifo",
        "to_fifo",
        "socket",
        "../etc/passwd",
    ] {
        let read = json!({ "conversation_id": id, "path": path });
        let read = timeout(PROMPT, client.call("download_file", read)).await??;
        assert!(read.is_error, "{path}: {}", read.text);
        assert!(!read.text.contains("root:x:0"), "{path}: {}", read.text);
        let write = json!({ "conversation_id": id, "path": path, "content": "x" });
        let write = timeout(PROMPT, client.call("upload_file", write)).await??;
        assert!(write.is_error, "{path}: {}", write.text);
    }
    let read = json!({ "conversation_id": id, "path": "link" });
    let read = client.call("download_file", read).await?;
    assert!(!read.is_error && read.text.contains("real"), "{}", read.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn hostile_names_and_sizes_are_shown_and_no_more() -> Result<()> {
    let (greenroom, client) = fresh().await?;
    let id = "hostile-names-and-sizes";
    let make = r"
import os
for name in [b'two\nlines', b'\x1b[31mred', b'no\xfftext', b'n' * 255]: open(b'/mnt/data/' + name, 'w').close()
with open('sparse', 'wb') as f: f.truncate(15 << 30)
os.makedirs('/'.join(['deep'] + ['d'] * 400))
os.chdir('deep')
for _ in range(500): os.mkdir('d2'); os.chdir('d2')
os.chdir('/mnt/data'); 'made'
";
    let made = client.python(id, make).await?;
    assert_eq!(made.result(), "'made'", "{}", made.text);
    let list = json!({ "conversation_id": id, "recursive": true });
    let list = timeout(PROMPT, client.call("list_files", list)).await??;
    assert!(!list.is_error, "{}", list.text);
    assert!(
        !list.text.contains('\u{1b}') && !list.text.contains("two\nlines"),
        "{:?}",
        list.text
    );
    assert!(
        list.text.chars().count() < 30_000,
        "a listing keeps the text budget"
    );
    let list = client
        .call("list_files", json!({ "conversation_id": id }))
        .await?;
    let files = list.meta["files"].as_array().cloned().unwrap_or_default();
    let sparse = files.iter().find(|file| file["path"] == "sparse");
    assert_eq!(
        sparse.map(|file| file["size"].clone()),
        Some(Value::from(15_u64 << 30)),
        "{}",
        list.meta
    );
    let end = json!({ "conversation_id": id, "path": "sparse", "offset": (15_u64 << 30) - 4, "length": 4 });
    let end = timeout(PROMPT, client.call("download_file", end)).await??;
    assert!(!end.is_error, "{}", end.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn killing_the_files_process_harms_nobody_else() -> Result<()> {
    let (greenroom, client) = fresh().await?;
    let (id, neighbour) = ("kills-its-files-process", "keeps-its-files-in-peace");
    client.python(neighbour, "1").await?;
    let kill = r"
import os, time
def files_process():
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if open(f'/proc/{pid}/cmdline', 'rb').read().split(b'\0')[1:2] == [b'files']: yield int(pid)
        except OSError: pass
until, killed = time.time() + 5, 0
while time.time() < until:
    for pid in files_process(): os.kill(pid, 9); killed += 1
killed > 0
";
    let attack = client.python(id, kill);
    let work = async {
        for n in 0..10 {
            let upload =
                |id: &str| json!({ "conversation_id": id, "path": format!("f{n}"), "content": "kept" });
            let (own, other) = tokio::join!(
                timeout(PROMPT, client.call("upload_file", upload(id))),
                timeout(PROMPT, client.call("upload_file", upload(neighbour))),
            );
            // Its own may be refused, and is answered in any case.
            own??;
            let other = other??;
            assert!(!other.is_error, "{}", other.text);
        }
        Ok::<_, anyhow::Error>(())
    };
    let (attack, work) = tokio::join!(attack, work);
    work?;
    let attack = attack?;
    assert_eq!(attack.result(), "True", "{}", attack.text);
    assert_ne!(attack.session(), "restarted", "{}", attack.text);
    let after = json!({ "conversation_id": id, "path": "after", "content": "kept" });
    let after = client.call("upload_file", after).await?;
    assert!(!after.is_error, "{}", after.text);
    client.close().await?;
    greenroom.finish().await
}

/// Folders are watched while runs are at work, and gVisor once let a call wait for itself where that watch fired.
#[tokio::test]
async fn folders_made_in_folders_hold_nothing_up() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let id = "makes-folders-in-folders";
    for code in [
        "mkdir mod && echo 'answer = 42' > mod/tool.py",
        "mkdir mod/a && mkdir mod/a/b",
        "mkdir mod/a/b/c && touch mod/a/b/c/file",
        "mv mod/a/b/c/file mod/a/b/c/other && rmdir mod/a/b/c 2>/dev/null; rm -r mod/a; echo gone",
    ] {
        let answer = client.bash(id, code).await?;
        assert_eq!(answer.status(), "ok", "{}", answer.text);
    }
    // Python keeps what it compiles in a folder that it makes beside a module.
    let import = client.python(id, "from mod import tool; tool.answer").await?;
    assert_eq!(import.result(), "42", "{}", import.text);
    client.close().await?;
    greenroom.finish().await
}

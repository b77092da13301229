//! PID 1's duty: orphans are reaped, and nobody's children are. In a process of its own, since adopting
//! orphans is a process's affair as a whole.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use greenroom_agent::child::{reap_orphans, spawn};
use rustix::process::{getpid, set_child_subreaper};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep},
};

const SOON: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(Stdio::piped());
    command
}

#[tokio::test]
async fn orphans_are_reaped_and_children_are_left_to_their_holders() {
    set_child_subreaper(Some(getpid())).unwrap();
    let reaper = tokio::spawn(reap_orphans());

    // Each leaves a grandchild that dies after its parent did.
    let mut orphans = Vec::new();
    for _ in 0..20 {
        let mut parent = spawn(shell(
            "sh -c 'while [ -e /proc/'$$' ]; do :; done' >/dev/null & echo $!",
        ))
        .unwrap();
        let mut told = String::new();
        parent
            .take_stdout()
            .unwrap()
            .read_to_string(&mut told)
            .await
            .unwrap();
        orphans.push(told.trim().to_owned());
        assert!(parent.wait().await.unwrap().success());
    }
    let deadline = Instant::now() + SOON;
    for pid in &orphans {
        while Path::new("/proc").join(pid).exists() {
            assert!(
                Instant::now() < deadline,
                "{}",
                fs::read_to_string(format!("/proc/{pid}/stat")).unwrap()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    // Children that die before anybody waits for them still tell how.
    let mut children: Vec<_> = (0..20)
        .map(|code| (code, spawn(shell(&format!("exit {code}"))).unwrap()))
        .collect();
    for (code, child) in &mut children {
        assert_eq!(child.wait().await.unwrap().code(), Some(*code));
    }
    reaper.abort();
}

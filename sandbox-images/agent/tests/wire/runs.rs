//! Runs over the wire: events, replay, the queue, and every way to stop.

use greenroom_protocol::{KernelFate, RunEventKind, RunStatus};

use crate::support::python;

#[tokio::test(start_paused = true)]
async fn a_run_tells_its_story_in_order() {
    let bench = python();
    let client = bench.leased().await;
    let events = client.start("r1", "print hello\nresult 2").await.all().await;
    let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3]);
    assert!(matches!(events[0].kind, RunEventKind::Accepted { .. }));
    assert!(matches!(events[1].kind, RunEventKind::Started { .. }));
    assert!(matches!(&events[2].kind, RunEventKind::Output { text, .. } if text == "hello"));
    let RunEventKind::Finished(outcome) = &events[3].kind else {
        panic!("{events:?}")
    };
    assert_eq!(outcome.status, RunStatus::Ok);
    assert_eq!(outcome.result.as_deref(), Some("2"));
    assert_eq!(outcome.stdout.bytes, 5);
    assert_eq!(outcome.kernel, KernelFate::Kept);
}

//! Archives over agents of the test's making: what is stored is what comes back, and nothing else takes its place.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use greenroom::{
    archive::{Allowance, Archive, ArchiveEvent, ArchiveObserver, Place, Restored, SaveError, Saved},
    config::Size,
    conversation::{Owner, Principal, Secret},
    guest::{Guest, GuestError},
};
use greenroom_protocol::{
    ArchiveFault, EndReason, FilesFate, LeaseState, LeaseView, MARK_HEADER, PACKED_HEADER, Standing,
};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use support::{
    hostile::{Answer, Hostile, streaming, whole},
    server::name,
};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};

fn owner(key: &str) -> Owner {
    Secret::new([7; 32]).owner(&Principal::Key(key.to_owned()))
}

const MARK: &str = "0123456789abcdef-0123";

struct Room {
    archive: Archive,
    folder: TempDir,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            archive: archive_in(&folder),
            folder,
        }
    }

    /// As another server has it.
    fn archive_of_its_place(&self) -> Archive {
        archive_in(&self.folder)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("a/d").join(name("tea").to_string())
    }

    async fn save(&self, guest: &Guest) -> Result<Saved, SaveError> {
        self.archive.save(&name("tea"), guest).await
    }

    /// What an agent got that took an archive, and what came of it.
    async fn restore(&self) -> (Restored, Vec<(String, Result<Bytes, ()>)>) {
        let got = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&got);
        let taker = Hostile::answering(move |request| {
            let taken = Arc::clone(&taken);
            async move {
                let path = request.uri().to_string();
                let body = request.into_body().collect().await;
                let body = body.map(http_body_util::Collected::to_bytes).map_err(drop);
                taken.lock().unwrap().push((path, body));
                whole(r#"{"entries":1,"bytes":1}"#)
            }
        });
        let guest = taker.guest().await;
        let restored = self.archive.restore(&name("tea"), || guest.clone()).await;
        let got = got.lock().unwrap().clone();
        (restored, got)
    }

    async fn content(&self) -> Bytes {
        let (restored, mut got) = self.restore().await;
        assert!(matches!(restored, Restored::Kept { .. }), "{restored:?}");
        got.pop().unwrap().1.unwrap()
    }
}

fn archive_in(folder: &TempDir) -> Archive {
    let place = Place::Folder(folder.path().join("a"));
    let allowance = Allowance {
        session: Size::mib(4),
        total: Size::mib(64),
        keep: Duration::from_secs(3600),
    };
    Archive::open(&place, "d", Secret::new([7; 32]), allowance, Arc::new(())).unwrap()
}

fn packed(mark: &str, numbers: &str, mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(MARK_HEADER, HeaderValue::from_str(mark).unwrap());
    headers.insert(PACKED_HEADER, HeaderValue::from_str(numbers).unwrap());
    answer
}

/// An agent whose work directory is always this.
async fn holding(content: impl Into<Bytes>) -> Guest {
    let content = content.into();
    let agent = Hostile::answering(move |_| {
        let numbers = format!("2 {} 1", content.len());
        std::future::ready(packed(MARK, &numbers, whole(content.clone())))
    });
    agent.guest().await
}

#[tokio::test]
async fn what_was_stored_comes_back() {
    let room = Room::new();
    assert!(matches!(room.restore().await.0, Restored::Nothing));
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 31 % 251) as u8).collect();
    let saved = room.save(&holding(content.clone()).await).await;
    assert_eq!(saved.unwrap(), Saved::Stored);
    let bytes = fs::read(room.file()).unwrap();
    assert!(
        !bytes.windows(16).any(|window| window == &content[..16]),
        "in the clear"
    );
    let (restored, got) = room.restore().await;
    let Restored::Kept {
        fate: FilesFate::Kept {
            as_of_ms,
            left_out: 1,
        },
        age,
    } = restored
    else {
        panic!("{restored:?}")
    };
    assert!(age < Duration::from_secs(60), "{age:?}");
    assert_eq!(
        got[0].0,
        format!("http://agent/archive?as_of={as_of_ms}&left_out=1")
    );
    assert!(got[0].1.as_ref().unwrap() == &content);
    room.archive.forget(&name("tea"), SystemTime::now()).await;
    assert!(matches!(room.restore().await.0, Restored::Nothing));
}

#[tokio::test]
async fn an_archive_stays_where_an_agent_has_nothing_to_add() {
    let room = Room::new();
    room.save(&holding("one").await).await.unwrap();
    let agent = Hostile::answering(|request| {
        assert_eq!(
            (request.method(), request.uri().path_and_query().unwrap().as_str()),
            (&Method::GET, "/archive?max=4194304&since=-")
        );
        let mut answer = whole("");
        *answer.status_mut() = StatusCode::NO_CONTENT;
        std::future::ready(answer)
    });
    assert_eq!(room.save(&agent.guest().await).await.unwrap(), Saved::Unchanged);
    assert_eq!(room.content().await, "one");
}

#[tokio::test]
async fn nothing_but_a_whole_archive_takes_the_place_of_one() {
    let room = Room::new();
    room.save(&holding("one").await).await.unwrap();
    let mib = Bytes::from(vec![7; 1 << 20]);
    let many = move || {
        let mib = mib.clone();
        streaming(stream::repeat_with(move || mib.clone()).take(5))
    };
    let agents = [
        Hostile::saying("no headers"),
        Hostile::answering(|_| std::future::ready(packed("", "1 1 0", whole("no mark")))),
        Hostile::answering(|_| std::future::ready(packed("a/b", "1 1 0", whole("a strange mark")))),
        Hostile::answering(|_| std::future::ready(packed(&"a".repeat(65), "1 1 0", whole("a long mark")))),
        Hostile::answering(|_| std::future::ready(packed(MARK, "1 -1 0", whole("strange numbers")))),
        Hostile::answering(move |_| std::future::ready(packed(MARK, "1 1 0", many()))),
    ];
    for agent in agents {
        let refused = room.save(&agent.guest().await).await.unwrap_err();
        assert!(
            matches!(refused, SaveError::Guest(GuestError::Protocol(_))),
            "{refused:?}"
        );
    }
    // A body that breaks off, as a sandbox that ends breaks it.
    let breaks = Hostile::answering(|_| {
        let pieces = [
            Ok(Frame::data(Bytes::from(vec![7; 1 << 20]))),
            Err(std::io::Error::other("scripted")),
        ];
        let broken = StreamBody::new(stream::iter(pieces)).boxed_unsync();
        std::future::ready(packed(MARK, "1 1 0", Response::new(broken)))
    });
    let refused = room.save(&breaks.guest().await).await.unwrap_err();
    assert!(
        matches!(refused, SaveError::Guest(GuestError::Lost(_))),
        "{refused:?}"
    );
    assert_eq!(room.content().await, "one");
    assert_eq!(
        fs::read_dir(room.file().parent().unwrap()).unwrap().count(),
        1,
        "a draft is left"
    );
    room.save(&holding("two").await).await.unwrap();
    assert_eq!(room.content().await, "two");
}

#[tokio::test]
async fn a_damaged_archive_never_looks_whole_to_a_sandbox() {
    let room = Room::new();
    let content: Vec<u8> = (0..1_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    room.save(&holding(content).await).await.unwrap();
    let good = fs::read(room.file()).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (bytes, asked) in [
        (flipped(10), false),
        (flipped(good.len() - 1), true),
        (good[..good.len() - 1].to_vec(), true),
        (good[..200].to_vec(), true),
        ([good.as_slice(), b"x"].concat(), true),
        (Vec::new(), false),
    ] {
        fs::write(room.file(), &bytes).unwrap();
        let (restored, got) = room.restore().await;
        assert!(
            matches!(restored, Restored::Refused(ArchiveFault::Corrupt)),
            "{restored:?}"
        );
        // Where its header is good a sandbox is asked to take it, and its body breaks off.
        assert!(got.iter().all(|(_, body)| body.is_err()), "{} bytes", bytes.len());
        assert!(asked || got.is_empty());
    }
    // The next good one replaces it.
    room.save(&holding("two").await).await.unwrap();
    assert_eq!(room.content().await, "two");
}

#[tokio::test]
async fn what_was_forgotten_while_it_was_archived_does_not_come_back() {
    let room = Room::new();
    let (begun, forgotten) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&forgotten));
    let agent = Hostile::answering(move |_| {
        let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
        let rest = stream::once(async move {
            begins.notify_one();
            goes_on.notified().await;
            Bytes::from("the rest")
        });
        std::future::ready(packed(MARK, "1 1 0", streaming(rest)))
    });
    let guest = agent.guest().await;
    let other_server = room.archive_of_its_place();
    let forget = async {
        begun.notified().await;
        other_server.forget(&name("tea"), SystemTime::now()).await;
        forgotten.notify_one();
    };
    let (saved, ()) = tokio::join!(room.save(&guest), forget);
    assert!(matches!(saved, Err(SaveError::Forgotten)), "{saved:?}");
    assert!(matches!(room.restore().await.0, Restored::Nothing));
    // Later ones may come.
    later().await;
    assert_eq!(room.save(&holding("new").await).await.unwrap(), Saved::Stored);
    assert_eq!(room.content().await, "new");
}

/// A server that is killed between the last byte and its last look leaves an archive that nobody wants any more.
#[tokio::test]
async fn an_archive_that_comes_after_it_was_forgotten_is_none() {
    let room = Room::new();
    room.save(&holding("one").await).await.unwrap();
    let archived = fs::read(room.file()).unwrap();
    later().await;
    room.archive.forget(&name("tea"), SystemTime::now()).await;
    assert!(!room.file().exists());
    fs::write(room.file(), &archived).unwrap();
    assert!(!room.archive.has(&name("tea")).await);
    let (restored, got) = room.restore().await;
    assert!(matches!(restored, Restored::Nothing), "{restored:?}");
    assert!(got.is_empty());
    // Its mark is not to keep the sandbox from giving its files: it is the same, in another sandbox.
    later().await;
    assert_eq!(room.save(&holding("one").await).await.unwrap(), Saved::Stored);
    assert_eq!(room.content().await, "one");

    fs::write(room.file(), &archived).unwrap();
    let mark = room.file().with_extension("forgotten");
    age(&mark, Duration::from_secs(2 * 3600));
    let sweeping = room.archive_of_its_place();
    tokio::time::timeout(Duration::from_secs(30), async {
        while mark.exists() {
            later().await;
        }
    })
    .await
    .unwrap();
    assert!(
        !room.file().exists(),
        "what the mark kept away comes back without it"
    );
    drop(sweeping);
}

/// Times are counted in milliseconds.
async fn later() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn age(file: &Path, by: Duration) {
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

/// Two servers, or a reset while a vigil is at work: who comes second waits for the first, and archives what it may
/// have missed.
#[tokio::test]
async fn files_that_are_being_archived_already_are_waited_for() {
    let room = Room::new();
    let asked = Arc::new(Mutex::new(0));
    let agent = Hostile::answering(move |_| {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        let mut answer = whole(r#"{"kind":"conflict","message":"being archived already"}"#);
        *answer.status_mut() = StatusCode::CONFLICT;
        if *asked == 3 {
            answer = packed(MARK, "1 3 0", whole("one"));
        }
        std::future::ready(answer)
    });
    assert!(!room.archive.has(&name("tea")).await);
    assert_eq!(room.save(&agent.guest().await).await.unwrap(), Saved::Stored);
    assert_eq!(room.content().await, "one");
    assert!(room.archive.has(&name("tea")).await);
}

#[tokio::test]
async fn a_store_that_fails_is_said() {
    let room = Room::new();
    fs::remove_dir_all(room.folder.path().join("a")).unwrap();
    fs::write(room.folder.path().join("a"), "").unwrap();
    let refused = room.save(&holding("one").await).await.unwrap_err();
    assert!(matches!(refused, SaveError::Store(_)), "{refused:?}");
    let (restored, got) = room.restore().await;
    assert!(
        matches!(restored, Restored::Refused(ArchiveFault::Unreadable)),
        "{restored:?}"
    );
    assert!(got.is_empty());
}

/// Hears of sweeps.
#[derive(Debug)]
struct Sweeps(mpsc::Sender<(u64, usize)>);

impl ArchiveObserver for Sweeps {
    fn observe(&self, event: ArchiveEvent) {
        if let ArchiveEvent::Swept { bytes, gone } = event {
            self.0.try_send((bytes, gone)).unwrap();
        }
    }
}

#[tokio::test]
async fn an_archive_that_cannot_be_removed_keeps_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("d");
    // The store lists what is in a folder by its own name, and removes no folder.
    fs::create_dir_all(folder.join("stuck")).unwrap();
    for (file, hours) in [("stuck/stuck", 2), ("old", 3), ("new", 0)] {
        let file = folder.join(file);
        fs::write(&file, "four").unwrap();
        age(&file, Duration::from_secs(3600 * hours));
    }
    let (told, mut swept) = mpsc::channel(16);
    let allowance = Allowance {
        session: Size::mib(4),
        total: Size::mib(64),
        keep: Duration::from_secs(3600),
    };
    let place = Place::Folder(dir.path().to_owned());
    let archive = Archive::open(
        &place,
        "d",
        Secret::new([7; 32]),
        allowance,
        Arc::new(Sweeps(told)),
    )
    .unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(30), swept.recv());
    assert_eq!(heard.await.unwrap(), Some((8, 1)));
    let there = |file: &str| folder.join(file).exists();
    assert_eq!(
        [there("stuck/stuck"), there("old"), there("new")],
        [true, false, true]
    );
    drop(archive);
}

/// What is refused would be replaced by what the new sandbox has: a store is asked once more.
#[tokio::test]
async fn a_store_that_is_back_in_a_moment_has_lost_nothing() {
    let room = Room::new();
    room.save(&holding("one").await).await.unwrap();
    let (store, away) = (room.folder.path().join("a"), room.folder.path().join("b"));
    fs::rename(&store, &away).unwrap();
    fs::write(&store, "").unwrap();
    let back = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fs::remove_file(&store).unwrap();
        fs::rename(&away, &store).unwrap();
    };
    let (content, ()) = tokio::join!(room.content(), back);
    assert_eq!(content, "one");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dawdles_takes_nobodys_turn_for_long() {
    let room = Room::new();
    let agent = Hostile::answering(|_| {
        let drops = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Some((Bytes::from(vec![7; 1024]), ()))
        });
        std::future::ready(packed(MARK, "1 1 0", streaming(drops)))
    });
    let guest = agent.guest().await;
    let began = tokio::time::Instant::now();
    let refused = room.save(&guest).await.unwrap_err();
    assert!(matches!(refused, SaveError::Dawdles), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// However much one principal archives, another's files are not what makes room for it.
#[tokio::test]
async fn who_has_most_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::Folder(dir.path().to_owned());
    let (told, mut swept) = mpsc::channel(16);
    let archive = |total: Size, told: mpsc::Sender<_>| {
        let allowance = Allowance {
            session: Size::mib(4),
            total,
            keep: Duration::from_secs(3600),
        };
        let observer = Arc::new(Sweeps(told));
        Archive::open(&place, "d", Secret::new([7; 32]), allowance, observer).unwrap()
    };
    // Nothing can be made of it that is shorter.
    let mut state = 1_u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(900 << 10)
    .collect();
    let room = archive(Size::mib(64), told.clone());
    let mut guests = Vec::new();
    for (conversation, whose) in [
        ("one", "little"),
        ("two", "much"),
        ("three", "much"),
        ("four", "much"),
    ] {
        let guest = holding(content.clone()).await;
        room.watch(
            &name(conversation),
            &guest,
            owner(whose),
            Duration::from_secs(7200),
        );
        assert_eq!(
            room.save(&name(conversation), &guest).await.unwrap(),
            Saved::Stored
        );
        guests.push(guest);
    }
    drop(room);
    // The first one is the oldest of all, and there is room for three.
    let room = archive(Size::mib(3), told);
    let gone = async { while swept.recv().await.unwrap().1 == 0 {} };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
    let mut there = Vec::new();
    for conversation in ["one", "two", "three", "four"] {
        there.push(room.has(&name(conversation)).await);
    }
    assert_eq!(there, [true, false, true, true]);
}

/// An agent with a lease, that counts what it is asked for.
fn leased(ends_in_ms: u64, asked: Arc<Mutex<Vec<String>>>) -> Hostile {
    let view = LeaseState::Bound(LeaseView {
        key: name("tea").digest(),
        standing: Standing::Existing,
        age_ms: 1,
        idle_ms: 1,
        ends_in_ms,
        ends_by: EndReason::Idle,
    });
    let view = Bytes::from(serde_json::to_vec(&view).unwrap());
    Hostile::answering(move |request| {
        let (path, view) = (request.uri().to_string(), view.clone());
        asked.lock().unwrap().push(path.clone());
        async move {
            match path.as_str() {
                "http://agent/lease" => whole(view),
                path if path.contains("/lease?wait=") => std::future::pending().await,
                path if path.contains("/files/") => whole(r#"{"kind":"file","count":1}"#),
                _ => packed(MARK, "1 3 0", whole("one")),
            }
        }
    })
}

#[tokio::test]
async fn a_session_is_archived_before_its_end_and_before_its_servers() {
    for (ends_in_ms, stirs) in [(1000, false), (7_200_000, true)] {
        let room = Room::new();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let guest = leased(ends_in_ms, Arc::clone(&asked)).guest().await;
        room.archive
            .watch(&name("tea"), &guest, owner("a"), Duration::from_secs(7200));
        if stirs {
            guest.delete_file("f").await.unwrap();
            room.archive.close(Duration::from_secs(30)).await;
        } else {
            let stored = async {
                while !room.file().exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), stored)
                .await
                .unwrap();
        }
        assert_eq!(room.content().await, "one", "{:?}", asked.lock().unwrap());
        let asked = asked.lock().unwrap();
        let archives = asked.iter().filter(|path| path.contains("/archive")).count();
        assert_eq!(archives, 1, "{asked:?}");
    }
    // One that nothing has happened to is left alone.
    let room = Room::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let guest = leased(7_200_000, Arc::clone(&asked)).guest().await;
    room.archive
        .watch(&name("tea"), &guest, owner("a"), Duration::from_secs(7200));
    room.archive.close(Duration::from_secs(30)).await;
    assert!(!asked.lock().unwrap().iter().any(|path| path.contains("/archive")));
}

/// What is written through a mapping changes no time of its file: an agent that says that nothing has changed may be
/// wrong where something has run.
#[tokio::test]
async fn before_an_end_an_agent_is_not_believed_where_something_has_run_since() {
    let room = Room::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let guest = leased(7_200_000, Arc::clone(&asked)).guest().await;
    room.archive
        .watch(&name("tea"), &guest, owner("a"), Duration::from_secs(7200));
    room.save(&guest).await.unwrap();
    room.save(&guest).await.unwrap();
    guest.delete_file("f").await.unwrap();
    room.save(&guest).await.unwrap();
    room.save(&guest).await.unwrap();
    // Whoever does not watch it knows nothing of it.
    let elsewhere = room.archive_of_its_place();
    elsewhere.save(&name("tea"), &guest).await.unwrap();
    let asked = asked.lock().unwrap();
    let archives = asked.iter().filter(|path| path.contains("/archive"));
    let since = archives.map(|path| path.split_once("since=").map(|(_, mark)| mark));
    assert_eq!(
        since.collect::<Vec<_>>(),
        [None, Some(MARK), Some("-"), Some(MARK), Some("-")]
    );
}

/// A server may come to have another channel to a sandbox that it watches, through which the changes come from then on.
#[tokio::test]
async fn a_watched_session_is_watched_by_its_newest_guest() {
    let room = Room::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let agent = leased(7_200_000, Arc::clone(&asked));
    let (old, new) = (agent.guest().await, agent.guest().await);
    for guest in [&old, &new] {
        room.archive
            .watch(&name("tea"), guest, owner("a"), Duration::from_secs(7200));
    }
    new.delete_file("f").await.unwrap();
    room.archive.close(Duration::from_secs(30)).await;
    assert_eq!(room.content().await, "one", "{:?}", asked.lock().unwrap());
}

#[tokio::test]
async fn an_archive_that_a_vigil_has_begun_is_seen_through_at_the_end() {
    let room = Room::new();
    let (begun, on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&on));
    let plain = leased(1000, Arc::default()).guest().await;
    let view = serde_json::to_vec(&plain.lease_state().await.unwrap()).unwrap();
    let agent = Hostile::answering(move |request| {
        let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
        let answer = if request.uri().path() == "/lease" {
            whole(view.clone())
        } else {
            let rest = stream::once(async move {
                begins.notify_one();
                goes_on.notified().await;
                Bytes::from("one")
            });
            packed(MARK, "1 3 0", streaming(rest))
        };
        std::future::ready(answer)
    });
    let guest = agent.guest().await;
    room.archive
        .watch(&name("tea"), &guest, owner("a"), Duration::from_secs(7200));
    begun.notified().await;
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        on.notify_one();
    };
    tokio::join!(room.archive.close(Duration::from_secs(30)), release);
    assert_eq!(room.content().await, "one");
}

/// A vigil asks about what stirs while others stir: neither may wait for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_vigil_holds_nobody_up() {
    let room = Room::new();
    let guest = leased(7_200_000, Arc::default()).guest().await;
    room.archive
        .watch(&name("tea"), &guest, owner("a"), Duration::from_secs(7200));
    let calls = (0..8).map(|_| {
        let guest = guest.clone();
        tokio::spawn(async move {
            for _ in 0..200 {
                guest.delete_file("f").await.unwrap();
            }
        })
    });
    let calls = futures_util::future::try_join_all(calls.collect::<Vec<_>>());
    tokio::time::timeout(Duration::from_secs(60), calls)
        .await
        .unwrap()
        .unwrap();
    room.archive.close(Duration::from_secs(30)).await;
    assert_eq!(room.content().await, "one");
}

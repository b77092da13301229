//! The work directory through [`Files`].

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use greenroom_agent::files::{Depth, FileRead, Files, WriteMode};
use greenroom_protocol::{
    ByteRange, FileKind, RefusalKind,
    limits::{JSON_BYTES, LIST_ENTRIES},
};
use tokio::time::timeout;

use crate::desk::{Desk, desks, save};

/// What must not block is given this long on a machine that has no processor to spare.
const PROMPT: Duration = Duration::from_secs(30);

fn body(text: &'static str) -> impl futures_util::Stream<Item = Result<Bytes, io::Error>> + Send {
    stream::iter(
        text.as_bytes()
            .chunks(3)
            .map(|chunk| Ok(Bytes::from_static(chunk))),
    )
}

fn breaking_body() -> impl futures_util::Stream<Item = Result<Bytes, io::Error>> + Send {
    let first = Ok(Bytes::from(vec![b'x'; 700 << 10]));
    stream::iter([first, Err(io::ErrorKind::ConnectionReset.into())])
}

async fn text(mut read: FileRead) -> String {
    let mut bytes = Vec::new();
    while let Some(piece) = read.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).unwrap()
}

async fn read(files: &Files, path: &str) -> Result<String, RefusalKind> {
    match files.open_read(path, None).await {
        Ok(read) => Ok(text(read).await),
        Err(refusal) => Err(refusal.kind),
    }
}

async fn names(files: &Files, path: &str, depth: Depth) -> Vec<String> {
    let list = files.list(path, depth).await.unwrap();
    assert_eq!(list.omitted, 0);
    list.entries.into_iter().map(|entry| entry.path).collect()
}

#[tokio::test]
async fn a_file_is_written_read_listed_and_deleted() {
    for Desk { files, dir, .. } in desks() {
        let entry = files
            .write("a/b/c.txt", WriteMode::Replace, body("hello"))
            .await
            .unwrap();
        assert_eq!(
            (entry.path.as_str(), entry.kind, entry.size),
            ("a/b/c.txt", FileKind::File, 5)
        );
        assert!(entry.modified_ms > 1_500_000_000_000);
        let absolute = dir.path().join("a/b/c.txt");
        assert_eq!(read(&files, absolute.to_str().unwrap()).await.unwrap(), "hello");
        assert_eq!(names(&files, "", Depth::Tree).await, ["a", "a/b", "a/b/c.txt"]);
        assert_eq!(names(&files, "a/b/c.txt", Depth::Folder).await, ["a/b/c.txt"]);
        assert_eq!(fs::metadata(&absolute).unwrap().mode() & 0o777, 0o644);

        files
            .write("a/b/c.txt", WriteMode::Append, body(" again"))
            .await
            .unwrap();
        assert_eq!(read(&files, "a/b/c.txt").await.unwrap(), "hello again");
        let deleted = files.delete("a").await.unwrap();
        assert_eq!((deleted.kind, deleted.count), (FileKind::Directory, 3));
        assert_eq!(read(&files, "a/b/c.txt").await, Err(RefusalKind::NotFound));
        assert_eq!(files.delete("a").await.unwrap_err().kind, RefusalKind::NotFound);
    }
}

#[tokio::test]
async fn the_guest_owns_what_is_written_for_it() {
    for desk in desks() {
        save(&desk.files, "new/file", "x").await.unwrap();
        for path in ["new", "new/file"] {
            let uid = fs::metadata(desk.dir.path().join(path)).unwrap().uid();
            assert_eq!(uid, desk.uid(), "{path}");
        }
    }
}

#[tokio::test]
async fn a_path_that_breaks_a_rule_is_refused_by_name() {
    let long = "n".repeat(256);
    for Desk { files, .. } in desks() {
        for path in ["../x", "/etc/passwd", "a\0b", &long, "x/"] {
            let refusal = files
                .write(path, WriteMode::Replace, body("x"))
                .await
                .unwrap_err();
            assert_eq!(
                refusal.kind,
                RefusalKind::BadPath,
                "{path:?}: {}",
                refusal.message
            );
        }
        assert_eq!(files.delete("").await.unwrap_err().kind, RefusalKind::BadPath);
        assert_eq!(
            names(&files, "", Depth::Tree).await,
            [""; 0],
            "nothing half-written"
        );
    }
}

#[tokio::test]
async fn folders_are_no_files_and_files_no_folders() {
    for Desk { files, dir, .. } in desks() {
        save(&files, "file", "").await.unwrap();
        save(&files, "folder/file", "").await.unwrap();
        for path in ["folder", ""] {
            assert_eq!(read(&files, path).await, Err(RefusalKind::Conflict));
            for mode in [WriteMode::Replace, WriteMode::Append] {
                let refusal = files.write(path, mode, body("x")).await.unwrap_err();
                assert_eq!(refusal.kind, RefusalKind::Conflict, "{}", refusal.message);
            }
        }
        let refusal = files
            .write("file/below", WriteMode::Replace, body("x"))
            .await
            .unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Conflict, "{}", refusal.message);
        assert!(dir.path().join("file").is_file());
    }
}

#[tokio::test]
async fn links_that_stay_inside_are_followed() {
    for Desk { files, dir, .. } in desks() {
        save(&files, "data/real.txt", "real").await.unwrap();
        let at = |path: &str| dir.path().join(path);
        symlink("data", at("folder")).unwrap();
        symlink(at("data"), at("absolute")).unwrap();
        symlink("../data/real.txt", at("data/up.txt")).unwrap();
        symlink("../data/./../data/new.txt", at("data/dangling.txt")).unwrap();
        for path in [
            "folder/real.txt",
            "absolute/real.txt",
            "data/up.txt",
            "folder/up.txt",
        ] {
            assert_eq!(read(&files, path).await.as_deref(), Ok("real"), "{path}");
        }
        files
            .write("folder/up.txt", WriteMode::Replace, body("changed"))
            .await
            .unwrap();
        assert_eq!(read(&files, "data/real.txt").await.unwrap(), "changed");
        assert!(at("data/up.txt").is_symlink(), "the link itself stays");
        files
            .write("data/dangling.txt", WriteMode::Replace, body("made"))
            .await
            .unwrap();
        assert_eq!(read(&files, "data/new.txt").await.unwrap(), "made");
        assert!(
            names(&files, "folder", Depth::Folder)
                .await
                .contains(&"folder/real.txt".to_owned())
        );
        assert_eq!(files.delete("folder").await.unwrap().kind, FileKind::Symlink);
        assert!(at("data/real.txt").exists(), "what the link led to stays");
    }
}

#[tokio::test]
async fn links_that_lead_out_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for Desk { files, dir, .. } in desks() {
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("d")).unwrap();
        let name = outside.path().file_name().unwrap();
        symlink(outside.path(), at("out")).unwrap();
        symlink(Path::new("..").join(name), at("d/up")).unwrap();
        symlink(Path::new("../..").join(name), at("d/upper")).unwrap();
        symlink(outside.path().join("secret"), at("d/file")).unwrap();
        symlink("out", at("d/chain")).unwrap();
        symlink("../out/new", at("d/two")).unwrap();
        symlink("..", at("parent")).unwrap();
        symlink("/", at("root")).unwrap();
        for path in [
            "out/secret",
            "d/upper/secret",
            "d/file",
            "parent/x",
            "root/etc/passwd",
            "d/two",
        ] {
            assert_eq!(read(&files, path).await, Err(RefusalKind::BadPath), "{path}");
            for mode in [WriteMode::Replace, WriteMode::Append] {
                let refusal = files.write(path, mode, body("x")).await.unwrap_err();
                assert_eq!(refusal.kind, RefusalKind::BadPath, "{path}");
            }
        }
        for path in ["out", "parent", "root", "d/upper"] {
            assert_eq!(
                files.list(path, Depth::Tree).await.unwrap_err().kind,
                RefusalKind::BadPath
            );
        }
        for path in ["out/secret", "parent/d"] {
            assert_eq!(files.delete(path).await.unwrap_err().kind, RefusalKind::BadPath);
        }
        assert_eq!(files.delete("out").await.unwrap().kind, FileKind::Symlink);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(
            fs::read_to_string(outside.path().join("secret")).unwrap(),
            "secret"
        );
    }
}

#[tokio::test]
async fn a_loop_of_links_ends() {
    for Desk { files, dir, .. } in desks() {
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let mut target = "end".to_owned();
        save(&files, "end", "end").await.unwrap();
        for n in 1..=9 {
            symlink(&target, dir.path().join(format!("l{n}"))).unwrap();
            target = format!("l{n}");
        }
        for path in ["a", "a/b", "l9"] {
            assert_eq!(read(&files, path).await, Err(RefusalKind::BadPath), "{path}");
        }
        assert_eq!(read(&files, "l8").await.as_deref(), Ok("end"));
    }
}

#[tokio::test]
async fn a_link_that_is_swapped_while_files_are_written_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for Desk { files, dir, .. } in desks() {
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("d")).unwrap();
        fs::set_permissions(at("d"), fs::Permissions::from_mode(0o777)).unwrap();
        symlink(outside.path(), at("evil")).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let guest = std::thread::spawn({
            let (over, dir) = (Arc::clone(&over), dir.path().to_owned());
            move || {
                let swap = || {
                    use rustix::fs::{CWD, RenameFlags, renameat_with};
                    let (one, other) = (dir.join("d"), dir.join("evil"));
                    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
                };
                while !over.load(Ordering::Relaxed) {
                    swap();
                    swap();
                }
            }
        });
        let mut written = 0;
        for n in 0..400 {
            written += usize::from(save(&files, &format!("d/f{n}"), "x").await.is_ok());
        }
        over.store(true, Ordering::Relaxed);
        guest.join().unwrap();
        assert_eq!(
            fs::read_dir(at("d")).unwrap().count(),
            written,
            "what was not refused is there"
        );
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_and_never_waited_for() {
    for Desk { files, dir, .. } in desks() {
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666)).unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        symlink("fifo", dir.path().join("link")).unwrap();
        for path in ["fifo", "socket", "link"] {
            let outcome = timeout(PROMPT, read(&files, path)).await.unwrap();
            assert_eq!(outcome, Err(RefusalKind::Conflict), "{path}");
            for mode in [WriteMode::Replace, WriteMode::Append] {
                let write = timeout(PROMPT, files.write(path, mode, body("x"))).await.unwrap();
                assert_eq!(write.unwrap_err().kind, RefusalKind::Conflict, "{path}");
            }
        }
        let list = files.list("", Depth::Folder).await.unwrap();
        let kinds: Vec<_> = list.entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [FileKind::Other, FileKind::Symlink, FileKind::Other]);
        assert_eq!(files.delete("fifo").await.unwrap().kind, FileKind::Other);
    }
}

#[tokio::test]
async fn a_sparse_terabyte_is_listed_and_read_in_ranges() {
    const TERABYTE: u64 = 1 << 40;
    for Desk { files, dir, .. } in desks() {
        let path = dir.path().join("sparse");
        let file = fs::File::create(&path).unwrap();
        file.set_len(TERABYTE).unwrap();
        file.write_all_at(b"the end", TERABYTE - 7).unwrap();
        let list = files.list("", Depth::Folder).await.unwrap();
        assert_eq!(list.entries[0].size, TERABYTE);
        let read = files.open_read("sparse", Some(ByteRange::Last(7))).await.unwrap();
        assert_eq!(
            (read.size, read.range.clone()),
            (TERABYTE, TERABYTE - 7..TERABYTE)
        );
        assert_eq!(text(read).await, "the end");
        let read = files
            .open_read("sparse", Some(ByteRange::Between(0, 2)))
            .await
            .unwrap();
        assert_eq!(text(read).await, "\0\0\0");
        let beyond = files.open_read("sparse", Some(ByteRange::From(TERABYTE))).await;
        assert_eq!(beyond.unwrap_err().kind, RefusalKind::BadRequest);
    }
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_breaks_the_read() {
    for Desk { files, dir, .. } in desks() {
        save(&files, "f", Bytes::from(vec![1; 3 << 20])).await.unwrap();
        let mut read = files.open_read("f", None).await.unwrap();
        read.next().await.unwrap().unwrap();
        fs::File::options()
            .write(true)
            .open(dir.path().join("f"))
            .unwrap()
            .set_len(0)
            .unwrap();
        let end = loop {
            match read.next().await {
                Ok(Some(_)) => {}
                outcome => break outcome,
            }
        };
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn hostile_names_are_listed_as_they_are_or_escaped() {
    let longest = "n".repeat(255);
    let hostile: [&[u8]; 7] = [
        b"new\nline",
        b"\x1b[31mred\x07",
        b"no\xfftext",
        b"-rf",
        b" ",
        "\u{202e}txt.exe".as_bytes(),
        longest.as_bytes(),
    ];
    for Desk { files, dir, .. } in desks() {
        for name in hostile {
            fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        }
        let listed = names(&files, "", Depth::Folder).await;
        assert_eq!(listed.len(), hostile.len());
        assert!(listed.contains(&"no\\xfftext".to_owned()), "{listed:?}");
        for name in hostile
            .into_iter()
            .filter_map(|name| std::str::from_utf8(name).ok())
        {
            assert!(listed.contains(&name.to_owned()), "{name:?}");
            assert_eq!(read(&files, name).await.as_deref(), Ok("x"), "{name:?}");
            files.delete(name).await.unwrap();
        }
        let shown = files.delete("no\\xfftext").await.unwrap_err();
        assert_eq!(shown.kind, RefusalKind::NotFound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_listing_is_sorted_and_bounded_and_counts_the_rest() {
    for Desk { files, dir, .. } in desks() {
        fs::create_dir(dir.path().join("d00500")).unwrap();
        fs::write(dir.path().join("d00500/inside"), "").unwrap();
        for n in 0..LIST_ENTRIES + 500 {
            if n != 500 {
                fs::write(dir.path().join(format!("d{n:05}")), "").unwrap();
            }
        }
        let flat = files.list("", Depth::Folder).await.unwrap();
        assert_eq!((flat.entries.len(), flat.omitted), (LIST_ENTRIES, 500));
        assert!(flat.entries.is_sorted_by(|a, b| a.path < b.path));
        assert_eq!(flat.entries[9999].path, "d09999");
        let tree = files.list("", Depth::Tree).await.unwrap();
        assert_eq!((tree.entries.len(), tree.omitted), (LIST_ENTRIES, 501));
        assert_eq!(tree.entries[501].path, "d00500/inside");
    }
}

#[tokio::test]
async fn a_listing_of_long_names_fits_into_a_message() {
    for Desk { files, dir, .. } in desks() {
        // As JSON each of these characters takes six.
        for n in 0..LIST_ENTRIES {
            fs::write(dir.path().join(format!("{}{n:05}", "\u{1}".repeat(250))), "").unwrap();
        }
        let list = files.list("", Depth::Folder).await.unwrap();
        assert!(list.entries.len() > 4000, "{}", list.entries.len());
        assert_eq!(list.entries.len() as u64 + list.omitted, LIST_ENTRIES as u64);
        assert!(serde_json::to_vec(&list).unwrap().len() < JSON_BYTES);
    }
}

#[tokio::test]
async fn a_large_deletion_holds_nobody_up() {
    for Desk { files, dir, .. } in desks() {
        save(&files, "kept", "kept").await.unwrap();
        for folder in ["many", "many/more"] {
            save(&files, &format!("{folder}/first"), "").await.unwrap();
            for n in 0..8_000 {
                fs::File::create(dir.path().join(format!("{folder}/{n}"))).unwrap();
            }
        }
        let going = tokio::spawn({
            let files = files.clone();
            async move { files.delete("many").await }
        });
        // Others come in between while it lasts, and after a slice of it at the latest.
        let mut between = 0;
        while !going.is_finished() {
            let read = timeout(Duration::from_secs(5), read(&files, "kept"))
                .await
                .unwrap();
            assert_eq!(read.unwrap(), "kept");
            between += 1;
            tokio::task::yield_now().await;
        }
        assert_eq!(going.await.unwrap().unwrap().count, 16_004);
        assert!(between > 1, "{between}");
        assert!(!dir.path().join("many").exists());
    }
}

#[tokio::test]
async fn a_picture_is_made_of_an_image_and_of_nothing_else() {
    let Desk { files, dir, .. } = Desk::guest();
    let image = image::RgbImage::from_fn(800, 400, |x, y| image::Rgb([(x % 256) as u8, (y % 256) as u8, 0]));
    for name in ["i.png", "i.webp", "i.bmp"] {
        image.save(dir.path().join(name)).unwrap();
        let picture = files.picture(name, 100).await.unwrap();
        assert_eq!(
            (picture.pixels.file, picture.pixels.sent),
            ([800, 400], [100, 50]),
            "{name}"
        );
        assert_eq!(picture.mime, "image/png");
    }
    symlink("/etc/passwd", dir.path().join("out")).unwrap();
    save(&files, "text", "no image").await.unwrap();
    fs::File::create(dir.path().join("huge"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    for (path, kind) in [
        ("text", RefusalKind::BadRequest),
        ("huge", RefusalKind::BadRequest),
        ("out", RefusalKind::BadPath),
        ("none", RefusalKind::NotFound),
        ("", RefusalKind::Conflict),
    ] {
        let refusal = timeout(PROMPT, files.picture(path, 100))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(refusal.kind, kind, "{path}: {refusal:?}");
    }
}

#[tokio::test]
async fn the_agents_own_folder_is_listed_when_asked_for() {
    for Desk { files, .. } in desks() {
        save(&files, ".greenroom/runs/1/stdout", "x").await.unwrap();
        save(&files, "sub/.greenroom/mine", "x").await.unwrap();
        let seen = ["sub", "sub/.greenroom", "sub/.greenroom/mine"];
        assert_eq!(names(&files, "", Depth::Tree).await, seen);
        assert_eq!(
            names(&files, ".greenroom/runs/1", Depth::Folder).await,
            [".greenroom/runs/1/stdout"]
        );
    }
}

#[tokio::test]
async fn folders_of_any_depth_are_listed_and_deleted() {
    for desk in desks() {
        let Desk { files, dir, .. } = &desk;
        // Deeper than descriptors and paths reach: made by going down step by step.
        let mut folder = fs::File::open(dir.path()).unwrap();
        for _ in 0..1200 {
            rustix::fs::mkdirat(&folder, "d", rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
            let owner = Some(rustix::fs::Uid::from_raw(desk.uid()));
            rustix::fs::chownat(&folder, "d", owner, None, rustix::fs::AtFlags::empty()).unwrap();
            let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            folder = rustix::fs::openat(&folder, "d", flags, rustix::fs::Mode::empty())
                .unwrap()
                .into();
        }
        let list = files.list("", Depth::Tree).await.unwrap();
        assert_eq!(list.entries.len(), 512, "as deep as a path may be");
        let deleted = files.delete("d").await.unwrap();
        assert_eq!(deleted.count, 1200);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_what_was() {
    for Desk { files, dir, .. } in desks() {
        save(&files, "f", "before").await.unwrap();
        for mode in [WriteMode::Replace, WriteMode::Append] {
            let refusal = files.write("f", mode, breaking_body()).await.unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::BadRequest, "{}", refusal.message);
            assert_eq!(read(&files, "f").await.as_deref(), Ok("before"));
        }
        for mode in [WriteMode::Replace, WriteMode::Append] {
            assert!(files.write("g", mode, breaking_body()).await.is_err());
        }
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["f"], "no part is left behind");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stalls_is_given_up() {
    let desk = Desk::own();
    let stalling = stream::once(async { Ok::<_, io::Error>(Bytes::from_static(b"x")) });
    let stalling = futures_util::StreamExt::chain(stalling, stream::pending());
    let refusal = desk
        .files
        .write("f", WriteMode::Replace, stalling)
        .await
        .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::BadRequest);
    assert!(refusal.message.contains("60 s"), "{}", refusal.message);
    assert_eq!(fs::read_dir(desk.dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn replacing_a_file_keeps_its_mode_and_breaks_its_hard_links() {
    for Desk { files, dir, .. } in desks() {
        save(&files, "script", "old").await.unwrap();
        let script = dir.path().join("script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(&script, dir.path().join("other")).unwrap();
        save(&files, "script", "new").await.unwrap();
        assert_eq!(fs::metadata(&script).unwrap().mode() & 0o777, 0o755);
        assert_eq!(read(&files, "other").await.as_deref(), Ok("old"));
        assert_eq!(read(&files, "script").await.as_deref(), Ok("new"));
    }
}

#[tokio::test]
async fn large_files_arrive_whole_in_both_directions() {
    for Desk { files, .. } in desks() {
        let piece = |n: u8| Ok::<_, io::Error>(Bytes::from(vec![n; 100_000]));
        let entry = files
            .write("big", WriteMode::Replace, stream::iter((0..100).map(piece)))
            .await
            .unwrap();
        assert_eq!(entry.size, 10_000_000);
        let mut read = files
            .open_read("big", Some(ByteRange::From(50_000)))
            .await
            .unwrap();
        let mut at = 50_000;
        while let Some(bytes) = read.next().await.unwrap() {
            for byte in bytes {
                assert_eq!(usize::from(byte), at / 100_000);
                at += 1;
            }
        }
        assert_eq!(at, 10_000_000);
    }
}

#[tokio::test]
async fn a_guest_that_kills_the_files_process_gains_nothing() {
    for desk in desks().into_iter().filter(|desk| desk.guest.is_some()) {
        let files = &desk.files;
        save(files, "f", Bytes::from(vec![7; 4 << 20])).await.unwrap();
        desk.kill_files_process();
        assert_eq!(
            names(files, "", Depth::Folder).await,
            ["f"],
            "a read is simply done again"
        );

        // In the middle of a download, and in the middle of an upload.
        let mut read = files.open_read("f", None).await.unwrap();
        read.next().await.unwrap().unwrap();
        let (bytes, body) = tokio::sync::mpsc::channel::<Result<Bytes, io::Error>>(1);
        let body = stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
        let upload = tokio::spawn({
            let files = files.clone();
            async move { files.write("g", WriteMode::Replace, body).await }
        });
        for _ in 0..3 {
            bytes.send(Ok(Bytes::from(vec![8; 1 << 20]))).await.unwrap();
        }
        desk.kill_files_process();
        bytes.send(Ok(Bytes::from(vec![8; 1 << 20]))).await.unwrap();
        drop(bytes);
        assert_eq!(
            timeout(PROMPT, upload).await.unwrap().unwrap().unwrap().size,
            4 << 20
        );
        let mut left = 0;
        while let Some(piece) = read.next().await.unwrap() {
            left += piece.len();
        }
        assert!(left > 3 << 20);

        desk.kill_files_process();
        assert_eq!(
            files.delete("g").await.unwrap().count,
            1,
            "a process found dead is replaced first"
        );
        assert_eq!(names(files, "", Depth::Folder).await, ["f"]);
    }
}

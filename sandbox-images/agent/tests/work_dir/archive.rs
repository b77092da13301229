//! The work directory into an archive and out of it again, as the guest: what is kept, what is not, and that
//! nothing of it leads out.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use greenroom_agent::files::{Onto, Packing};
use greenroom_protocol::{Packed, RefusalKind};

use crate::desk::Desk;

const MAX: u64 = 64 << 20;

async fn bytes(packing: Packing) -> std::io::Result<Vec<u8>> {
    let pieces: Vec<Bytes> = packing.into_stream().try_collect().await?;
    Ok(pieces.concat())
}

async fn pack(desk: &Desk) -> (Packed, Vec<u8>) {
    let packing = desk.files.pack(MAX, None).await.unwrap().unwrap();
    (packing.packed, bytes(packing).await.unwrap())
}

async fn unpack(desk: &Desk, archive: Vec<u8>) {
    let pieces: Vec<_> = archive
        .chunks(1000)
        .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
        .collect();
    desk.files
        .unpack(Onto::Instead, stream::iter(pieces))
        .await
        .unwrap();
}

/// Makes everything in a work directory the guest's.
fn hand_over(desk: &Desk, path: &Path) {
    std::os::unix::fs::lchown(path, Some(desk.uid()), Some(desk.uid())).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            hand_over(desk, &entry.unwrap().path());
        }
    }
}

/// Everything that an archive keeps of a tree.
fn tree(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut seen = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let what = if meta.is_dir() {
                ahead.push(path.clone());
                "folder".to_owned()
            } else if meta.is_symlink() {
                format!("→ {:?}", fs::read_link(&path).unwrap())
            } else {
                format!("{:?}", Bytes::from(fs::read(&path).unwrap()))
            };
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            let mode = if meta.is_symlink() { 0 } else { meta.mode() };
            seen.insert(name, format!("{mode:o} {} {what}", meta.mtime()));
        }
    }
    seen
}

fn hostile(root: &Path) {
    let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let long = [b"\xff".repeat(120), b"/".to_vec(), b"n".repeat(250)].concat();
    fs::create_dir_all(at(&long).parent().unwrap()).unwrap();
    fs::create_dir_all(at(b"closed/inside")).unwrap();
    fs::create_dir(at(b"empty")).unwrap();
    for name in [
        &long,
        &b"closed/inside/f"[..],
        b"line\nbreak",
        b"-rf",
        b"a\\b",
        b" ",
        b"\xff\xfe",
        "ü…".as_bytes(),
        b"x.tar",
        &b"e".repeat(100),
    ] {
        fs::write(at(name), name).unwrap();
    }
    let holes = fs::File::create(at(b"holes")).unwrap();
    holes.set_len(1 << 20).unwrap();
    for (name, target) in [
        (&b"out"[..], b"/etc/passwd".to_vec()),
        (b"up", b"../../..".to_vec()),
        (b"self", b"self".to_vec()),
        (b"far", b"t".repeat(300)),
    ] {
        symlink(OsStr::from_bytes(&target), at(name)).unwrap();
    }
    for (name, mode) in [
        (&b"x.tar"[..], 0o4755),
        (b"-rf", 0o400),
        (b"closed/inside", 0o555),
        (b"closed", 0o500),
    ] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let past = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for name in [&b"x.tar"[..], b"empty", b"closed"] {
        fs::File::open(at(name)).unwrap().set_modified(past).unwrap();
    }
}

#[tokio::test]
async fn what_was_there_is_there_again() {
    let (from, to) = (Desk::guest(), Desk::guest());
    hostile(from.dir.path());
    hand_over(&from, from.dir.path());
    // Setting an owner takes such a bit away.
    let set = |name: &str, mode| {
        fs::set_permissions(from.dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("x.tar", 0o4755);
    let before = tree(from.dir.path());
    let (packed, archive) = pack(&from).await;
    assert_eq!(packed.entries, before.len() as u64);
    assert_eq!(packed.bytes, archive.len() as u64);
    fs::write(to.dir.path().join("seed"), "goes").unwrap();
    hand_over(&to, to.dir.path());
    unpack(&to, archive).await;
    assert_eq!(tree(to.dir.path()), before);
    // It is the guest's, and nothing has changed since it was filled.
    assert_eq!(fs::metadata(to.dir.path().join("x.tar")).unwrap().uid(), to.uid());
    assert!(to.files.pack(MAX, None).await.unwrap().is_none());
    fs::remove_file(to.dir.path().join("x.tar")).unwrap();
    assert!(to.files.pack(MAX, None).await.unwrap().is_some());
}

#[tokio::test]
async fn nothing_leads_out_on_the_way_back() {
    let (from, to) = (Desk::guest(), Desk::guest());
    let out = tempfile::tempdir().unwrap();
    chown(out.path(), Some(to.uid()), Some(to.uid())).unwrap();
    fs::create_dir(from.dir.path().join("d")).unwrap();
    fs::write(from.dir.path().join("d/f"), "x").unwrap();
    hand_over(&from, from.dir.path());
    let (_, archive) = pack(&from).await;
    // What a guest could make of its archive: a link, and then something through it.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "d", out.path()).unwrap();
    let link = builder.into_inner().unwrap();
    let hostile = [&link[..512], &archive].concat();
    let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(hostile))]);
    let refused = to.files.unpack(Onto::Instead, body).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::BadRequest, "{}", refused.message);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(to.dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    let (from, to) = (Desk::guest(), Desk::guest());
    fs::write(from.dir.path().join("f"), vec![7; 100_000]).unwrap();
    hand_over(&from, from.dir.path());
    let (_, archive) = pack(&from).await;
    fs::write(to.dir.path().join("kept"), "").unwrap();
    let whole = Bytes::from(archive);
    // After half of it, and after all of it but the end of the stream.
    for length in [50_000, whole.len()] {
        let body = stream::iter([Ok(whole.slice(..length)), Err(std::io::Error::other("scripted"))]);
        let refused = to.files.unpack(Onto::Instead, body).await.unwrap_err();
        assert!(refused.message.contains("scripted"), "{}", refused.message);
        let left: Vec<_> = fs::read_dir(to.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["kept"]);
    }
}

#[tokio::test]
async fn limits_are_said_before_a_byte_is_packed() {
    let desk = Desk::guest();
    let file = fs::File::create(desk.dir.path().join("holes")).unwrap();
    file.set_len(MAX).unwrap();
    let refused = desk.files.pack(MAX, None).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::TooLarge);
    assert!(refused.message.contains(&MAX.to_string()), "{}", refused.message);
}

#[tokio::test]
async fn what_the_guest_cannot_read_is_counted() {
    let desk = Desk::guest();
    if !rustix::process::geteuid().is_root() {
        // Its own files it can always make readable: then there is nothing to leave out but a mode of 0.
        fs::write(desk.dir.path().join("secret"), "x").unwrap();
    } else {
        fs::write(desk.dir.path().join("roots"), "x").unwrap();
        fs::write(desk.dir.path().join("secret"), "x").unwrap();
        fs::set_permissions(desk.dir.path().join("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    hand_over(&desk, &desk.dir.path().join("secret"));
    fs::set_permissions(desk.dir.path().join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    let _socket = UnixListener::bind(desk.dir.path().join("socket")).unwrap();
    fs::write(desk.dir.path().join("open"), "x").unwrap();
    let (packed, _) = pack(&desk).await;
    let unreadable = if rustix::process::geteuid().is_root() {
        2
    } else {
        1
    };
    assert_eq!((packed.entries, packed.left_out), (1, unreadable));
}

#[tokio::test]
async fn one_archive_is_made_at_a_time() {
    let desk = Desk::guest();
    fs::write(desk.dir.path().join("f"), vec![1; 4 << 20]).unwrap();
    let mut first = Box::pin(desk.files.pack(MAX, None).await.unwrap().unwrap().into_stream());
    assert!(first.next().await.unwrap().is_ok());
    let second = desk.files.pack(MAX, None).await.unwrap_err();
    assert_eq!(second.kind, RefusalKind::Conflict);
    // Whoever goes away half-way is in nobody's way.
    drop(first);
    assert!(desk.files.pack(MAX, None).await.unwrap().is_some());
    // A child that is killed has packed nothing.
    let packing = desk.files.pack(MAX, None).await.unwrap().unwrap();
    desk.kill_errand("pack");
    assert!(bytes(packing).await.is_err());
}

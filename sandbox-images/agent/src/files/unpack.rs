//! A tar archive into the work directory, all of it or none: by a child with the guest's rights.
//!
//! The child unpacks beside the others' files, under a name that no listing shows, and moves what it unpacked to
//! its place once the archive is over. An archive whose body breaks off leaves nothing.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    path::Path,
    pin::pin,
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use greenroom_protocol::{Refusal, RefusalKind, Unpacked, limits::ARCHIVE_ENTRIES};
use tar::{Archive, EntryType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::path::PART_PREFIX;
use crate::{
    child::{Child, Quarters, spawn},
    errand::Errand,
};

/// A body that brings no byte for this long is given up, and so is a child that takes none.
const STALL: Duration = Duration::from_secs(60);
/// What the child says of itself, in bytes.
const WORDS: u64 = 1024;

const NO_ARGUMENTS: [&str; 0] = [];

/// Unpacks a body.
pub(super) async fn unpack<S, E>(quarters: &Quarters, body: S) -> Result<Unpacked, Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let mut command = quarters.errand(Errand::Unpack, NO_ARGUMENTS);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command).map_err(|error| failed(&error.to_string()))?;
    match fill(&mut child, body).await {
        Ok(()) => {}
        // Before it can take the end of what it got for the end of the archive.
        Err(Broken::Body(message)) => {
            child.kill();
            return Err(failed(&message));
        }
        // It has ended, and says why.
        Err(Broken::Child) => {}
    }
    let words = async {
        let (mut out, mut err) = (String::new(), String::new());
        if let (Some(stdout), Some(stderr)) = (child.take_stdout(), child.take_stderr()) {
            let (mut stdout, mut stderr) = (stdout.take(WORDS), stderr.take(WORDS));
            // The guest may have killed it: then there are no words, and its status says enough.
            let (read, _) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
            drop(read);
        }
        let done = child.wait().await.is_ok_and(|status| status.success());
        (done, out, err)
    };
    match timeout(STALL, words).await {
        Ok((true, out, _)) => counts(&out).ok_or_else(|| failed("what unpacks it went off its script")),
        Ok((false, _, err)) => Err(failed(err.trim())),
        Err(_) => Err(failed("it was not unpacked in time")),
    }
}

enum Broken {
    Body(String),
    Child,
}

/// Passes a body on, and its end.
async fn fill<S, E>(child: &mut Child, body: S) -> Result<(), Broken>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let mut input = child.take_stdin().ok_or(Broken::Child)?;
    let mut body = pin!(body);
    let stalled = || Broken::Body(format!("nothing moved for {} s", STALL.as_secs()));
    loop {
        match timeout(STALL, body.next()).await.map_err(|_| stalled())? {
            Some(Ok(bytes)) => match timeout(STALL, input.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Broken::Child),
                Err(_) => return Err(stalled()),
            },
            Some(Err(error)) => return Err(Broken::Body(format!("it broke off: {error}"))),
            None => return Ok(()),
        }
    }
}

fn counts(out: &str) -> Option<Unpacked> {
    let (entries, bytes) = out.trim().split_once(' ')?;
    Some(Unpacked {
        entries: entries.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

fn failed(why: &str) -> Refusal {
    let kind = if why.contains("No space left") {
        RefusalKind::DiskFull
    } else {
        RefusalKind::BadRequest
    };
    let why = if why.is_empty() {
        "it was ended from inside"
    } else {
        why
    };
    Refusal {
        kind,
        message: format!("the archive was not unpacked: {why}"),
    }
}

/// The child's part: standard input into the current directory.
pub(crate) fn errand() -> io::Result<()> {
    let unpacked = unpack_here(io::stdin().lock(), Path::new("."))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{} {}", unpacked.entries, unpacked.bytes)
}

fn unpack_here(input: impl Read, folder: &Path) -> io::Result<Unpacked> {
    let stage = folder.join(format!("{PART_PREFIX}unpack-{}", std::process::id()));
    fs::create_dir(&stage)?;
    let unpacked = unpack_into(input, &stage).and_then(|unpacked| settle(&stage, folder).map(|()| unpacked));
    let cleared = fs::remove_dir_all(&stage);
    let unpacked = unpacked?;
    cleared?;
    Ok(unpacked)
}

fn unpack_into(input: impl Read, stage: &Path) -> io::Result<Unpacked> {
    let mut archive = Archive::new(input);
    archive.set_preserve_permissions(true);
    let mut unpacked = Unpacked::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let wrong = |what: &str| io::Error::other(format!("{path:?} {what}"));
        let kind = entry.header().entry_type();
        if !matches!(
            kind,
            EntryType::Regular | EntryType::Directory | EntryType::Symlink
        ) {
            return Err(wrong("is neither file, folder nor symbolic link"));
        }
        unpacked.entries += 1;
        unpacked.bytes += entry.size();
        if unpacked.entries > ARCHIVE_ENTRIES {
            return Err(io::Error::other(format!(
                "it has more than {ARCHIVE_ENTRIES} entries"
            )));
        }
        if !entry.unpack_in(stage)? {
            return Err(wrong("leads out of the work directory"));
        }
    }
    Ok(unpacked)
}

/// Moves what was unpacked to its place. Nothing is replaced.
fn settle(stage: &Path, folder: &Path) -> io::Result<()> {
    let entries = fs::read_dir(stage)?.collect::<io::Result<Vec<_>>>()?;
    if let Some(there) = entries
        .iter()
        .map(|entry| folder.join(entry.file_name()))
        .find(|path| path.symlink_metadata().is_ok())
    {
        return Err(io::Error::other(format!("{there:?} is there already")));
    }
    for entry in entries {
        fs::rename(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            // Set as raw bytes: the builder itself would refuse what leads out.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            if *kind == EntryType::Symlink {
                header.set_link_name(content).unwrap();
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn an_archive_is_unpacked_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let tar = archive(&[
            ("a", EntryType::Directory, ""),
            ("a/b", EntryType::Regular, "hello"),
            ("l", EntryType::Symlink, "a/b"),
        ]);
        let unpacked = unpack_here(tar.as_slice(), dir.path()).unwrap();
        assert_eq!((unpacked.entries, unpacked.bytes), (3, 5));
        assert_eq!(fs::read_to_string(dir.path().join("l")).unwrap(), "hello");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_archive_that_is_refused_leaves_nothing() {
        for (entries, says) in [
            (
                vec![
                    ("ok", EntryType::Regular, "x"),
                    ("../out", EntryType::Regular, "x"),
                ],
                "leads out",
            ),
            (vec![("fifo", EntryType::Fifo, "")], "neither file"),
            (vec![("taken", EntryType::Regular, "x")], "is there already"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("work");
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("taken"), "kept").unwrap();
            let error = unpack_here(archive(&entries).as_slice(), &dir)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{error}");
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut cut = archive(&[("a", EntryType::Regular, "hello")]);
        cut.truncate(514);
        assert!(unpack_here(cut.as_slice(), dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_an_archive_is_no_way_out() {
        let home = tempfile::tempdir().unwrap();
        let (dir, out) = (home.path().join("work"), home.path().join("out"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&out).unwrap();
        let out_path = out.to_str().unwrap();
        let tar = archive(&[
            ("l", EntryType::Symlink, out_path),
            ("l/x", EntryType::Regular, "x"),
        ]);
        assert!(unpack_here(tar.as_slice(), &dir).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }
}

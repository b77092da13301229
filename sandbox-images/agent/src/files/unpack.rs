//! A tar archive into the work directory, all of it or none: by a child with the guest's rights.
//!
//! The child unpacks beside the others' files, under a name that no listing shows, and moves what it unpacked to
//! its place once the archive is over and the agent has said so. An archive whose body breaks off leaves nothing.

use std::{
    fmt, fs,
    io::{self, BufReader, Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    pin::pin,
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use greenroom_protocol::{Refusal, RefusalKind, Unpacked, limits::ARCHIVE_ENTRIES};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tar::{Archive, EntryType, Header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    is_hidden,
    path::PART_PREFIX,
    weigh::{TooMuch, weigh},
};
use crate::{
    child::{Child, Quarters, spawn},
    errand::Errand,
};

/// A body that brings no byte for this long is given up, and so is a child that takes none.
const STALL: Duration = Duration::from_secs(60);
/// What the child says of itself, in bytes.
const WORDS: u64 = 1024;
/// The word that it begins with.
const UNPACKED: &str = "unpacked";
const FULL: &str = "full";
const WRONG: &str = "wrong";

/// What follows an archive that is whole. Without it the child cannot tell an archive's end from a broken body's.
const WHOLE: &[u8] = b"greenroom: that is all of it";
/// Bytes that the child reads at a time.
const PIECE: usize = 256 << 10;

/// What happens to what is in the work directory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// It stays, and an archive that has something of the same name is refused.
    Beside,
    /// It goes: the archive is all there is afterwards.
    Instead,
}

impl Onto {
    const fn name(self) -> &'static str {
        match self {
            Self::Beside => "beside",
            Self::Instead => "instead",
        }
    }
}

/// Unpacks a body. Answers what it held, and the digest of the work directory afterwards.
pub(super) async fn unpack<S, E>(
    quarters: &Quarters,
    onto: Onto,
    body: S,
) -> Result<(Unpacked, String), Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let mut command = quarters.errand(Errand::Unpack, [onto.name()]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = spawn(command).map_err(|error| failed(&error.to_string()))?;
    let broken = match fill(&mut child, body).await {
        // It has ended, and says why.
        Ok(()) | Err(Broken::Child) => None,
        // It has not been told that this was all, so it clears away what it has.
        Err(Broken::Body(message)) => Some(message),
    };
    let words = async {
        let mut said = String::new();
        if let Some(out) = child.take_stdout() {
            // The guest may have killed it: then there are no words.
            drop(out.take(WORDS).read_to_string(&mut said).await);
        }
        drop(child.wait().await);
        said
    };
    let said = timeout(STALL, words).await;
    if let Some(message) = broken {
        return Err(failed(&message));
    }
    match said {
        Ok(said) => outcome(&said),
        Err(_) => Err(failed("it was not unpacked in time")),
    }
}

/// What the child says in the end: that all is unpacked, that the disk is full, or what else was wrong.
fn outcome(said: &str) -> Result<(Unpacked, String), Refusal> {
    match said.trim_end().split_once(' ') {
        Some((UNPACKED, counted)) => {
            counts(counted).ok_or_else(|| failed("what unpacks it went off its script"))
        }
        Some((FULL, why)) => Err(Refusal {
            kind: RefusalKind::DiskFull,
            ..failed(why)
        }),
        Some((WRONG, why)) => Err(failed(why)),
        _ => Err(failed("it was ended from inside")),
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
            None => {
                let told = timeout(STALL, input.write_all(WHOLE))
                    .await
                    .map_err(|_| stalled())?;
                return told.map_err(|_| Broken::Child);
            }
        }
    }
}

fn counts(counted: &str) -> Option<(Unpacked, String)> {
    let mut words = counted.splitn(3, ' ');
    let mut number = || words.next()?.parse().ok();
    let (entries, bytes) = (number()?, number()?);
    Some((Unpacked { entries, bytes }, words.next()?.to_owned()))
}

fn failed(why: &str) -> Refusal {
    Refusal {
        kind: RefusalKind::BadRequest,
        message: format!("the archive was not unpacked: {why}"),
    }
}

/// The child's part: standard input into the current directory, and a line on standard output that says how that went.
pub(crate) fn errand(onto: &str) -> io::Result<()> {
    let unpacked = unpack_input(onto);
    let said = match &unpacked {
        Ok((unpacked, digest)) => format!("{UNPACKED} {} {} {digest}", unpacked.entries, unpacked.bytes),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => format!("{FULL} {error}"),
        Err(error) => format!("{WRONG} {error}"),
    };
    writeln!(io::stdout().lock(), "{said}")?;
    unpacked.map(drop)
}

fn unpack_input(onto: &str) -> io::Result<(Unpacked, String)> {
    let onto = [Onto::Beside, Onto::Instead]
        .into_iter()
        .find(|known| known.name() == onto)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let input = fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let unpacked = unpack_here(BufReader::with_capacity(PIECE, input), Path::new("."), onto)?;
    let digest = match weigh(Path::new("."), u64::MAX) {
        Ok(weighed) => weighed.digest,
        // More than is ever archived, so nothing has to be told from it.
        Err(TooMuch::Limit(_) | TooMuch::Unreadable(_)) => "none".to_owned(),
    };
    Ok((unpacked, digest))
}

fn unpack_here(input: impl Read, folder: &Path, onto: Onto) -> io::Result<Unpacked> {
    let stage = folder.join(format!("{PART_PREFIX}unpack-{}", std::process::id()));
    fs::create_dir(&stage)?;
    let unpacked = unpack_into(input, &stage).and_then(|unpacked| {
        settle(&stage, folder, onto)?;
        Ok(unpacked)
    });
    let cleared = clear(&stage);
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
        let path = entry.path()?.into_owned();
        let wrong = |what: &str| io::Error::other(format!("{:?} {what}", path.display().to_string()));
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
        if kind == EntryType::Directory {
            set_back(&stage.join(&path), entry.header())?;
        }
    }
    whole(archive.into_inner())?;
    Ok(unpacked)
}

/// A folder's time, which its entry alone does not bring back. It comes after all that is in the folder.
fn set_back(folder: &Path, header: &Header) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(header.mtime()?).unwrap_or(0),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, folder, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Nothing may follow an archive but zeros and the agent's word that this was all.
fn whole(mut rest: impl Read) -> io::Result<()> {
    let mut end = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = rest.read(&mut piece)?;
        if read == 0 {
            break;
        }
        let from = if end.is_empty() {
            piece[..read].iter().position(|byte| *byte != 0).unwrap_or(read)
        } else {
            0
        };
        end.extend_from_slice(&piece[from..read]);
        if end.len() > WHOLE.len() {
            break;
        }
    }
    if end == WHOLE {
        Ok(())
    } else {
        Err(io::Error::other("it broke off, or has something behind its end"))
    }
}

/// Moves what was unpacked to its place. Beside others nothing is replaced.
fn settle(stage: &Path, folder: &Path, onto: Onto) -> io::Result<()> {
    if onto == Onto::Instead {
        for entry in fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()? {
            if !is_hidden(entry.file_name().as_encoded_bytes(), "") {
                clear(&entry.path())?;
            }
        }
    }
    let entries = fs::read_dir(stage)?.collect::<io::Result<Vec<_>>>()?;
    if let Some(there) = entries
        .iter()
        .map(|entry| folder.join(entry.file_name()))
        .find(|path| path.symlink_metadata().is_ok())
    {
        return Err(io::Error::other(format!("{there:?} is there already")));
    }
    for entry in entries {
        let (from, to) = (entry.path(), folder.join(entry.file_name()));
        let mode = entry.metadata()?.permissions().mode();
        // A folder says where it is in itself, so that one which may not be written to may not be moved.
        let is_closed = entry.file_type()?.is_dir() && mode & 0o200 == 0;
        if is_closed {
            fs::set_permissions(&from, fs::Permissions::from_mode(mode | 0o200))?;
        }
        fs::rename(&from, &to)?;
        if is_closed {
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Removes a file, or a folder with all that is in it, whatever their modes.
fn clear(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return fs::remove_file(path);
    }
    let mut ahead = vec![path.to_owned()];
    while let Some(folder) = ahead.pop() {
        let mode = folder.symlink_metadata()?.permissions().mode();
        if mode & 0o700 != 0o700 {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode | 0o700))?;
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                ahead.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    #[test]
    fn a_full_disk_is_told_from_an_archive_that_is_wrong() {
        let kind = |said| outcome(said).map_err(|refusal| refusal.kind);
        let unpacked = Unpacked { entries: 2, bytes: 5 };
        for (said, answer) in [
            ("unpacked 2 5 abc\n", Ok((unpacked, "abc".to_owned()))),
            ("unpacked 2 5\n", Err(RefusalKind::BadRequest)),
            ("full No space left on device\n", Err(RefusalKind::DiskFull)),
            (
                "wrong \"No space left\" is there already\n",
                Err(RefusalKind::BadRequest),
            ),
            ("", Err(RefusalKind::BadRequest)),
        ] {
            assert_eq!(kind(said), answer, "{said:?}");
        }
    }

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
        let mut archive = builder.into_inner().unwrap();
        archive.extend_from_slice(WHOLE);
        archive
    }

    #[test]
    fn an_archive_is_unpacked_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let tar = archive(&[
            ("a", EntryType::Directory, ""),
            ("a/b", EntryType::Regular, "hello"),
            ("l", EntryType::Symlink, "a/b"),
        ]);
        let unpacked = unpack_here(tar.as_slice(), dir.path(), Onto::Beside).unwrap();
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
            let error = unpack_here(archive(&entries).as_slice(), &dir, Onto::Beside)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{error}");
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "{error}");
        }
    }

    /// Wherever it is cut, between its entries too, and whatever follows it.
    #[test]
    fn an_archive_that_is_not_whole_leaves_nothing() {
        let whole = archive(&[
            ("f", EntryType::Regular, "hello"),
            ("d", EntryType::Directory, ""),
            ("e/g", EntryType::Regular, "x"),
        ]);
        let longer = [whole.as_slice(), b"x"].concat();
        let cuts = (0..whole.len()).step_by(128).chain([whole.len() - 1]);
        for broken in cuts.map(|cut| &whole[..cut]).chain([longer.as_slice()]) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("kept"), "").unwrap();
            let length = broken.len();
            for onto in [Onto::Beside, Onto::Instead] {
                assert!(unpack_here(broken, dir.path(), onto).is_err(), "{length}");
                let left: Vec<_> = fs::read_dir(dir.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name())
                    .collect();
                assert_eq!(left, ["kept"], "{length}");
            }
        }
    }

    #[test]
    fn an_archive_takes_the_place_of_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("seed/deep")).unwrap();
        fs::create_dir(at(".greenroom")).unwrap();
        fs::write(at("seed/deep/f"), "seed").unwrap();
        fs::set_permissions(at("seed/deep"), fs::Permissions::from_mode(0o500)).unwrap();
        fs::write(at("f"), "seed").unwrap();
        let tar = archive(&[("f", EntryType::Regular, "archived")]);
        unpack_here(tar.as_slice(), dir.path(), Onto::Instead).unwrap();
        assert_eq!(fs::read_to_string(at("f")).unwrap(), "archived");
        assert!(!at("seed").exists() && at(".greenroom").exists());
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
        assert!(unpack_here(tar.as_slice(), &dir, Onto::Beside).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }
}

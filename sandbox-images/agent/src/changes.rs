//! What changed in the work directory while a run was at work.
//!
//! Looking at every file after every run costs 13 µs a file under gVisor, so nobody looks before there is
//! a reason: each folder has a watch that goes silent after its first event, and only folders whose watch
//! has fired are read again. A run that touches no file costs one system call in the agent; one that writes
//! a million times raises one event.
//!
//! Bounds: [`ENTRIES`] files and [`FOLDERS`] folders are followed. A folder that does not fit is not
//! followed at all, and nothing is said about what happens in it; where that is the work directory itself,
//! nothing is ever said. Only regular files are told of, not the agent's own folder, and not what was
//! written through a mapping that is still open.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use greenroom_protocol::{FileChange, FileChangeKind, FileKind, limits::CHANGED_FILES};
use rustix::fs::{
    AtFlags, RawDir, Stat,
    inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    statat,
};

use crate::files::{Beneath, is_hidden, joined, kind, shown};

/// Files that are followed: looking at all of them takes 13 ms.
const ENTRIES: usize = 1000;
/// Folders that are followed, each with its watch.
const FOLDERS: usize = 128;
/// Changes that are remembered for runs under way. A run that began before the oldest of them hears nothing.
const REMEMBERED: usize = 2000;
/// Bytes of names or events that one system call brings.
const BUFFER: usize = 16 << 10;
/// Everything that can change what a listing shows, once.
const EVENTS: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ONESHOT)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);

/// The segments of a folder's path as bytes; none for the work directory.
type Segments = Vec<Vec<u8>>;

/// What is known of the work directory, and how it came to be so.
#[derive(Debug)]
pub(crate) struct Journal {
    inotify: Option<OwnedFd>,
    watches: HashMap<i32, Segments>,
    folders: BTreeMap<Segments, Folder>,
    /// Files in all folders together.
    entries: usize,
    log: VecDeque<(u64, FileChange)>,
    seq: u64,
    /// The newest change that is not remembered any more.
    forgotten: u64,
}

/// A folder as it was last read.
#[derive(Debug, Default)]
struct Folder {
    watch: i32,
    files: BTreeMap<Vec<u8>, Seen>,
    /// With their inodes, so that one that took another's place is noticed.
    folders: BTreeMap<Vec<u8>, u64>,
    /// Keeps the folder known to the kernel for as long as it is watched.
    held: Option<OwnedFd>,
}

/// A file as it was last seen. The guest can set all of it back but the last change of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Journal {
    /// Begins with the work directory as it is now.
    pub(crate) fn start(beneath: &Beneath) -> Self {
        let mut journal = Self {
            // Without it nothing is ever said about changes, which is allowed.
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok(),
            watches: HashMap::new(),
            folders: BTreeMap::new(),
            entries: 0,
            log: VecDeque::new(),
            seq: 0,
            forgotten: 0,
        };
        journal.read_tree(beneath, Segments::new());
        journal.log.clear();
        journal
    }

    /// Counts changes from here on: a journal that follows another's death continues its numbers, so that
    /// marks of the other are known to be too old.
    pub(crate) fn count_from(&mut self, seq: u64) {
        self.log.clear();
        self.seq = seq;
        self.forgotten = seq;
    }

    /// The descriptor that is readable once [`refresh`](Self::refresh) has something to do.
    pub(crate) fn signal(&self) -> Option<OwnedFd> {
        self.inotify.as_ref()?.try_clone().ok()
    }

    /// The number of the newest change.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Reads the folders again in which something happened.
    pub(crate) fn refresh(&mut self, beneath: &Beneath) {
        let mut stirred = self.fired();
        // Parents first: they know best whether a folder is still there.
        stirred.sort_unstable();
        stirred.dedup();
        for segments in stirred {
            if self.folders.contains_key(&segments) {
                self.read_tree(beneath, segments);
            }
        }
    }

    /// What changed after `since`, sorted by path and at most [`CHANGED_FILES`]; `None` where that is not
    /// known any more.
    pub(crate) fn since(&self, since: u64) -> Option<Vec<FileChange>> {
        if since < self.forgotten {
            return None;
        }
        let mut changes: BTreeMap<&str, Option<FileChange>> = BTreeMap::new();
        for (_, change) in self.log.iter().filter(|(seq, _)| *seq > since) {
            let known = changes.entry(&change.path).or_insert(None);
            *known = fold(known.take(), change);
        }
        Some(changes.into_values().flatten().take(CHANGED_FILES).collect())
    }

    /// Folders whose watch has fired; each needs a new one.
    fn fired(&mut self) -> Vec<Segments> {
        let mut folders = Vec::new();
        let Some(inotify) = &self.inotify else {
            return folders;
        };
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        while let Ok(event) = events.next() {
            // The notice that a watch has ended follows its event, and may name one that is new again.
            if event.events().contains(ReadFlags::IGNORED) {
                continue;
            }
            folders.extend(self.watches.remove(&event.wd()));
        }
        folders
    }

    /// Reads a folder, and the folders in it that are new.
    fn read_tree(&mut self, beneath: &Beneath, segments: Segments) {
        let mut ahead = vec![segments];
        while let Some(segments) = ahead.pop() {
            match self.read_folder(beneath, &segments) {
                Some(new) => ahead.extend(new.into_iter().map(|name| below(&segments, name))),
                None => self.leave(&segments, Leaving::Unfollowed),
            }
        }
    }

    /// Compares a folder with what was known of it and answers the folders in it that are new; `None`
    /// where it cannot be followed.
    fn read_folder(&mut self, beneath: &Beneath, segments: &Segments) -> Option<Vec<Vec<u8>>> {
        let known = self.folders.remove(segments);
        if let Some(known) = &known {
            self.entries -= known.files.len();
        }
        let known = known.unwrap_or_default();
        if self.folders.len() >= FOLDERS {
            return None;
        }
        // Opened before it is watched, and held for as long as it is: gVisor drops a folder that only a watch refers
        // to when that watch fires, in the middle of the call that made it fire, and a mkdir then waits for itself
        // for ever.
        let opened = beneath.folder(segments).ok()?;
        // The watch comes before the look: what happens in between is then seen twice, not missed.
        let watch = self.watch(beneath, segments)?;
        let now = look(opened, segments, watch, ENTRIES - self.entries)?;
        if known.watch != watch {
            // It has fired, or belongs to a folder whose place another has taken.
            self.watches.remove(&known.watch);
        }
        self.watches.insert(watch, segments.clone());
        self.compare(segments, &known, &now);
        let gone = known
            .folders
            .keys()
            .filter(|name| !now.folders.contains_key(*name));
        for name in gone {
            self.leave(&below(segments, name.clone()), Leaving::Deleted);
        }
        let new = now
            .folders
            .iter()
            .filter(|(name, inode)| known.folders.get(*name) != Some(inode))
            .map(|(name, _)| name.clone())
            .collect();
        self.entries += now.files.len();
        self.folders.insert(segments.clone(), now);
        Some(new)
    }

    fn watch(&self, beneath: &Beneath, segments: &Segments) -> Option<i32> {
        let mut path = beneath.work_dir().as_bytes().to_vec();
        for segment in segments {
            path.push(b'/');
            path.extend_from_slice(segment);
        }
        inotify::add_watch(self.inotify.as_ref()?, path.as_slice(), EVENTS).ok()
    }

    fn compare(&mut self, segments: &Segments, known: &Folder, now: &Folder) {
        for (name, seen) in &now.files {
            match known.files.get(name) {
                None => self.note(segments, name, seen.size, FileChangeKind::Created),
                Some(before) if before != seen => {
                    self.note(segments, name, seen.size, FileChangeKind::Modified);
                }
                Some(_) => {}
            }
        }
        for name in known.files.keys().filter(|name| !now.files.contains_key(*name)) {
            self.note(segments, name, 0, FileChangeKind::Deleted);
        }
    }

    fn note(&mut self, segments: &Segments, name: &[u8], size: u64, change: FileChangeKind) {
        let path = joined(&shown_path(segments), &shown(name));
        self.seq += 1;
        self.log.push_back((self.seq, FileChange { path, size, change }));
        if self.log.len() > REMEMBERED
            && let Some((seq, _)) = self.log.pop_front()
        {
            self.forgotten = seq;
        }
    }

    /// Forgets a folder and all below it.
    fn leave(&mut self, top: &Segments, leaving: Leaving) {
        let below: Vec<Segments> = self
            .folders
            .range(top.clone()..)
            .map(|(segments, _)| segments)
            .take_while(|segments| segments.starts_with(top))
            .cloned()
            .collect();
        for segments in below {
            let Some(folder) = self.folders.remove(&segments) else {
                continue;
            };
            self.entries -= folder.files.len();
            if self.watches.remove(&folder.watch).is_some()
                && let Some(inotify) = &self.inotify
            {
                // Gone with its folder, as a rule.
                let _ = inotify::remove_watch(inotify, folder.watch);
            }
            if leaving == Leaving::Deleted {
                for name in folder.files.keys() {
                    self.note(&segments, name, 0, FileChangeKind::Deleted);
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Its files are gone, which is news.
    Deleted,
    /// Nothing is known of it from here on.
    Unfollowed,
}

/// Reads a folder; `None` where it has more than `room` files, or cannot be read.
fn look(opened: OwnedFd, segments: &Segments, watch: i32, room: usize) -> Option<Folder> {
    let path = shown_path(segments);
    let mut folder = Folder {
        watch,
        ..Folder::default()
    };
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut names = RawDir::new(opened.as_fd(), &mut buffer);
    while let Some(next) = names.next() {
        let next = next.ok()?;
        let name = next.file_name().to_bytes();
        if is_hidden(name, &path) {
            continue;
        }
        if next.file_type().is_dir() {
            if folder.folders.len() == FOLDERS {
                return None;
            }
            folder.folders.insert(name.to_vec(), next.ino());
        } else if let Ok(stat) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)
            && kind(&stat) == FileKind::File
        {
            if folder.files.len() == room {
                return None;
            }
            folder.files.insert(name.to_vec(), Seen::of(&stat));
        }
    }
    folder.held = Some(opened);
    Some(folder)
}

impl Seen {
    fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// Two changes of one file as one.
fn fold(earlier: Option<FileChange>, later: &FileChange) -> Option<FileChange> {
    use FileChangeKind::{Created, Deleted, Modified};
    let change = match (earlier.map(|change| change.change), later.change) {
        (None, change) => change,
        (Some(Created), Deleted) => return None,
        (Some(Created), _) => Created,
        (Some(Deleted | Modified), Deleted) => Deleted,
        (Some(Deleted | Modified), _) => Modified,
    };
    Some(FileChange {
        change,
        ..later.clone()
    })
}

fn shown_path(segments: &Segments) -> String {
    let names = segments.iter().map(|segment| shown(segment));
    names.fold(String::new(), |path, name| joined(&path, &name))
}

fn below(segments: &Segments, name: Vec<u8>) -> Segments {
    let mut below = segments.clone();
    below.push(name);
    below
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn many_writes_raise_one_event() {
        let dir = tempfile::tempdir().unwrap();
        let beneath = Beneath::open(dir.path().to_str().unwrap()).unwrap();
        let mut journal = Journal::start(&beneath);
        let signal = journal.signal().unwrap();
        for round in 1..=2_u64 {
            let mut open = ["a", "b"].map(|name| fs::File::create(dir.path().join(name)).unwrap());
            for n in 0..1000 {
                open[n % 2].write_all(b"x").unwrap();
            }
            let waiting = rustix::io::ioctl_fionread(&signal).unwrap();
            assert!(
                (1..=64).contains(&waiting),
                "{waiting} bytes of events in round {round}"
            );
            journal.refresh(&beneath);
            assert_eq!(journal.seq(), 2 * round);
            assert_eq!(rustix::io::ioctl_fionread(&signal).unwrap(), 0);
        }
    }

    #[test]
    fn changes_of_one_file_become_one() {
        use FileChangeKind::{Created, Deleted, Modified};
        for (kinds, folded) in [
            (&[Created][..], Some(Created)),
            (&[Created, Modified], Some(Created)),
            (&[Created, Modified, Deleted], None),
            (&[Created, Deleted, Created], Some(Created)),
            (&[Modified, Modified], Some(Modified)),
            (&[Modified, Deleted], Some(Deleted)),
            (&[Deleted, Created], Some(Modified)),
            (&[Deleted, Created, Deleted], Some(Deleted)),
        ] {
            let change = |change| FileChange {
                path: "f".to_owned(),
                size: 1,
                change,
            };
            let result = kinds.iter().fold(None, |known, kind| fold(known, &change(*kind)));
            assert_eq!(result.map(|change| change.change), folded, "{kinds:?}");
        }
    }
}

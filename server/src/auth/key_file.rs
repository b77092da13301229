//! `keys.json` in the state directory: the keys that there are, as hashes. Written by commands, read by servers.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    Scope, Scopes,
    key::{ApiKey, Fingerprint, KeyId},
};
use crate::{
    conversation::{PoolName, hex},
    state_dir::{self, StateDir, StateError},
};

/// The file's name.
const NAME: &str = "keys.json";

/// Held while the file is changed. A file of its own, since the other one is replaced.
const LOCK: &str = "keys.lock";

/// How the file is written; a server that knows another way only must not guess.
const VERSION: u32 = 1;

/// Keys at once: each request's look is one in a table, and the file is read whole.
const MOST: usize = 4096;

/// Bytes of a file that is read: that of [`MOST`] keys with names and pools is smaller.
const MOST_BYTES: u64 = 8 << 20;

/// Characters of a key's name.
const NAME_CHARS: usize = 64;

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its public part, and the principal that it makes.
    pub id: KeyId,
    /// What its operator calls it.
    pub name: String,
    /// Its hash.
    pub fingerprint: Fingerprint,
    /// The key that it has replaced, while that is still good.
    pub former: Option<Former>,
    /// What its holder may do.
    pub scopes: Scopes,
    /// Where, if not everywhere.
    pub pools: Vec<PoolName>,
    /// Since when.
    pub created: SystemTime,
    /// Until when.
    pub expires: Option<SystemTime>,
}

/// A key that has been replaced under its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// Its hash.
    pub fingerprint: Fingerprint,
    /// Until when it is good beside the new one.
    pub until: SystemTime,
}

impl Record {
    /// What a credential may be the hash of: of the key, or of the one that it has replaced while that is still good.
    #[must_use]
    pub fn fingerprints(&self, now: SystemTime) -> [Fingerprint; 2] {
        let former = self.former.filter(|former| now < former.until);
        [
            self.fingerprint,
            former.map_or(self.fingerprint, |former| former.fingerprint),
        ]
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

/// A key that is to be made.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// What its operator calls it.
    pub name: String,
    /// What its holder may do.
    pub scopes: Scopes,
    /// Where, if not everywhere.
    pub pools: Vec<PoolName>,
    /// How long, if not for ever.
    pub lasts: Option<Duration>,
}

/// Why keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file.
    #[error("the keys in {path} cannot be used: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could change it.
    #[error("the keys in {path} have mode {mode:04o}, so that others can reach them: type chmod 600 {path}")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It says what makes no sense.
    #[error("the keys in {path} cannot be read: {why}")]
    Garbled {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The name.
    #[error("a key's name has at most {NAME_CHARS} characters, and none that does not print")]
    Name,
    /// It could do nothing.
    #[error("a key needs a scope: run, files or admin")]
    NoScope,
    /// Too many.
    #[error("there are {MOST} keys, which is the limit: revoke some")]
    TooMany,
    /// There is none.
    #[error("there is no key {0}; `greenroom key list` shows those that there are")]
    Unknown(KeyId),
    /// No random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    keys: Vec<Written>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    sha256: String,
    scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<String>,
    /// Seconds since 1970, as below.
    created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<WrittenFormer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFormer {
    sha256: String,
    until: u64,
}

/// What tells one state of the file from another. A file that is replaced has another number, or another time if
/// the number is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    changed: (i64, i64),
    modified: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        }
    }
}

/// The file, whether or not it is there yet.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// The one of a state directory, which need not be there.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(NAME),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a key. It is the only time that it can be seen.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn create(&self, order: Order, now: SystemTime) -> Result<(ApiKey, Record), KeyError> {
        if order.name.chars().count() > NAME_CHARS || order.name.chars().any(char::is_control) {
            return Err(KeyError::Name);
        }
        if order.scopes == Scopes::default() {
            return Err(KeyError::NoScope);
        }
        self.change(|records| {
            if records.len() >= MOST {
                return Err(KeyError::TooMany);
            }
            let key = loop {
                let key = ApiKey::mint()?;
                if records.iter().all(|record| record.id != *key.id()) {
                    break key;
                }
            };
            let record = Record {
                id: key.id().clone(),
                name: order.name,
                fingerprint: Fingerprint::of(key.reveal()),
                former: None,
                scopes: order.scopes,
                pools: order.pools,
                created: now,
                expires: order.lasts.map(|lasts| now + lasts),
            };
            records.push(record.clone());
            Ok((key, record))
        })
    }

    /// Puts a new key in the place of one, under its id: with its sessions, scopes and time. The old one is good for
    /// `grace` yet.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn rotate(&self, id: &KeyId, grace: Duration, now: SystemTime) -> Result<(ApiKey, Record), KeyError> {
        self.change(|records| {
            let record = records.iter_mut().find(|record| record.id == *id);
            let record = record.ok_or_else(|| KeyError::Unknown(id.clone()))?;
            let key = ApiKey::renewed(id)?;
            record.former = (!grace.is_zero()).then_some(Former {
                fingerprint: record.fingerprint,
                until: now + grace,
            });
            record.fingerprint = Fingerprint::of(key.reveal());
            Ok((key, record.clone()))
        })
    }

    /// Takes a key back: from the next request on it is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn revoke(&self, id: &KeyId) -> Result<Record, KeyError> {
        self.change(|records| {
            let at = records.iter().position(|record| record.id == *id);
            let at = at.ok_or_else(|| KeyError::Unknown(id.clone()))?;
            Ok(records.remove(at))
        })
    }

    /// The keys in the order of their making; none where there is no file.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn list(&self) -> Result<Vec<Record>, KeyError> {
        Ok(self.read()?.map(|(_, records)| records).unwrap_or_default())
    }

    /// Which state the file is in; `None` if it is not there.
    pub(super) fn stamp(&self) -> Result<Option<Stamp>, KeyError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(Stamp::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The keys, with the state of the file that they are from.
    pub(super) fn read(&self) -> Result<Option<(Stamp, Vec<Record>)>, KeyError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed(source)),
        };
        let metadata = file.metadata().map_err(|source| self.failed(source))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = self.path.clone();
            return Err(KeyError::Exposed { path, mode });
        }
        let mut text = String::new();
        file.take(MOST_BYTES)
            .read_to_string(&mut text)
            .map_err(|source| self.failed(source))?;
        Ok(Some((Stamp::of(&metadata), self.parse(&text)?)))
    }

    fn failed(&self, source: io::Error) -> KeyError {
        let path = self.path.clone();
        KeyError::File { path, source }
    }

    fn parse(&self, text: &str) -> Result<Vec<Record>, KeyError> {
        let garbled = |why: String| KeyError::Garbled {
            path: self.path.clone(),
            why,
        };
        let document: Document = serde_json::from_str(text).map_err(|error| garbled(error.to_string()))?;
        if document.version != VERSION {
            return Err(garbled(format!(
                "it is of version {}, this program knows {VERSION}",
                document.version
            )));
        }
        let read = document.keys.into_iter().map(|written| {
            let id = written.id.clone();
            record(written).ok_or_else(|| garbled(format!("the key {id:?} makes no sense")))
        });
        read.collect()
    }

    /// Changes the keys. Race: of two commands the second waits for the first, so neither loses the other's key; a
    /// server that reads meanwhile finds the old file or the new one, since a rename is either.
    fn change<T>(&self, act: impl FnOnce(&mut Vec<Record>) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let state = StateDir::open(folder)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(state.path().join(LOCK))
            .map_err(|source| self.failed(source))?;
        // Held for milliseconds, by a command that a person can end.
        lock.lock().map_err(|source| self.failed(source))?;
        let mut records = self.list()?;
        let done = act(&mut records)?;
        self.write(&records).map_err(|source| self.failed(source))?;
        Ok(done)
    }

    fn write(&self, records: &[Record]) -> io::Result<()> {
        let document = Document {
            version: VERSION,
            keys: records.iter().map(written).collect(),
        };
        let text = serde_json::to_string_pretty(&document)? + "\n";
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix)?;
        let draft = self.path.with_file_name(format!(".{NAME}-{}", hex(&suffix)));
        let replaced =
            state_dir::write(&draft, text.as_bytes()).and_then(|()| fs::rename(&draft, &self.path));
        if replaced.is_err() {
            drop(fs::remove_file(&draft));
        }
        replaced?;
        // Until the folder is on the disk, too, a crash could bring a revoked key back.
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

fn record(written: Written) -> Option<Record> {
    let at = |seconds: u64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let scopes: Option<Scopes> = written
        .scopes
        .iter()
        .map(|scope| scope.parse::<Scope>().ok())
        .collect();
    let pools: Option<Vec<PoolName>> = written
        .pools
        .iter()
        .map(|pool| PoolName::parse(pool).ok())
        .collect();
    let expires = match written.expires {
        None => None,
        Some(seconds) => Some(at(seconds)?),
    };
    let former = match written.former {
        None => None,
        Some(former) => Some(Former {
            fingerprint: Fingerprint::from_hex(&former.sha256)?,
            until: at(former.until)?,
        }),
    };
    Some(Record {
        former,
        id: KeyId::parse(&written.id)?,
        name: written.name,
        fingerprint: Fingerprint::from_hex(&written.sha256)?,
        scopes: scopes?,
        pools: pools?,
        created: at(written.created)?,
        expires,
    })
}

fn written(record: &Record) -> Written {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    Written {
        id: record.id.to_string(),
        name: record.name.clone(),
        sha256: record.fingerprint.to_hex(),
        scopes: record.scopes.iter().map(|scope| scope.to_string()).collect(),
        pools: record.pools.iter().map(ToString::to_string).collect(),
        created: seconds(record.created),
        expires: record.expires.map(seconds),
        former: record.former.map(|former| WrittenFormer {
            sha256: former.fingerprint.to_hex(),
            until: seconds(former.until),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn file() -> (tempfile::TempDir, KeyFile) {
        let temp = tempfile::tempdir().unwrap();
        let file = KeyFile::of(&temp.path().join("state"));
        (temp, file)
    }

    fn order(name: &str) -> Order {
        Order {
            name: name.to_owned(),
            scopes: Scopes::ALL,
            ..Order::default()
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn keys_are_kept_as_hashes_and_read_back() {
        let (_temp, file) = file();
        assert_eq!(
            file.list().unwrap(),
            [],
            "before the first one there is not even a file"
        );
        let (key, record) = file
            .create(
                Order {
                    scopes: [Scope::Run].into_iter().collect(),
                    pools: vec![PoolName::parse("b").unwrap(), PoolName::parse("a").unwrap()],
                    lasts: Some(Duration::from_secs(60)),
                    ..order("CI of \"the house\"")
                },
                now(),
            )
            .unwrap();
        let (_, other) = file.create(order(""), now()).unwrap();
        assert_eq!(file.list().unwrap(), [record.clone(), other.clone()]);
        assert!(!record.is_expired(now() + Duration::from_secs(59)));
        assert!(record.is_expired(now() + Duration::from_secs(60)));
        assert!(!other.is_expired(now() + Duration::from_secs(1 << 40)));
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(
            !text.contains(key.reveal()) && !text.contains(&key.reveal()[12..44]),
            "{text}"
        );
        let mode = fs::metadata(file.path()).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert_eq!(file.revoke(&record.id).unwrap(), record);
        assert!(matches!(file.revoke(&record.id), Err(KeyError::Unknown(_))));
        assert_eq!(file.list().unwrap(), [other]);
    }

    #[test]
    fn a_key_is_replaced_under_its_id() {
        let (_temp, file) = file();
        let (old, before) = file.create(order("ci"), now()).unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let (new, after) = file.rotate(old.id(), day, now()).unwrap();
        assert_eq!(file.list().unwrap(), std::slice::from_ref(&after));
        assert_eq!(
            (new.id(), &after.name, after.scopes),
            (old.id(), &before.name, before.scopes)
        );
        let is = |record: &Record, key: &ApiKey, when| {
            record.fingerprints(when).contains(&Fingerprint::of(key.reveal()))
        };
        assert!(is(&after, &new, now()) && is(&after, &new, now() + 2 * day));
        assert!(is(&after, &old, now()) && !is(&after, &old, now() + day));
        // Once more, at once: whatever was before is over.
        let (newest, last) = file.rotate(old.id(), Duration::ZERO, now()).unwrap();
        assert!(is(&last, &newest, now()) && !is(&last, &new, now()) && !is(&last, &old, now()));
        let nobodys = ApiKey::mint().unwrap();
        let unknown = file.rotate(nobodys.id(), day, now());
        assert!(matches!(unknown, Err(KeyError::Unknown(_))));
    }

    #[test]
    fn commands_at_once_lose_no_key() {
        let (_temp, file) = file();
        thread::scope(|scope| {
            for name in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for _ in 0..4 {
                        file.create(order(&name.to_string()), now()).unwrap();
                    }
                });
            }
        });
        assert_eq!(file.list().unwrap().len(), 32);
        let left: Vec<_> = fs::read_dir(file.path().parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "drafts: {left:?}");
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        let (_temp, file) = file();
        assert!(matches!(
            file.create(order(&"x".repeat(65)), now()),
            Err(KeyError::Name)
        ));
        assert!(matches!(file.create(order("a\nb"), now()), Err(KeyError::Name)));
        assert!(matches!(
            file.create(Order::default(), now()),
            Err(KeyError::NoScope)
        ));
        assert!(file.stamp().unwrap().is_none(), "nothing was written");
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_refused_and_kept() {
        let (_temp, file) = file();
        file.create(order(""), now()).unwrap();
        let whole = fs::read_to_string(file.path()).unwrap();
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"run\"", "\"root\""),
            ("\"created\"", "\"made\""),
            ("\"sha256\": \"", "\"sha256\": \"0"),
            ("]\n}", ""),
        ] {
            let garbled = whole.replacen(from, to, 1);
            assert_ne!(garbled, whole);
            fs::write(file.path(), &garbled).unwrap();
            assert!(
                matches!(file.create(order(""), now()), Err(KeyError::Garbled { .. })),
                "{garbled}"
            );
            assert_eq!(fs::read_to_string(file.path()).unwrap(), garbled);
        }
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o620)).unwrap();
        let refused = file.list().unwrap_err().to_string();
        assert!(
            refused.contains("0620") && refused.contains("chmod 600"),
            "{refused}"
        );
    }

    #[test]
    fn a_file_that_is_replaced_has_another_stamp() {
        let (_temp, file) = file();
        let mut stamps = Vec::new();
        for name in ["a", "b", "c", "d"] {
            file.create(order(name), now()).unwrap();
            stamps.push(file.stamp().unwrap().unwrap());
        }
        for (at, stamp) in stamps.iter().enumerate() {
            assert!(!stamps[..at].contains(stamp), "{stamps:?}");
        }
    }
}

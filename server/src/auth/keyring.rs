//! The keys as a server has them: read when the file has changed, and asked with each request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use super::{
    AllowedPools, Identity, Word,
    key::{Fingerprint, KeyId},
    key_file::{KeyError, KeyFile, Record, Stamp},
};
use crate::conversation::Principal;

/// The keys. A look costs one `stat`, so that what a command has changed holds from the next request on; the file is
/// read when it is another one.
#[derive(Debug)]
pub struct Keyring {
    file: KeyFile,
    seen: Mutex<Seen>,
}

/// The keys at one moment: a request is judged by one state of them, and costs one look.
#[derive(Debug)]
pub struct Keys {
    table: Arc<HashMap<KeyId, Record>>,
    ever: bool,
}

/// What the file was when it was read last.
#[derive(Debug)]
struct Seen {
    stamp: Option<Stamp>,
    keys: Arc<HashMap<KeyId, Record>>,
    /// Whether there ever was a file, or something in its place that cannot be read.
    ever: bool,
    /// It cannot be read, and that was said.
    is_broken: bool,
}

impl Keyring {
    /// Reads the keys for the first time.
    ///
    /// # Errors
    /// The file is there and cannot be used. Later on that is no error: there are no keys then, and nobody who has
    /// none is let in for it.
    pub fn open(file: KeyFile) -> Result<Self, KeyError> {
        let (stamp, records) = match file.read()? {
            Some((stamp, records)) => (Some(stamp), records),
            None => (None, Vec::new()),
        };
        let seen = Seen {
            ever: stamp.is_some(),
            stamp,
            keys: table(records),
            is_broken: false,
        };
        Ok(Self {
            file,
            seen: Mutex::new(seen),
        })
    }

    /// The keys as they are now.
    #[must_use]
    pub fn now(&self) -> Keys {
        let stamp = self.file.stamp();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match stamp {
            Ok(stamp) if stamp == seen.stamp && !seen.is_broken => {}
            // Missing, and there never was one.
            Ok(None) if !seen.ever => {}
            Ok(_) | Err(_) => seen.read(&self.file),
        }
        Keys {
            table: Arc::clone(&seen.keys),
            ever: seen.ever,
        }
    }
}

impl Keys {
    /// Whether keys are in use: there is a file of them, or there was one in this server's life. Not whether it has
    /// any in it: the last one's revocation must not open the door to everybody.
    #[must_use]
    pub const fn are_in_use(&self) -> bool {
        self.ever
    }

    /// Who presents this credential. The work is the same whether or not it is one, and names one: a hash and two
    /// comparisons.
    #[must_use]
    pub fn holder(&self, credential: &str, now: SystemTime) -> Option<Identity> {
        let presented = Fingerprint::of(credential);
        let record = KeyId::named_by(credential).and_then(|id| self.table.get(&id));
        let nobodys = Fingerprint::of("");
        let [kept, former] = record.map_or([nobodys; 2], |record| record.fingerprints(now));
        let is_right = kept.matches(&presented) | former.matches(&presented);
        record
            .filter(|record| is_right && !record.is_expired(now))
            .map(identity)
    }
}

impl Seen {
    fn read(&mut self, file: &KeyFile) {
        match file.read() {
            Ok(Some((stamp, records))) => {
                self.stamp = Some(stamp);
                self.keys = table(records);
                (self.ever, self.is_broken) = (true, false);
                tracing::info!(keys = self.keys.len(), "the keys were read");
            }
            Ok(None) => {
                if self.stamp.take().is_some() || self.is_broken {
                    tracing::warn!("the file of keys is gone: until there is one again nobody has a key");
                }
                self.keys = Arc::default();
                self.is_broken = false;
            }
            Err(error) => {
                if !self.is_broken {
                    tracing::error!(%error, "until the keys can be read nobody has one");
                }
                self.keys = Arc::default();
                (self.ever, self.is_broken) = (true, true);
            }
        }
    }
}

fn table(records: Vec<Record>) -> Arc<HashMap<KeyId, Record>> {
    Arc::new(
        records
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect(),
    )
}

fn identity(record: &Record) -> Identity {
    Identity {
        principal: Principal::Key(record.id.to_string()),
        scopes: record.scopes,
        pools: if record.pools.is_empty() {
            AllowedPools::All
        } else {
            AllowedPools::Only(record.pools.as_slice().into())
        },
        word: Word::Believed,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::{
        auth::{Scope, Scopes, key_file::Order},
        conversation::PoolName,
    };

    fn ring() -> (tempfile::TempDir, KeyFile, Keyring) {
        let temp = tempfile::tempdir().unwrap();
        let file = KeyFile::of(temp.path());
        let ring = Keyring::open(file.clone()).unwrap();
        (temp, file, ring)
    }

    fn order() -> Order {
        Order {
            scopes: Scopes::ALL,
            ..Order::default()
        }
    }

    #[test]
    fn what_commands_do_holds_from_the_next_look_on() {
        let (_temp, file, ring) = ring();
        let now = SystemTime::now();
        assert!(!ring.now().are_in_use());
        let (first, record) = file.create(order(), now).unwrap();
        assert!(ring.now().are_in_use());
        let holder = ring.now().holder(first.reveal(), now).unwrap();
        assert_eq!(holder.principal, Principal::Key(record.id.to_string()));
        let (second, _) = file.create(order(), now).unwrap();
        assert!(ring.now().holder(second.reveal(), now).is_some());
        let (renewed, _) = file.rotate(&record.id, Duration::from_secs(9), now).unwrap();
        for key in [&first, &renewed] {
            assert_eq!(ring.now().holder(key.reveal(), now), Some(holder.clone()));
        }
        let later = now + Duration::from_secs(9);
        assert_eq!(ring.now().holder(first.reveal(), later), None);
        file.revoke(&record.id).unwrap();
        assert_eq!(ring.now().holder(renewed.reveal(), now), None);
        assert_eq!(ring.now().holder(first.reveal(), now), None);
        assert!(ring.now().holder(second.reveal(), now).is_some());
        file.revoke(second.id()).unwrap();
        assert_eq!(ring.now().holder(second.reveal(), now), None);
        assert!(ring.now().are_in_use(), "the last key's end opens nothing");
    }

    #[test]
    fn only_a_whole_key_in_its_time_is_one() {
        let (_temp, file, ring) = ring();
        let now = SystemTime::now();
        let (key, record) = file
            .create(
                Order {
                    scopes: [Scope::Files].into_iter().collect(),
                    pools: vec![PoolName::parse("a").unwrap()],
                    lasts: Some(Duration::from_secs(60)),
                    ..order()
                },
                now,
            )
            .unwrap();
        let text = key.reveal();
        let holder = ring.now().holder(text, now).unwrap();
        assert!(holder.may(Scope::Run).is_err() && holder.may_use("b").is_err());
        assert!(holder.may(Scope::Files).is_ok() && holder.may_use("a").is_ok());
        let (other, _) = file.create(order(), now).unwrap();
        for none in [
            "",
            "grk_",
            &text[..49],
            &format!("{text} "),
            &text.to_uppercase(),
            record.id.as_str(),
            &record.fingerprint.to_hex(),
            // Another key's secret under this one's id.
            &format!("{}{}", &text[..12], &other.reveal()[12..]),
        ] {
            assert_eq!(ring.now().holder(none, now), None, "{none}");
        }
        assert_eq!(ring.now().holder(text, now + Duration::from_secs(61)), None);
    }

    #[test]
    fn a_file_that_is_lost_or_broken_lets_nobody_in() {
        let (_temp, file, ring) = ring();
        let now = SystemTime::now();
        let (key, _) = file.create(order(), now).unwrap();
        assert!(ring.now().holder(key.reveal(), now).is_some());
        let whole = fs::read(file.path()).unwrap();
        for broken in [&b""[..], b"{}", &whole[..whole.len() / 2]] {
            fs::write(file.path(), broken).unwrap();
            assert_eq!(ring.now().holder(key.reveal(), now), None);
            assert!(ring.now().are_in_use());
        }
        fs::remove_file(file.path()).unwrap();
        assert_eq!(ring.now().holder(key.reveal(), now), None);
        assert!(ring.now().are_in_use());
        let (key, _) = file.create(order(), now).unwrap();
        assert!(
            ring.now().holder(key.reveal(), now).is_some(),
            "and again once there is one"
        );
        fs::write(file.path(), "no").unwrap();
        assert!(Keyring::open(file).is_err(), "a server does not even start");
    }
}

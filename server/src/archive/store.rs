//! Where archives lie: one object for each session, written as a whole or not at all, and after a reset a mark beside it.

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    ClientOptions, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path,
    prefix::PrefixStore,
};
use tokio::{task::spawn_blocking, time::timeout};

use super::{quota::Kept, seal::HEADER_BYTES};
use crate::conversation::SessionName;

/// A connection to a store that is none of this machine.
const CONNECT: Duration = Duration::from_secs(5);
/// One question to a store, or one part of an archive.
const CALL: Duration = Duration::from_secs(20);
/// A list of all archives.
const LIST: Duration = Duration::from_secs(60);
/// Bytes that go out at a time: stores of the S3 kind take no less, but for the last part.
const PART: usize = 5 << 20;
/// Archives of one deployment: more are not looked at, the oldest of them included.
const LISTED: usize = 100_000;
/// What the names of marks end with, beside the archive's own.
const MARK: &str = ".forgotten";
/// A draft that was not written to for so long has no writer any more.
const DRAFT: Duration = Duration::from_secs(3600);

/// Where archives are to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a bucket of S3, or of what speaks its protocol.
    S3(Bucket),
}

/// A bucket. Who may use it is said as to Amazon's own tools: by `AWS_*` in the environment, or by the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What all names in it begin with: folders, or nothing.
    pub prefix: String,
    /// Where, if not at Amazon.
    pub endpoint: Option<String>,
    /// Its region, where the environment does not say.
    pub region: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::S3(bucket) => write!(f, "s3://{}/{}", bucket.name, bucket.prefix),
        }
    }
}

/// Why a place is none.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The folder cannot be made.
    #[error(transparent)]
    Folder(#[from] io::Error),
    /// The bucket cannot be one.
    #[error(transparent)]
    Bucket(#[from] object_store::Error),
}

/// A place for archives. Clones are the same.
#[derive(Clone)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Where it is a folder of this machine.
    folder: Option<PathBuf>,
    /// Deployments that share a secret, and thereby names, do not share archives.
    deployment: String,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// It says why.
    #[error("{0}")]
    Failed(#[from] object_store::Error),
    /// It does not say anything.
    #[error("it did not answer within {0} s")]
    Slow(u64),
}

/// Everything that there is of a deployment.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) archives: Vec<Kept>,
    pub(super) marks: Vec<Mark>,
}

/// A mark: this session's files of an earlier time were to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) name: SessionName,
    pub(super) written: SystemTime,
}

/// An archive as it is read.
pub(super) struct Reading {
    pub(super) header: Bytes,
    pub(super) rest: BoxStream<'static, Result<Bytes, StoreError>>,
}

/// An archive that is being written: nobody sees it before it is [finished](Self::finish).
pub(super) struct Writing {
    store: Store,
    path: path::Path,
    waiting: BytesMut,
    /// Once there is more than one part.
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Store {
    /// Nothing is asked of a bucket yet: one that cannot be reached fails later, as a full disk does.
    pub(super) fn open(place: &Place, deployment: &str) -> Result<Self, PlaceError> {
        match place {
            Place::Folder(folder) => Self::folder(folder, deployment),
            Place::S3(bucket) => Self::bucket(bucket, deployment),
        }
    }

    fn bucket(bucket: &Bucket, deployment: &str) -> Result<Self, PlaceError> {
        // Whoever was first stays: one provider for the process.
        drop(rustls::crypto::ring::default_provider().install_default());
        let is_plain = |endpoint: &String| endpoint.starts_with("http://");
        // A call that is given up on must not go on trying for minutes.
        let retry = RetryConfig {
            max_retries: 4,
            retry_timeout: CALL,
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&bucket.name)
            .with_client_options(
                ClientOptions::new()
                    .with_connect_timeout(CONNECT)
                    .with_timeout(CALL)
                    .with_allow_http(bucket.endpoint.as_ref().is_some_and(is_plain)),
            )
            .with_retry(retry);
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let said = |key| builder.get_config_value(&key).is_some();
        if let Some(region) = &bucket.region
            && !said(AmazonS3ConfigKey::Region)
        {
            builder = builder.with_region(region);
        }
        Ok(Self {
            objects: Arc::new(PrefixStore::new(builder.build()?, bucket.prefix.as_str())),
            folder: None,
            deployment: deployment.to_owned(),
        })
    }

    /// A folder of this machine, made if it is not there, for this user only.
    fn folder(folder: &Path, deployment: &str) -> Result<Self, PlaceError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // On the disk before the old one is replaced: a host that loses power keeps one of them.
        let objects = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self {
            objects: Arc::new(objects),
            folder: Some(folder.to_owned()),
            deployment: deployment.to_owned(),
        })
    }

    fn path(&self, name: &str) -> path::Path {
        [self.deployment.as_str(), name].into_iter().collect()
    }

    /// The header of a session's archive, if there is one; less than a header of one that was cut off there.
    pub(super) async fn header(&self, name: &SessionName) -> Result<Option<Bytes>, StoreError> {
        let header = 0..HEADER_BYTES as u64;
        let options = GetOptions {
            range: Some(GetRange::Bounded(header)),
            ..GetOptions::default()
        };
        let path = self.path(&name.to_string());
        let read = async { self.objects.get_opts(&path, options).await?.bytes().await };
        match there(within(CALL, read).await) {
            // Stores say no to a range of something with no bytes at all: a host lost power, say.
            Err(error) => match there(within(CALL, self.objects.head(&path)).await)? {
                Some(meta) if meta.size < HEADER_BYTES as u64 => Ok(Some(Bytes::new())),
                Some(_) | None => Err(error),
            },
            header => header,
        }
    }

    /// A session's archive, if there is one.
    pub(super) async fn read(&self, name: &SessionName) -> Result<Option<Reading>, StoreError> {
        let path = self.path(&name.to_string());
        let Some(found) = there(within(CALL, self.objects.get(&path)).await)? else {
            return Ok(None);
        };
        let mut pieces = found.into_stream();
        let mut start = BytesMut::new();
        while start.len() < HEADER_BYTES {
            match within(CALL, async { pieces.try_next().await }).await? {
                Some(piece) => start.extend_from_slice(&piece),
                None => break,
            }
        }
        let header = start.split_to(start.len().min(HEADER_BYTES)).freeze();
        let first = futures_util::stream::iter([Ok(start.freeze())]);
        let rest = futures_util::stream::try_unfold(pieces, async |mut pieces| {
            let piece = within(CALL, async { pieces.try_next().await }).await?;
            Ok(piece.map(|piece| (piece, pieces)))
        });
        Ok(Some(Reading {
            header,
            rest: first.chain(rest).boxed(),
        }))
    }

    /// Begins to write a session's archive.
    pub(super) fn write(&self, name: &SessionName) -> Writing {
        Writing {
            store: self.clone(),
            path: self.path(&name.to_string()),
            waiting: BytesMut::new(),
            upload: None,
        }
    }

    /// Removes a session's archive, if there is one.
    pub(super) async fn remove(&self, name: &SessionName) -> Result<(), StoreError> {
        self.remove_named(&name.to_string()).await
    }

    pub(super) async fn remove_named(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        there(within(CALL, self.objects.delete(&path)).await).map(drop)
    }

    /// Marks up to when a session's files are forgotten.
    pub(super) async fn mark(&self, name: &SessionName, up_to_ms: u64) -> Result<(), StoreError> {
        let path = self.path(&marking(name));
        let put = self.objects.put(&path, up_to_ms.to_string().into());
        within(CALL, put).await.map(drop)
    }

    /// What the mark says, if there is one that says anything.
    pub(super) async fn marked(&self, name: &SessionName) -> Result<Option<u64>, StoreError> {
        let path = self.path(&marking(name));
        let read = async { self.objects.get(&path).await?.bytes().await };
        let said = there(within(CALL, read).await)?;
        Ok(said.and_then(|said| std::str::from_utf8(&said).ok()?.parse().ok()))
    }

    /// When the mark was written, by the store's clock.
    pub(super) async fn mark_written(&self, name: &SessionName) -> Result<Option<SystemTime>, StoreError> {
        let path = self.path(&marking(name));
        let meta = there(within(CALL, self.objects.head(&path)).await)?;
        Ok(meta.map(|meta| SystemTime::from(meta.last_modified)))
    }

    pub(super) async fn remove_mark(&self, name: &SessionName) -> Result<(), StoreError> {
        self.remove_named(&marking(name)).await
    }

    /// Everything that there is of this deployment.
    pub(super) async fn list(&self) -> Result<Listing, StoreError> {
        let prefix = path::Path::from(self.deployment.as_str());
        let list = self.objects.list(Some(&prefix)).take(LISTED);
        let listing = list.try_fold(Listing::default(), async |mut listing, meta| {
            let written = SystemTime::from(meta.last_modified);
            let name = meta.location.filename().unwrap_or_default();
            match name.strip_suffix(MARK).and_then(SessionName::parse) {
                Some(name) => listing.marks.push(Mark { name, written }),
                None => listing.archives.push(Kept {
                    name: name.to_owned(),
                    written,
                    bytes: meta.size,
                }),
            }
            Ok(listing)
        });
        within(LIST, listing).await
    }

    /// Removes what servers that were killed had begun to write to a folder. Other stores do so by their own rules.
    pub(super) async fn clear_drafts(&self) -> io::Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let folder = folder.join(self.path("").as_ref());
        spawn_blocking(move || {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                // As `object_store` calls them; names of sessions have no such sign.
                let is_draft = entry.file_name().as_encoded_bytes().contains(&b'#');
                let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                if is_draft && age > DRAFT {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        })
        .await?
    }
}

impl Writing {
    pub(super) async fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.waiting.extend_from_slice(bytes);
        while self.waiting.len() > PART {
            let part = self.waiting.split_to(PART).freeze();
            let upload = match &mut self.upload {
                Some(upload) => upload,
                None => {
                    let begun = within(CALL, self.store.objects.put_multipart(&self.path)).await?;
                    self.upload.insert(begun)
                }
            };
            within(CALL, upload.put_part(part.into())).await?;
        }
        Ok(())
    }

    /// Puts it in the place of the one that was there.
    pub(super) async fn finish(mut self) -> Result<(), StoreError> {
        let rest = std::mem::take(&mut self.waiting).freeze();
        match &mut self.upload {
            None => within(CALL, self.store.objects.put(&self.path, rest.into()))
                .await
                .map(drop),
            Some(upload) => {
                within(CALL, upload.put_part(rest.into())).await?;
                within(CALL, upload.complete()).await.map(drop)
            }
        }
    }

    /// Leaves the one that was there in its place.
    pub(super) async fn abandon(mut self) {
        if let Some(upload) = &mut self.upload {
            // What cannot be cleared now is cleared by a sweep, or by the store's own rules.
            drop(within(CALL, upload.abort()).await);
        }
    }
}

/// What the mark beside a session's archive is called.
fn marking(name: &SessionName) -> String {
    format!("{name}{MARK}")
}

async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StoreError> {
    match timeout(deadline, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(StoreError::Slow(deadline.as_secs())),
    }
}

/// Nothing being there is no failure.
fn there<T>(found: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match found {
        Err(StoreError::Failed(object_store::Error::NotFound { .. })) => Ok(None),
        other => other.map(Some),
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("objects", &self.objects.to_string())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::conversation::{ConversationId, PoolName, Principal, Secret, SessionKey};

    fn name(conversation: &str) -> SessionName {
        Secret::new([7; 32]).session_name(&SessionKey {
            pool: PoolName::parse("python").unwrap(),
            principal: Principal::Local,
            conversation: ConversationId::parse(conversation).unwrap(),
        })
    }

    async fn all(store: &Store, name: &SessionName) -> Option<Vec<u8>> {
        let reading = store.read(name).await.unwrap()?;
        let rest: Vec<Bytes> = reading.rest.try_collect().await.unwrap();
        Some([&reading.header[..], &rest.concat()].concat())
    }

    #[tokio::test]
    async fn an_archive_takes_the_place_of_the_one_before_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::folder(&dir.path().join("a/b"), "default").unwrap();
        let mode = fs::metadata(dir.path().join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let tea = name("tea-at-five");
        assert_eq!(store.header(&tea).await.unwrap(), None);
        assert_eq!(all(&store, &tea).await, None);
        store.remove(&tea).await.unwrap();
        for content in [vec![1; 100], vec![2; PART * 2 + 5], vec![3; PART]] {
            let before = all(&store, &tea).await;
            let mut given_up = store.write(&tea);
            given_up.push(&[9; PART * 2]).await.unwrap();
            given_up.abandon().await;
            let mut writing = store.write(&tea);
            for piece in content.chunks(1 << 20) {
                writing.push(piece).await.unwrap();
                assert!(
                    all(&store, &tea).await == before,
                    "nothing is seen before it is whole"
                );
            }
            writing.finish().await.unwrap();
            assert!(all(&store, &tea).await.unwrap() == content);
            let header = store.header(&tea).await.unwrap().unwrap();
            assert_eq!(&header[..], &content[..HEADER_BYTES.min(content.len())]);
        }
        let listed = store.list().await.unwrap().archives;
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].name.as_str(), listed[0].bytes),
            (tea.to_string().as_str(), PART as u64)
        );
        // Another deployment sees none of it.
        let other = Store::folder(&dir.path().join("a/b"), "other").unwrap();
        assert_eq!(all(&other, &tea).await, None);
        assert_eq!(other.list().await.unwrap().archives, []);
        store.remove_named(&listed[0].name).await.unwrap();
        assert_eq!(all(&store, &tea).await, None);
    }

    #[tokio::test]
    async fn what_a_killed_server_had_begun_is_cleared_once_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::folder(dir.path(), "default").unwrap();
        store.clear_drafts().await.unwrap();
        let mut begun = store.write(&name("tea-at-five"));
        begun.push(&[9; PART * 2]).await.unwrap();
        store.write(&name("cake-at-six")).finish().await.unwrap();
        let files = || {
            let files = fs::read_dir(dir.path().join("default")).unwrap();
            files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
        };
        store.clear_drafts().await.unwrap();
        assert_eq!(files().len(), 2, "it may still be written");
        for file in files() {
            let old = SystemTime::now() - 2 * DRAFT;
            fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
        std::mem::forget(begun);
        store.clear_drafts().await.unwrap();
        assert_eq!(files().len(), 1);
        assert_eq!(store.list().await.unwrap().archives.len(), 1);
    }

    #[tokio::test]
    async fn a_folder_that_is_none_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Store::folder(&file.path().join("x"), "default").is_err());
        let dir = tempfile::tempdir().unwrap();
        let store = Store::folder(&dir.path().join("gone"), "default").unwrap();
        fs::remove_dir(dir.path().join("gone")).unwrap();
        fs::write(dir.path().join("gone"), "").unwrap();
        assert!(store.header(&name("tea-at-five")).await.is_err());
        assert!(store.write(&name("tea-at-five")).finish().await.is_err());
    }
}

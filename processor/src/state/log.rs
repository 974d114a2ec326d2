//! The epochs of a job as files: what is true of it.
//!
//! ```text
//! LOCATION/JOB/VERSION/epochs/00000000000000000042.epoch      created once, never replaced
//! LOCATION/JOB/VERSION/bases/00000000000000000040-WRITER/000000.part …
//! LOCATION/JOB/VERSION/bases/00000000000000000040.base        names the parts; the image exists when it does
//! ```
//!
//! The fence is the numbering. Epochs count on without a hole, and a number can be created once. A process that takes a job over
//! creates the next epoch, an empty one; whatever the process before writes next has the same number, fails, and is told.
//!
//! Old epochs are removed, in ascending order, and their numbers could be created again by a process that slept for long. So after it
//! created an epoch a process looks at the one before: where that is gone, or another's than it thinks, the new file is nobody's, and the
//! process was fenced. And every file names the writer of the one before, so that nobody ever reads on from such a file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use everlog_common::{Positions, compute};
use everlog_table::storage::{Storage, StorageErrorKind, StoredObject};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use super::epoch::{self, Broken, Epoch, Header, JobId, Writer, no_rows};
use super::error::StoreError;

/// The largest file of an epoch.
const EPOCH_BYTES_MAX: u64 = 1 << 30;
/// How often a process tries to take a job over from others that do so too.
const TAKE_OVER_ATTEMPTS: u32 = 32;
/// How often an epoch's file is created that is said to be there and is not.
const CREATE_ATTEMPTS: u32 = 5;
/// Between two of these.
const CREATE_PAUSE: Duration = Duration::from_millis(200);
/// What is read first of a file for its header.
const HEADER_GUESS_BYTES: u64 = 16 << 10;
/// Files that are removed, or read for their headers, at a time.
const REQUESTS: usize = 8;
/// The form of base images.
const BASE_FORMAT: u32 = 1;

/// What state has to be of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The job and its version.
    pub job: JobId,
    /// Of the query, its source's columns and event time.
    pub fingerprint: u64,
    /// What computes: state of another one is refused.
    pub engine: String,
}

/// The files of one version of a job, owned by this process until another one takes over.
#[derive(Debug, Clone)]
pub struct EpochLog {
    storage: Storage,
    folder: Arc<str>,
    identity: Arc<Identity>,
    chain: Uuid,
    writer: Uuid,
    /// Who wrote the epoch before the one that was taken over with.
    before: Uuid,
    /// The newest epoch that this process wrote.
    head: Arc<AtomicU64>,
}

/// What is read of an epoch.
#[derive(Debug)]
enum What {
    Header,
    /// The header, and the progress unless that is known, by the epoch's number and writer.
    Progress {
        known: Option<(u64, Uuid)>,
    },
}

/// The progress of a version's newest epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestProgress {
    /// The epoch.
    pub epoch: u64,
    /// Who wrote it: of a version that was dropped and begun anew there may be another one of that number.
    pub writer: Uuid,
    /// What it has, as JSON, empty before there is any; none where the caller knows it.
    pub progress: Option<Vec<u8>>,
}

/// What a listing shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) epochs: BTreeSet<u64>,
    pub(super) bases: BTreeSet<u64>,
    /// Everything of base images, with the image's number.
    base_files: Vec<(u64, String)>,
}

/// A base image's list of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseManifest {
    format: u32,
    pub(super) epoch: u64,
    chain: Uuid,
    /// Of that epoch.
    pub(super) writer: Uuid,
    pub(super) parts: Vec<BasePart>,
    /// Of keys and values, before compression.
    pub(super) bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BasePart {
    name: String,
    checksum: String,
}

impl EpochLog {
    /// Takes the job over: from here on no earlier process can write an epoch. The newest epoch, which this call created,
    /// comes with it.
    ///
    /// `writer` is an identifier that nobody else draws. State of another job, query or engine is refused before anything is
    /// written.
    pub async fn take_over(
        storage: Storage,
        location: &str,
        identity: Identity,
        writer: Uuid,
    ) -> Result<(Self, Epoch), StoreError> {
        let JobId { name, version } = &identity.job;
        let folder = format!("{}/{name}/{version}", location.trim_end_matches('/'));
        let mut log = Self {
            storage,
            folder: folder.into(),
            identity: Arc::new(identity),
            chain: writer,
            writer,
            before: Uuid::nil(),
            head: Arc::default(),
        };
        for _ in 0..TAKE_OVER_ATTEMPTS {
            if let Some(claim) = log.try_to_take_over().await? {
                return Ok((log, claim));
            }
        }
        Err(StoreError::Contended {
            job: log.identity.job.to_string(),
            attempts: TAKE_OVER_ATTEMPTS,
        })
    }

    async fn try_to_take_over(&mut self) -> Result<Option<Epoch>, StoreError> {
        let head = self.listing().await?.epochs.last().copied();
        let claim = match head {
            None => Epoch {
                number: 1,
                job: self.identity.job.clone(),
                fingerprint: self.identity.fingerprint,
                engine: self.identity.engine.clone(),
                changes: Arc::default(),
                progress: Vec::new(),
                positions: Positions::new(),
                rows_before: 0,
                late_before: 0,
                dead_before: 0,
                rows: no_rows(),
                late: no_rows(),
                dead: no_rows(),
            },
            Some(head) => {
                let (header, newest) = match self.read_with_header(head).await {
                    // Another process went on and removed what it no longer needs: look again.
                    Err(StoreError::Storage { source, .. })
                        if source.kind() == StorageErrorKind::NotFound =>
                    {
                        return Ok(None);
                    }
                    read => read?,
                };
                self.check(&header)?;
                self.chain = header.chain;
                self.before = header.writer;
                Epoch {
                    number: head + 1,
                    changes: Arc::default(),
                    rows_before: header.after.rows,
                    late_before: header.after.late,
                    dead_before: header.after.dead,
                    rows: no_rows(),
                    late: no_rows(),
                    dead: no_rows(),
                    ..newest
                }
            }
        };
        match self.write(&claim, true).await {
            Ok(()) => Ok(Some(claim)),
            Err(StoreError::Fenced { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the newest epoch of a version says of itself; none where there is no epoch. It takes nothing over and changes
    /// nothing: for reports, and for decisions about a version that others run.
    pub async fn newest(
        storage: &Storage,
        location: &str,
        job: &JobId,
    ) -> Result<Option<Header>, StoreError> {
        let log = Self::to_read(storage, location, job);
        let newest = log.read_newest(&What::Header).await?;
        Ok(newest.map(|(header, _)| header))
    }

    /// What one epoch of a version says of itself; none where it is not there (any more).
    pub async fn header_of(
        storage: &Storage,
        location: &str,
        job: &JobId,
        number: u64,
    ) -> Result<Option<Header>, StoreError> {
        let log = Self::to_read(storage, location, job);
        found(log.header(number).await)
    }

    /// The progress that the newest epoch of a version has; none where there is no epoch. Of the file only the header and that
    /// are read, and of one that is `known` already, by its number and writer, the header alone.
    pub async fn newest_progress(
        storage: &Storage,
        location: &str,
        job: &JobId,
        known: Option<(u64, Uuid)>,
    ) -> Result<Option<NewestProgress>, StoreError> {
        let log = Self::to_read(storage, location, job);
        let newest = log.read_newest(&What::Progress { known }).await?;
        Ok(newest.map(|(header, progress)| NewestProgress {
            epoch: header.epoch,
            writer: header.writer,
            progress,
        }))
    }

    /// Of this only storage and folder are used to read.
    fn to_read(storage: &Storage, location: &str, job: &JobId) -> Self {
        let folder = format!(
            "{}/{}/{}",
            location.trim_end_matches('/'),
            job.name,
            job.version
        );
        Self {
            storage: storage.clone(),
            folder: folder.into(),
            identity: Arc::new(Identity {
                job: job.clone(),
                fingerprint: 0,
                engine: String::new(),
            }),
            chain: Uuid::nil(),
            writer: Uuid::nil(),
            before: Uuid::nil(),
            head: Arc::default(),
        }
    }

    /// Of the newest epoch what is asked for.
    async fn read_newest(
        &self,
        what: &What,
    ) -> Result<Option<(Header, Option<Vec<u8>>)>, StoreError> {
        let mut gone = None;
        for _ in 0..TAKE_OVER_ATTEMPTS {
            let Some(head) = self.listing().await?.epochs.last().copied() else {
                return Ok(None);
            };
            match self.read_what(head, what).await {
                // dropped, or gone on and removed, meanwhile
                Err(StoreError::Storage { doing, source })
                    if source.kind() == StorageErrorKind::NotFound =>
                {
                    gone = Some(StoreError::Storage { doing, source });
                }
                read => return read.map(Some),
            }
        }
        match gone {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    async fn read_what(
        &self,
        number: u64,
        what: &What,
    ) -> Result<(Header, Option<Vec<u8>>), StoreError> {
        let (header, extent) = self.header_and_extent(number).await?;
        let progress = match what {
            What::Progress { known } if *known != Some((header.epoch, header.writer)) => {
                Some(self.progress(&header, extent).await?)
            }
            What::Progress { .. } | What::Header => None,
        };
        Ok((header, progress))
    }

    /// The progress of the epoch with this header, of its section alone where that can be.
    async fn progress(&self, header: &Header, extent: usize) -> Result<Vec<u8>, StoreError> {
        let Some(range) = header.progress_range(extent) else {
            return Ok(self.read(header.epoch).await?.progress);
        };
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let uri = self.epoch_uri(header.epoch);
        let section = self.storage.get_range(&uri, range).await;
        let section = section.map_err(|e| failed(format!("read epoch {}", header.epoch), e))?;
        header.progress(&section).map_err(|b| corrupt(&uri, b))
    }

    /// Whether state with this header can be gone on with.
    fn check(&self, header: &Header) -> Result<(), StoreError> {
        let Identity {
            job,
            fingerprint,
            engine,
        } = &*self.identity;
        if (&header.job, &header.version) != (&job.name, &job.version) {
            return Err(StoreError::OtherJob {
                folder: self.folder.to_string(),
                its: format!("{} version {}", header.job, header.version),
                ours: job.to_string(),
            });
        }
        if header.fingerprint != *fingerprint {
            return Err(StoreError::OtherQuery {
                job: job.to_string(),
            });
        }
        if header.engine != *engine {
            return Err(StoreError::OtherEngine {
                job: job.to_string(),
                its: header.engine.clone(),
                ours: engine.clone(),
            });
        }
        Ok(())
    }

    /// Drawn by the process that began the job; the same in all its epochs.
    pub fn chain(&self) -> Uuid {
        self.chain
    }

    /// What the state is of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Makes an epoch durable. When it returns, the epoch is part of the job for good, and nobody else wrote that number.
    pub async fn put(&self, epoch: &Epoch) -> Result<(), StoreError> {
        self.write(epoch, false).await
    }

    async fn write(&self, epoch: &Epoch, takes_over: bool) -> Result<(), StoreError> {
        let number = epoch.number;
        let parent = if takes_over { self.before } else { self.writer };
        let writer = Writer {
            chain: self.chain,
            writer: self.writer,
            parent,
            takes_over,
        };
        let owned = epoch.clone();
        let encoded = compute::spawn(move || epoch::encode(&owned, writer));
        let file = encoded.await.map_err(|_| StoreError::Stopped)?;
        let file = file.map_err(|e| StoreError::Encoding {
            epoch: number,
            what: e.to_string(),
        })?;
        let bytes = file.len() as u64;
        if bytes > EPOCH_BYTES_MAX {
            return Err(StoreError::TooLarge {
                epoch: number,
                bytes,
                max: EPOCH_BYTES_MAX,
            });
        }
        let uri = self.epoch_uri(number);
        let file = Bytes::from(file);
        let mut left = CREATE_ATTEMPTS;
        loop {
            left -= 1;
            let created = self.storage.create(&uri, file.clone()).await;
            if created.map_err(|e| failed(format!("write epoch {number}"), e))? {
                break;
            }
            match self.writer_of(number).await? {
                // The reply to our own creation was lost, and the client asked again.
                Some(writer) if writer == self.writer => break,
                Some(_) => return Err(self.fenced(number)),
                // Another attempt, maybe our own, was under way, and has not come or will not come to anything.
                None if left > 0 => tokio::time::sleep(CREATE_PAUSE).await,
                None => return Err(self.fenced(number)),
            }
        }
        if number > 1 && self.writer_of(number - 1).await? != Some(parent) {
            // Best effort: whoever reads it sees that it follows on nothing.
            let _ = self.storage.delete(&uri).await;
            return Err(self.fenced(number));
        }
        self.head.store(number, Ordering::Release);
        Ok(())
    }

    /// None: there is no such epoch (any more).
    async fn writer_of(&self, number: u64) -> Result<Option<Uuid>, StoreError> {
        let header = found(self.header(number).await)?;
        Ok(header.map(|header| header.writer))
    }

    /// The writer of an epoch, where it follows on `parent` and is of this chain.
    pub(super) async fn read_after(
        &self,
        number: u64,
        parent: Uuid,
    ) -> Result<Option<(Uuid, Epoch)>, StoreError> {
        let (header, epoch) = self.read_with_header(number).await?;
        let follows = header.chain == self.chain && (number == 1 || header.parent == parent);
        Ok(follows.then_some((header.writer, epoch)))
    }

    fn fenced(&self, epoch: u64) -> StoreError {
        let JobId { name, version } = self.identity.job.clone();
        StoreError::Fenced {
            job: name,
            version,
            epoch,
        }
    }

    /// Whether this process still owns the job: for when there is nothing to write, and before anything that would take an
    /// output back from a later process.
    pub async fn check_owner(&self) -> Result<(), StoreError> {
        let head = self.head.load(Ordering::Acquire);
        let there = |number: u64| async move {
            let found = self.storage.exists(&self.epoch_uri(number)).await;
            found.map_err(|e| failed("look for newer epochs".into(), e))
        };
        // Where the next one was removed again, by a later process or with the whole version, ours was before it.
        if there(head + 1).await? || !there(head).await? {
            return Err(self.fenced(head + 1));
        }
        Ok(())
    }

    /// One epoch.
    pub async fn read(&self, number: u64) -> Result<Epoch, StoreError> {
        Ok(self.read_with_header(number).await?.1)
    }

    async fn read_with_header(&self, number: u64) -> Result<(Header, Epoch), StoreError> {
        let uri = self.epoch_uri(number);
        let file = self.storage.get(&uri).await;
        let file = file.map_err(|e| failed(format!("read epoch {number}"), e))?;
        let decoded = compute::spawn(move || epoch::decode(&file));
        let decoded = decoded.await.map_err(|_| StoreError::Stopped)?;
        let (header, epoch) = decoded.map_err(|broken| corrupt(&uri, broken))?;
        if header.epoch != number {
            return Err(corrupt(
                &uri,
                Broken(format!("it is epoch {}", header.epoch)),
            ));
        }
        Ok((header, epoch))
    }

    /// What an epoch's file says of itself.
    pub async fn header(&self, number: u64) -> Result<Header, StoreError> {
        Ok(self.header_and_extent(number).await?.0)
    }

    async fn header_and_extent(&self, number: u64) -> Result<(Header, usize), StoreError> {
        let uri = self.epoch_uri(number);
        let doing = || format!("read epoch {number}");
        let size = self
            .storage
            .size(&uri)
            .await
            .map_err(|e| failed(doing(), e))?;
        let mut read = HEADER_GUESS_BYTES.min(size);
        loop {
            let start = self.storage.get_range(&uri, 0..read).await;
            let start = start.map_err(|e| failed(doing(), e))?;
            let extent = epoch::header_extent(&start).map_err(|b| corrupt(&uri, b))?;
            match extent.map(|extent| extent as u64) {
                Some(extent) if extent > read && extent <= size => read = extent,
                _ => {
                    let decoded = epoch::decode_header(&start);
                    return decoded.map_err(|b| corrupt(&uri, b));
                }
            }
        }
    }

    /// Headers of several epochs, in their order.
    pub(super) async fn headers(&self, numbers: Vec<u64>) -> Result<Vec<Header>, StoreError> {
        let read = stream::iter(numbers).map(|number| self.header(number));
        read.buffered(REQUESTS).try_collect().await
    }

    pub(super) async fn listing(&self) -> Result<Listing, StoreError> {
        let list = |e| failed("list the epochs".into(), e);
        let mut listing = Listing::default();
        let epochs = self.storage.list(&format!("{}/epochs", self.folder));
        let bases = self.storage.list(&format!("{}/bases", self.folder));
        let mut objects = epochs.map_err(list)?.chain(bases.map_err(list)?);
        while let Some(object) = objects.next().await {
            let StoredObject { uri, .. } = object.map_err(list)?;
            // By the last parts of the name: a listing may write the beginning in another way.
            let mut parts = uri.rsplit('/');
            let (name, parent) = (
                parts.next().unwrap_or_default(),
                parts.next().unwrap_or_default(),
            );
            if let Some(number) = name.strip_suffix(".epoch").and_then(number) {
                listing.epochs.insert(number);
            } else if let Some(number) = name.strip_suffix(".base").and_then(number) {
                listing.bases.insert(number);
                listing.base_files.push((number, uri));
            } else if let Some((n, _)) = parent.split_once('-')
                && let Some(number) = number(n)
            {
                listing.base_files.push((number, uri));
            }
        }
        Ok(listing)
    }

    fn epoch_uri(&self, number: u64) -> String {
        format!("{}/epochs/{number:020}.epoch", self.folder)
    }

    fn base_uri(&self, number: u64) -> String {
        format!("{}/bases/{number:020}.base", self.folder)
    }

    /// Writes one part of the image of `epoch`.
    pub(super) async fn put_part(
        &self,
        epoch: u64,
        part: usize,
        bytes: Vec<u8>,
    ) -> Result<BasePart, StoreError> {
        let name = format!("{epoch:020}-{}/{part:06}.part", self.writer);
        let checksum = format!("{:016x}", XxHash3_64::oneshot(&bytes));
        let uri = format!("{}/bases/{name}", self.folder);
        let put = self.storage.put(&uri, Bytes::from(bytes)).await;
        put.map_err(|e| {
            failed(
                format!("write a part of the base image of epoch {epoch}"),
                e,
            )
        })?;
        Ok(BasePart { name, checksum })
    }

    /// Makes the image exist.
    pub(super) async fn put_base(
        &self,
        (epoch, writer): (u64, Uuid),
        parts: Vec<BasePart>,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let manifest = BaseManifest {
            format: BASE_FORMAT,
            epoch,
            chain: self.chain,
            writer,
            parts,
            bytes,
        };
        let encoding = |e: serde_json::Error| StoreError::Encoding {
            epoch,
            what: e.to_string(),
        };
        let text = serde_json::to_string(&manifest).map_err(encoding)?;
        let text = format!("{text}\n{:016x}\n", XxHash3_64::oneshot(text.as_bytes()));
        let failed = |e| failed(format!("write the base image of epoch {epoch}"), e);
        let (uri, text) = (self.base_uri(epoch), Bytes::from(text));
        let created = self.storage.create(&uri, text.clone()).await;
        if created.map_err(failed)? {
            return Ok(());
        }
        match self.manifest(epoch).await {
            // Another process made one of the same epoch: the same state.
            Ok(there) if there.chain == self.chain => Ok(()),
            // Of no use to anybody: see `own_bases`.
            Ok(_) | Err(StoreError::Corrupt { .. }) => {
                self.storage.put(&uri, text).await.map_err(failed)
            }
            Err(error) => Err(error),
        }
    }

    /// Of these images, those that are of this very chain of epochs: a process that was fenced when its version was dropped
    /// may have finished one after that, which then lies below the version that was begun anew under the same name.
    pub(super) async fn own_bases(
        &self,
        bases: BTreeSet<u64>,
    ) -> Result<BTreeSet<u64>, StoreError> {
        let mut own = BTreeSet::new();
        for epoch in bases {
            match self.manifest(epoch).await {
                Ok(manifest) if manifest.chain != self.chain => {
                    tracing::warn!(job = %self.identity.job, epoch, "a base image is of an earlier job of this name, and left alone");
                }
                // Damaged: that is told where it is needed, and nothing else helps.
                Ok(_) | Err(StoreError::Corrupt { .. }) => {
                    own.insert(epoch);
                }
                Err(StoreError::Storage { source, .. })
                    if source.kind() == StorageErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(own)
    }

    /// The list of an image's contents, which is this job's.
    pub(super) async fn base(&self, epoch: u64) -> Result<BaseManifest, StoreError> {
        let manifest = self.manifest(epoch).await?;
        if manifest.chain != self.chain {
            let uri = self.base_uri(epoch);
            return Err(corrupt(&uri, Broken("it is of another job".to_owned())));
        }
        Ok(manifest)
    }

    async fn manifest(&self, epoch: u64) -> Result<BaseManifest, StoreError> {
        let uri = self.base_uri(epoch);
        let read = self.storage.get(&uri).await;
        let read = read.map_err(|e| failed(format!("read the base image of epoch {epoch}"), e))?;
        let broken = |what: &str| corrupt(&uri, Broken(what.to_owned()));
        let text = std::str::from_utf8(&read).map_err(|_| broken("it is not text"))?;
        let (json, sum) = text
            .split_once('\n')
            .ok_or_else(|| broken("it is cut off"))?;
        if sum.strip_suffix('\n') != Some(&format!("{:016x}", XxHash3_64::oneshot(json.as_bytes())))
        {
            return Err(broken("its checksum is wrong: it is damaged"));
        }
        let manifest: BaseManifest =
            serde_json::from_str(json).map_err(|e| broken(&format!("it cannot be read ({e})")))?;
        if (manifest.format, manifest.epoch) != (BASE_FORMAT, epoch) {
            return Err(broken("it is of another form, or another epoch"));
        }
        Ok(manifest)
    }

    /// One part of an image, verified.
    pub(super) async fn part(&self, part: &BasePart) -> Result<Bytes, StoreError> {
        let uri = format!("{}/bases/{}", self.folder, part.name);
        let read = self.storage.get(&uri).await;
        let bytes = read.map_err(|e| failed("read a part of a base image".into(), e))?;
        if format!("{:016x}", XxHash3_64::oneshot(&bytes)) != part.checksum {
            return Err(corrupt(
                &uri,
                Broken("its checksum is wrong: it is damaged".into()),
            ));
        }
        Ok(bytes)
    }

    /// Where a part is, for messages.
    pub(super) fn part_uri(&self, part: &BasePart) -> String {
        format!("{}/bases/{}", self.folder, part.name)
    }

    /// Removes what the image of epoch `base`, which this process has just made, makes superfluous: epochs before its own, and
    /// older images, also unfinished ones. Never by an image that was merely found: it may be of a job that was dropped.
    pub(super) async fn prune(&self, base: u64) -> Result<usize, StoreError> {
        let listing = self.listing().await?;
        let epochs: Vec<_> = listing
            .epochs
            .range(..base)
            .map(|n| self.epoch_uri(*n))
            .collect();
        // An image's list goes first: without it, what is left of the image is only waste.
        let (lists, parts): (Vec<_>, Vec<_>) = listing
            .base_files
            .into_iter()
            .filter(|(n, _)| *n < base)
            .map(|(_, uri)| uri)
            .partition(|uri| uri.strip_suffix(".base").is_some());
        let mut removed = 0;
        let failed = |e| failed("remove old epochs".into(), e);
        for uris in [lists, parts] {
            removed += uris.len();
            let removals =
                stream::iter(uris).map(|uri| async move { self.storage.delete(&uri).await });
            let removals = removals.buffer_unordered(REQUESTS).try_collect::<Vec<()>>();
            removals.await.map_err(failed)?;
        }
        // One after the other, ascending: who finds a number free that was in use finds the one before free as well.
        for uri in epochs {
            self.storage.delete(&uri).await.map_err(failed)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes everything of a version of a job. Nothing may run it.
    pub async fn remove_all(
        storage: &Storage,
        location: &str,
        job: &JobId,
    ) -> Result<usize, StoreError> {
        let folder = format!(
            "{}/{}/{}",
            location.trim_end_matches('/'),
            job.name,
            job.version
        );
        let list = |e| failed("list the epochs".into(), e);
        let objects: Vec<StoredObject> = storage
            .list(&folder)
            .map_err(list)?
            .try_collect()
            .await
            .map_err(list)?;
        let count = objects.len();
        // The newest epoch last, which is what fences a process that still runs: who finds its number free then finds the one
        // before free, too, and knows.
        let newest = objects
            .iter()
            .filter_map(|object| epoch_of(&object.uri))
            .max();
        let (last, others): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .map(|object| object.uri)
            .partition(|uri| newest.is_some() && epoch_of(uri) == newest);
        for uris in [others, last] {
            let removals = stream::iter(uris).map(|uri| async move { storage.delete(&uri).await });
            let removals = removals.buffer_unordered(REQUESTS).try_collect::<Vec<()>>();
            removals
                .await
                .map_err(|e| failed("remove the epochs".into(), e))?;
        }
        Ok(count)
    }
}

/// The number of the epoch whose file this is.
fn epoch_of(uri: &str) -> Option<u64> {
    uri.rsplit('/')
        .next()?
        .strip_suffix(".epoch")
        .and_then(number)
}

fn number(text: &str) -> Option<u64> {
    (text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// What was read; none where there is nothing.
fn found<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(StoreError::Storage { source, .. }) if source.kind() == StorageErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn failed(doing: String, source: everlog_table::storage::StorageError) -> StoreError {
    StoreError::Storage { doing, source }
}

pub(super) fn corrupt(file: &str, broken: Broken) -> StoreError {
    StoreError::Corrupt {
        file: file.to_owned(),
        what: broken.0,
    }
}

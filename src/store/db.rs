//! The database: a copy-on-write B+tree over one mapped file, a cache of the applied log.
//!
//! * A batch of entries is one [`Txn`]. Its changes are on the heap; committing publishes
//!   a [`Snapshot`], which readers share and which never changes.
//! * A checkpoint writes the pages that are only on the heap into the file, then a meta
//!   page that names the roots and the entry they stand at (`checkpoint.rs`).
//! * After a crash the last durable checkpoint is there, whole, and the log is applied
//!   from [`Db::durable`] on. The checkpoint before it stays intact as well, in case the
//!   newer meta page is damaged: hence the log is kept from [`Db::log_needed_from`].
//!
//! Left out: a second story of durability (the log has it), and transactions that conflict:
//! there is one writer, the entries in their order.

use std::collections::VecDeque;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Identity;
use super::checkpoint::Writing;
use super::disk::{Disk, FileKind, Region, parent};
use super::error::StoreError;
use super::heap::{HeapPages, Pool};
use super::map::{FileWriter, PAGE, PageMap, Pin};
use super::meta::{BitmapRun, Meta, ROOTS, Root, SLOTS, VERSION};
use super::page::{Run, View};
use super::scan::Scan;
use super::space::{Bitmap, PageTable, Space};
use super::tree::{self, Source, corrupt};
use super::txn::Txn;

pub use super::checkpoint::{CheckpointDone, CheckpointJob};
pub use super::meta::DbState;
pub use super::page::{KEY_MAX, VALUE_MAX};

/// The fixed trees of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tree {
    /// Keys and their newest values.
    Kv = 0,
    /// Changes by revision.
    History = 1,
    /// Keys by the time they expire.
    Ttl = 2,
    /// What clients asked for last.
    Session = 3,
    /// Everything else.
    Meta = 4,
    /// Keys that are gone, and when they went.
    Deleted = 5,
}

/// How to open a database.
#[derive(Clone, Debug)]
pub struct DbOptions {
    /// The file.
    pub path: PathBuf,
    /// Address space to reserve: the file never gets bigger. Make it a few times the quota.
    pub map_max: u64,
    /// Bytes in use above which puts are refused.
    pub quota: u64,
    /// The file grows by multiples of this.
    pub grow_step: u64,
    /// When the file gets shorter.
    pub shrink: Shrink,
}

/// How much must be free at the end of a file before it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Shrink {
    /// At least so many bytes, and
    pub least: u64,
    /// at least this part of the file: 4 for a quarter.
    pub part: u64,
}

impl Default for Shrink {
    fn default() -> Self {
        Self { least: 64 << 20, part: 4 }
    }
}

/// A checkpoint that must not be overwritten.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) meta: Meta,
    pub(super) bitmap: Arc<Bitmap>,
}

/// Pages and runs of batches in their order, each with the newest pin that may read them.
pub(super) type Retired = VecDeque<(u64, Vec<(u64, u64)>)>;

/// The database. One thread owns it; readers have [`Published`].
#[derive(Debug)]
pub struct Db {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: DbOptions,
    identity: Identity,
    pub(super) published: Published,
    pub(super) current: Arc<Snapshot>,
    pub(super) map: Arc<PageMap>,
    pub(super) space: Space,
    /// `None` while a checkpoint is being written.
    pub(super) writer: Option<FileWriter>,
    /// Pages that are on the heap only, and how many of them form the run.
    pub(super) dirty: PageTable<u64>,
    pub(super) dirty_pages: u64,
    /// Those of them that the running checkpoint took over, and which stay there until it has
    /// written them.
    pub(super) writing: Writing,
    /// Memory for the pages of the next batch.
    pub(super) pool: Pool,
    /// Freed pages by the last pin that may read them.
    pub(super) retired: Retired,
    /// The same of pages that the running checkpoint may still read, until it is finished.
    pub(super) withheld: Retired,
    pub(super) withheld_pages: u64,
    pub(super) durable: Kept,
    pub(super) previous: Option<Kept>,
    /// The bitmap of `current` on disk, whose pages the next checkpoint gives up.
    pub(super) bitmap: BitmapRun,
    /// Tells a checkpoint of this file from one of a file that was replaced.
    pub(super) generation: u64,
    /// A planted bug.
    pub(super) bitmap_in_place: bool,
}

/// Where the newest snapshot is found; clone it freely.
#[derive(Clone, Debug)]
pub struct Published {
    newest: Arc<RwLock<Arc<Snapshot>>>,
    withheld: Arc<AtomicBool>,
}

impl Published {
    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that what is found here is no state to answer from: it is being made anew.
    pub fn withhold(&self, withheld: bool) {
        self.withheld.store(withheld, Ordering::Release);
    }

    /// Is it no state to answer from?
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, snapshot: Arc<Snapshot>) {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *newest, snapshot);
        drop(newest);
        drop(old);
    }
}

/// The database as it was after some batch. Readers share it; it never changes.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) pin: Pin,
    pub(super) roots: [Root; ROOTS],
    pub(super) state: DbState,
}

impl Source for Pin {
    #[inline]
    fn page(&self, page: u64, crc: u32) -> Result<&[u8], StoreError> {
        let Some((bytes, verified)) = self.bytes(page, PAGE) else {
            return Err(corrupt(self.name(), page, "a page in use cannot be read"));
        };
        if !verified {
            if !View::new(bytes).is_intact(page, crc) {
                return Err(damaged(self, page));
            }
            self.set_verified(page);
        }
        Ok(bytes)
    }

    fn run(&self, run: &Run) -> Result<&[u8], StoreError> {
        let Some((bytes, verified)) = self.bytes(run.page, run.len) else {
            return Err(corrupt(self.name(), run.page, "a run in use cannot be read"));
        };
        if !verified {
            if crc32c::crc32c(bytes) != run.crc {
                return Err(damaged(self, run.page));
            }
            self.set_verified(run.page);
        }
        Ok(bytes)
    }

    fn name(&self) -> &str {
        self.map().name()
    }
}

fn damaged(pin: &Pin, page: u64) -> StoreError {
    pin.map().suspect();
    corrupt(pin.name(), page, "the checksum does not match")
}

impl Source for Snapshot {
    #[inline]
    fn page(&self, page: u64, crc: u32) -> Result<&[u8], StoreError> {
        self.pin.page(page, crc)
    }

    fn run(&self, run: &Run) -> Result<&[u8], StoreError> {
        self.pin.run(run)
    }

    fn name(&self) -> &str {
        self.pin.name()
    }
}

impl Snapshot {
    /// The state of a checkpoint whose pages are in the file.
    pub(super) fn at(map: &Arc<PageMap>, meta: &Meta) -> Self {
        Self { pin: map.pin(), roots: meta.roots, state: meta.state.clone() }
    }

    pub(super) fn root(&self, tree: Tree) -> &Root {
        &self.roots[tree as usize]
    }

    /// The value of a key, as a slice of the map or the heap.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let found = tree::find(self, self.root(tree), key)?;
        found.map(|value| tree::whole_value(self, &value)).transpose()
    }

    /// Walks the keys between two bounds, upwards or downwards.
    #[must_use]
    pub fn scan(
        &self,
        tree: Tree,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        reverse: bool,
    ) -> Scan<'_> {
        Scan::new(self, *self.root(tree), (low, high), reverse)
    }

    /// What the state machine knew then.
    #[must_use]
    pub fn state(&self) -> &DbState {
        &self.state
    }

    /// How many keys a tree has.
    #[must_use]
    pub fn entries(&self, tree: Tree) -> u64 {
        self.root(tree).entries
    }
}

/// What [`open_file`] finds.
struct Opened {
    writer: FileWriter,
    durable: Kept,
    previous: Option<Kept>,
}

/// A file, and those of its meta pages that are intact.
type WithMetas = (Box<dyn Region>, Vec<Meta>);

/// Opens a database file and reads its meta pages; `None`: there is none.
///
/// What an earlier process left in the page cache may not be on the disk: a sync that fails
/// marks it clean. Meta pages are therefore read past the cache. All else is believed only
/// because such a page names it, which was written when the sync of all it names had
/// succeeded: of that the cache has what the disk has. Where the cache cannot be passed by,
/// all of it is read again.
fn open_metas(disk: &dyn Disk, path: &Path, map_max: u64) -> Result<Option<WithMetas>, StoreError> {
    let Some(mut region) = disk.open_proven(path, FileKind::Db, map_max)? else { return Ok(None) };
    // An earlier process may have ended between a write and its sync: what is read now
    // must not be lost later.
    region.sync_all()?;
    let (mut metas, mut unknown) = (Vec::new(), None);
    let mut page = vec![0; PAGE];
    for slot in SLOTS {
        if region.len() >= (slot + 1) * PAGE as u64 {
            if !region.read_disk(slot * PAGE as u64, &mut page)? {
                drop(region);
                let Some(again) = disk.open(path, FileKind::Db, map_max)? else { return Ok(None) };
                region = again;
                region.read_at(slot * PAGE as u64, &mut page)?;
            }
            metas.extend(Meta::decode(&page));
            unknown = unknown.or_else(|| Meta::unknown(&page));
        }
    }
    if let Some(found) = unknown {
        let (file, wanted) = (region.name().to_owned(), format!("this one, with format {VERSION}"));
        return Err(StoreError::Foreign { file, found, wanted });
    }
    Ok(Some((region, metas)))
}

/// Opens a database file; `None`: there is none.
fn open_file(
    disk: &dyn Disk,
    path: &Path,
    map_max: u64,
    identity: Identity,
) -> Result<Option<Opened>, StoreError> {
    let Some((region, mut metas)) = open_metas(disk, path, map_max)? else { return Ok(None) };
    let read = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        region.read_at(offset, &mut bytes).map(|()| bytes)
    };
    metas.sort_by_key(|meta| meta.seq);
    let kept = |meta: Meta| {
        let run = meta.bitmap;
        let end = run.page.checked_add(run.pages).filter(|end| *end <= meta.pages);
        let fits = meta.pages.checked_mul(PAGE as u64).is_some_and(|len| len <= region.len());
        if end.is_none() || !fits {
            return Err(corrupt(region.name(), meta.slot(), "the file is too short"));
        }
        let len = usize::try_from(run.pages * PAGE as u64).expect("checked against the file");
        let bytes = read(run.page * PAGE as u64, len)?;
        let bitmap = Bitmap::from_bytes(&bytes);
        if crc32c::crc32c(&bytes) != run.crc || bitmap.iter().any(|page| page >= meta.pages) {
            return Err(corrupt(region.name(), run.page, "the bitmap is damaged"));
        }
        Ok(Kept { meta, bitmap: Arc::new(bitmap) })
    };
    let Some(newest) = metas.pop() else {
        return Err(corrupt(region.name(), 0, "neither meta page is intact"));
    };
    let (wanted, found) = (identity, newest.identity);
    if (wanted.cluster, wanted.node) != (found.cluster, found.node) {
        let of = |who: Identity| format!("node {} of cluster {:032x}", who.node.0, who.cluster);
        let file = region.name().to_owned();
        return Err(StoreError::Foreign { file, found: of(found), wanted: of(wanted) });
    }
    let previous = metas.pop().filter(|older| older.seq + 1 == newest.seq);
    // Without an intact bitmap the older checkpoint is of no use; the newer one is.
    let previous = match previous.map(kept).transpose() {
        Ok(previous) => previous,
        Err(StoreError::Corrupt { .. }) => None,
        Err(error) => return Err(error),
    };
    let durable = kept(newest)?;
    let run = durable.meta.bitmap;
    let bitmap = Arc::clone(&durable.bitmap);
    let tree_pages = bitmap
        .iter()
        .filter(|page| !SLOTS.contains(page) && !(run.page..run.page + run.pages).contains(page));
    let writer = PageMap::open(region, tree_pages);
    Ok(Some(Opened { writer, durable, previous }))
}

/// The name under which a file is made, before it is renamed to `path`.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Makes an empty database: under another name first, so that it exists whole or not.
fn create_file(disk: &dyn Disk, options: &DbOptions, identity: Identity) -> Result<(), StoreError> {
    let path = unfinished(&options.path);
    discard(disk, &path)?;
    let region = disk.create(&path, FileKind::Db, options.map_max)?;
    let mut bitmap = Bitmap::default();
    let run = BitmapRun { page: 1, pages: 1, crc: 0 };
    for page in [SLOTS[0], SLOTS[1], run.page] {
        bitmap.set(page);
    }
    let mut writer = PageMap::open(region, std::iter::empty());
    let pages = SLOTS[1] + 1;
    writer.grow(pages * PAGE as u64)?;
    let bytes = bitmap.to_bytes(run.pages);
    writer.write(run.page, &bytes)?;
    let bitmap = BitmapRun { crc: crc32c::crc32c(&bytes), ..run };
    let (roots, state) = ([Root::default(); ROOTS], DbState::default());
    let meta = Meta { seq: 0, identity, pages, bitmap, roots, state };
    writer.write(meta.slot(), &meta.encode())?;
    writer.sync(0, pages * PAGE as u64)?;
    drop(writer);
    disk.rename(&path, &options.path)?;
    disk.sync_dir(&parent(&options.path))
}

/// Moves a damaged database into the directory `quarantine` beside it, for the operator to
/// look at; one that was put there earlier is replaced.
///
/// # Errors
/// `Io`.
pub fn quarantine_file(disk: &dyn Disk, path: &Path) -> Result<PathBuf, StoreError> {
    let dir = parent(path).join("quarantine");
    disk.make_dir(&dir)?;
    let to = dir.join(path.file_name().unwrap_or_default());
    disk.rename(path, &to)?;
    disk.sync_dir(&dir)?;
    disk.sync_dir(&parent(path))?;
    Ok(to)
}

/// Removes a file that an interrupted run left behind.
///
/// # Errors
/// `Io`.
pub fn discard(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    if Db::exists(disk, path)? { disk.remove(path) } else { Ok(()) }
}

impl Db {
    /// Opens the database at its last durable checkpoint, and makes it when absent.
    ///
    /// # Errors
    /// `Foreign` when it belongs to another node, cluster or version of mmapd, `Corrupt`, `Io`.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: DbOptions,
        identity: Identity,
    ) -> Result<Self, StoreError> {
        let opened = match open_file(&*disk, &options.path, options.map_max, identity)? {
            Some(opened) => opened,
            None => {
                create_file(&*disk, &options, identity)?;
                open_file(&*disk, &options.path, options.map_max, identity)?
                    .ok_or_else(|| corrupt(&options.path.display().to_string(), 0, "vanished"))?
            }
        };
        Ok(Self::assemble(disk, options, identity, opened))
    }

    fn assemble(
        disk: Arc<dyn Disk>,
        options: DbOptions,
        identity: Identity,
        opened: Opened,
    ) -> Self {
        let Opened { writer, durable, previous } = opened;
        let map = Arc::clone(writer.map());
        let meta = &durable.meta;
        let step = (options.grow_step / PAGE as u64).max(1);
        let live = Bitmap::clone(&durable.bitmap);
        let file_pages = map.len() / PAGE as u64;
        let mut space = Space::new(live, file_pages, map.capacity(), step);
        let kept = [Some(&durable), previous.as_ref()];
        space.keep(kept.into_iter().flatten().map(|kept| Arc::clone(&kept.bitmap)).collect());
        let current = Arc::new(Snapshot::at(&map, meta));
        let published = Published {
            newest: Arc::new(RwLock::new(Arc::clone(&current))),
            withheld: Arc::new(AtomicBool::new(false)),
        };
        Self {
            disk,
            options,
            identity,
            published,
            current,
            map,
            space,
            writer: Some(writer),
            dirty: PageTable::default(),
            dirty_pages: 0,
            writing: Writing::default(),
            pool: Pool::default(),
            retired: Retired::new(),
            withheld: Retired::new(),
            withheld_pages: 0,
            bitmap: meta.bitmap,
            durable,
            previous,
            generation: 0,
            bitmap_in_place: false,
        }
    }

    /// Is there a database at `path`?
    ///
    /// # Errors
    /// `Io`.
    pub fn exists(disk: &dyn Disk, path: &Path) -> Result<bool, StoreError> {
        let Some(name) = path.file_name() else { return Ok(false) };
        let names = disk.list(&parent(path))?;
        Ok(names.iter().any(|entry| entry.as_str() == name.to_string_lossy()))
    }

    /// What was applied last.
    #[must_use]
    pub fn state(&self) -> &DbState {
        &self.current.state
    }

    /// The newest entry that a crash cannot undo.
    #[must_use]
    pub fn durable(&self) -> crate::raft::types::LogId {
        self.durable.meta.state.applied
    }

    /// Entries after this one must stay in the log: the checkpoint before the last one.
    #[must_use]
    pub fn log_needed_from(&self) -> crate::raft::types::LogId {
        self.previous.as_ref().unwrap_or(&self.durable).meta.state.applied
    }

    /// Starts a batch.
    pub fn begin(&mut self) -> Txn<'_> {
        Txn::new(self)
    }

    /// A handle to the newest snapshot, now and later.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published.clone()
    }

    /// Bytes that the next checkpoint will write.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_pages * PAGE as u64
    }

    /// Did any reader find a page damaged?
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.map.is_suspect()
    }

    /// Length of the file.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.map.len()
    }

    /// Bytes in use by the newest state.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.space.live_pages() * PAGE as u64
    }

    /// Counts how often another file took the place of this one's.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whose database it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Replaces the database by the verified file `from`, in the same directory. Snapshots
    /// and streams of the old one stay readable until they are dropped.
    ///
    /// # Errors
    /// As for [`Db::open`]; before the rename the old database is still in place.
    pub fn install(&mut self, from: &Path) -> Result<(), StoreError> {
        let absent = || corrupt(&from.display().to_string(), 0, "there is no such database");
        let map_max = self.options.map_max;
        drop(open_file(&*self.disk, from, map_max, self.identity)?.ok_or_else(absent)?);
        self.rename_over(from)?;
        self.reopen()
    }

    /// Moves the damaged file away and goes on with an empty one; returns where it is kept.
    /// Snapshots and streams of the old one stay readable until they are dropped.
    ///
    /// # Errors
    /// `Io`.
    pub fn quarantine(&mut self) -> Result<PathBuf, StoreError> {
        let kept_in = quarantine_file(&*self.disk, &self.options.path)?;
        create_file(&*self.disk, &self.options, self.identity)?;
        self.reopen()?;
        Ok(kept_in)
    }

    /// Opens the file that has taken the place of ours.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let (disk, options) = (Arc::clone(&self.disk), self.options.clone());
        let absent = || corrupt(&options.path.display().to_string(), 0, "vanished");
        let opened = open_file(&*disk, &options.path, options.map_max, self.identity)?;
        let opened = opened.ok_or_else(absent)?;
        drop(self.become_other(Self::assemble(disk, options, self.identity, opened)));
        Ok(())
    }

    /// Lets readers who know `published` find this database from now on.
    pub(super) fn publish_as(&mut self, published: Published) {
        published.set(Arc::clone(&self.current));
        self.published = published;
    }

    /// Publishes the newest state once more, under a pin that sees only what is there now.
    pub(super) fn renew_pin(&mut self) {
        let Snapshot { roots, state, .. } = &*self.current;
        let (pin, roots, state) = (self.map.pin(), *roots, state.clone());
        self.current = Arc::new(Snapshot { pin, roots, state });
        self.published.set(Arc::clone(&self.current));
    }

    /// Lets go of what was kept only for the checkpoint that has ended.
    pub(super) fn release_withheld(&mut self) {
        self.retired.append(&mut self.withheld);
        self.retired.make_contiguous().sort_by_key(|(pin, _)| *pin);
        self.withheld_pages = 0;
        self.hide_unread();
    }

    /// Hides what no snapshot reads any more.
    fn hide_unread(&mut self) {
        let oldest = self.map.oldest_pin();
        while self.retired.front().is_some_and(|(pin, _)| *pin < oldest) {
            let Some((_, pages)) = self.retired.pop_front() else { break };
            self.map.hide(pages);
        }
    }

    /// Hides what no snapshot reads any more, and frees what no pin can see.
    pub(super) fn reclaim(&mut self) -> HeapPages {
        self.hide_unread();
        let space = &mut self.space;
        self.map.reclaim(|page, pages| space.free(page, pages))
    }
}

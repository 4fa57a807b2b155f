//! Compaction: a database written anew in key order, without holes, and put in the place of
//! the old one.
//!
//! 1. [`Db::begin_compaction`] pins the newest snapshot.
//! 2. [`CompactJob::run`], on any thread, copies it into a file beside the database: leaves
//!    and branches about nine tenths full, each run of pages in one piece, page numbers in
//!    the order of the keys. It is synced like a checkpoint, all else before the meta page.
//! 3. The result is a database of its own. Its owner applies to it what was applied to the
//!    old one meanwhile, compares the two, and hands it to [`Db::adopt`].
//!
//! Until the rename the old file is untouched, and after it the new one is whole; what was
//! applied after either one's last checkpoint must be in the log. A crash leaves the
//! unfinished file behind, which the next start removes.
//!
//! Memory: one page a level, one piece of output, and the bitmap. The old file cannot reuse
//! what the snapshot pins, so it grows meanwhile.
//!
//! Left out: compaction in place, which would have to move pages under readers.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Identity;
use super::db::{Db, DbOptions, Snapshot, discard};
use super::disk::{Disk, FileKind, parent};
use super::error::StoreError;
use super::map::{PAGE, PageMap};
use super::meta::{BitmapRun, Meta, ROOTS, Root, SLOTS};
use super::pace::{Pace, Paced, WRITE};
use super::page::{self, KEY_INLINE, Kind, OwnedKey, ROOM, Run, Value};
use super::scan::Scan;
use super::space::Bitmap;
use super::tree::corrupt;

/// Bytes of cells and offsets from which on a page takes no more: changes that follow shall
/// not split it at once.
const FILL: usize = ROOM * 9 / 10;

/// Bytes of the disk that a compaction leaves to others, at least when it begins.
const SPARE: u64 = 64 << 20;

/// Where a database is written anew, before it takes the place of `path`.
#[must_use]
pub fn compacting(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".compact");
    PathBuf::from(name)
}

/// A compaction to be done; it may run on another thread.
#[derive(Debug)]
pub struct CompactJob {
    snapshot: Arc<Snapshot>,
    disk: Arc<dyn Disk>,
    options: DbOptions,
    identity: Identity,
    seq: u64,
    live_bytes: u64,
}

impl Db {
    /// Prepares a compaction of the newest state.
    #[must_use]
    pub fn begin_compaction(&self) -> CompactJob {
        let path = compacting(&self.options.path);
        CompactJob {
            snapshot: Arc::clone(&self.current),
            disk: Arc::clone(&self.disk),
            options: DbOptions { path, ..self.options.clone() },
            identity: self.identity(),
            seq: self.durable.meta.seq + 1,
            live_bytes: self.live_bytes(),
        }
    }

    /// Takes the place of the file with that of `new`, a compaction of this database that
    /// holds the same state. Snapshots and streams of the old file stay readable until they
    /// are dropped. Returns what is left of the old database: dropping it may take a while.
    ///
    /// # Errors
    /// `Invalid` when the states differ, and `new` is gone then; `Io`.
    pub fn adopt(&mut self, new: Self) -> Result<Self, StoreError> {
        if new.state() != self.state() {
            let file = new.options.path.display().to_string();
            let why = "the compacted database differs from the one it came from".to_owned();
            return Err(StoreError::Invalid { file, why });
        }
        self.rename_over(&new.options.path)?;
        new.map.set_name(self.options.path.display().to_string());
        Ok(self.become_other(new))
    }

    /// Gives the file `from` our name, durably.
    pub(super) fn rename_over(&self, from: &Path) -> Result<(), StoreError> {
        self.disk.rename(from, &self.options.path)?;
        self.disk.sync_dir(&parent(&self.options.path))
    }

    /// Turns into `new`, whose file has our name by now; readers find it from here on.
    pub(super) fn become_other(&mut self, mut new: Self) -> Self {
        new.options = self.options.clone();
        new.generation = self.generation + 1;
        new.publish_as(self.published());
        std::mem::replace(self, new)
    }
}

impl CompactJob {
    /// The newest entry that the new file will hold. The log must keep what follows it.
    #[must_use]
    pub fn applied(&self) -> crate::raft::types::LogId {
        self.snapshot.state().applied
    }

    /// The file that is made.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// Writes the file, makes it durable and opens it.
    ///
    /// # Errors
    /// `Ended` when the pace says so; `Io` without room, see [`super::is_no_space`]; in both
    /// cases the unfinished file can be removed. `Corrupt` or other `Io`; then the process
    /// must end.
    pub fn run(self, pace: &dyn Pace) -> Result<Db, StoreError> {
        let Self { snapshot, disk, options, identity, seq, live_bytes } = self;
        discard(&*disk, &options.path)?;
        // The log and the old file need room meanwhile, more than the copy does.
        let needed = live_bytes + live_bytes / 4 + SPARE;
        if disk.free_bytes(&parent(&options.path)).is_some_and(|free| free < needed) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(StoreError::io("create", options.path.display().to_string())(full));
        }
        let region = disk.create(&options.path, FileKind::Db, options.map_max)?;
        let writer = PageMap::open(region, std::iter::empty());
        let step = (options.grow_step / PAGE as u64).max(1);
        let mut file = NewFile::new(Paced::new(writer, pace), pace, seq, step);
        let mut roots = [Root::default(); ROOTS];
        for (new, old) in roots.iter_mut().zip(&snapshot.roots) {
            *new = copy_tree(&mut file, &snapshot, *old)?;
        }
        file.finish(identity, roots, &snapshot)?;
        // Opened anew: what was written is readable only after its writer is gone.
        drop((file, snapshot));
        Db::open(disk, options, identity)
    }
}

fn copy_tree(file: &mut NewFile<'_>, snapshot: &Snapshot, root: Root) -> Result<Root, StoreError> {
    let mut tree = NewTree::default();
    let mut scan = Scan::new(snapshot, root, (Bound::Unbounded, Bound::Unbounded), false);
    while let Some((key, value)) = scan.next()? {
        tree.add(file, key, value)?;
    }
    if tree.entries != root.entries {
        return Err(corrupt(snapshot.pin.map().name(), root.page, "has lost entries"));
    }
    tree.finish(file)
}

/// A page that takes cells.
#[derive(Debug)]
struct Open {
    kind: Kind,
    cells: Vec<Vec<u8>>,
    used: usize,
    /// What separates it from the page before it.
    low: OwnedKey,
}

impl Open {
    fn new(kind: Kind, low: OwnedKey) -> Self {
        Self { kind, cells: Vec::new(), used: 0, low }
    }

    fn takes(&self, cell: &[u8]) -> bool {
        self.used < FILL && self.used + cell.len() + 2 <= ROOM
    }

    fn push(&mut self, cell: Vec<u8>) {
        self.used += cell.len() + 2;
        self.cells.push(cell);
    }
}

/// A tree that grows at its right edge only: one open page a level, leaves first.
#[derive(Debug, Default)]
struct NewTree {
    levels: Vec<Open>,
    last: Vec<u8>,
    entries: u64,
}

impl NewTree {
    fn add(&mut self, file: &mut NewFile<'_>, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let stored = file.key(key)?;
        let cell = if stored.takes_value(value.len()) {
            stored.leaf(Value::Short(value))
        } else {
            stored.leaf(Value::Long(file.run(value)?))
        };
        if self.levels.is_empty() {
            self.levels.push(Open::new(Kind::Leaf, OwnedKey::default()));
        }
        if !self.levels[0].takes(&cell) {
            let low = file.key(page::separator(&self.last, key))?;
            self.close(file, 0, low)?;
        }
        self.levels[0].push(cell);
        self.last.clear();
        self.last.extend_from_slice(key);
        self.entries += 1;
        Ok(())
    }

    /// Writes the open page of a level and opens the next, which begins at `low`.
    fn close(
        &mut self,
        file: &mut NewFile<'_>,
        level: usize,
        low: OwnedKey,
    ) -> Result<(), StoreError> {
        let next = Open::new(self.levels[level].kind, low);
        let open = std::mem::replace(&mut self.levels[level], next);
        let (page, crc) = file.page(&open)?;
        self.add_child(file, level + 1, open.low, (page, crc))
    }

    fn add_child(
        &mut self,
        file: &mut NewFile<'_>,
        level: usize,
        low: OwnedKey,
        (page, crc): (u64, u32),
    ) -> Result<(), StoreError> {
        if level == self.levels.len() {
            self.levels.push(Open::new(Kind::Branch, OwnedKey::default()));
        }
        let cell = low.branch(page, crc);
        if self.levels[level].cells.is_empty() {
            // The leftmost page of the tree: nothing separates it from anything.
            self.levels[level].push(OwnedKey::default().branch(page, crc));
        } else if self.levels[level].takes(&cell) {
            self.levels[level].push(cell);
        } else {
            // The key goes up: it separates branches now.
            self.close(file, level, low)?;
            self.levels[level].push(OwnedKey::default().branch(page, crc));
        }
        Ok(())
    }

    /// Writes the open pages from the leaves up. A level above exists only if the one below
    /// was closed before, so the root has two children or more.
    fn finish(mut self, file: &mut NewFile<'_>) -> Result<Root, StoreError> {
        let mut level = 0;
        while level < self.levels.len() {
            let kind = self.levels[level].kind;
            let nothing = Open::new(kind, OwnedKey::default());
            let open = std::mem::replace(&mut self.levels[level], nothing);
            let (page, crc) = file.page(&open)?;
            level += 1;
            if level == self.levels.len() {
                let height = u16::try_from(level).expect("a tree of so many pages does not fit");
                return Ok(Root { page, crc, height, entries: self.entries });
            }
            self.add_child(file, level, open.low, (page, crc))?;
        }
        Ok(Root::default())
    }
}

/// A file that is written from its front to its end.
#[derive(Debug)]
struct NewFile<'a> {
    out: Paced<&'a dyn Pace>,
    pace: &'a dyn Pace,
    seq: u64,
    step: u64,
    used: Bitmap,
    /// The next page to be given a meaning.
    next: u64,
    /// Pages gathered for one write, and the first of them.
    gathered: Vec<u8>,
    first: u64,
}

impl<'a> NewFile<'a> {
    fn new(out: Paced<&'a dyn Pace>, pace: &'a dyn Pace, seq: u64, step: u64) -> Self {
        let mut used = Bitmap::default();
        for slot in SLOTS {
            used.set(slot);
        }
        let gathered = Vec::with_capacity(WRITE);
        Self { out, pace, seq, step, used, next: 1, gathered, first: 1 }
    }

    /// The next `pages` neighbours.
    fn take(&mut self, pages: u64) -> Result<u64, StoreError> {
        let mut first = self.next;
        if (first..first + pages).contains(&SLOTS[1]) {
            first = SLOTS[1] + 1;
        }
        let capacity = self.out.writer.map().capacity();
        if first + pages > capacity {
            return Err(StoreError::Full { limit: capacity * PAGE as u64 });
        }
        for page in first..first + pages {
            self.used.set(page);
        }
        self.next = first + pages;
        Ok(first)
    }

    fn key(&mut self, key: &[u8]) -> Result<OwnedKey, StoreError> {
        if key.len() <= KEY_INLINE {
            return Ok(OwnedKey::short(key));
        }
        let run = self.run(key)?;
        Ok(OwnedKey::long(key, run))
    }

    fn run(&mut self, bytes: &[u8]) -> Result<Run, StoreError> {
        let mut run = Run { page: 0, len: bytes.len(), crc: crc32c::crc32c(bytes) };
        run.page = self.take(run.pages())?;
        for (piece, bytes) in (0..).zip(bytes.chunks(WRITE)) {
            self.gather(run.page + piece * (WRITE / PAGE) as u64, bytes)?;
        }
        Ok(run)
    }

    fn page(&mut self, open: &Open) -> Result<(u64, u32), StoreError> {
        let page = self.take(1)?;
        let mut bytes = vec![0; PAGE];
        page::blank(&mut bytes, open.kind, page);
        let sealed = page::rebuild(&mut bytes, open.kind, &open.cells)
            .and_then(|()| page::seal(&mut bytes, self.seq));
        let name = self.out.writer.map().name();
        let crc = sealed.ok_or_else(|| corrupt(name, page, "is filled beyond its end"))?;
        self.gather(page, &bytes)?;
        Ok((page, crc))
    }

    /// Adds bytes, filled up to whole pages, to those that are written together.
    fn gather(&mut self, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let follows = self.first + (self.gathered.len() / PAGE) as u64;
        if page != follows || self.gathered.len() + bytes.len() > WRITE {
            self.flush()?;
            self.first = page;
        }
        self.gathered.extend_from_slice(bytes);
        self.gathered.resize(self.gathered.len().next_multiple_of(PAGE), 0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        if self.pace.is_ending() {
            return Err(StoreError::Ended);
        }
        self.out.extend(self.first, &self.gathered)?;
        self.gathered.clear();
        Ok(())
    }

    /// Writes the bitmap, then, when all else is durable, the meta page, into both slots:
    /// the loss of one must cost nothing.
    fn finish(
        &mut self,
        identity: Identity,
        roots: [Root; ROOTS],
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        // It has to cover itself, and a hole before it.
        let (bits, others) = (PAGE as u64 * 8, self.next + SLOTS[1]);
        let pages = others.div_ceil(bits - 1);
        let page = self.take(pages)?;
        let bytes = self.used.to_bytes(pages);
        let bitmap = BitmapRun { page, pages, crc: crc32c::crc32c(&bytes) };
        self.flush()?;
        self.out.extend(page, &bytes)?;
        // What changes next finds blocks behind it.
        let capacity = self.out.writer.map().capacity();
        let pages = self.next.max(SLOTS[1] + 1).next_multiple_of(self.step).min(capacity);
        self.out.extend(pages, &[])?;
        self.out.sync_all()?;
        let state = snapshot.state().clone();
        for seq in [self.seq, self.seq + 1] {
            let meta = Meta { seq, identity, pages, bitmap, roots, state: state.clone() };
            self.out.write(meta.slot(), &meta.encode())?;
        }
        self.out.writer.sync(0, (SLOTS[1] + 1) * PAGE as u64)
    }
}

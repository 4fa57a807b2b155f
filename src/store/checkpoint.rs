//! Checkpoints: the newest snapshot becomes durable, while batches go on.
//!
//! 1. [`Db::begin_checkpoint`] notes the snapshot, its bitmap and the pages that are on the
//!    heap only. From here on none of the snapshot's pages is given out again.
//! 2. [`CheckpointJob::run`], on any thread, grows the file if needed, writes those pages
//!    and the bitmap, syncs them, and only then writes and syncs the meta page. What was synced
//!    is read from the file from then on, and leaves the heap.
//! 3. [`Db::finish_checkpoint`] lets go of the checkpoint before the previous one.
//!
//! Only pages are written that are in neither of the last two durable checkpoints, so a
//! crash at any point leaves the last one whole. Branches carry the checksums of their
//! children, so all checksums are known before the first page is written, and the pages can
//! go out in the order of the file. A cell whose child was written in this process but after
//! the cell was copied says 0: the checksum is taken from the child itself.
//!
//! A checkpoint writes at a [`Pace`] and waits for room on a full disk: `pace.rs`.
//!
//! It takes a while, in which each batch copies the branches it changes anew. So a job pins the
//! map no longer than it takes to copy a piece: what is made and replaced meanwhile is freed, and
//! only what was there when it began is withheld by the database until it is finished.
//!
//! A file whose end is free is cut in two steps. One checkpoint says in its meta page that
//! the file is shorter, and no page behind that is given out any more. When the next one is
//! durable, both meta pages say so, and the job cuts the file: whichever meta page a crash
//! leaves, the pages it speaks of are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::db::{Db, Kept, Snapshot};
use super::error::{StoreError, is_no_space};
use super::heap::HeapPages;
use super::map::{FileWriter, PAGE, PageMap, Pin};
use super::meta::{BitmapRun, Meta};
use super::pace::{Pace, Paced, Unpaced, WRITE};
use super::page::{self, Kind, View};
use super::space::{Bitmap, PageTable};
use super::tree::{Source, corrupt, load};

/// A checkpoint to be written; it may run on another thread.
#[derive(Debug)]
pub struct CheckpointJob {
    snapshot: Arc<Snapshot>,
    writer: FileWriter,
    dirty: PageTable<u64>,
    writing: Writing,
    bitmap: Arc<Bitmap>,
    meta: Meta,
    /// Pages that the meta page of the checkpoint before it speaks of.
    pages_before: u64,
    generation: u64,
}

/// How many pages a checkpoint has still to write: those are on the heap.
#[derive(Clone, Debug, Default)]
pub(super) struct Writing(Arc<AtomicU64>);

impl Writing {
    fn of(pages: u64) -> Self {
        Self(Arc::new(AtomicU64::new(pages)))
    }

    fn pages(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn settled(&self, pages: u64) {
        self.0.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// A checkpoint that is durable.
#[derive(Debug)]
pub struct CheckpointDone {
    writer: FileWriter,
    kept: Kept,
    generation: u64,
}

impl CheckpointDone {
    /// The newest entry in it.
    #[must_use]
    pub fn applied(&self) -> crate::raft::types::LogId {
        self.kept.meta.state.applied
    }
}

impl Db {
    /// Bytes of pages that are free and still readable by somebody else than the running
    /// checkpoint. While somebody holds a snapshot, this grows with every batch, in memory and
    /// in the file: whoever applies should wait for the checkpoint when it gets much.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.space.busy_pages().saturating_sub(self.withheld_pages) * PAGE as u64
    }

    /// Bytes of changed pages that the running checkpoint has still to write: they stay in
    /// memory until then.
    #[must_use]
    pub fn writing_bytes(&self) -> u64 {
        self.writing.pages() * PAGE as u64
    }

    /// Prepares a checkpoint of the newest state. `None`: nothing changed since the last.
    /// The job must be run and finished; a database whose job was dropped or failed can
    /// be read and no longer made durable, so the process must end.
    ///
    /// # Errors
    /// `Full` when no pages for the bitmap are left.
    ///
    /// # Panics
    /// When a checkpoint is already being written.
    pub fn begin_checkpoint(&mut self) -> Result<Option<CheckpointJob>, StoreError> {
        let current = Arc::clone(&self.current);
        let durable = &self.durable.meta;
        if self.dirty.is_empty() && *current.state() == durable.state {
            return Ok(None);
        }
        let (seq, identity) = (durable.seq + 1, self.identity());
        let pages_before = durable.pages;
        let old = self.bitmap;
        self.space.lower(self.options.shrink.least / PAGE as u64, self.options.shrink.part);
        let full = || StoreError::Full { limit: self.map.capacity() * PAGE as u64 };
        // Growing the file makes the bitmap longer: a little more than it takes now.
        let bits = PAGE as u64 * 8;
        let mut pages = self.space.limit().div_ceil(bits);
        let mut page = self.space.take(pages).ok_or_else(full)?;
        while self.space.limit() > pages * bits {
            self.space.untake(page, pages);
            pages = self.space.limit().div_ceil(bits);
            page = self.space.take(pages).ok_or_else(full)?;
        }
        let writer = self.writer.take().expect("one checkpoint at a time");
        self.bitmap = BitmapRun { page, pages, crc: 0 };
        if self.bitmap_in_place && old.pages == pages {
            self.space.untake(page, pages);
            self.bitmap.page = old.page;
        } else {
            // Never readable through the map, and kept by the durable checkpoint.
            self.space.untake(old.page, old.pages);
        }
        let bitmap = Arc::new(self.space.live().clone());
        let kept = [Some(&self.durable), self.previous.as_ref()];
        let kept = kept.into_iter().flatten().map(|kept| Arc::clone(&kept.bitmap));
        self.space.keep(kept.chain([Arc::clone(&bitmap)]).collect());
        self.writing = Writing::of(std::mem::take(&mut self.dirty_pages));
        Ok(Some(CheckpointJob {
            meta: Meta {
                seq,
                identity,
                pages: self.space.limit(),
                bitmap: self.bitmap,
                roots: current.roots,
                state: current.state().clone(),
            },
            snapshot: current,
            writer,
            dirty: std::mem::take(&mut self.dirty),
            writing: self.writing.clone(),
            bitmap,
            pages_before,
            generation: self.generation,
        }))
    }

    /// Takes note of a checkpoint that is durable. Returns memory that pages had on the heap;
    /// dropping it may take a while.
    ///
    /// # Errors
    /// None today; the signature leaves room for it.
    pub fn finish_checkpoint(&mut self, done: CheckpointDone) -> Result<HeapPages, StoreError> {
        if done.generation != self.generation {
            return Ok(HeapPages::default()); // of a file that was replaced meanwhile
        }
        let CheckpointDone { writer, kept, .. } = done;
        self.writer = Some(writer);
        self.previous = Some(std::mem::replace(&mut self.durable, kept));
        let kept = [Some(&self.durable), self.previous.as_ref()];
        let kept = kept.into_iter().flatten().map(|kept| Arc::clone(&kept.bitmap)).collect();
        self.space.keep(kept);
        self.release_withheld();
        // A new pin for the same state: the heap pages go when readers of the old one do,
        // and not only with the next batch.
        self.renew_pin();
        Ok(self.reclaim())
    }

    /// Plants a bug for the crash tests: pages of durable checkpoints are given out again.
    #[doc(hidden)]
    pub fn plant_reuse(&mut self, reckless: bool) {
        self.space.plant_reuse(reckless);
    }

    /// Plants a bug for the crash tests: the bitmap of a checkpoint is written over the one of
    /// the checkpoint before.
    #[doc(hidden)]
    pub fn plant_bitmap_in_place(&mut self) {
        self.bitmap_in_place = true;
    }
}

impl CheckpointJob {
    /// Writes the checkpoint as fast as the disk can: two syncs, one more when the file grows.
    ///
    /// # Errors
    /// `Io` or `Corrupt`; then the process must end.
    pub fn run(self) -> Result<CheckpointDone, StoreError> {
        self.run_at(&Unpaced)
    }

    /// Writes the checkpoint at a pace. `None`: the disk was full until the pace said to stop;
    /// the database cannot be made durable any more, and the node can still stop in good
    /// order, since the log has everything.
    ///
    /// # Errors
    /// `Io` or `Corrupt`; then the process must end.
    pub fn run_paced(self, pace: &dyn Pace) -> Result<Option<CheckpointDone>, StoreError> {
        match self.run_at(pace) {
            Ok(done) => Ok(Some(done)),
            Err(error) if is_no_space(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the checkpoint at a pace, and fails when that does not wait for room.
    ///
    /// # Errors
    /// As for [`CheckpointJob::run`].
    pub fn run_at(self, pace: &dyn Pace) -> Result<CheckpointDone, StoreError> {
        let Self { snapshot, writer, dirty, writing, bitmap, .. } = self;
        let (mut meta, pages_before, generation) = (self.meta, self.pages_before, self.generation);
        let map = Arc::clone(snapshot.pin.map());
        drop(snapshot);
        let mut out = Paced::new(writer, pace);
        out.grow(meta.pages)?;
        let sums = PageTable::default();
        let mut sealing = Sealing { map: &map, seq: meta.seq, dirty: &dirty, sums };
        let mut scratch = Vec::with_capacity(PAGE);
        for root in &mut meta.roots {
            if dirty.contains_key(&root.page) {
                root.crc = sealing.sum(root.page, root.height, &mut scratch)?;
            } else if root.page != 0 && root.crc == 0 {
                root.crc = sealing.final_crc(&sealing.look(), root.page)?;
            }
        }
        let mut unsettled = sealing.write(&mut out, &writing)?;
        drop(sealing);
        let bytes = bitmap.to_bytes(meta.bitmap.pages);
        meta.bitmap.crc = crc32c::crc32c(&bytes);
        out.write(meta.bitmap.page, &bytes)?;
        out.sync(meta.pages)?;
        settle(&mut out.writer, &mut unsettled, &writing);

        let slot = meta.slot();
        out.write(slot, &meta.encode())?;
        out.writer.sync(slot * PAGE as u64, PAGE as u64)?;
        out.writer.shrink(meta.pages.max(pages_before))?;
        Ok(CheckpointDone { writer: out.writer, kept: Kept { meta, bitmap }, generation })
    }
}

/// The pages of a checkpoint on their way to the file.
struct Sealing<'a> {
    map: &'a Arc<PageMap>,
    seq: u64,
    dirty: &'a PageTable<u64>,
    /// Final checksums of the tree pages that are on the heap.
    sums: PageTable<u32>,
}

impl Sealing<'_> {
    /// A pin for a moment: what it finds is not freed before it goes. The pages here stay
    /// readable without one, but others would be kept as well.
    fn look(&self) -> Pin {
        self.map.pin()
    }

    /// Notes the final checksums of a page on the heap and of all such pages below it, and
    /// returns that of the page.
    fn sum(&mut self, page: u64, level: u16, scratch: &mut Vec<u8>) -> Result<u32, StoreError> {
        if level > 1 {
            for child in self.young(page, level)? {
                self.sum(child, level - 1, scratch)?;
            }
        }
        let pin = self.look();
        let (view, kind) = load(&pin, page, 0, level)?;
        let crc = if kind == Kind::Branch {
            scratch.clear();
            scratch.extend_from_slice(view.bytes());
            self.complete(&pin, page, scratch)?;
            page::sum(scratch, self.seq)
        } else {
            page::sum(view.bytes(), self.seq)
        };
        let crc = crc.ok_or_else(|| self.wrong(page))?;
        self.sums.insert(page, crc);
        Ok(crc)
    }

    /// The children of a branch that are on the heap: their cells have no checksum yet.
    fn young(&self, page: u64, level: u16) -> Result<Vec<u64>, StoreError> {
        let pin = self.look();
        let (view, _) = load(&pin, page, 0, level)?;
        let mut young = Vec::new();
        for index in 0..view.count() {
            let cell = view.branch(index).ok_or_else(|| self.wrong(page))?;
            debug_assert!(cell.crc == 0 || !self.dirty.contains_key(&cell.child), "unknown yet");
            if cell.crc == 0 && self.dirty.contains_key(&cell.child) {
                young.push(cell.child);
            }
        }
        Ok(young)
    }

    /// Gives the cells of a branch the checksums that they lack.
    fn complete(&self, pin: &Pin, page: u64, branch: &mut [u8]) -> Result<(), StoreError> {
        for index in 0..View::new(branch).count() {
            let cell = View::new(branch).branch(index).ok_or_else(|| self.wrong(page))?;
            let (child, known) = (cell.child, cell.crc);
            if known == 0 {
                let crc = self.final_crc(pin, child)?;
                page::set_child(branch, index, child, crc).ok_or_else(|| self.wrong(page))?;
            }
        }
        Ok(())
    }

    /// The final checksum of a page that was written in this process.
    fn final_crc(&self, pin: &Pin, page: u64) -> Result<u32, StoreError> {
        if let Some(crc) = self.sums.get(&page) {
            return Ok(*crc);
        }
        // By an earlier checkpoint.
        let missing = || corrupt(self.map.name(), page, "has no checksum");
        View::new(pin.page(page, 0)?).stored_crc().ok_or_else(missing)
    }

    fn wrong(&self, page: u64) -> StoreError {
        corrupt(self.map.name(), page, "a cell is out of bounds")
    }

    /// Writes everything that is on the heap in the order of the pages, neighbours together:
    /// the disk is given long pieces, and few of them. Returns those that are not synced yet.
    fn write(&self, out: &mut Paced<&dyn Pace>, writing: &Writing) -> Result<Pages, StoreError> {
        let mut all: Pages = self.dirty.iter().map(|(at, len)| (*at, *len)).collect();
        all.sort_unstable();
        let mut bytes: Vec<u8> = Vec::with_capacity(WRITE);
        let (mut left, mut unsettled) = (&all[..], Pages::new());
        while let Some((first, _)) = left.first() {
            let (together, others) = left.split_at(neighbours(left));
            bytes.clear();
            self.gather(together, &mut bytes)?;
            out.write(*first, &bytes)?;
            unsettled.extend_from_slice(together);
            if out.is_synced() {
                settle(&mut out.writer, &mut unsettled, writing);
            }
            left = others;
        }
        Ok(unsettled)
    }

    /// Appends pages and runs as they shall be in the file.
    fn gather(&self, pages: &[(u64, u64)], to: &mut Vec<u8>) -> Result<(), StoreError> {
        let pin = self.look();
        for &(page, pages) in pages {
            let start = to.len();
            let len = usize::try_from(pages).expect("a run fits memory") * PAGE;
            let unreadable = || corrupt(self.map.name(), page, "a page in use cannot be read");
            let (bytes, _) = pin.bytes(page, len).ok_or_else(unreadable)?;
            to.extend_from_slice(bytes);
            // What has no checksum here is not a page of a tree but a run: it goes as it is.
            if let Some(crc) = self.sums.get(&page) {
                let copy = &mut to[start..];
                if View::new(copy).kind() == Some(Kind::Branch) {
                    self.complete(&pin, page, copy)?;
                }
                debug_assert_eq!(page::sum(copy, self.seq), Some(*crc), "it cannot change");
                page::stamp(copy, self.seq, *crc).ok_or_else(|| self.wrong(page))?;
            }
        }
        Ok(())
    }
}

/// Pages and runs: where, and how many pages.
type Pages = Vec<(u64, u64)>;

/// Lets pages and runs that are durable be read from the file, and go from the heap. Not
/// earlier: what the cache has of a write that fails may be gone before its sync says so.
fn settle(writer: &mut FileWriter, durable: &mut Pages, writing: &Writing) {
    for (page, pages) in durable.drain(..) {
        // Also what was freed meanwhile, since it is withheld: nobody hides or reuses it.
        assert!(writer.settle(page, pages), "page {page} was on the heap");
        writing.settled(pages);
    }
}

/// How many of these pages and runs, one at least, follow each other and fit one write.
fn neighbours(all: &[(u64, u64)]) -> usize {
    let Some((first, _)) = all.first() else { return 0 };
    let mut end = *first;
    let follows = |&(page, pages): &(u64, u64)| {
        let fits = (page + pages - first) * PAGE as u64 <= WRITE as u64;
        let follows = page == end && (fits || page == *first);
        end = page + pages;
        follows
    };
    all.iter().copied().take_while(follows).count()
}

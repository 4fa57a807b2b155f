//! Walks everything and believes nothing: the trees in order and at even depth, every
//! checksum, every page reachable once or free.
//!
//! Left out: repair. A damaged database is replaced by one streamed from another node.

use super::db::{Db, Snapshot};
use super::error::StoreError;
use super::map::PAGE;
use super::meta::{BitmapRun, Root, SLOTS};
use super::page::{Kind, Run, View};
use super::space::Bitmap;
use super::tree::{HEIGHT_MAX, Source, corrupt, damaged, key_run, load, value_run, whole_key};

/// What a walk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages of trees.
    pub tree_pages: u64,
    /// Pages of long keys and values.
    pub run_pages: u64,
    /// Keys of all trees.
    pub entries: u64,
}

impl Db {
    /// The disk contradicts this page: memory may as well, and is looked at again.
    pub fn doubt(&self, page: u64) {
        self.map.set_doubtful(page);
    }

    /// Walks the newest state and compares it with the allocator. What is wrong is remembered:
    /// see [`Db::is_suspect`].
    ///
    /// # Errors
    /// `Corrupt`, with the first thing that is wrong.
    pub fn check(&self) -> Result<Checked, StoreError> {
        walk(&self.current, self.space.live(), self.bitmap).inspect_err(|_| self.map.suspect())
    }
}

/// Checks `snapshot` against the bitmap of pages that are said to be in use.
pub(super) fn walk(
    snapshot: &Snapshot,
    used: &Bitmap,
    bitmap: BitmapRun,
) -> Result<Checked, StoreError> {
    let (reached, checked) = (Bitmap::default(), Checked::default());
    let mut walk = Walk { snapshot, used, reached, checked, last: None, entries: 0 };
    for slot in SLOTS {
        walk.reach(slot, 1)?;
    }
    walk.reach(bitmap.page, bitmap.pages)?;
    for root in &snapshot.roots {
        walk.tree(root)?;
    }
    if let Some(page) = used.first_beyond(&walk.reached) {
        return Err(corrupt(snapshot.name(), page, "a page is in use, but nothing refers to it"));
    }
    Ok(walk.checked)
}

struct Walk<'a> {
    snapshot: &'a Snapshot,
    used: &'a Bitmap,
    reached: Bitmap,
    checked: Checked,
    last: Option<Vec<u8>>,
    entries: u64,
}

impl<'a> Walk<'a> {
    fn wrong(&self, page: u64, why: &str) -> StoreError {
        corrupt(self.snapshot.name(), page, why)
    }

    fn reach(&mut self, page: u64, pages: u64) -> Result<(), StoreError> {
        let end = page.checked_add(pages).ok_or_else(|| self.wrong(page, "is out of bounds"))?;
        for page in page..end {
            if !self.used.get(page) {
                return Err(self.wrong(page, "is referred to, but free"));
            }
            if !self.reached.set(page) {
                return Err(self.wrong(page, "is referred to twice"));
            }
        }
        Ok(())
    }

    fn tree(&mut self, root: &Root) -> Result<(), StoreError> {
        (self.last, self.entries) = (None, 0);
        if root.height > HEIGHT_MAX || (root.page == 0) != (root.height == 0) {
            return Err(self.wrong(root.page, "has an impossible height"));
        }
        if root.page != 0 {
            self.page(root.page, root.crc, root.height, (None, None))?;
        }
        if self.entries != root.entries {
            return Err(self.wrong(root.page, "has another number of entries"));
        }
        self.checked.entries += self.entries;
        Ok(())
    }

    fn page(
        &mut self,
        page: u64,
        crc: u32,
        level: u16,
        (low, high): (Option<&[u8]>, Option<&[u8]>),
    ) -> Result<(), StoreError> {
        self.reach(page, 1)?;
        self.checked.tree_pages += 1;
        let snapshot: &'a Snapshot = self.snapshot;
        let (view, kind) = load(snapshot, page, crc, level)?;
        self.compare_crc(page, crc)?;
        if view.page() != Some(page) || view.count() == 0 || view.used() > PAGE {
            return Err(self.wrong(page, "has an impossible header"));
        }
        for index in 0..view.count() {
            let cell = view.cell(index, kind).ok_or_else(|| damaged(snapshot, &view))?;
            for run in [key_run(&cell), value_run(&cell)].into_iter().flatten() {
                self.run(&run)?;
            }
            let key = whole_key(snapshot, &cell.key)?;
            if kind == Kind::Branch {
                if key.is_empty() != (index == 0) {
                    return Err(self.wrong(page, "has an empty key in the wrong place"));
                }
                let next =
                    (index + 1 < view.count()).then(|| self.key(&view, index + 1)).transpose()?;
                let from = if index == 0 { low } else { Some(key) };
                self.page(cell.child, cell.crc, level - 1, (from, next.or(high)))?;
                continue;
            }
            let inside = low.is_none_or(|low| low <= key) && high.is_none_or(|high| key < high);
            if !inside || self.last.as_deref().is_some_and(|last| last >= key) {
                return Err(self.wrong(page, "has keys out of order"));
            }
            self.last = Some(key.to_vec());
            self.entries += 1;
        }
        Ok(())
    }

    fn key(&self, view: &View<'a>, index: usize) -> Result<&'a [u8], StoreError> {
        let snapshot: &'a Snapshot = self.snapshot;
        let cell = view.branch(index).ok_or_else(|| damaged(snapshot, view))?;
        match cell.key {
            super::page::Key::Short(key) => Ok(key),
            super::page::Key::Long { run, .. } => snapshot.run(&run),
        }
    }

    fn run(&mut self, run: &Run) -> Result<(), StoreError> {
        self.reach(run.page, run.pages())?;
        self.checked.run_pages += run.pages();
        if crc32c::crc32c(self.snapshot.run(run)?) != run.crc {
            return Err(self.wrong(run.page, "the checksum does not match"));
        }
        Ok(())
    }

    /// Pages in the file are compared again, whatever the slot says; pages on the heap have
    /// no checksum yet.
    fn compare_crc(&self, page: u64, crc: u32) -> Result<(), StoreError> {
        if self.snapshot.pin.is_in_file(page) {
            let view = View::new(self.snapshot.page(page, 0)?);
            if !view.is_intact(page, crc) {
                return Err(self.wrong(page, "the checksum does not match"));
            }
        }
        Ok(())
    }
}

//! The B+tree: how a key is found, and how a batch of changes makes new pages.
//!
//! Published pages never change. A batch copies each page it touches once, to a page
//! number of its own, and changes that copy as often as it likes; the root follows.
//! Pages split when they are full (unevenly when keys arrive in order) and merge with a
//! neighbour when less than a quarter is left. Runs belong to exactly one cell.
//!
//! Left out: balancing between neighbours that cannot merge, and parent pointers: a path
//! is kept while descending.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;

use super::error::StoreError;
use super::heap::{HeapPage, Pool};
use super::map::PAGE;
use super::meta::Root;
use super::page::{self, Cell, Key, Kind, OwnedKey, ROOM, Run, Value, View};
use super::space::{PageTable, Space};

/// Pages with less than this in them look for a neighbour to merge with.
const MERGE_BELOW: usize = ROOM / 4;
/// No tree is higher: at least two cells a page, 48-bit page numbers.
pub(super) const HEIGHT_MAX: u16 = 48;

/// Where pages come from: a snapshot, or a batch on top of it.
pub(super) trait Source {
    /// The tree page `page`, intact; its crc is `crc` unless that is 0.
    fn page(&self, page: u64, crc: u32) -> Result<&[u8], StoreError>;
    /// The bytes of a run, intact.
    fn run(&self, run: &Run) -> Result<&[u8], StoreError>;
    /// File name, for messages.
    fn name(&self) -> &str;
}

/// Complains about a page.
pub(super) fn corrupt(name: &str, page: u64, why: &str) -> StoreError {
    StoreError::Corrupt {
        file: name.to_owned(),
        what: "page",
        offset: page.saturating_mul(PAGE as u64),
        why: why.to_owned(),
    }
}

/// All bytes of a key.
#[inline]
pub(super) fn whole_key<'a, S: Source>(
    source: &'a S,
    key: &Key<'a>,
) -> Result<&'a [u8], StoreError> {
    match key {
        Key::Short(key) => Ok(key),
        Key::Long { run, .. } => source.run(run),
    }
}

/// All bytes of a value.
#[inline]
pub(super) fn whole_value<'a, S: Source>(
    source: &'a S,
    value: &Value<'a>,
) -> Result<&'a [u8], StoreError> {
    match value {
        Value::Short(value) => Ok(value),
        Value::Long(run) => source.run(run),
    }
}

#[inline]
fn compare<S: Source>(source: &S, key: &Key<'_>, wanted: &[u8]) -> Result<Ordering, StoreError> {
    match key {
        Key::Short(key) => Ok((*key).cmp(wanted)),
        Key::Long { prefix, run } => {
            let start = wanted.get(..prefix.len()).unwrap_or(wanted);
            match (*prefix).cmp(start) {
                Ordering::Equal => Ok(source.run(run)?.cmp(wanted)),
                different @ (Ordering::Less | Ordering::Greater) => Ok(different),
            }
        }
    }
}

/// Where `wanted` is among the cells of a page, or where it would be inserted.
#[inline]
pub(super) fn search<S: Source>(
    source: &S,
    view: &View<'_>,
    kind: Kind,
    wanted: &[u8],
) -> Result<Result<usize, usize>, StoreError> {
    // The first key of a branch is below everything.
    let first = usize::from(kind == Kind::Branch);
    let (mut low, mut high) = (first.min(view.count()), view.count());
    while low < high {
        let middle = low.midpoint(high);
        let key = view.key(middle, kind).ok_or_else(|| damaged(source, view))?;
        match compare(source, &key, wanted)? {
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
            Ordering::Equal => return Ok(Ok(middle)),
        }
    }
    Ok(Err(low))
}

/// Which child of a branch has `wanted`.
#[inline]
pub(super) fn child_index<S: Source>(
    source: &S,
    view: &View<'_>,
    wanted: &[u8],
) -> Result<usize, StoreError> {
    Ok(match search(source, view, Kind::Branch, wanted)? {
        Ok(index) => index,
        Err(index) => index.saturating_sub(1),
    })
}

pub(super) fn damaged<S: Source>(source: &S, view: &View<'_>) -> StoreError {
    corrupt(source.name(), view.page().unwrap_or(0), "a cell is out of bounds")
}

/// The page at the root or below a branch, as the kind that its level demands.
#[inline]
pub(super) fn load<S: Source>(
    source: &S,
    page: u64,
    crc: u32,
    level: u16,
) -> Result<(View<'_>, Kind), StoreError> {
    let view = View::new(source.page(page, crc)?);
    let kind = if level == 1 { Kind::Leaf } else { Kind::Branch };
    if view.kind() != Some(kind) {
        return Err(corrupt(source.name(), page, "is not the kind of page that was expected"));
    }
    Ok((view, kind))
}

/// Looks a key up. Allocates nothing.
pub(super) fn find<'a, S: Source>(
    source: &'a S,
    root: &Root,
    key: &[u8],
) -> Result<Option<Value<'a>>, StoreError> {
    if root.page == 0 {
        return Ok(None);
    }
    let (mut page, mut crc) = (root.page, root.crc);
    for level in (2..=root.height).rev() {
        let (view, _) = load(source, page, crc, level)?;
        let index = child_index(source, &view, key)?;
        let cell = view.branch(index).ok_or_else(|| damaged(source, &view))?;
        (page, crc) = (cell.child, cell.crc);
    }
    let (view, kind) = load(source, page, crc, 1)?;
    match search(source, &view, kind, key)? {
        Ok(index) => {
            let cell = view.leaf(index).ok_or_else(|| damaged(source, &view))?;
            Ok(Some(cell.value))
        }
        Err(_) => Ok(None),
    }
}

/// The pages of a batch that nobody else can see yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Tree pages and runs made by this batch.
    pub(super) pages: PageTable<Box<HeapPage>>,
    /// What new ones are made of.
    pub(super) pool: Pool,
    /// Published pages that the batch replaced.
    pub(super) freed: Vec<(u64, u64)>,
    /// How many these are.
    pub(super) freed_pages: u64,
}

/// A batch at work, above the snapshot it started from.
pub(super) struct Workspace<'a, B: Source> {
    pub(super) base: &'a B,
    pub(super) batch: &'a mut Batch,
    pub(super) space: &'a mut Space,
}

impl<B: Source> Source for Workspace<'_, B> {
    fn page(&self, page: u64, crc: u32) -> Result<&[u8], StoreError> {
        match self.batch.pages.get(&page) {
            Some(bytes) => Ok(bytes),
            None => self.base.page(page, crc),
        }
    }

    fn run(&self, run: &Run) -> Result<&[u8], StoreError> {
        match self.batch.pages.get(&run.page) {
            Some(bytes) => bytes
                .get(..run.len)
                .ok_or_else(|| corrupt(self.base.name(), run.page, "the run is too short")),
            None => self.base.run(run),
        }
    }

    fn name(&self) -> &str {
        self.base.name()
    }
}

/// One step from the root down: the page, now the batch's own, and the child taken.
type Path = Vec<(u64, usize)>;

impl<B: Source> Workspace<'_, B> {
    /// Stores `value` under `key`.
    pub(super) fn put(
        &mut self,
        root: &mut Root,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StoreError> {
        if root.page == 0 {
            let page = self.make(Kind::Leaf)?;
            *root = Root { page, height: 1, ..Root::default() };
        }
        let (leaf, mut path) = self.descend(root, key)?;
        let view = View::new(self.page(leaf, 0)?);
        let (index, stored) = match search(self, &view, Kind::Leaf, key)? {
            Ok(index) => {
                let cell = view.leaf(index).ok_or_else(|| damaged(self, &view))?;
                if matches!(cell.value, Value::Short(old) if old.len() == value.len()) {
                    return self.edit(leaf, |bytes| page::set_value(bytes, index, value));
                }
                let (stored, run) = (OwnedKey::of(&cell), value_run(&cell));
                if let Some(run) = run {
                    self.give_up(run.page, run.pages());
                }
                self.edit(leaf, |bytes| page::remove(bytes, index, Kind::Leaf))?;
                (index, stored)
            }
            Err(index) => {
                root.entries += 1;
                (index, self.store_key(key)?)
            }
        };
        let cell = if stored.takes_value(value.len()) {
            stored.leaf(Value::Short(value))
        } else {
            stored.leaf(Value::Long(self.store_run(value)?))
        };
        path.push((leaf, index));
        self.insert(root, path, cell)
    }

    /// Removes `key` and says whether it was there. Whoever asks knows that it is, as a rule; so
    /// pages are copied on the way to it, and in vain where it is not.
    pub(super) fn delete(&mut self, root: &mut Root, key: &[u8]) -> Result<bool, StoreError> {
        if root.page == 0 {
            return Ok(false);
        }
        let (leaf, mut path) = self.descend(root, key)?;
        let view = View::new(self.page(leaf, 0)?);
        let Ok(index) = search(self, &view, Kind::Leaf, key)? else { return Ok(false) };
        let cell = view.leaf(index).ok_or_else(|| damaged(self, &view))?;
        for run in [key_run(&cell), value_run(&cell)].into_iter().flatten() {
            self.give_up(run.page, run.pages());
        }
        self.edit(leaf, |bytes| page::remove(bytes, index, Kind::Leaf))?;
        root.entries = root.entries.saturating_sub(1);
        path.push((leaf, 0));
        self.shrink(root, path)?;
        Ok(true)
    }

    fn take(&mut self, pages: u64) -> Result<u64, StoreError> {
        self.space
            .take(pages)
            .ok_or(StoreError::Full { limit: self.space.limit().saturating_mul(PAGE as u64) })
    }

    /// An empty page of the batch's own.
    fn make(&mut self, kind: Kind) -> Result<u64, StoreError> {
        let page = self.take(1)?;
        let mut bytes = self.batch.pool.zeros();
        page::blank(&mut bytes, kind, page);
        self.batch.pages.insert(page, bytes);
        Ok(page)
    }

    /// Gives back a page or a run of the tree.
    fn give_up(&mut self, page: u64, pages: u64) {
        if let Some(bytes) = self.batch.pages.remove(&page) {
            self.batch.pool.give(bytes);
            self.space.untake(page, pages);
        } else {
            self.batch.freed.push((page, pages));
            self.batch.freed_pages += pages;
        }
    }

    fn store_run(&mut self, bytes: &[u8]) -> Result<Run, StoreError> {
        let mut run = Run { page: 0, len: bytes.len(), crc: crc32c::crc32c(bytes) };
        run.page = self.take(run.pages())?;
        let mut pages = Vec::with_capacity(bytes.len().next_multiple_of(PAGE));
        pages.extend_from_slice(bytes);
        pages.resize(bytes.len().next_multiple_of(PAGE), 0);
        self.batch.pages.insert(run.page, HeapPage::new(pages.into_boxed_slice()));
        Ok(run)
    }

    fn store_key(&mut self, key: &[u8]) -> Result<OwnedKey, StoreError> {
        if key.len() <= page::KEY_INLINE {
            return Ok(OwnedKey::short(key));
        }
        let run = self.store_run(key)?;
        Ok(OwnedKey::long(key, run))
    }

    /// Makes `page` the batch's own and returns its number then.
    fn own(&mut self, page: u64, crc: u32) -> Result<u64, StoreError> {
        if self.batch.pages.contains_key(&page) {
            return Ok(page);
        }
        let mut copy = self.batch.pool.copy(self.base.page(page, crc)?);
        let owned = self.take(1)?;
        page::set_page(&mut copy, owned);
        self.batch.pages.insert(owned, copy);
        self.batch.freed.push((page, 1));
        self.batch.freed_pages += 1;
        Ok(owned)
    }

    /// Changes a page that the batch owns.
    fn edit<T>(
        &mut self,
        page: u64,
        change: impl FnOnce(&mut [u8]) -> Option<T>,
    ) -> Result<T, StoreError> {
        let changed = self.batch.pages.get_mut(&page).and_then(|bytes| change(bytes));
        changed.ok_or_else(|| corrupt(self.base.name(), page, "a cell is out of bounds"))
    }

    /// Walks to the leaf for `key`, owning every page on the way.
    fn descend(&mut self, root: &mut Root, key: &[u8]) -> Result<(u64, Path), StoreError> {
        let mut page = self.own(root.page, root.crc)?;
        (root.page, root.crc) = (page, 0);
        let mut path = Path::with_capacity(usize::from(root.height) + 1);
        for level in (2..=root.height).rev() {
            let (view, _) = load(self, page, 0, level)?;
            let index = child_index(self, &view, key)?;
            let cell = view.branch(index).ok_or_else(|| damaged(self, &view))?;
            let child = self.own_child(page, index, (cell.child, cell.crc))?;
            path.push((page, index));
            page = child;
        }
        load(self, page, 0, 1)?;
        Ok((page, path))
    }

    /// Owns a page, which is the child `index` of a branch that is owned already.
    fn own_child(
        &mut self,
        branch: u64,
        index: usize,
        (old, crc): (u64, u32),
    ) -> Result<u64, StoreError> {
        let child = self.own(old, crc)?;
        if child != old {
            self.edit(branch, |bytes| page::set_child(bytes, index, child, 0))?;
        }
        Ok(child)
    }

    /// Inserts a cell at the end of `path`, splitting pages as needed.
    fn insert(
        &mut self,
        root: &mut Root,
        mut path: Path,
        mut cell: Vec<u8>,
    ) -> Result<(), StoreError> {
        let mut kind = Kind::Leaf;
        while let Some((page, index)) = path.pop() {
            let bytes = self.batch.pages.get_mut(&page);
            if bytes.is_some_and(|bytes| page::insert(bytes, index, &cell).is_some()) {
                return Ok(());
            }
            let (separator, right) = self.split(page, index, &cell, kind)?;
            cell = separator.branch(right, 0);
            kind = Kind::Branch;
            if let Some((_, index)) = path.last_mut() {
                *index += 1;
            } else {
                let top = self.make(Kind::Branch)?;
                let cells = [OwnedKey::default().branch(page, 0), std::mem::take(&mut cell)];
                self.edit(top, |bytes| page::rebuild(bytes, Kind::Branch, &cells))?;
                root.page = top;
                root.height += 1;
            }
        }
        Ok(())
    }

    /// Divides a page and the new cell over two, and returns what separates them.
    fn split(
        &mut self,
        page: u64,
        index: usize,
        cell: &[u8],
        kind: Kind,
    ) -> Result<(OwnedKey, u64), StoreError> {
        let view = View::new(self.page(page, 0)?);
        let at_end = index == view.count();
        if at_end && kind == Kind::Leaf {
            return self.follow(page, cell);
        }
        let mut cells = Vec::with_capacity(view.count() + 1);
        for at in 0..view.count() {
            let cell = view.cell(at, kind).ok_or_else(|| damaged(self, &view))?;
            cells.push(cell.raw.to_vec());
        }
        cells.insert(index.min(cells.len()), cell.to_vec());
        let middle = if at_end { cells.len() - 1 } else { middle(&cells) };
        let mut right_cells = cells.split_off(middle);
        let right = self.make(kind)?;
        let separator = match kind {
            Kind::Leaf => {
                let (left, right) = (cells.last(), right_cells.first());
                self.separator(left.map(Vec::as_slice), right.map(Vec::as_slice), page)?
            }
            Kind::Branch => self.lift(&mut right_cells, page)?,
        };
        self.edit(right, |bytes| page::rebuild(bytes, kind, &right_cells))?;
        self.edit(page, |bytes| page::rebuild(bytes, kind, &cells))?;
        Ok((separator, right))
    }

    /// Begins a leaf behind a full one with the cell that comes after all of its own: keys that
    /// arrive in order fill their pages, and nothing is moved.
    fn follow(&mut self, page: u64, cell: &[u8]) -> Result<(OwnedKey, u64), StoreError> {
        let view = View::new(self.page(page, 0)?);
        let last = view.count().checked_sub(1).and_then(|last| view.leaf(last));
        let last = last.map(|last| last.raw.to_vec());
        let separator = self.separator(last.as_deref(), Some(cell), page)?;
        let right = self.make(Kind::Leaf)?;
        self.edit(right, |bytes| page::insert(bytes, 0, cell))?;
        Ok((separator, right))
    }

    /// A key between two leaves, of which these are the last cell and the first.
    fn separator(
        &mut self,
        left: Option<&[u8]>,
        right: Option<&[u8]>,
        page: u64,
    ) -> Result<OwnedKey, StoreError> {
        let wrong = || corrupt(self.base.name(), page, "a cell is out of bounds");
        let decoded = |cell: Option<_>| cell.and_then(|cell| page::decode_cell(cell, Kind::Leaf));
        let (left, right) = (decoded(left).ok_or_else(wrong)?, decoded(right).ok_or_else(wrong)?);
        let left = whole_key(self, &left.key)?;
        let between = page::separator(left, whole_key(self, &right.key)?).to_vec();
        self.store_key(&between)
    }

    /// Takes the key out of the first of some branch cells: it separates them now.
    fn lift(&self, cells: &mut [Vec<u8>], page: u64) -> Result<OwnedKey, StoreError> {
        let wrong = || corrupt(self.base.name(), page, "a cell is out of bounds");
        let first = cells.first_mut().ok_or_else(wrong)?;
        let cell = page::decode_cell(first, Kind::Branch).ok_or_else(wrong)?;
        let key = OwnedKey::of(&cell);
        let keyless = OwnedKey::default().branch(cell.child, cell.crc);
        *first = keyless;
        Ok(key)
    }

    /// Repairs the tree after the page at the end of `path` lost a cell.
    fn shrink(&mut self, root: &mut Root, mut path: Path) -> Result<(), StoreError> {
        let mut kind = Kind::Leaf;
        while let Some((page, _)) = path.pop() {
            let view = View::new(self.page(page, 0)?);
            let (used, count) = (view.used(), view.count());
            let Some(&(parent, index)) = path.last() else { break };
            if used >= MERGE_BELOW {
                return Ok(());
            }
            let siblings = View::new(self.page(parent, 0)?).count();
            if siblings > 1 {
                let left = if index == 0 { 0 } else { index - 1 };
                if !self.merge(parent, left, kind)? {
                    return Ok(());
                }
            } else if count == 0 {
                self.give_up(page, 1);
                self.edit(parent, |bytes| page::remove(bytes, 0, Kind::Branch))?;
            } else {
                return Ok(());
            }
            kind = Kind::Branch;
        }
        self.lower(root)
    }

    /// Drops an empty root, and roots with a single child.
    fn lower(&mut self, root: &mut Root) -> Result<(), StoreError> {
        while root.page != 0 {
            let view = View::new(self.page(root.page, root.crc)?);
            match (view.kind(), view.count()) {
                (_, 0) => {
                    self.give_up(root.page, 1);
                    *root = Root { entries: root.entries, ..Root::default() };
                }
                (Some(Kind::Branch), 1) => {
                    let cell = view.branch(0).ok_or_else(|| damaged(self, &view))?;
                    let (child, crc) = (cell.child, cell.crc);
                    let key = key_run(&cell);
                    assert!(key.is_none(), "the first key is empty");
                    self.give_up(root.page, 1);
                    (root.page, root.crc, root.height) = (child, crc, root.height - 1);
                }
                (Some(Kind::Leaf | Kind::Branch) | None, _) => break,
            }
        }
        Ok(())
    }

    /// Moves the cells of child `left + 1` into child `left`, if they fit.
    fn merge(&mut self, parent: u64, left: usize, kind: Kind) -> Result<bool, StoreError> {
        let view = View::new(self.page(parent, 0)?);
        let wrong = || damaged(self, &view);
        let (first, second) =
            (view.branch(left).ok_or_else(wrong)?, view.branch(left + 1).ok_or_else(wrong)?);
        let between = OwnedKey::of(&second);
        let between_run = key_run(&second);
        let (right, right_crc) = (second.child, second.crc);
        let to = View::new(self.page(first.child, first.crc)?);
        let from = View::new(self.page(right, right_crc)?);
        // The key goes down between the cells of two branches. Where one of them has none there
        // is nothing to separate: an empty page goes even if its neighbour is full.
        let moves_down = kind == Kind::Branch && to.count() > 0 && from.count() > 0;
        let extra = if moves_down { between.raw_len() } else { 0 };
        if to.used() + from.used() + extra > ROOM {
            return Ok(false);
        }
        let mut cells = Vec::with_capacity(from.count());
        for index in 0..from.count() {
            let cell = from.cell(index, kind).ok_or_else(|| damaged(self, &from))?;
            cells.push(match (kind, index) {
                (Kind::Branch, 0) if moves_down => between.branch(cell.child, cell.crc),
                (Kind::Leaf | Kind::Branch, _) => cell.raw.to_vec(),
            });
        }
        let at = to.count();
        let to = self.own_child(parent, left, (first.child, first.crc))?;
        self.edit(to, |bytes| {
            let mut cells = cells.iter().enumerate();
            cells.try_for_each(|(index, cell)| page::insert(bytes, at + index, cell))
        })?;
        self.give_up(right, 1);
        if let Some(run) = between_run.filter(|_| !moves_down) {
            self.give_up(run.page, run.pages());
        }
        self.edit(parent, |bytes| page::remove(bytes, left + 1, Kind::Branch))?;
        Ok(true)
    }
}

/// The run of a long key.
pub(super) fn key_run(cell: &Cell<'_>) -> Option<Run> {
    match cell.key {
        Key::Short(_) => None,
        Key::Long { run, .. } => Some(run),
    }
}

/// The run of a long value.
pub(super) fn value_run(cell: &Cell<'_>) -> Option<Run> {
    match cell.value {
        Value::Short(_) => None,
        Value::Long(run) => Some(run),
    }
}

/// Where to cut, so that both sides have about the same number of bytes.
fn middle(cells: &[Vec<u8>]) -> usize {
    let total: usize = cells.iter().map(|cell| cell.len() + 2).sum();
    let mut left = 0;
    for (index, cell) in cells.iter().enumerate() {
        left += cell.len() + 2;
        if 2 * left >= total {
            return (index + 1).min(cells.len() - 1).max(1);
        }
    }
    cells.len() / 2
}

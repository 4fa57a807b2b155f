//! Walking a tree in key order, either way, between two bounds.
//!
//! A scan is a stack of pages of one snapshot and the place in each. Keys and values are
//! slices of the snapshot: nothing is copied, and the scan allocates only its stack.
//!
//! Left out: resuming by position. The next page of a listing starts from the last key.

use std::ops::Bound;

use super::db::Snapshot;
use super::error::StoreError;
use super::meta::Root;
use super::page::{Kind, View};
use super::tree::{self, Source};

/// A key and its value.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// A scan over a [`Snapshot`], from [`Snapshot::scan`].
#[derive(Debug)]
pub struct Scan<'a>(Walk<'a, Snapshot>);

impl<'a> Scan<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        root: Root,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
    ) -> Self {
        Self(Walk::new(snapshot, root, bounds, reverse))
    }

    /// The next key and its value; `None` at the end.
    ///
    /// # Errors
    /// `Corrupt`.
    #[expect(clippy::should_implement_trait, reason = "an error ends the scan, the type says so")]
    #[inline]
    pub fn next(&mut self) -> Result<Option<Pair<'a>>, StoreError> {
        self.0.next()
    }
}

/// A scan over a snapshot or a batch.
#[derive(Debug)]
pub(super) struct Walk<'a, S> {
    source: &'a S,
    root: Root,
    stack: Vec<Frame<'a>>,
    from: Option<Bound<Vec<u8>>>,
    to: Bound<Vec<u8>>,
    reverse: bool,
}

#[derive(Debug)]
struct Frame<'a> {
    view: View<'a>,
    kind: Kind,
    level: u16,
    /// Forward: the next cell. Reverse: how many cells are left.
    place: usize,
}

impl<'a, S: Source> Walk<'a, S> {
    pub(super) fn new(
        source: &'a S,
        root: Root,
        (low, high): (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
    ) -> Self {
        let (from, to) = if reverse { (high, low) } else { (low, high) };
        let (from, to) = (Some(from.map(<[u8]>::to_vec)), to.map(<[u8]>::to_vec));
        Self { source, root, stack: Vec::new(), from, to, reverse }
    }

    /// The next key and its value; `None` at the end.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn next(&mut self) -> Result<Option<Pair<'a>>, StoreError> {
        if let Some(from) = self.from.take() {
            self.seek(&from)?;
        }
        let source = self.source;
        while let Some(frame) = self.stack.last_mut() {
            let index = match (self.reverse, frame.place) {
                (false, place) if place < frame.view.count() => {
                    frame.place += 1;
                    place
                }
                (true, place) if place > 0 => {
                    frame.place -= 1;
                    place - 1
                }
                (true | false, _) => {
                    self.stack.pop();
                    continue;
                }
            };
            let (view, kind, level) = (frame.view, frame.kind, frame.level);
            let damaged = || tree::damaged(source, &view);
            let cell = view.cell(index, kind).ok_or_else(damaged)?;
            if kind == Kind::Branch {
                let (view, kind) = tree::load(source, cell.child, cell.crc, level - 1)?;
                let place = if self.reverse { view.count() } else { 0 };
                self.stack.push(Frame { view, kind, level: level - 1, place });
                continue;
            }
            let key = tree::whole_key(source, &cell.key)?;
            if self.is_beyond(key) {
                self.stack.clear();
                return Ok(None);
            }
            return Ok(Some((key, tree::whole_value(source, &cell.value)?)));
        }
        Ok(None)
    }

    fn is_beyond(&self, key: &[u8]) -> bool {
        match (&self.to, self.reverse) {
            (Bound::Unbounded, _) => false,
            (Bound::Included(to), false) => key > to.as_slice(),
            (Bound::Excluded(to), false) => key >= to.as_slice(),
            (Bound::Included(to), true) => key < to.as_slice(),
            (Bound::Excluded(to), true) => key <= to.as_slice(),
        }
    }

    /// Fills the stack so that the next step yields the first key inside the bound.
    fn seek(&mut self, from: &Bound<Vec<u8>>) -> Result<(), StoreError> {
        let source = self.source;
        let (mut page, mut crc) = (self.root.page, self.root.crc);
        if page == 0 {
            return Ok(());
        }
        for level in (1..=self.root.height).rev() {
            let (view, kind) = tree::load(source, page, crc, level)?;
            let place = self.place(&view, kind, from)?;
            if kind == Kind::Leaf {
                self.stack.push(Frame { view, kind, level, place });
                break;
            }
            let cell = view.branch(place).ok_or_else(|| tree::damaged(source, &view))?;
            (page, crc) = (cell.child, cell.crc);
            let place = if self.reverse { place } else { place + 1 };
            self.stack.push(Frame { view, kind, level, place });
        }
        Ok(())
    }

    /// In a branch the child to enter, in a leaf the `place` of its frame.
    fn place(
        &self,
        view: &View<'a>,
        kind: Kind,
        from: &Bound<Vec<u8>>,
    ) -> Result<usize, StoreError> {
        let (key, included) = match from {
            Bound::Included(key) => (key, true),
            Bound::Excluded(key) => (key, false),
            Bound::Unbounded => {
                let last = view.count().saturating_sub(usize::from(kind == Kind::Branch));
                return Ok(if self.reverse { last } else { 0 });
            }
        };
        if kind == Kind::Branch {
            return tree::child_index(self.source, view, key);
        }
        Ok(match tree::search(self.source, view, kind, key)? {
            Err(index) => index,
            // A found key is taken forward when included, and passed in reverse.
            Ok(index) => index + usize::from(included == self.reverse),
        })
    }
}

/// Bounds that hold all keys with a prefix.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bound<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}

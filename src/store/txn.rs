//! A batch of applied entries: changes of the trees that appear all at once.

use std::ops::Bound;
use std::sync::Arc;

use super::db::{Db, DbState, Snapshot, Tree};
use super::error::StoreError;
use super::map::PAGE;
use super::meta::{MEMBERSHIP_MAX, ROOTS, Root};
use super::page::{KEY_MAX, VALUE_MAX};
use super::scan::Walk;
use super::tree::{self, Batch, Workspace};

/// One batch of applied entries. Dropped without [`Txn::commit`], it leaves no trace.
#[derive(Debug)]
pub struct Txn<'a> {
    db: &'a mut Db,
    batch: Batch,
    roots: [Root; ROOTS],
    state: DbState,
    /// Did every change succeed? Half a change must not be published.
    whole: bool,
}

/// Copies of keys with their values.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

impl<'a> Txn<'a> {
    pub(super) fn new(db: &'a mut Db) -> Self {
        let (roots, state) = (db.current.roots, db.current.state.clone());
        let batch = Batch { pool: std::mem::take(&mut db.pool), ..Batch::default() };
        Self { batch, roots, state, whole: true, db }
    }
}

impl Txn<'_> {
    fn change<T>(
        &mut self,
        tree: Tree,
        change: impl FnOnce(&mut Workspace<'_, Snapshot>, &mut Root) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Db { current, space, .. } = &mut *self.db;
        let mut work = Workspace { base: &**current, batch: &mut self.batch, space };
        let changed = change(&mut work, &mut self.roots[tree as usize]);
        self.whole &= changed.is_ok();
        changed
    }

    /// The value of a key, with the changes of this batch.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn get(&mut self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with_value(tree, key, <[u8]>::to_vec)
    }

    /// Looks at the value of a key without copying it.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn with_value<T>(
        &mut self,
        tree: Tree,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, StoreError> {
        self.change(tree, |work, root| {
            let Some(value) = tree::find(work, root, key)? else { return Ok(None) };
            tree::whole_value(work, &value).map(look).map(Some)
        })
    }

    /// Copies of up to `most` keys between two bounds, in order, with their values and with
    /// the changes of this batch.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn collect(
        &mut self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        most: usize,
    ) -> Result<Pairs, StoreError> {
        self.change(tree, |work, root| {
            let mut walk = Walk::new(work, *root, bounds, false);
            let mut found = Vec::new();
            while found.len() < most
                && let Some((key, value)) = walk.next()?
            {
                found.push((key.to_vec(), value.to_vec()));
            }
            Ok(found)
        })
    }

    /// How many keys between two bounds there are, counted no further than `most`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn count(
        &mut self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        most: u64,
    ) -> Result<u64, StoreError> {
        self.change(tree, |work, root| {
            let mut walk = Walk::new(work, *root, bounds, false);
            let mut count = 0;
            while count < most && walk.next()?.is_some() {
                count += 1;
            }
            Ok(count)
        })
    }

    /// How many keys a tree has, with the changes of this batch.
    #[must_use]
    pub fn entries(&self, tree: Tree) -> u64 {
        self.roots[tree as usize].entries
    }

    /// Stores a value.
    ///
    /// # Errors
    /// `Full` when the quota is reached: nothing changed, the batch can go on. `Full` when
    /// the address space is used up, or `Corrupt`: the batch cannot be committed.
    ///
    /// # Panics
    /// When the key is empty or longer than [`KEY_MAX`], or the value than [`VALUE_MAX`].
    pub fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        assert!(!key.is_empty() && key.len() <= KEY_MAX, "the caller checks keys");
        assert!(value.len() <= VALUE_MAX, "the caller checks values");
        let quota = self.db.options.quota;
        let live = self.db.space.live_pages().saturating_sub(self.batch.freed_pages);
        if live * PAGE as u64 + (key.len() + value.len()) as u64 > quota {
            return Err(StoreError::Full { limit: quota });
        }
        self.change(tree, |work, root| work.put(root, key, value))
    }

    /// Removes a key and says whether it was there.
    ///
    /// # Errors
    /// `Corrupt`, or `Full` when the address space is used up.
    pub fn delete(&mut self, tree: Tree, key: &[u8]) -> Result<bool, StoreError> {
        self.change(tree, |work, root| work.delete(root, key))
    }

    /// What the state machine wants to remember with this batch.
    pub fn state_mut(&mut self) -> &mut DbState {
        &mut self.state
    }

    /// What it remembers so far.
    #[must_use]
    pub fn state(&self) -> &DbState {
        &self.state
    }

    /// Publishes the batch.
    ///
    /// # Errors
    /// `Invalid` when a change failed half-way; the batch is gone then.
    ///
    /// # Panics
    /// When the membership is longer than 2 KiB.
    pub fn commit(mut self) -> Result<Arc<Snapshot>, StoreError> {
        assert!(self.state.membership.len() <= MEMBERSHIP_MAX, "the caller checks members");
        if !self.whole {
            let file = self.db.map.name().to_owned();
            let why = "a change of this batch failed half-way".to_owned();
            return Err(StoreError::Invalid { file, why });
        }
        let state = std::mem::take(&mut self.state);
        let (db, batch) = (&mut *self.db, &mut self.batch);
        for (page, bytes) in batch.pages.drain() {
            let pages = (bytes.len() / PAGE) as u64;
            db.map.put(page, bytes);
            db.dirty.insert(page, pages);
            db.dirty_pages += pages;
        }
        let (last, is_writing) = (db.current.pin.id(), db.writer.is_none());
        let (mut retired, mut withheld) = (Vec::new(), Vec::new());
        for (page, pages) in batch.freed.drain(..) {
            db.space.retire(page, pages);
            let young = db.dirty.remove(&page);
            db.dirty_pages -= young.unwrap_or(0);
            // What was there before the running checkpoint began may be a part of it.
            let to = if is_writing && young.is_none() { &mut withheld } else { &mut retired };
            to.push((page, pages));
        }
        db.retired.push_back((last, retired));
        if !withheld.is_empty() {
            db.withheld_pages += withheld.iter().map(|(_, pages)| pages).sum::<u64>();
            db.withheld.push_back((last, withheld));
        }
        db.current = Arc::new(Snapshot { pin: db.map.pin(), roots: self.roots, state });
        db.published.set(Arc::clone(&db.current));
        db.reclaim().recycle(&mut batch.pool);
        Ok(Arc::clone(&db.current))
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        for (page, bytes) in self.batch.pages.drain() {
            self.db.space.untake(page, (bytes.len() / PAGE) as u64);
            self.batch.pool.give(bytes);
        }
        self.db.pool = std::mem::take(&mut self.batch.pool);
    }
}

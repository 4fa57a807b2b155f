//! Reading the state: one snapshot with the meaning of its bytes.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::record::Record;
use crate::raft::types::Index;
use crate::store::scan::prefix_end;
use crate::store::{Snapshot, StoreError, Tree};

/// The state as of one revision. Cheap to clone; holds on to the pages it can see, so keep
/// it no longer than a request.
#[derive(Clone, Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
}

/// Which keys, in which order.
#[derive(Clone, Debug)]
pub struct Range {
    /// Where to begin, in key order.
    pub start: Bound<Vec<u8>>,
    /// Where to end, in key order.
    pub end: Bound<Vec<u8>>,
    /// From the end to the start.
    pub reverse: bool,
}

/// A key with its record.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What is stored there.
    pub record: Record<'a>,
}

impl Range {
    /// All keys that begin with `prefix`; the empty prefix means all keys.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { start: Bound::Included(prefix.to_vec()), end: prefix_end(prefix), reverse: false }
    }
}

impl View {
    /// A view of `snapshot`.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }

    /// The store's revision: that of the last change it includes.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.snapshot.state().revision
    }

    /// The last entry it includes.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.snapshot.state().applied.index
    }

    /// The digest of all keys, equal on all nodes that applied the same entries.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.snapshot.state().digest
    }

    /// How many keys there are.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.snapshot.entries(Tree::Kv)
    }

    /// The record of a key, borrowed from the map.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record<'_>>, StoreError> {
        let Some(bytes) = self.snapshot.get(Tree::Kv, key)? else { return Ok(None) };
        super::decode(key, bytes).map(Some)
    }

    /// The value of a key without a copy, if it is long enough to have pages of its own. The
    /// bytes hold on to the snapshot: see [`Held`](crate::store::Held).
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn held(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(held) = Snapshot::hold(&self.snapshot, Tree::Kv, key)? else { return Ok(None) };
        let stored = Bytes::from_owner(held);
        let len = super::decode(key, &stored)?.value.len();
        Ok(Some(stored.slice(stored.len() - len..)))
    }

    /// Calls `visit` with each item of `range` in order until it says `false`.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn scan(
        &self,
        range: &Range,
        mut visit: impl FnMut(Item<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let (start, end) = (range.start.as_ref(), range.end.as_ref());
        let mut scan = self.snapshot.scan(
            Tree::Kv,
            start.map(Vec::as_slice),
            end.map(Vec::as_slice),
            range.reverse,
        );
        while let Some((key, value)) = scan.next()? {
            let record = super::decode(key, value)?;
            if !visit(Item { key, record }) {
                break;
            }
        }
        Ok(())
    }
}

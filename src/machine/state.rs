//! One entry's changes: every write of the state machine goes through here, so that digest,
//! history and the indexes beside the keys never disagree with them.
//!
//! What lies in which tree:
//!
//! | tree | key | value |
//! |---|---|---|
//! | `Kv` | the key | a [`Record`] |
//! | `History` | revision, number in it | an event: see `history.rs` |
//! | `Deleted` | a key that is gone, while the event that removed it is kept | where that is |
//! | `Ttl` | time, 0, key | nothing |
//! | `Ttl` | time, 1, lease | nothing |
//! | `Session` | 0, name of a request | its outcome: see `once.rs` |
//! | `Session` | 1, revision | that name |
//! | `Meta` | `L`, lease | how long it lasts, and when it ends |
//! | `Meta` | `K`, lease, key | nothing |
//! | `Meta` | `l`, `q`, `o` ... | locks: see `locks.rs` |
//!
//! Numbers in keys are big-endian, so that their order is the tree's.

use std::ops::Bound;

use super::command::{Content, Life, Written};
use super::history::{self, At, Before, Event, Kind, Link, NOWHERE, Reason};
use super::leases::{self, damaged};
use super::record::Record;
use super::{decode, digest};
use crate::store::{Pairs, StoreError, Tree, Txn};

/// The state while one entry is applied.
pub(super) struct State<'t, 'd> {
    pub(super) txn: &'t mut Txn<'d>,
    /// The index of the entry.
    pub(super) revision: u64,
    /// The replicated clock.
    pub(super) now_ms: u64,
    /// Events of this entry so far.
    events: u32,
}

/// Joins the parts of a tree's key.
pub(super) fn place(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Everything that begins with `prefix`.
pub(super) fn below(prefix: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    (Bound::Included(prefix.to_vec()), crate::store::scan::prefix_end(prefix))
}

/// Borrowed bounds.
pub(super) fn borrowed(bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (bounds.0.as_ref().map(Vec::as_slice), bounds.1.as_ref().map(Vec::as_slice))
}

impl<'t, 'd> State<'t, 'd> {
    pub(super) fn new(txn: &'t mut Txn<'d>, revision: u64) -> Self {
        let now_ms = txn.state().time_ms;
        Self { txn, revision, now_ms, events: 0 }
    }

    /// The store's revision: that of the last change of a key.
    pub(super) fn store_revision(&self) -> u64 {
        self.txn.state().revision
    }

    /// Stores a pair where `old` was.
    pub(super) fn set(
        &mut self,
        tree: Tree,
        key: &[u8],
        value: &[u8],
        old: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.txn.put(tree, key, value)?;
        let state = self.txn.state_mut();
        if let Some(old) = old {
            state.digest = state.digest.wrapping_sub(digest(tree, key, old));
        }
        state.digest = state.digest.wrapping_add(digest(tree, key, value));
        Ok(())
    }

    /// Removes a pair that is there.
    pub(super) fn unset(&mut self, tree: Tree, key: &[u8], old: &[u8]) -> Result<(), StoreError> {
        self.txn.delete(tree, key)?;
        let state = self.txn.state_mut();
        state.digest = state.digest.wrapping_sub(digest(tree, key, old));
        Ok(())
    }

    /// Up to `most` pairs whose keys begin with `prefix`.
    pub(super) fn under(
        &mut self,
        tree: Tree,
        prefix: &[u8],
        most: usize,
    ) -> Result<Pairs, StoreError> {
        self.txn.collect(tree, borrowed(&below(prefix)), most)
    }

    /// What is stored under a key, undecoded.
    pub(super) fn stored(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.txn.get(Tree::Kv, key)
    }

    /// Writes a key over `stored`. A lease that is named must be there.
    pub(super) fn write(
        &mut self,
        key: &[u8],
        content: &Content,
        stored: Option<&[u8]>,
        prev: bool,
    ) -> Result<Written, StoreError> {
        let old = stored.map(|bytes| decode(key, bytes)).transpose()?;
        let revision = self.revision;
        let (lease, expiry_ms) = match content.life {
            Life::Endless => (0, 0),
            Life::Ttl(ms) => (0, self.now_ms.saturating_add(ms)),
            Life::Lease(id) => (id, 0),
            Life::NewLease => (revision, 0),
        };
        let record = Record {
            create_revision: old.map_or(revision, |record| record.create_revision),
            mod_revision: revision,
            nth: self.events,
            version: old.map_or(1, |record| record.version + 1),
            lease,
            expiry_ms,
            content_type: &content.content_type,
            value: &content.value,
        };
        if let Some(old) = old {
            self.detach(key, old.lease, old.expiry_ms)?;
        }
        self.attach(key, lease, expiry_ms)?;
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        self.set(Tree::Kv, key, &bytes, stored)?;
        let before = match stored {
            Some(stored) => Before::Stored(stored),
            None => self.undelete(key)?.map_or(Before::Nothing, Before::Deleted),
        };
        self.event(Kind::Put, Reason::Request, key, before)?;
        Ok(Written {
            revision,
            create_revision: record.create_revision,
            version: record.version,
            lease,
            ttl_ms: if let Life::Ttl(ms) = content.life { ms } else { 0 },
            prev: old.filter(|_| prev).map(|record| record.to_owned()),
        })
    }

    /// Removes a key that is there.
    pub(super) fn erase(
        &mut self,
        key: &[u8],
        stored: &[u8],
        reason: Reason,
    ) -> Result<(), StoreError> {
        let old = decode(key, stored)?;
        self.detach(key, old.lease, old.expiry_ms)?;
        self.unset(Tree::Kv, key, stored)?;
        let at = (self.revision, self.events);
        self.event(Kind::Delete, reason, key, Before::Stored(stored))?;
        self.set(Tree::Deleted, key, &history::pointer(at), None)
    }

    /// Gives a key another end, or none, and changes nothing else. A time takes the place of a
    /// lease.
    pub(super) fn touch(
        &mut self,
        key: &[u8],
        stored: &[u8],
        expiry_ms: u64,
    ) -> Result<(), StoreError> {
        let old = decode(key, stored)?;
        let lease = if expiry_ms == 0 { old.lease } else { 0 };
        self.detach(key, old.lease, old.expiry_ms)?;
        self.attach(key, lease, expiry_ms)?;
        let mut bytes = Vec::new();
        Record { lease, expiry_ms, ..old }.encode(&mut bytes);
        self.set(Tree::Kv, key, &bytes, Some(stored))
    }

    fn attach(&mut self, key: &[u8], lease: u64, expiry_ms: u64) -> Result<(), StoreError> {
        if expiry_ms != 0 {
            self.set(Tree::Ttl, &ttl_place(expiry_ms, key), &[], None)?;
        }
        if lease != 0 {
            self.set(Tree::Meta, &leases::key_place(lease, key), &[], None)?;
        }
        Ok(())
    }

    fn detach(&mut self, key: &[u8], lease: u64, expiry_ms: u64) -> Result<(), StoreError> {
        if expiry_ms != 0 {
            self.unset(Tree::Ttl, &ttl_place(expiry_ms, key), &[])?;
        }
        if lease != 0 {
            self.unset(Tree::Meta, &leases::key_place(lease, key), &[])?;
        }
        Ok(())
    }

    /// Forgets that a key was removed, and says by which event, if the history still has it.
    fn undelete(&mut self, key: &[u8]) -> Result<Option<At>, StoreError> {
        if self.txn.entries(Tree::Deleted) == 0 {
            return Ok(None);
        }
        let Some(bytes) = self.txn.get(Tree::Deleted, key)? else { return Ok(None) };
        self.unset(Tree::Deleted, key, &bytes)?;
        history::pointed(&bytes).map(Some).ok_or_else(|| damaged("deleted key"))
    }

    /// Notes a change of a key in the history, with what was there before.
    fn event(
        &mut self,
        kind: Kind,
        reason: Reason,
        key: &[u8],
        before: Before<'_>,
    ) -> Result<(), StoreError> {
        let at = (self.revision, self.events);
        self.events += 1;
        let link = self.link_after(before.made_by()?)?;
        let event = Event { kind, reason, key, link, before };
        self.set(Tree::History, &history::event_place(at), &event.encode(), None)?;
        let state = self.txn.state_mut();
        state.revision = at.0;
        state.history_bytes += event.weight();
        Ok(())
    }

    /// The link of an event of the key that `back` is the newest event of so far.
    fn link_after(&mut self, back: At) -> Result<Link, StoreError> {
        if !self.is_kept(back) {
            return Ok(Link::FIRST);
        }
        let link = self.link_of(back)?.next(back, |jump| {
            if self.is_kept(jump) { Ok(self.link_of(jump)?.jump) } else { Ok(NOWHERE) }
        })?;
        Ok(if self.is_kept(link.jump) { link } else { Link { jump: NOWHERE, ..link } })
    }

    /// Is an event part of what the history tells?
    fn is_kept(&self, at: At) -> bool {
        at.0 > self.txn.state().compact_revision
    }

    fn link_of(&mut self, at: At) -> Result<Link, StoreError> {
        let place = history::event_place(at);
        let link = self.txn.with_value(Tree::History, &place, |bytes| {
            Event::decode(bytes).map(|event| event.link)
        })?;
        link.flatten().ok_or_else(|| damaged("event"))
    }
}

/// Where the end of a key is noted.
pub(super) fn ttl_place(expiry_ms: u64, key: &[u8]) -> Vec<u8> {
    place(&[&expiry_ms.to_be_bytes(), &[0], key])
}

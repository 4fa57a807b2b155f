//! The state machine: commands, and how they change the database.
//!
//! Deterministic by construction: [`apply`] sees the database and one entry, and nothing
//! else - no clock, no chance, no iteration over unordered maps. Two nodes that applied the
//! same entries hold the same bytes, and their digests say so.
//!
//! A **revision** is the log index of the entry that made a change, so it is unique,
//! grows, and is the same everywhere. Entries that change nothing leave it alone.
//!
//! Left out: who may do what, and how long a client waits; those are the edge's business.

#![expect(clippy::big_endian_bytes, reason = "in the keys of a tree, bytes are in its order")]

mod agree;
mod code;
mod codec;
mod command;
mod history;
mod leases;
mod locks;
mod once;
mod outcome;
mod record;
mod state;
mod tidy;
mod txn;
mod view;

#[cfg(test)]
mod tests;

pub use agree::Indexes;
pub use command::{
    Applied, CONTENT_TYPE_MAX, Command, Compare, Conditions, Content, DELETE_MAX, Fence, Granted,
    KEY_MAX, LOCK_NAME_MAX, Life, ONCE_MAX, OWNER_MAX, Once, Op, OpResult, Relation, Request, Span,
    Subject, Tags, Tidy, Txn, Write, Written,
};
pub use history::{Change, Gone, Kind, Reason};
pub use leases::Lease;
pub use locks::Claim;
pub use record::{OwnedRecord, Record};
pub use tidy::is_due;
pub use txn::{ANSWER_MAX, BadTxn, read};
pub use view::{Item, LeaseView, LockView, Range, View};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::store::{self, Entry, StoreError, Tree};
use state::State;

/// Carries out one committed entry, whose payload is a [`Request`], inside the batch `txn`.
///
/// # Errors
/// Those of the store, all fatal: a replica that cannot apply must stop.
pub fn apply(txn: &mut store::Txn<'_>, entry: &Entry) -> Result<Applied, StoreError> {
    let state = txn.state_mut();
    state.time_ms = state.time_ms.max(entry.time_ms);
    let Some(request) = Request::decode(&entry.payload) else { return Ok(Applied::Unknown) };
    let mut state = State::new(txn, entry.id.index.0);
    if let Some(once) = &request.once
        && let Some(outcome) = state.replayed(once)?
    {
        return Ok(outcome);
    }
    let outcome = state.carry_out(&request)?;
    if let Some(once) = &request.once {
        state.remember(once, &outcome)?;
    }
    Ok(outcome)
}

impl State<'_, '_> {
    fn carry_out(&mut self, request: &Request) -> Result<Applied, StoreError> {
        if let Some(fence) = &request.fence
            && let Err(current) = self.fenced(fence)?
        {
            return Ok(Applied::Fenced { current });
        }
        let actual = request.command.steps();
        if actual > DELETE_MAX {
            return Ok(Applied::TooMany { actual });
        }
        match &request.command {
            Command::Put { key, value, content_type, life, conditions, prev } => {
                let (value, content_type, life) = (value.clone(), content_type.clone(), *life);
                self.put(key, &Content { value, content_type, life }, conditions, *prev)
            }
            Command::Delete { key, conditions, prev } => self.delete(key, conditions, *prev),
            Command::DeleteRange { span } => self.delete_range(span),
            Command::Touch { key, ttl_ms, conditions } => self.touch_key(key, *ttl_ms, conditions),
            Command::Grant { id, ttl_ms } => self.grant_as(*id, *ttl_ms),
            Command::KeepAlive { ids } => self.keep_alive(ids),
            Command::Revoke { id } => self.revoke(*id),
            Command::Lock { name, lease, ttl_ms, owner, queue } => {
                self.lock(name, *lease, *ttl_ms, owner, *queue)
            }
            Command::Unlock { name, ticket } => self.unlock(name, *ticket),
            Command::Txn(txn) => self.transact(txn),
            Command::Batch(writes) => {
                let outcomes = writes.iter().map(|write| self.one_of_many(write));
                Ok(Applied::Batch { outcomes: outcomes.collect::<Result<_, _>>()? })
            }
            Command::Tidy(tidy) => self.tidy(tidy),
        }
    }

    fn put(
        &mut self,
        key: &Bytes,
        content: &Content,
        conditions: &Conditions,
        prev: bool,
    ) -> Result<Applied, StoreError> {
        let stored = self.stored(key)?;
        if let Some(refused) = refused(key, stored.as_deref(), conditions)? {
            return Ok(refused);
        }
        if let Some(refused) = self.lease_missing(content.life)? {
            return Ok(refused);
        }
        self.write(key, content, stored.as_deref(), prev).map(Applied::Put)
    }

    fn delete(
        &mut self,
        key: &Bytes,
        conditions: &Conditions,
        prev: bool,
    ) -> Result<Applied, StoreError> {
        let stored = self.stored(key)?;
        if let Some(refused) = refused(key, stored.as_deref(), conditions)? {
            return Ok(refused);
        }
        let Some(stored) = stored else {
            let revision = self.store_revision();
            return Ok(Applied::Deleted { deleted: 0, revision, prev: None });
        };
        self.erase(key, &stored, Reason::Request)?;
        let prev = if prev { Some(decode(key, &stored)?.to_owned()) } else { None };
        Ok(Applied::Deleted { deleted: 1, revision: self.revision, prev })
    }

    fn delete_range(&mut self, span: &Span) -> Result<Applied, StoreError> {
        let actual = self.txn.count(Tree::Kv, span.bounds(), DELETE_MAX + 1)?;
        if actual > DELETE_MAX {
            return Ok(Applied::TooMany { actual });
        }
        let deleted = self.erase_span(span, |_, _| ())?;
        Ok(Applied::Deleted { deleted, revision: self.store_revision(), prev: None })
    }

    fn touch_key(
        &mut self,
        key: &Bytes,
        ttl_ms: Option<u64>,
        conditions: &Conditions,
    ) -> Result<Applied, StoreError> {
        let stored = self.stored(key)?;
        if let Some(refused) = refused(key, stored.as_deref(), conditions)? {
            return Ok(refused);
        }
        let Some(stored) = stored else { return Ok(Applied::NoKey) };
        self.touch(key, &stored, ttl_ms.map_or(0, |ttl| self.now_ms.saturating_add(ttl)))?;
        let old = decode(key, &stored)?;
        let lease = if ttl_ms.is_some() { 0 } else { old.lease };
        Ok(Applied::Touched { mod_revision: old.mod_revision, lease, ttl_ms })
    }

    fn one_of_many(&mut self, write: &Write) -> Result<Applied, StoreError> {
        match &write.put {
            Some(content) => self.put(&write.key, content, &write.conditions, false),
            None => self.delete(&write.key, &write.conditions, false),
        }
    }

    /// The refusal of a key on a lease that is not there.
    fn lease_missing(&mut self, life: Life) -> Result<Option<Applied>, StoreError> {
        match life {
            Life::Lease(id) if self.lease(id)?.is_none() => Ok(Some(Applied::NoLease { id })),
            // Only a step of a transaction makes one.
            Life::NewLease => Ok(Some(Applied::NoLease { id: self.revision })),
            Life::Endless | Life::Ttl(_) | Life::Lease(_) => Ok(None),
        }
    }
}

/// The refusal, if the conditions do not hold.
fn refused(
    key: &[u8],
    stored: Option<&[u8]>,
    conditions: &Conditions,
) -> Result<Option<Applied>, StoreError> {
    let current = stored.map(|bytes| decode(key, bytes)).transpose()?;
    let current = current.map(|record| record.mod_revision);
    Ok((!conditions.hold(current)).then_some(Applied::ConditionFailed { current }))
}

/// What one pair of a tree adds to the digest of the whole. A sum, so that a change costs the
/// same however large the database is.
#[must_use]
pub fn digest(tree: Tree, key: &[u8], stored: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&[tree as u8]);
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(stored);
    hash.digest128()
}

fn decode<'a>(key: &[u8], bytes: &'a [u8]) -> Result<Record<'a>, StoreError> {
    Record::decode(bytes).ok_or_else(|| StoreError::Corrupt {
        file: "the database".into(),
        what: "record",
        offset: 0,
        why: format!("the value of key {} is not a record", key.escape_ascii()),
    })
}

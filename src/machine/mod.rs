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

mod command;
mod record;
mod view;

pub use command::{Applied, CONTENT_TYPE_MAX, Command, Conditions, KEY_MAX, Tags};
pub use record::{OwnedRecord, Record};
pub use view::{Item, Range, View};

use xxhash_rust::xxh3::Xxh3;

use crate::raft::types::LogId;
use crate::store::{Entry, StoreError, Tree, Txn};

/// Carries out one committed entry, whose payload is a [`Command`], inside the batch `txn`.
///
/// # Errors
/// Those of the store, all fatal: a replica that cannot apply must stop.
pub fn apply(txn: &mut Txn<'_>, entry: &Entry) -> Result<Applied, StoreError> {
    let state = txn.state_mut();
    state.time_ms = state.time_ms.max(entry.time_ms);
    match Command::decode(&entry.payload) {
        Some(Command::Put { key, value, content_type, conditions, prev }) => {
            put(txn, entry.id, &key, &value, &content_type, &conditions, prev)
        }
        Some(Command::Delete { key, conditions, prev }) => {
            delete(txn, entry.id, &key, &conditions, prev)
        }
        None => Ok(Applied::Unknown),
    }
}

fn put(
    txn: &mut Txn<'_>,
    id: LogId,
    key: &[u8],
    value: &[u8],
    content_type: &str,
    conditions: &Conditions,
    prev: bool,
) -> Result<Applied, StoreError> {
    let stored = txn.get(Tree::Kv, key)?;
    let old = stored.as_deref().map(|bytes| decode(key, bytes)).transpose()?;
    let current = old.map(|record| record.mod_revision);
    if !conditions.hold(current) {
        return Ok(Applied::ConditionFailed { current });
    }
    let revision = id.index.0;
    let record = Record {
        create_revision: old.map_or(revision, |record| record.create_revision),
        mod_revision: revision,
        version: old.map_or(1, |record| record.version + 1),
        lease: 0,
        expiry_ms: 0,
        content_type,
        value,
    };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    txn.put(Tree::Kv, key, &bytes)?;
    changed(txn, revision, key, stored.as_deref(), Some(&bytes));
    Ok(Applied::Put {
        revision,
        create_revision: record.create_revision,
        version: record.version,
        prev: old.filter(|_| prev).map(|record| record.to_owned()),
    })
}

fn delete(
    txn: &mut Txn<'_>,
    id: LogId,
    key: &[u8],
    conditions: &Conditions,
    prev: bool,
) -> Result<Applied, StoreError> {
    let stored = txn.get(Tree::Kv, key)?;
    let old = stored.as_deref().map(|bytes| decode(key, bytes)).transpose()?;
    let current = old.map(|record| record.mod_revision);
    if !conditions.hold(current) {
        return Ok(Applied::ConditionFailed { current });
    }
    let Some(old) = old else {
        let revision = txn.state_mut().revision;
        return Ok(Applied::Deleted { deleted: 0, revision, prev: None });
    };
    let revision = id.index.0;
    txn.delete(Tree::Kv, key)?;
    changed(txn, revision, key, stored.as_deref(), None);
    Ok(Applied::Deleted { deleted: 1, revision, prev: prev.then(|| old.to_owned()) })
}

/// Notes a change of one key: the revision moves, and the digest loses the old bytes and
/// gains the new ones. A sum, so that it costs the same however large the database is.
fn changed(txn: &mut Txn<'_>, revision: u64, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
    let state = txn.state_mut();
    state.revision = revision;
    if let Some(old) = old {
        state.digest = state.digest.wrapping_sub(digest(key, old));
    }
    if let Some(new) = new {
        state.digest = state.digest.wrapping_add(digest(key, new));
    }
}

/// What one key adds to the digest of the whole.
#[must_use]
pub fn digest(key: &[u8], stored: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
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

//! Requests with a name: whoever asks again, after a crash or a change of leader too, gets
//! the first outcome, and nothing happens a second time.
//!
//! | bytes | field |
//! |---|---|
//! | 0..16 | fingerprint of the request |
//! | 16..24 | revision |
//! | 24..32 | time in milliseconds of the replicated clock |
//! | 32.. | the outcome |

use bytes::Bytes;

use super::command::{Applied, Once, OpResult};
use super::leases::damaged;
use super::state::{State, place};
use crate::store::db::VALUE_MAX;
use crate::store::{StoreError, Tree};

const HEAD: usize = 32;

fn name_place(name: &[u8]) -> Vec<u8> {
    place(&[&[0], name])
}

pub(super) fn order_place(revision: u64) -> Vec<u8> {
    place(&[&[1], &revision.to_be_bytes()])
}

/// What an outcome adds to the size of all of them, with its places.
pub(super) fn weight(name: &[u8], stored: &[u8]) -> u64 {
    2 * name.len() as u64 + stored.len() as u64 + 64
}

/// The revision of the request that came to a stored outcome.
pub(super) fn revision(stored: &[u8]) -> Option<u64> {
    number(stored, 16)
}

fn number(stored: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*stored.get(at..)?.first_chunk()?))
}

/// An outcome that is too long to be kept, as it is told to whoever asks again: all numbers
/// are there, of what was read or replaced there is nothing. The largest value alone makes
/// a transaction's answer as long as one that a tree can hold.
fn without_values(outcome: &Applied) -> Applied {
    let mut outcome = outcome.clone();
    if let Applied::Txn { results, .. } = &mut outcome {
        for result in results {
            match result {
                OpResult::Put(written) => written.prev = None,
                OpResult::Deleted { prev, .. } => prev.clear(),
                OpResult::Got { items, more } => {
                    *more |= !items.is_empty();
                    items.clear();
                }
                OpResult::Granted(_) => {}
            }
        }
    }
    outcome
}

impl State<'_, '_> {
    /// What became of the request with this name, if there was one.
    pub(super) fn replayed(&mut self, once: &Once) -> Result<Option<Applied>, StoreError> {
        let stored = self.txn.get(Tree::Session, &name_place(&once.key))?;
        let Some(stored) = stored else { return Ok(None) };
        if stored.first_chunk() != Some(&once.fingerprint.to_le_bytes()) {
            return Ok(Some(Applied::OtherRequest));
        }
        let outcome = stored.get(HEAD..).map(Bytes::copy_from_slice);
        let first = outcome.and_then(|bytes| Applied::decode(&bytes));
        let first = first.ok_or_else(|| damaged("outcome"))?;
        Ok(Some(Applied::Replayed(Box::new(first))))
    }

    /// Remembers what became of a request.
    pub(super) fn remember(&mut self, once: &Once, outcome: &Applied) -> Result<(), StoreError> {
        let mut bytes = outcome.encode();
        if HEAD + bytes.len() > VALUE_MAX {
            bytes = without_values(outcome).encode();
        }
        let stored = place(&[
            &once.fingerprint.to_le_bytes(),
            &self.revision.to_le_bytes(),
            &self.now_ms.to_le_bytes(),
            &bytes,
        ]);
        self.set(Tree::Session, &name_place(&once.key), &stored, None)?;
        self.set(Tree::Session, &order_place(self.revision), &once.key, None)?;
        self.txn.state_mut().session_bytes += weight(&once.key, &stored);
        Ok(())
    }

    /// Forgets the oldest outcomes, at most `budget` of them, while there are more than `count`
    /// or `bytes`, or they are from before `before_ms`. Says whether there may be more.
    pub(super) fn forget(
        &mut self,
        before_ms: u64,
        count: u64,
        bytes: u64,
        budget: usize,
    ) -> Result<bool, StoreError> {
        let oldest = self.under(Tree::Session, &[1], budget)?;
        let more = oldest.len() == budget;
        for (order, name) in oldest {
            let at = name_place(&name);
            let stored = self.txn.get(Tree::Session, &at)?.ok_or_else(|| damaged("outcome"))?;
            let time = number(&stored, 24).ok_or_else(|| damaged("outcome"))?;
            let kept = self.txn.entries(Tree::Session) / 2;
            if time >= before_ms && kept <= count && self.txn.state().session_bytes <= bytes {
                return Ok(false);
            }
            self.unset(Tree::Session, &at, &stored)?;
            self.unset(Tree::Session, &order, &name)?;
            let state = self.txn.state_mut();
            state.session_bytes = state.session_bytes.saturating_sub(weight(&name, &stored));
        }
        Ok(more)
    }
}

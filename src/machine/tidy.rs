//! What is over: keys and leases whose time has come, and the oldest of the history and of
//! the outcomes that are kept.
//!
//! The leader looks at its own state and clock, and proposes; what is removed is decided
//! when the entry is applied, by the entry's time and numbers alone. One entry does a limited
//! amount of work.

use std::ops::Bound;

use super::command::{Applied, Tidy};
use super::history::{self, Kind, Reason};
use super::leases::damaged;
use super::state::State;
use crate::store::{Snapshot, StoreError, Tree};

/// What one entry removes of each kind.
pub(super) const BUDGET: usize = if cfg!(test) { 16 } else { 1024 };
/// Events that are read at once: their values may be long.
const PIECE: usize = BUDGET / 16;
/// Keys that one entry removes because they or their leases are over; the others go with the
/// next entries.
pub(super) const EXPIRE_MAX: usize = if cfg!(test) { 4 } else { 4096 };

impl State<'_, '_> {
    /// The command of that name.
    pub(super) fn tidy(&mut self, tidy: &Tidy) -> Result<Applied, StoreError> {
        let mut more = tidy.expire && self.expire()?;
        more |= self.trim(tidy.history_events, tidy.history_bytes)?;
        let before = self.now_ms.saturating_sub(tidy.once_ms);
        more |= self.forget(before, tidy.once_count, tidy.once_bytes, BUDGET)?;
        Ok(Applied::Tidied { more })
    }

    fn expire(&mut self) -> Result<bool, StoreError> {
        let end = self.now_ms.saturating_add(1).to_be_bytes();
        let bounds = (Bound::Unbounded, Bound::Excluded(&end[..]));
        let due = self.txn.collect(Tree::Ttl, bounds, BUDGET)?;
        let more = due.len() == BUDGET;
        let mut room = EXPIRE_MAX as u64;
        for (at, _) in due {
            if room == 0 {
                return Ok(true);
            }
            match at.get(8..) {
                Some([0, key @ ..]) => {
                    let stored = self.stored(key)?.ok_or_else(|| damaged("expiry"))?;
                    self.erase(key, &stored, Reason::Ttl)?;
                    room -= 1;
                }
                Some([1, id @ ..]) => {
                    let id = <[u8; 8]>::try_from(id).map_err(|_| damaged("expiry"))?;
                    let most = usize::try_from(room).unwrap_or(usize::MAX);
                    let Some(deleted) = self.end_lease(u64::from_be_bytes(id), most)? else {
                        return Ok(true);
                    };
                    room -= deleted;
                }
                Some(_) | None => return Err(damaged("expiry")),
            }
        }
        Ok(more)
    }

    /// Drops the oldest events until so many are left, or so many bytes.
    fn trim(&mut self, events: u64, bytes: u64) -> Result<bool, StoreError> {
        for _ in 0..BUDGET / PIECE {
            if !self.is_history_over(events, bytes) {
                return Ok(false);
            }
            let all = (Bound::Unbounded, Bound::Unbounded);
            for (place, value) in self.txn.collect(Tree::History, all, PIECE)? {
                if !self.is_history_over(events, bytes) {
                    return Ok(false);
                }
                self.drop_event(&place, &value)?;
            }
        }
        Ok(self.is_history_over(events, bytes))
    }

    fn is_history_over(&self, events: u64, bytes: u64) -> bool {
        is_over(self.txn.entries(Tree::History), self.txn.state().history_bytes, events, bytes)
    }

    fn drop_event(&mut self, place: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let (at, event) = history::decode(place, value)?;
        self.unset(Tree::History, place, value)?;
        if event.kind == Kind::Delete {
            // Unless the key is back, or was removed once more.
            let pointer = history::pointer(at);
            let is_last = self.txn.with_value(Tree::Deleted, event.key, |it| it == pointer)?;
            if is_last == Some(true) {
                self.unset(Tree::Deleted, event.key, &pointer)?;
            }
        }
        let state = self.txn.state_mut();
        state.compact_revision = state.compact_revision.max(at.0);
        state.history_bytes = state.history_bytes.saturating_sub(event.weight());
        Ok(())
    }
}

/// Are there more of these than so many, or than so many bytes?
fn is_over(there: u64, held: u64, count: u64, bytes: u64) -> bool {
    there > count || held > bytes
}

/// Is there something for the leader to propose at `now_ms`? Some slack saves it from doing
/// so after every write. Outcomes that are only old wait for company.
///
/// # Errors
/// `Corrupt`.
pub fn is_due(snapshot: &Snapshot, now_ms: u64, tidy: &Tidy) -> Result<bool, StoreError> {
    let slack = |limit: u64| limit.saturating_add(limit / 16);
    let state = snapshot.state();
    let (events, bytes) = (slack(tidy.history_events), slack(tidy.history_bytes));
    if is_over(snapshot.entries(Tree::History), state.history_bytes, events, bytes) {
        return Ok(true);
    }
    let (count, bytes) = (slack(tidy.once_count), slack(tidy.once_bytes));
    // An outcome is two pairs of the tree.
    if is_over(snapshot.entries(Tree::Session) / 2, state.session_bytes, count, bytes) {
        return Ok(true);
    }
    if !tidy.expire || snapshot.entries(Tree::Ttl) == 0 {
        return Ok(false);
    }
    let end = now_ms.saturating_add(1).to_be_bytes();
    let mut due = snapshot.scan(Tree::Ttl, Bound::Unbounded, Bound::Excluded(&end), false);
    Ok(due.next()?.is_some())
}

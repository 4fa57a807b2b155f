//! Do the indexes agree with what they are made from? Each pair of a tree says which other
//! pair must be there. What must be and what is there are summed as hashes, so one pass in
//! any order and little memory tell whether both are the same.
//!
//! Each event is followed by one other thing: the next event of its key, the key's record, or
//! the note that the key is gone. How events jump is compared with the rule for it in a second
//! pass, one by one.
//!
//! The digest of the trees says that a node holds what the others hold; this says that all
//! of them are not wrong in the same way.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::history::{self, At, Before, Event, History};
use super::leases::{Lease, end_place, key_place};
use super::locks::{Claim, owned_place};
use super::record::Record;
use super::state::ttl_place;
use super::{digest, once};
use crate::store::{Snapshot, StoreError, Tree};

/// What is summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KeyEnds,
    LeaseEnds,
    LeaseKeys,
    Locks,
    Events,
    Outcomes,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::KeyEnds, "when keys expire"),
    (Kind::LeaseEnds, "when leases end"),
    (Kind::LeaseKeys, "which keys hang on a lease"),
    (Kind::Locks, "which locks a lease has"),
    (Kind::Events, "the newest event of each key"),
    (Kind::Outcomes, "the order of named requests"),
];

/// All pairs of a database, seen one by one.
#[derive(Debug)]
pub struct Indexes<'a> {
    snapshot: &'a Snapshot,
    /// Where the history begins: what happened before is forgotten.
    first: At,
    /// By kind: what is there, less what must be.
    sums: [u128; KINDS.len()],
    /// Leases that keys hang on, and that were not seen.
    leases: BTreeSet<u64>,
    history_bytes: u64,
    session_bytes: u64,
    /// A pair that is none of ours.
    strange: Option<String>,
}

impl<'a> Indexes<'a> {
    /// Those of a snapshot, whose pairs are to be seen yet.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot) -> Self {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let first = snapshot.scan(Tree::History, all.0, all.1, false).next();
        // What cannot be read is told by who shows the pairs.
        let first = first.ok().flatten().and_then(|(place, _)| history::position(place));
        Self {
            snapshot,
            first: first.unwrap_or((u64::MAX, u32::MAX)),
            sums: [0; KINDS.len()],
            leases: BTreeSet::new(),
            history_bytes: 0,
            session_bytes: 0,
            strange: None,
        }
    }

    /// Sees a pair. Within a tree they come in order.
    pub fn pair(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let known = match tree {
            Tree::Kv => self.record(key, value),
            Tree::History => self.event(key, value),
            Tree::Ttl => self.end(key),
            Tree::Session => self.outcome(key, value),
            Tree::Meta => self.other(key, value),
            Tree::Deleted => self.deleted(key, value),
        };
        if known.is_none() && self.strange.is_none() {
            self.strange = Some(format!("{tree:?} \"{}\"", key.escape_ascii()));
        }
    }

    /// What disagrees, in words.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let state = self.snapshot.state();
        let differs = |(sum, (_, what)): (&u128, &(Kind, &str))| {
            (*sum != 0).then(|| format!("the index of {what} disagrees with what it is made from"))
        };
        let mut wrong: Vec<String> = self.sums.iter().zip(&KINDS).filter_map(differs).collect();
        if let Some(strange) = &self.strange {
            wrong.push(format!("{strange} is nothing that the state machine writes"));
        }
        if let Some(lease) = self.leases.first() {
            wrong.push(format!("keys hang on lease {lease}, and there is none"));
        }
        for (what, is, should) in [
            ("the history", self.history_bytes, state.history_bytes),
            ("named requests", self.session_bytes, state.session_bytes),
        ] {
            if is != should {
                wrong.push(format!("{what} take {is} bytes, and should take {should}"));
            }
        }
        match astray(self.snapshot) {
            Ok(None) => {}
            Ok(Some((revision, nth))) => {
                wrong.push(format!(
                    "event {nth} of revision {revision} is not linked to those before it"
                ));
            }
            Err(error) => wrong.push(format!("events cannot be followed: {error}")),
        }
        wrong
    }

    fn is_there(&mut self, kind: Kind, tree: Tree, key: &[u8], value: &[u8]) {
        let sum = &mut self.sums[kind as usize];
        *sum = sum.wrapping_add(digest(tree, key, value));
    }

    fn must_be(&mut self, kind: Kind, tree: Tree, key: &[u8], value: &[u8]) {
        let sum = &mut self.sums[kind as usize];
        *sum = sum.wrapping_sub(digest(tree, key, value));
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let record = Record::decode(value)?;
        if record.expiry_ms != 0 {
            self.must_be(Kind::KeyEnds, Tree::Ttl, &ttl_place(record.expiry_ms, key), &[]);
        }
        if record.lease != 0 {
            self.must_be(Kind::LeaseKeys, Tree::Meta, &key_place(record.lease, key), &[]);
        }
        if record.written_at() >= self.first {
            self.must_have_been(key, record.written_at(), history::Kind::Put);
        }
        Some(())
    }

    fn deleted(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        // Both go at once, so it is there.
        self.must_have_been(key, history::pointed(value)?, history::Kind::Delete);
        Some(())
    }

    /// Something follows an event of a key.
    fn must_have_been(&mut self, key: &[u8], at: At, kind: history::Kind) {
        self.must_be(Kind::Events, Tree::History, key, &happened(at, kind));
    }

    fn event(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (at, event) = (history::position(key)?, Event::decode(value)?);
        self.is_there(Kind::Events, Tree::History, event.key, &happened(at, event.kind));
        let back = event.back().ok().filter(|back| *back < at)?;
        if back >= self.first {
            let kind = match event.before {
                Before::Stored(_) => history::Kind::Put,
                Before::Nothing | Before::Deleted(_) => history::Kind::Delete,
            };
            self.must_have_been(event.key, back, kind);
        }
        self.history_bytes += event.weight();
        Some(())
    }

    fn end(&mut self, key: &[u8]) -> Option<()> {
        let kind = match key.get(8)? {
            0 => Kind::KeyEnds,
            1 => Kind::LeaseEnds,
            _ => return None,
        };
        self.is_there(kind, Tree::Ttl, key, &[]);
        Some(())
    }

    fn outcome(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (first, name) = key.split_first()?;
        match first {
            0 => {
                let order = once::order_place(once::revision(value)?);
                self.must_be(Kind::Outcomes, Tree::Session, &order, name);
                self.session_bytes += once::weight(name, value);
            }
            1 => self.is_there(Kind::Outcomes, Tree::Session, key, value),
            _ => return None,
        }
        Some(())
    }

    fn other(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (first, rest) = key.split_first()?;
        match first {
            b'K' => {
                self.is_there(Kind::LeaseKeys, Tree::Meta, key, value);
                self.leases.insert(u64::from_be_bytes(*rest.first_chunk()?));
            }
            b'L' => {
                let (id, lease) =
                    (u64::from_be_bytes(rest.try_into().ok()?), Lease::decode(value)?);
                self.must_be(Kind::LeaseEnds, Tree::Ttl, &end_place(lease.expiry_ms, id), &[]);
                self.leases.remove(&id);
            }
            b'l' => self.claim(rest, value)?,
            b'q' => {
                let (len, rest) = rest.split_first_chunk::<2>()?;
                self.claim(rest.get(..usize::from(u16::from_be_bytes(*len)))?, value)?;
            }
            b'o' => self.is_there(Kind::Locks, Tree::Meta, key, value),
            _ => return None,
        }
        Some(())
    }

    fn claim(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        let claim = Claim::decode(value)?;
        let owned = owned_place(claim.lease, name);
        self.must_be(Kind::Locks, Tree::Meta, &owned, &claim.ticket.to_le_bytes());
        Some(())
    }
}

/// What is summed up of an event, beside its key.
fn happened(at: At, kind: history::Kind) -> Vec<u8> {
    [&history::pointer(at)[..], &[kind as u8]].concat()
}

/// The first event that is not linked to the earlier ones of its key as it should be.
fn astray(snapshot: &Snapshot) -> Result<Option<At>, StoreError> {
    let (history, compact) = (History(snapshot), snapshot.state().compact_revision);
    let mut found = None;
    history.each_after(0, |at, event| {
        if found.is_none() && !is_linked(history, compact, &event)? {
            found = Some(at);
        }
        Ok(())
    })?;
    Ok(found)
}

fn is_linked(history: History<'_>, compact: u64, event: &Event<'_>) -> Result<bool, StoreError> {
    let (back, link) = (event.back()?, event.link);
    if back.0 <= compact {
        // That was kept when this happened, or it was not.
        return Ok(link.depth > 0 && link.jump <= back);
    }
    let before = history.event(back)?;
    let wanted = before.link.next(back, |jump| {
        if jump.0 > compact { Ok(history.event(jump)?.link.jump) } else { Ok(jump) }
    })?;
    // A jump to what was no longer kept was not written down.
    let is_jump = link.jump == wanted.jump || wanted.jump.0 <= compact && link.jump <= wanted.jump;
    Ok(before.key == event.key && link.depth == wanted.depth && is_jump)
}

//! Do the indexes agree with what they are made from? Each pair of a tree says which other
//! pair must be there. What must be and what is there are summed as hashes, so one pass in
//! any order and little memory tell whether both are the same.
//!
//! The digest of the trees says that a node holds what the others hold; this says that all
//! of them are not wrong in the same way.

use std::collections::BTreeSet;

use super::history::{self, Event};
use super::leases::{Lease, end_place, key_place};
use super::locks::{Claim, owned_place};
use super::record::Record;
use super::state::ttl_place;
use super::{digest, once};
use crate::store::{DbState, Tree};

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
    (Kind::Events, "the events of each key"),
    (Kind::Outcomes, "the order of named requests"),
];

/// All pairs of a database, seen one by one.
#[derive(Debug, Default)]
pub struct Indexes {
    /// By kind: what is there, less what must be.
    sums: [u128; KINDS.len()],
    /// Leases that keys hang on, and that were not seen.
    leases: BTreeSet<u64>,
    history_bytes: u64,
    session_bytes: u64,
    /// A pair that is none of ours.
    strange: Option<String>,
}

impl Indexes {
    /// Sees a pair. Within a tree they come in order.
    pub fn pair(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let known = match tree {
            Tree::Kv => self.record(key, value),
            Tree::History => self.event(key, value),
            Tree::Ttl => self.end(key),
            Tree::Session => self.outcome(key, value),
            Tree::Meta => self.other(key, value),
        };
        if known.is_none() && self.strange.is_none() {
            self.strange = Some(format!("{tree:?} \"{}\"", key.escape_ascii()));
        }
    }

    /// What disagrees, in words.
    #[must_use]
    pub fn wrong(&self, state: &DbState) -> Vec<String> {
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
        Some(())
    }

    fn event(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key.first()? {
            0 => {
                let (revision, nth) = history::position(key)?;
                let index = history::index_place(Event::decode(value)?.key, revision, nth);
                self.must_be(Kind::Events, Tree::History, &index, &[]);
                self.history_bytes += history::weight(value);
            }
            1 => self.is_there(Kind::Events, Tree::History, key, value),
            _ => return None,
        }
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

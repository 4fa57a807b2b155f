//! Locks with a queue and with tokens that go up, so that whoever was paused while it held
//! one is found out: writes carry the token, and the state machine compares.
//!
//! In the tree `Meta`:
//!
//! | key | value |
//! |---|---|
//! | `l`, name | who holds it |
//! | `q`, length of the name (u16), name, ticket | who waits for it |
//! | `o`, lease, name | the ticket, of the holder or of who waits |

use super::command::{Applied, Fence};
use super::leases::damaged;
use super::state::{State, place};
use crate::store::{StoreError, Tree};

/// Who holds a lock or waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The revision at which it was asked for.
    pub ticket: u64,
    /// The revision at which it was had; 0: waiting.
    pub token: u64,
    /// It lasts as long as this lease.
    pub lease: u64,
    /// For people: who it is.
    pub owner: String,
}

impl Claim {
    fn encode(&self) -> Vec<u8> {
        let numbers = [self.ticket, self.token, self.lease].map(u64::to_le_bytes);
        [numbers.as_flattened(), self.owner.as_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (ticket, rest) = bytes.split_first_chunk::<8>()?;
        let (token, rest) = rest.split_first_chunk::<8>()?;
        let (lease, owner) = rest.split_first_chunk::<8>()?;
        Some(Self {
            ticket: u64::from_le_bytes(*ticket),
            token: u64::from_le_bytes(*token),
            lease: u64::from_le_bytes(*lease),
            owner: String::from_utf8(owner.to_vec()).ok()?,
        })
    }
}

/// Where the holder of a lock is noted.
pub(super) fn lock_place(name: &[u8]) -> Vec<u8> {
    place(&[b"l", name])
}

/// What the places of those begin with who wait for a lock.
pub(super) fn queue_place(name: &[u8]) -> Vec<u8> {
    let len = u16::try_from(name.len()).expect("names are short");
    place(&[b"q", &len.to_be_bytes(), name])
}

/// Where it is noted that somebody waits.
pub(super) fn waiting_place(name: &[u8], ticket: u64) -> Vec<u8> {
    place(&[&queue_place(name), &ticket.to_be_bytes()])
}

pub(super) fn owned_place(lease: u64, name: &[u8]) -> Vec<u8> {
    place(&[b"o", &lease.to_be_bytes(), name])
}

impl State<'_, '_> {
    fn claim(&mut self, place: &[u8]) -> Result<Option<Claim>, StoreError> {
        let Some(bytes) = self.txn.get(Tree::Meta, place)? else { return Ok(None) };
        Claim::decode(&bytes).map(Some).ok_or_else(|| damaged("lock"))
    }

    /// Is the lock held with the token of this fence? If not, with which?
    pub(super) fn fenced(&mut self, fence: &Fence) -> Result<Result<(), Option<u64>>, StoreError> {
        let token = self.claim(&lock_place(&fence.name))?.map(|claim| claim.token);
        Ok(if token == Some(fence.token) { Ok(()) } else { Err(token) })
    }

    /// The command of that name. Asked for again under the same lease, it answers the same.
    pub(super) fn lock(
        &mut self,
        name: &[u8],
        lease: u64,
        ttl_ms: u64,
        owner: &str,
        queue: bool,
    ) -> Result<Applied, StoreError> {
        if lease != 0 && self.lease(lease)?.is_none() {
            return Ok(Applied::NoLease { id: lease });
        }
        let held = self.claim(&lock_place(name))?;
        if lease != 0
            && let Some(bytes) = self.txn.get(Tree::Meta, &owned_place(lease, name))?
        {
            let ticket = <[u8; 8]>::try_from(&bytes[..]).map_err(|_| damaged("lock"))?;
            let ticket = u64::from_le_bytes(ticket);
            let ours = held.filter(|held| held.ticket == ticket);
            return Ok(Applied::Locked { ticket, token: ours.map(|held| held.token), lease });
        }
        if let Some(held) = held.as_ref().filter(|_| !queue) {
            return Ok(Applied::Held { token: held.token });
        }
        let ticket = self.revision;
        // A lease that is made here gets the revision as its id, and giving the lock back ends
        // it: no lease that somebody gave the same id may be taken for it.
        if (lease == 0 || lease == ticket) && self.any_lease(ticket)?.is_some() {
            return Ok(Applied::LeaseExists { id: ticket });
        }
        let lease = if lease == 0 { self.grant(ticket, ttl_ms)?.id } else { lease };
        let token = if held.is_some() { 0 } else { ticket };
        let claim = Claim { ticket, token, lease, owner: owner.to_owned() };
        let at = if token == 0 { waiting_place(name, ticket) } else { lock_place(name) };
        self.set(Tree::Meta, &at, &claim.encode(), None)?;
        self.set(Tree::Meta, &owned_place(lease, name), &ticket.to_le_bytes(), None)?;
        Ok(Applied::Locked { ticket, token: (token != 0).then_some(token), lease })
    }

    /// The command of that name.
    pub(super) fn unlock(&mut self, name: &[u8], ticket: u64) -> Result<Applied, StoreError> {
        let held = self.claim(&lock_place(name))?;
        let held = held.filter(|held| held.ticket == ticket || held.token == ticket);
        let claim = match held {
            Some(held) => Some(held),
            None => self.claim(&waiting_place(name, ticket))?,
        };
        let Some(claim) = claim else { return Ok(Applied::NoLock) };
        self.release(name, &claim)?;
        if claim.lease == claim.ticket {
            // It was made for this lock.
            self.end_lease(claim.lease, usize::MAX)?;
        }
        Ok(Applied::Unlocked { revision: self.revision })
    }

    /// Forgets a claim. If it held the lock, the first who waits holds it now.
    fn release(&mut self, name: &[u8], claim: &Claim) -> Result<(), StoreError> {
        let owned = owned_place(claim.lease, name);
        self.unset(Tree::Meta, &owned, &claim.ticket.to_le_bytes())?;
        if claim.token == 0 {
            return self.unset(Tree::Meta, &waiting_place(name, claim.ticket), &claim.encode());
        }
        let lock = lock_place(name);
        let Some((at, waiting)) = self.under(Tree::Meta, &queue_place(name), 1)?.pop() else {
            return self.unset(Tree::Meta, &lock, &claim.encode());
        };
        let next = Claim::decode(&waiting).ok_or_else(|| damaged("lock"))?;
        let next = Claim { token: self.revision, ..next };
        self.unset(Tree::Meta, &at, &waiting)?;
        self.set(Tree::Meta, &lock, &next.encode(), Some(&claim.encode()))
    }

    /// Forgets all claims of a lease that is over.
    pub(super) fn release_all(&mut self, lease: u64) -> Result<(), StoreError> {
        let prefix = place(&[b"o", &lease.to_be_bytes()]);
        for (place, ticket) in self.under(Tree::Meta, &prefix, usize::MAX)? {
            let name = place.get(prefix.len()..).unwrap_or_default();
            let ticket = <[u8; 8]>::try_from(&ticket[..]).map_err(|_| damaged("lock"))?;
            let ticket = u64::from_le_bytes(ticket);
            let held = self.claim(&lock_place(name))?.filter(|held| held.ticket == ticket);
            let claim = match held {
                Some(held) => held,
                None => {
                    let waiting = self.claim(&waiting_place(name, ticket))?;
                    waiting.ok_or_else(|| damaged("lock"))?
                }
            };
            self.release(name, &claim)?;
        }
        Ok(())
    }
}

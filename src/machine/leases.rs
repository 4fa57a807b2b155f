//! Leases: they last until nobody keeps them alive, and what hangs on them goes with them.

use super::command::{Applied, Granted};
use super::history::Reason;
use super::state::{State, place};
use crate::store::{StoreError, Tree};

/// Where the end of a lease would be, says that it has come and that its keys are going.
pub(super) const ENDING: u64 = 0;

/// How long a lease lasts, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Milliseconds without a sign of life.
    pub ttl_ms: u64,
    /// When it ends, in milliseconds of the replicated clock; 0: it is over, and its keys go.
    pub expiry_ms: u64,
}

impl Lease {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.ttl_ms.to_le_bytes());
        bytes[8..].copy_from_slice(&self.expiry_ms.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (ttl, expiry) = bytes.split_first_chunk::<8>()?;
        let expiry = <[u8; 8]>::try_from(expiry).ok()?;
        Some(Self { ttl_ms: u64::from_le_bytes(*ttl), expiry_ms: u64::from_le_bytes(expiry) })
    }
}

/// Where a lease lies.
pub(super) fn lease_place(id: u64) -> Vec<u8> {
    place(&[b"L", &id.to_be_bytes()])
}

/// What the places of the keys of a lease begin with.
pub(super) fn keys_place(id: u64) -> Vec<u8> {
    place(&[b"K", &id.to_be_bytes()])
}

/// Where it is noted that a key hangs on a lease.
pub(super) fn key_place(id: u64, key: &[u8]) -> Vec<u8> {
    place(&[b"K", &id.to_be_bytes(), key])
}

pub(super) fn end_place(expiry_ms: u64, id: u64) -> Vec<u8> {
    place(&[&expiry_ms.to_be_bytes(), &[1], &id.to_be_bytes()])
}

pub(super) fn damaged(what: &'static str) -> StoreError {
    StoreError::Corrupt {
        file: "the database".into(),
        what,
        offset: 0,
        why: "its bytes are not of that form".into(),
    }
}

impl State<'_, '_> {
    /// A lease, if it is there and not over. Of one that is over some keys are gone already, so
    /// nobody keeps it alive, or hangs something on it.
    pub(super) fn lease(&mut self, id: u64) -> Result<Option<Lease>, StoreError> {
        Ok(self.any_lease(id)?.filter(|lease| lease.expiry_ms != ENDING))
    }

    /// A lease, also one that is over and not gone.
    pub(super) fn any_lease(&mut self, id: u64) -> Result<Option<Lease>, StoreError> {
        let Some(bytes) = self.txn.get(Tree::Meta, &lease_place(id))? else { return Ok(None) };
        Lease::decode(&bytes).map(Some).ok_or_else(|| damaged("lease"))
    }

    /// Makes a lease that is not there.
    pub(super) fn grant(&mut self, id: u64, ttl_ms: u64) -> Result<Granted, StoreError> {
        let lease = Lease { ttl_ms, expiry_ms: self.now_ms.saturating_add(ttl_ms) };
        self.set(Tree::Meta, &lease_place(id), &lease.encode(), None)?;
        self.set(Tree::Ttl, &end_place(lease.expiry_ms, id), &[], None)?;
        Ok(Granted { id, ttl_ms })
    }

    /// The command of that name.
    pub(super) fn grant_as(&mut self, id: u64, ttl_ms: u64) -> Result<Applied, StoreError> {
        let id = if id == 0 { self.revision } else { id };
        if self.any_lease(id)?.is_some() {
            return Ok(Applied::LeaseExists { id });
        }
        self.grant(id, ttl_ms).map(Applied::Granted)
    }

    /// The command of that name.
    pub(super) fn keep_alive(&mut self, ids: &[u64]) -> Result<Applied, StoreError> {
        let mut ttls_ms = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(old) = self.lease(*id)? else {
                ttls_ms.push(None);
                continue;
            };
            self.end_at(*id, old, self.now_ms.saturating_add(old.ttl_ms))?;
            ttls_ms.push(Some(old.ttl_ms));
        }
        Ok(Applied::KeptAlive { ttls_ms })
    }

    fn end_at(&mut self, id: u64, old: Lease, expiry_ms: u64) -> Result<(), StoreError> {
        self.unset(Tree::Ttl, &end_place(old.expiry_ms, id), &[])?;
        self.set(Tree::Ttl, &end_place(expiry_ms, id), &[], None)?;
        let lease = Lease { expiry_ms, ..old };
        self.set(Tree::Meta, &lease_place(id), &lease.encode(), Some(&old.encode()))
    }

    /// The command of that name: everything goes at once.
    pub(super) fn revoke(&mut self, id: u64) -> Result<Applied, StoreError> {
        if self.any_lease(id)?.is_none() {
            return Ok(Applied::NoLease { id });
        }
        let deleted = self.end_lease(id, usize::MAX)?.unwrap_or(0);
        Ok(Applied::Revoked { deleted, revision: self.store_revision() })
    }

    /// Removes up to `most` keys of a lease, then the lease itself and its locks; `None`:
    /// there may be keys left, and the lease is only marked as [`ENDING`].
    pub(super) fn end_lease(&mut self, id: u64, most: usize) -> Result<Option<u64>, StoreError> {
        let Some(lease) = self.any_lease(id)? else { return Ok(Some(0)) };
        let prefix = keys_place(id);
        let keys = self.under(Tree::Meta, &prefix, most)?;
        let deleted = keys.len();
        for (place, _) in keys {
            let key = place.get(prefix.len()..).unwrap_or_default();
            let stored = self.stored(key)?.ok_or_else(|| damaged("key of a lease"))?;
            self.erase(key, &stored, Reason::Lease)?;
        }
        if deleted >= most {
            self.end_at(id, lease, ENDING)?;
            return Ok(None);
        }
        self.unset(Tree::Ttl, &end_place(lease.expiry_ms, id), &[])?;
        self.unset(Tree::Meta, &lease_place(id), &lease.encode())?;
        self.release_all(id)?;
        Ok(Some(deleted as u64))
    }
}

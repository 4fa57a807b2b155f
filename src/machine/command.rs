//! What clients ask the state machine to do, and what it answers. Their bytes are in
//! `codec.rs`.

use std::ops::Bound;

use bytes::Bytes;

use super::record::OwnedRecord;

/// Largest key in bytes.
pub const KEY_MAX: usize = 4096;
/// Largest content type in bytes.
pub const CONTENT_TYPE_MAX: usize = 255;
/// Largest `Idempotency-Key` in bytes.
pub const ONCE_MAX: usize = 255;
/// Largest name of a lock in bytes.
pub const LOCK_NAME_MAX: usize = 512;
/// Largest text that says who holds a lock, in bytes.
pub const OWNER_MAX: usize = 1024;
/// Most keys that one command deletes, and most steps that it has: more would keep the node from its heartbeats.
pub const DELETE_MAX: u64 = 100_000;

/// A command, under what it happens at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Happens once, however often it is asked for.
    pub once: Option<Once>,
    /// Happens only while this lock is held with this token.
    pub fence: Option<Fence>,
    /// What happens.
    pub command: Command,
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self { once: None, fence: None, command }
    }
}

/// The name that a client gave to one request, to ask for it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// 1 to [`ONCE_MAX`] bytes.
    pub key: Bytes,
    /// Tells this request from another one with the same name.
    pub fingerprint: u128,
}

/// A lock that must be held, as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The lock.
    pub name: Bytes,
    /// Its token.
    pub token: u64,
}

/// How long a key stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// Until somebody removes it.
    #[default]
    Endless,
    /// For so many milliseconds.
    Ttl(u64),
    /// As long as a lease.
    Lease(u64),
    /// As long as the lease that the same transaction made before.
    NewLease,
}

/// One change, decided when it is applied: the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write a key.
    Put {
        /// 1 to [`KEY_MAX`] bytes.
        key: Bytes,
        /// Any bytes up to the configured limit.
        value: Bytes,
        /// Content type, at most [`CONTENT_TYPE_MAX`] bytes; empty: none.
        content_type: String,
        /// How long it stays.
        life: Life,
        /// When it may happen.
        conditions: Conditions,
        /// Answer with what was there before.
        prev: bool,
    },
    /// Remove a key; removing what is not there is a success.
    Delete {
        /// 1 to [`KEY_MAX`] bytes.
        key: Bytes,
        /// When it may happen.
        conditions: Conditions,
        /// Answer with what was there before.
        prev: bool,
    },
    /// Remove all keys of a range, [`DELETE_MAX`] at most.
    DeleteRange {
        /// Which.
        span: Span,
    },
    /// Give a key another time to live, without a new version or an event.
    Touch {
        /// 1 to [`KEY_MAX`] bytes.
        key: Bytes,
        /// Milliseconds from now; `None`: endless.
        ttl_ms: Option<u64>,
        /// When it may happen.
        conditions: Conditions,
    },
    /// Make a lease.
    Grant {
        /// Its id; 0: the revision becomes its id.
        id: u64,
        /// How long it lasts without a sign of life, in milliseconds.
        ttl_ms: u64,
    },
    /// Let leases begin anew.
    KeepAlive {
        /// Which.
        ids: Vec<u64>,
    },
    /// End a lease, with its keys and locks.
    Revoke {
        /// Which.
        id: u64,
    },
    /// Take a lock, or a place in its queue.
    Lock {
        /// 1 to [`LOCK_NAME_MAX`] bytes.
        name: Bytes,
        /// It is held as long as this lease; 0: make one.
        lease: u64,
        /// How long the lease that is made lasts, in milliseconds.
        ttl_ms: u64,
        /// For people: who takes it; at most [`OWNER_MAX`] bytes.
        owner: String,
        /// If somebody holds it, wait for it.
        queue: bool,
    },
    /// Give a lock back, or a place in its queue.
    Unlock {
        /// The lock.
        name: Bytes,
        /// What taking it answered, as `ticket` or `token`.
        ticket: u64,
    },
    /// Everything or nothing.
    Txn(Txn),
    /// Writes that have nothing to do with each other, in their order. No key twice.
    Batch(Vec<Write>),
    /// Remove what is over: the leader's own.
    Tidy(Tidy),
}

/// One write of a batch, a [`Command::Put`] or [`Command::Delete`] with its own outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// 1 to [`KEY_MAX`] bytes.
    pub key: Bytes,
    /// What to write; `None`: remove it.
    pub put: Option<Content>,
    /// When it may happen.
    pub conditions: Conditions,
}

/// What is written to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Any bytes up to the configured limit.
    pub value: Bytes,
    /// At most [`CONTENT_TYPE_MAX`] bytes; empty: none.
    pub content_type: String,
    /// How long it stays.
    pub life: Life,
}

/// A range of keys in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub start: Bytes,
    /// The one after the last; `None`: to the end.
    pub end: Option<Bytes>,
}

impl Span {
    /// One key.
    #[must_use]
    pub fn key(key: &[u8]) -> Self {
        let end = [key, &[0]].concat();
        Self { start: Bytes::copy_from_slice(key), end: Some(end.into()) }
    }

    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        let end = match crate::store::scan::prefix_end(prefix) {
            Bound::Excluded(end) => Some(end.into()),
            Bound::Included(_) | Bound::Unbounded => None,
        };
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// Is this key one of them?
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    pub(super) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = self.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        (Bound::Included(&self.start[..]), end)
    }

    /// Is there no key that could be in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| self.start >= *end)
    }
}

/// If all comparisons hold then these, else those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// What happens then.
    pub then: Vec<Op>,
    /// What happens if one does not hold.
    pub otherwise: Vec<Op>,
}

/// A comparison with a key's state before the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What of it. A key that does not exist has versions and revisions 0, and no value: the
    /// comparison of its value does not hold, whatever it is.
    pub what: Subject,
}

/// What is compared with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Does the key exist?
    Exists(bool),
    /// Its value, bytewise.
    Value(Relation, Bytes),
    /// Writes since its creation.
    Version(Relation, u64),
    /// Revision of its creation.
    CreateRevision(Relation, u64),
    /// Revision of its last write.
    ModRevision(Relation, u64),
}

/// How two things compare: the stored one stands left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Greater.
    Gt,
}

impl Relation {
    /// Does it hold?
    #[must_use]
    pub fn holds<T: Ord + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Eq => left == right,
            Self::Ne => left != right,
            Self::Lt => left < right,
            Self::Gt => left > right,
        }
    }
}

/// One step of a transaction. Steps see what the ones before them did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a key; each key once.
    Put {
        /// The key.
        key: Bytes,
        /// What.
        content: Content,
        /// Answer with what was there before.
        prev: bool,
    },
    /// Remove keys; none that the transaction writes.
    Delete {
        /// Which.
        span: Span,
        /// Answer with what was there before.
        prev: bool,
    },
    /// Read keys.
    Get {
        /// Which.
        span: Span,
        /// At most so many.
        limit: u64,
    },
    /// Make a lease, whose id is the revision; one at most.
    Grant {
        /// How long it lasts without a sign of life, in milliseconds.
        ttl_ms: u64,
    },
}

/// What the leader found to be over. Other nodes' settings do not matter: these numbers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidy {
    /// Remove what expired by the entry's time.
    pub expire: bool,
    /// Keep at most so many events in the history.
    pub history_events: u64,
    /// Keep at most so many bytes of them.
    pub history_bytes: u64,
    /// Forget outcomes of named requests that are older, in milliseconds.
    pub once_ms: u64,
    /// Keep at most so many of them.
    pub once_count: u64,
    /// And at most so many bytes.
    pub once_bytes: u64,
}

impl Command {
    /// How many steps it has.
    pub(super) fn steps(&self) -> u64 {
        let steps = match self {
            Self::Txn(txn) => txn.then.len().max(txn.otherwise.len()),
            Self::Batch(writes) => writes.len(),
            Self::KeepAlive { ids } => ids.len(),
            Self::Put { .. }
            | Self::Delete { .. }
            | Self::DeleteRange { .. }
            | Self::Touch { .. }
            | Self::Grant { .. }
            | Self::Revoke { .. }
            | Self::Lock { .. }
            | Self::Unlock { .. }
            | Self::Tidy(_) => 1,
        };
        steps as u64
    }

    /// Can it make the database larger? Only such commands are refused when it is full.
    #[must_use]
    pub fn grows(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Grant { .. } | Self::Lock { .. } => true,
            Self::Txn(txn) => {
                let grows = |op: &Op| matches!(op, Op::Put { .. } | Op::Grant { .. });
                txn.then.iter().chain(&txn.otherwise).any(grows)
            }
            Self::Batch(writes) => writes.iter().any(|write| write.put.is_some()),
            Self::Delete { .. }
            | Self::DeleteRange { .. }
            | Self::Touch { .. }
            | Self::KeepAlive { .. }
            | Self::Revoke { .. }
            | Self::Unlock { .. }
            | Self::Tidy(_) => false,
        }
    }
}

/// `If-Match` and `If-None-Match` (RFC 9110, 13.1), judged when the entry is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The key must be at one of these.
    pub if_match: Option<Tags>,
    /// The key must be at none of these.
    pub if_none_match: Option<Tags>,
}

/// The right side of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any existing value.
    Any,
    /// Modification revisions. Tags that no revision can have are left out by the edge, so
    /// the list may be empty: then nothing matches.
    Revisions(Vec<u64>),
}

impl Tags {
    fn matches(&self, current: Option<u64>) -> bool {
        match (self, current) {
            (Self::Any, current) => current.is_some(),
            (Self::Revisions(list), Some(revision)) => list.contains(&revision),
            (Self::Revisions(_), None) => false,
        }
    }
}

impl Conditions {
    /// Do they hold for a key at this modification revision (`None`: no such key)?
    #[must_use]
    pub fn hold(&self, current: Option<u64>) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.matches(current))
            && self.if_none_match.as_ref().is_none_or(|tags| !tags.matches(current))
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The key was written.
    Put(Written),
    /// The keys are gone.
    Deleted {
        /// How many keys were removed.
        deleted: u64,
        /// The revision of the change, or the store's when nothing was there.
        revision: u64,
        /// What was there before, when it was asked for and there was something.
        prev: Option<OwnedRecord>,
    },
    /// The key has another time to live.
    Touched {
        /// Its unchanged modification revision.
        mod_revision: u64,
        /// The lease it hangs on; 0: none.
        lease: u64,
        /// Milliseconds left; `None`: endless.
        ttl_ms: Option<u64>,
    },
    /// The lease is there.
    Granted(Granted),
    /// The leases begin anew.
    KeptAlive {
        /// Milliseconds that each has now, in the order of the question; `None`: it is over.
        ttls_ms: Vec<Option<u64>>,
    },
    /// The lease is over.
    Revoked {
        /// How many keys went with it.
        deleted: u64,
        /// The revision of the change, or the store's when nothing was changed but the lease.
        revision: u64,
    },
    /// The lock is held, or waited for.
    Locked {
        /// The revision at which the place in the queue was taken.
        ticket: u64,
        /// Goes up each time it is taken; `None`: waiting.
        token: Option<u64>,
        /// The lease that it is held by.
        lease: u64,
    },
    /// Somebody else holds the lock.
    Held {
        /// Its token.
        token: u64,
    },
    /// The lock was given back, or the place in its queue.
    Unlocked {
        /// The revision of the change.
        revision: u64,
    },
    /// The transaction happened.
    Txn {
        /// Did all comparisons hold?
        succeeded: bool,
        /// The revision of its changes, or the store's when nothing was changed.
        revision: u64,
        /// One result for each step.
        results: Vec<OpResult>,
    },
    /// The batch happened.
    Batch {
        /// One outcome for each write: [`Applied::Put`], [`Applied::Deleted`],
        /// [`Applied::ConditionFailed`] or [`Applied::NoLease`].
        outcomes: Vec<Applied>,
    },
    /// What was over is removed.
    Tidied {
        /// There may be more.
        more: bool,
    },
    /// A condition did not hold; nothing was changed.
    ConditionFailed {
        /// The key's modification revision; `None`: there is no such key.
        current: Option<u64>,
    },
    /// There is no such key; nothing was changed.
    NoKey,
    /// There is no such lease; nothing was changed.
    NoLease {
        /// Its id.
        id: u64,
    },
    /// A lease with this id is there; nothing was changed.
    LeaseExists {
        /// Its id.
        id: u64,
    },
    /// Nobody holds or awaits the lock with that ticket; nothing was changed.
    NoLock,
    /// The lock of the fence is not held with that token; nothing was changed.
    Fenced {
        /// Its token now; `None`: nobody holds it.
        current: Option<u64>,
    },
    /// The same name was given to another request; nothing was changed.
    OtherRequest,
    /// More keys than one command may delete, or more steps; nothing was changed.
    TooMany {
        /// At least so many.
        actual: u64,
    },
    /// This happened before; the first outcome.
    Replayed(Box<Applied>),
    /// The entry could not be understood; nothing was changed. Only a newer program's
    /// entry does this.
    Unknown,
}

/// A key was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The revision of the change.
    pub revision: u64,
    /// Of the key's creation; equals `revision` when it was created now.
    pub create_revision: u64,
    /// Writes since its creation.
    pub version: u64,
    /// The lease it hangs on; 0: none.
    pub lease: u64,
    /// Milliseconds it stays; 0: endless, or as long as the lease.
    pub ttl_ms: u64,
    /// What was there before, when it was asked for and there was something, and a transaction
    /// has room for it among its answers.
    pub prev: Option<OwnedRecord>,
}

/// A lease was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub id: u64,
    /// How long it lasts, in milliseconds.
    pub ttl_ms: u64,
}

/// What one step of a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// A key was written.
    Put(Written),
    /// Keys were removed.
    Deleted {
        /// How many.
        deleted: u64,
        /// What was there before, when it was asked for.
        prev: Vec<(Bytes, OwnedRecord)>,
    },
    /// Keys were read.
    Got {
        /// In key order.
        items: Vec<(Bytes, OwnedRecord)>,
        /// Were there more than the limit, or too many bytes?
        more: bool,
    },
    /// A lease was made.
    Granted(Granted),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_follow_rfc_9110() {
        let revisions = |list: &[u64]| Some(Tags::Revisions(list.to_vec()));
        for (if_match, if_none_match, current, want, why) in [
            (None, None, None, true, "no condition always holds"),
            (Some(Tags::Any), None, None, false, "If-Match: * needs the key"),
            (Some(Tags::Any), None, Some(3), true, "If-Match: * and it is there"),
            (revisions(&[3]), None, Some(3), true, "the same revision"),
            (revisions(&[3]), None, Some(4), false, "another revision"),
            (revisions(&[]), None, Some(4), false, "a tag that is no revision never matches"),
            (None, Some(Tags::Any), None, true, "create only, and it is not there"),
            (None, Some(Tags::Any), Some(4), false, "create only, and it is there"),
            (None, revisions(&[4]), Some(4), false, "none of these, and it is one"),
            (None, revisions(&[4]), Some(5), true, "none of these, and it is another"),
        ] {
            let conditions = Conditions { if_match, if_none_match };
            assert_eq!(conditions.hold(current), want, "{why}");
        }
    }

    #[test]
    fn spans_hold_what_they_say() {
        assert!(Span::key(b"a").contains(b"a") && !Span::key(b"a").contains(b"a\0"));
        assert!(Span::prefix(b"a").contains(b"a\xff") && !Span::prefix(b"a").contains(b"b"));
        assert!(Span::prefix(b"").contains(b"\xff\xff") && Span::prefix(b"\xff").end.is_none());
    }
}

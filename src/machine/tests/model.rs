//! What the state machine must do, written down a second time in the most obvious way: maps
//! that are copied at each revision, queues that are lists.

use std::collections::BTreeMap;

use super::*;
use crate::machine::tidy::{BUDGET, EXPIRE_MAX};

pub(super) type Keys = BTreeMap<Bytes, OwnedRecord>;

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) revision: u64,
    /// Its place among the events of the revision.
    pub(super) nth: u32,
    pub(super) kind: Kind,
    pub(super) reason: Reason,
    pub(super) key: Bytes,
    pub(super) prev: Option<OwnedRecord>,
    record: Option<OwnedRecord>,
    /// The event that had removed the key.
    deleted: Option<At>,
    /// How many events of the key are linked, with this one.
    depth: usize,
    jump: At,
}

/// A revision and a number in it.
type At = (u64, u32);

#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) name: Bytes,
    pub(super) fingerprint: u128,
    pub(super) revision: u64,
    pub(super) time_ms: u64,
    pub(super) outcome: Applied,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) now_ms: u64,
    pub(super) revision: u64,
    pub(super) compact: u64,
    pub(super) keys: Keys,
    /// All keys as they were after each revision.
    pub(super) states: BTreeMap<u64, Keys>,
    pub(super) events: Vec<Event>,
    /// Events of the entry that is applied.
    nth: u32,
    /// All events of each key that could be linked.
    linked: BTreeMap<Bytes, Vec<At>>,
    pub(super) leases: BTreeMap<u64, Lease>,
    /// The first one holds the lock.
    pub(super) locks: BTreeMap<Bytes, Vec<Claim>>,
    pub(super) outcomes: Vec<Outcome>,
    /// The largest token of each lock that there was.
    pub(super) tokens: BTreeMap<Bytes, u64>,
}

/// The stored form of a record.
pub(super) fn stored(record: &OwnedRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.as_record().encode(&mut bytes);
    bytes
}

impl Event {
    pub(super) fn weight(&self) -> u64 {
        let places = if self.kind == Kind::Delete { 64 + self.key.len() } else { 64 };
        (20 + self.key.len() + self.before().len() + places) as u64
    }

    fn before(&self) -> Vec<u8> {
        let deleted = || self.deleted.map(pointer).unwrap_or_default();
        self.prev.as_ref().map_or_else(deleted, stored)
    }

    fn at(&self) -> At {
        (self.revision, self.nth)
    }
}

fn pointer(at: At) -> Vec<u8> {
    [&at.0.to_le_bytes()[..], &at.1.to_le_bytes()].concat()
}

/// The smallest of the numbers 2^k - 1, of which only that one may occur twice, with this sum.
fn smallest(sum: usize) -> usize {
    let largest = (1..).map(|k| (1 << k) - 1).take_while(|it| *it <= sum).last().unwrap();
    if sum == largest { largest } else { smallest(sum - largest) }
}

impl Outcome {
    pub(super) fn stored(&self) -> Vec<u8> {
        let mut bytes = self.fingerprint.to_le_bytes().to_vec();
        bytes.extend(self.revision.to_le_bytes());
        bytes.extend(self.time_ms.to_le_bytes());
        bytes.extend(self.outcome.encode());
        bytes
    }

    fn weight(&self) -> u64 {
        (2 * self.name.len() + self.stored().len() + 64) as u64
    }
}

impl Model {
    pub(super) fn history_bytes(&self) -> u64 {
        self.events.iter().map(Event::weight).sum()
    }

    pub(super) fn session_bytes(&self) -> u64 {
        self.outcomes.iter().map(Outcome::weight).sum()
    }

    /// All keys after a revision.
    pub(super) fn at(&self, revision: u64) -> Keys {
        let state = self.states.range(..=revision).next_back();
        state.map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    /// Events as they are told: with what they wrote.
    pub(super) fn changes(&self) -> Vec<Change> {
        let told = |event: &Event| Change {
            revision: event.revision,
            kind: event.kind,
            reason: event.reason,
            key: event.key.clone(),
            record: event.record.clone(),
            prev: event.prev.clone(),
        };
        self.events.iter().filter(|event| event.revision > self.compact).map(told).collect()
    }

    pub(super) fn keys_of(&self, lease: u64) -> Vec<Bytes> {
        let of =
            |(key, record): (&Bytes, &OwnedRecord)| (record.lease == lease).then(|| key.clone());
        self.keys.iter().filter_map(of).collect()
    }

    pub(super) fn apply(&mut self, index: u64, time_ms: u64, request: &Request) -> Applied {
        self.now_ms = self.now_ms.max(time_ms);
        self.nth = 0;
        if let Some(once) = &request.once
            && let Some(known) = self.outcomes.iter().find(|known| known.name == once.key)
        {
            let same = known.fingerprint == once.fingerprint;
            let replayed = || Applied::Replayed(Box::new(known.outcome.clone()));
            return if same { replayed() } else { Applied::OtherRequest };
        }
        let outcome = self.carry_out(index, request);
        if let Some(once) = &request.once {
            self.outcomes.push(Outcome {
                name: once.key.clone(),
                fingerprint: once.fingerprint,
                revision: index,
                time_ms: self.now_ms,
                outcome: outcome.clone(),
            });
        }
        if self.revision == index {
            self.states.insert(index, self.keys.clone());
        }
        for (name, queue) in &self.locks {
            let token = queue[0].token;
            let largest = self.tokens.entry(name.clone()).or_default();
            assert!(token >= *largest, "tokens only grow");
            *largest = token;
        }
        outcome
    }

    fn carry_out(&mut self, index: u64, request: &Request) -> Applied {
        if let Some(fence) = &request.fence {
            let current = self.locks.get(&fence.name).map(|queue| queue[0].token);
            if current != Some(fence.token) {
                return Applied::Fenced { current };
            }
        }
        match &request.command {
            Command::Put { key, value, content_type, life, conditions, prev } => {
                let content = Content {
                    value: value.clone(),
                    content_type: content_type.clone(),
                    life: *life,
                };
                self.put(index, key, &content, conditions, *prev)
            }
            Command::Delete { key, conditions, prev } => self.delete(index, key, conditions, *prev),
            Command::DeleteRange { span } => {
                let deleted = self.erase_all(index, span).len() as u64;
                Applied::Deleted { deleted, revision: self.revision, prev: None }
            }
            Command::Touch { key, ttl_ms, conditions } => self.touch(key, *ttl_ms, conditions),
            Command::Grant { id, ttl_ms } => {
                let id = if *id == 0 { index } else { *id };
                if self.leases.contains_key(&id) {
                    return Applied::LeaseExists { id };
                }
                Applied::Granted(self.grant(id, *ttl_ms))
            }
            Command::KeepAlive { ids } => {
                Applied::KeptAlive { ttls_ms: ids.iter().map(|id| self.keep_alive(*id)).collect() }
            }
            Command::Revoke { id } => {
                if !self.leases.contains_key(id) {
                    return Applied::NoLease { id: *id };
                }
                let deleted = self.end(index, *id);
                Applied::Revoked { deleted, revision: self.revision }
            }
            Command::Lock { name, lease, ttl_ms, owner, queue } => {
                self.lock(index, name, *lease, *ttl_ms, owner, *queue)
            }
            Command::Unlock { name, ticket } => self.unlock(index, name, *ticket),
            Command::Txn(txn) => self.transact(index, txn),
            Command::Batch(writes) => {
                let one = |write: &Write| match &write.put {
                    Some(content) => self.put(index, &write.key, content, &write.conditions, false),
                    None => self.delete(index, &write.key, &write.conditions, false),
                };
                Applied::Batch { outcomes: writes.iter().map(one).collect() }
            }
            Command::Tidy(tidy) => self.tidy(index, tidy),
        }
    }

    fn refused(&self, key: &Bytes, conditions: &Conditions) -> Option<Applied> {
        let current = self.keys.get(key).map(|record| record.mod_revision);
        (!conditions.hold(current)).then_some(Applied::ConditionFailed { current })
    }

    fn is_living(&self, lease: u64) -> bool {
        self.leases.get(&lease).is_some_and(|lease| lease.expiry_ms != 0)
    }

    fn lease_missing(&self, life: Life) -> Option<Applied> {
        match life {
            Life::Lease(id) if !self.is_living(id) => Some(Applied::NoLease { id }),
            Life::Lease(_) | Life::Endless | Life::Ttl(_) | Life::NewLease => None,
        }
    }

    fn put(
        &mut self,
        index: u64,
        key: &Bytes,
        content: &Content,
        conditions: &Conditions,
        prev: bool,
    ) -> Applied {
        if let Some(refused) = self.refused(key, conditions) {
            return refused;
        }
        if let Some(refused) = self.lease_missing(content.life) {
            return refused;
        }
        Applied::Put(self.write(index, key, content, prev))
    }

    fn write(&mut self, index: u64, key: &Bytes, content: &Content, prev: bool) -> Written {
        let old = self.keys.get(key).cloned();
        let (lease, ttl_ms) = match content.life {
            Life::Endless => (0, 0),
            Life::Ttl(ms) => (0, ms),
            Life::Lease(id) => (id, 0),
            Life::NewLease => (index, 0),
        };
        let record = OwnedRecord {
            create_revision: old.as_ref().map_or(index, |old| old.create_revision),
            mod_revision: index,
            nth: self.nth,
            version: old.as_ref().map_or(0, |old| old.version) + 1,
            lease,
            expiry_ms: if ttl_ms == 0 { 0 } else { self.now_ms + ttl_ms },
            content_type: content.content_type.clone(),
            value: content.value.clone(),
        };
        let (create_revision, version) = (record.create_revision, record.version);
        self.keys.insert(key.clone(), record);
        self.event(index, Kind::Put, Reason::Request, key, old.clone());
        let prev = old.filter(|_| prev);
        Written { revision: index, create_revision, version, lease, ttl_ms, prev }
    }

    fn delete(&mut self, index: u64, key: &Bytes, conditions: &Conditions, prev: bool) -> Applied {
        if let Some(refused) = self.refused(key, conditions) {
            return refused;
        }
        let old = self.erase(index, key, Reason::Request);
        let deleted = u64::from(old.is_some());
        Applied::Deleted { deleted, revision: self.revision, prev: old.filter(|_| prev) }
    }

    fn erase(&mut self, index: u64, key: &Bytes, reason: Reason) -> Option<OwnedRecord> {
        let old = self.keys.remove(key)?;
        self.event(index, Kind::Delete, reason, key, Some(old.clone()));
        Some(old)
    }

    fn erase_all(&mut self, index: u64, span: &Span) -> Vec<(Bytes, OwnedRecord)> {
        let keys: Vec<Bytes> = self.keys.keys().filter(|key| span.contains(key)).cloned().collect();
        let mut erased = Vec::new();
        for key in keys {
            let old = self.erase(index, &key, Reason::Request).unwrap();
            erased.push((key, old));
        }
        erased
    }

    fn event(
        &mut self,
        revision: u64,
        kind: Kind,
        reason: Reason,
        key: &Bytes,
        prev: Option<OwnedRecord>,
    ) {
        self.revision = revision;
        let nth = self.nth;
        self.nth += 1;
        let deleted = self.events.iter().rfind(|event| event.key == *key).map(Event::at);
        let deleted = deleted.filter(|_| prev.is_none());
        let linked = self.linked.entry(key.clone()).or_default();
        if linked.last().is_some_and(|last| last.0 <= self.compact) {
            linked.clear();
        }
        linked.push((revision, nth));
        let depth = linked.len();
        let jump = (depth - smallest(depth)).checked_sub(1).map_or((0, 0), |at| linked[at]);
        let jump = if jump.0 > self.compact { jump } else { (0, 0) };
        let (record, key) = (self.keys.get(key).cloned(), key.clone());
        self.events.push(Event {
            revision,
            nth,
            kind,
            reason,
            key,
            prev,
            record,
            deleted,
            depth,
            jump,
        });
    }

    fn touch(&mut self, key: &Bytes, ttl_ms: Option<u64>, conditions: &Conditions) -> Applied {
        if let Some(refused) = self.refused(key, conditions) {
            return refused;
        }
        let Some(record) = self.keys.get_mut(key) else { return Applied::NoKey };
        match ttl_ms {
            Some(ttl_ms) => {
                record.lease = 0;
                record.expiry_ms = self.now_ms + ttl_ms;
            }
            None => record.expiry_ms = 0,
        }
        // No new version: every state that has this one has it so.
        let record = record.clone();
        let (mod_revision, lease) = (record.mod_revision, record.lease);
        let nth = record.nth;
        for event in self.events.iter_mut().filter(|event| event.key == *key) {
            if let Some(same) = &mut event.record
                && (same.mod_revision, same.nth) == (mod_revision, nth)
            {
                *same = record.clone();
            }
        }
        for state in self.states.values_mut() {
            if let Some(same) = state.get_mut(key).filter(|it| it.mod_revision == mod_revision) {
                *same = record.clone();
            }
        }
        Applied::Touched { mod_revision, lease, ttl_ms }
    }

    fn grant(&mut self, id: u64, ttl_ms: u64) -> Granted {
        self.leases.insert(id, Lease { ttl_ms, expiry_ms: self.now_ms + ttl_ms });
        Granted { id, ttl_ms }
    }

    fn keep_alive(&mut self, id: u64) -> Option<u64> {
        if !self.is_living(id) {
            return None;
        }
        let lease = self.leases.get_mut(&id)?;
        lease.expiry_ms = self.now_ms + lease.ttl_ms;
        Some(lease.ttl_ms)
    }

    /// Ends a lease with everything that hangs on it.
    fn end(&mut self, index: u64, id: u64) -> u64 {
        let keys = self.keys_of(id);
        for key in &keys {
            self.erase(index, key, Reason::Lease);
        }
        self.leases.remove(&id);
        for queue in self.locks.values_mut() {
            queue.retain(|claim| claim.lease != id);
        }
        self.pass_on(index);
        keys.len() as u64
    }

    /// Whoever is first now holds the lock.
    fn pass_on(&mut self, index: u64) {
        self.locks.retain(|_, queue| !queue.is_empty());
        for first in self.locks.values_mut().map(|queue| &mut queue[0]) {
            if first.token == 0 {
                first.token = index;
            }
        }
    }

    fn lock(
        &mut self,
        index: u64,
        name: &Bytes,
        lease: u64,
        ttl_ms: u64,
        owner: &str,
        queue: bool,
    ) -> Applied {
        if lease != 0 && !self.is_living(lease) {
            return Applied::NoLease { id: lease };
        }
        let claims = self.locks.get(name).cloned().unwrap_or_default();
        if let Some(ours) = claims.iter().find(|claim| claim.lease == lease) {
            let token = Some(ours.token).filter(|token| *token != 0);
            return Applied::Locked { ticket: ours.ticket, token, lease };
        }
        if !claims.is_empty() && !queue {
            return Applied::Held { token: claims[0].token };
        }
        if (lease == 0 || lease == index) && self.leases.contains_key(&index) {
            return Applied::LeaseExists { id: index };
        }
        let lease = if lease == 0 { self.grant(index, ttl_ms).id } else { lease };
        let token = claims.is_empty().then_some(index);
        let claim =
            Claim { ticket: index, token: token.unwrap_or(0), lease, owner: owner.to_owned() };
        self.locks.entry(name.clone()).or_default().push(claim);
        Applied::Locked { ticket: index, token, lease }
    }

    fn unlock(&mut self, index: u64, name: &Bytes, ticket: u64) -> Applied {
        let Some(queue) = self.locks.get_mut(name) else { return Applied::NoLock };
        let ours = queue.iter().position(|claim| [claim.ticket, claim.token].contains(&ticket));
        let Some(ours) = ours.filter(|_| ticket != 0) else { return Applied::NoLock };
        let claim = queue.remove(ours);
        self.pass_on(index);
        if claim.lease == claim.ticket {
            self.end(index, claim.lease);
        }
        Applied::Unlocked { revision: index }
    }

    fn transact(&mut self, index: u64, txn: &Txn) -> Applied {
        let succeeded = txn.compares.iter().all(|compare| {
            let record = self.keys.get(&compare.key);
            let number = |of: fn(&OwnedRecord) -> u64| record.map_or(0, of);
            match &compare.what {
                Subject::Exists(exists) => record.is_some() == *exists,
                Subject::Value(relation, value) => {
                    record.is_some_and(|record| relation.holds(&record.value, value))
                }
                Subject::Version(relation, it) => relation.holds(&number(|r| r.version), it),
                Subject::CreateRevision(relation, it) => {
                    relation.holds(&number(|r| r.create_revision), it)
                }
                Subject::ModRevision(relation, it) => {
                    relation.holds(&number(|r| r.mod_revision), it)
                }
            }
        });
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        for op in ops {
            let refused = match op {
                Op::Put { content, .. } => self.lease_missing(content.life),
                Op::Grant { .. } if self.leases.contains_key(&index) => {
                    Some(Applied::LeaseExists { id: index })
                }
                Op::Grant { .. } | Op::Get { .. } | Op::Delete { .. } => None,
            };
            if let Some(refused) = refused {
                return refused;
            }
        }
        let mut results = Vec::new();
        for op in ops {
            results.push(match op {
                Op::Put { key, content, prev } => {
                    OpResult::Put(self.write(index, key, content, *prev))
                }
                Op::Delete { span, prev } => {
                    let erased = self.erase_all(index, span);
                    let deleted = erased.len() as u64;
                    OpResult::Deleted { deleted, prev: if *prev { erased } else { Vec::new() } }
                }
                Op::Get { span, limit } => {
                    let all = self.keys.iter().filter(|(key, _)| span.contains(key));
                    let mut items: Vec<_> =
                        all.map(|(key, record)| (key.clone(), record.clone())).collect();
                    let limit = usize::try_from(*limit).unwrap();
                    let more = items.len() > limit;
                    items.truncate(limit);
                    OpResult::Got { items, more }
                }
                Op::Grant { ttl_ms } => OpResult::Granted(self.grant(index, *ttl_ms)),
            });
        }
        Applied::Txn { succeeded, revision: self.revision, results }
    }

    fn tidy(&mut self, index: u64, tidy: &Tidy) -> Applied {
        let mut more = tidy.expire && self.expire(index);
        let is_over = |model: &Self| {
            model.events.len() as u64 > tidy.history_events
                || model.history_bytes() > tidy.history_bytes
        };
        for _ in 0..BUDGET {
            if is_over(self) {
                self.compact = self.events.remove(0).revision;
            }
        }
        more |= is_over(self);
        let before = self.now_ms.saturating_sub(tidy.once_ms);
        let mut forgotten = 0;
        while forgotten < BUDGET
            && let Some(oldest) = self.outcomes.first()
            && (oldest.time_ms < before
                || self.outcomes.len() as u64 > tidy.once_count
                || self.session_bytes() > tidy.once_bytes)
        {
            self.outcomes.remove(0);
            forgotten += 1;
        }
        Applied::Tidied { more: more || forgotten == BUDGET }
    }

    fn expire(&mut self, index: u64) -> bool {
        enum Due {
            Key(Bytes),
            Lease(u64),
        }
        let mut due: BTreeMap<(u64, u8, Vec<u8>), Due> = BTreeMap::new();
        for (key, record) in self.keys.iter().filter(|(_, record)| record.expiry_ms != 0) {
            due.insert((record.expiry_ms, 0, key.to_vec()), Due::Key(key.clone()));
        }
        for (id, lease) in &self.leases {
            due.insert((lease.expiry_ms, 1, id.to_be_bytes().to_vec()), Due::Lease(*id));
        }
        let now_ms = self.now_ms;
        due.retain(|(time_ms, ..), _| *time_ms <= now_ms);
        let many = due.len() >= BUDGET;
        let mut room = EXPIRE_MAX;
        for one in due.into_values().take(BUDGET) {
            if room == 0 {
                return true;
            }
            match one {
                Due::Key(key) => {
                    self.erase(index, &key, Reason::Ttl);
                    room -= 1;
                }
                Due::Lease(id) => {
                    let keys = self.keys_of(id);
                    if keys.len() >= room {
                        for key in &keys[..room] {
                            self.erase(index, key, Reason::Lease);
                        }
                        self.leases.get_mut(&id).unwrap().expiry_ms = 0;
                        return true;
                    }
                    room -= keys.len();
                    self.end(index, id);
                }
            }
        }
        many
    }

    /// All that must lie in a tree.
    pub(super) fn tree(&self, tree: Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pairs = BTreeMap::new();
        let mut add = |key: &[&[u8]], value: &[u8]| {
            assert!(pairs.insert(key.concat(), value.to_vec()).is_none(), "two in one place");
        };
        match tree {
            Tree::Kv => {
                for (key, record) in &self.keys {
                    add(&[key], &stored(record));
                }
            }
            Tree::History => {
                for event in &self.events {
                    let at = [&event.revision.to_be_bytes()[..], &event.nth.to_be_bytes()].concat();
                    let kind = if event.kind == Kind::Put { 1 } else { 2 };
                    let len = u16::try_from(event.key.len()).unwrap().to_le_bytes();
                    let head = [kind, event.reason as u8];
                    let depth = u32::try_from(event.depth).unwrap().to_le_bytes();
                    let link = [&depth[..], &pointer(event.jump)].concat();
                    add(&[&at], &[&head, &len[..], &link, &event.key, &event.before()].concat());
                }
            }
            Tree::Deleted => {
                let newest: BTreeMap<_, _> =
                    self.events.iter().map(|event| (&event.key, event.at())).collect();
                for (key, at) in newest.iter().filter(|(key, _)| !self.keys.contains_key(**key)) {
                    add(&[key], &pointer(*at));
                }
            }
            Tree::Ttl => {
                for (key, record) in self.keys.iter().filter(|(_, record)| record.expiry_ms != 0) {
                    add(&[&record.expiry_ms.to_be_bytes(), &[0], key], &[]);
                }
                for (id, lease) in &self.leases {
                    add(&[&lease.expiry_ms.to_be_bytes(), &[1], &id.to_be_bytes()], &[]);
                }
            }
            Tree::Session => {
                for outcome in &self.outcomes {
                    add(&[&[0], &outcome.name], &outcome.stored());
                    add(&[&[1], &outcome.revision.to_be_bytes()], &outcome.name);
                }
            }
            Tree::Meta => self.meta(&mut add),
        }
        pairs.into_iter().collect()
    }

    fn meta(&self, add: &mut impl FnMut(&[&[u8]], &[u8])) {
        for (key, record) in self.keys.iter().filter(|(_, record)| record.lease != 0) {
            add(&[b"K", &record.lease.to_be_bytes(), key], &[]);
        }
        for (id, lease) in &self.leases {
            let numbers = [lease.ttl_ms.to_le_bytes(), lease.expiry_ms.to_le_bytes()];
            add(&[b"L", &id.to_be_bytes()], &numbers.concat());
        }
        for (name, queue) in &self.locks {
            for (place, claim) in queue.iter().enumerate() {
                let numbers = [claim.ticket, claim.token, claim.lease].map(u64::to_le_bytes);
                let value = [&numbers.concat(), claim.owner.as_bytes()].concat();
                let len = u16::try_from(name.len()).unwrap().to_be_bytes();
                match place {
                    0 => add(&[b"l", name], &value),
                    _ => add(&[b"q", &len, name, &claim.ticket.to_be_bytes()], &value),
                }
                add(&[b"o", &claim.lease.to_be_bytes(), name], &claim.ticket.to_le_bytes());
            }
        }
    }
}

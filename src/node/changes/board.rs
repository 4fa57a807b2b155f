//! The newest revisions, and who is to be told of which.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use super::{Revision, Selector, Taken};

/// Revisions that one watch looks at before others have their turn.
const LOOKS: usize = 1024;

/// Invariants:
/// * `ring` holds every revision with changes after `base`, up to and with `newest`;
/// * the ear of a watch says nothing only if there is nothing for it between its position and
///   `newest`.
#[derive(Debug, Default)]
pub(super) struct Board {
    base: u64,
    newest: u64,
    ring: VecDeque<Arc<Revision>>,
    weight: usize,
    ears: HashMap<u64, Ear>,
    last_id: u64,
    interests: Interests,
    ended: bool,
}

/// What was told to a watch.
#[derive(Debug, Default)]
struct Ear {
    /// The first revision that has something for it, or may have; 0: there is none.
    first: u64,
    /// Whom to wake when there is one.
    waker: Option<Waker>,
}

impl Ear {
    fn tell(&mut self, revision: u64, wakers: &mut Vec<Waker>) {
        if self.first == 0 {
            self.first = revision;
            wakers.extend(self.waker.take());
        }
    }
}

impl Board {
    /// Does nobody watch?
    pub(super) fn is_empty(&self) -> bool {
        self.ears.is_empty()
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Starts anew after `revision`.
    pub(super) fn begin(&mut self, revision: u64) {
        (self.base, self.newest) = (revision, revision);
        self.ring = VecDeque::new();
        self.weight = 0;
    }

    /// A new watch, which has had everything up to `position`.
    pub(super) fn join(&mut self, selectors: &[Selector], position: u64) -> u64 {
        self.last_id += 1;
        for selector in selectors {
            self.interests.add(selector, self.last_id);
        }
        // What there is for it is not known, so it has to look.
        let first = position.saturating_add(1);
        self.ears.insert(self.last_id, Ear { first, waker: None });
        self.last_id
    }

    pub(super) fn leave(&mut self, id: u64, selectors: &[Selector]) {
        for selector in selectors {
            self.interests.remove(selector, id);
        }
        self.ears.remove(&id);
        if self.ears.is_empty() {
            self.begin(self.newest);
        }
    }

    pub(super) fn end(&mut self) -> Vec<Waker> {
        self.ended = true;
        self.ears.values_mut().filter_map(|ear| ear.waker.take()).collect()
    }

    /// Takes in what was read after `from`, and answers who is to be woken.
    pub(super) fn add(
        &mut self,
        from: u64,
        revisions: Vec<Arc<Revision>>,
        reached: u64,
        bytes: usize,
    ) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if self.newest != from {
            // Everybody left meanwhile, and others came.
            return wakers;
        }
        for revision in revisions {
            for shown in &revision.changes {
                let ears = &mut self.ears;
                self.interests.in_key(&shown.change.key, |id| {
                    if let Some(ear) = ears.get_mut(&id) {
                        ear.tell(revision.revision, &mut wakers);
                    }
                });
            }
            self.weight += revision.weight;
            self.ring.push_back(revision);
        }
        self.newest = reached;
        // The newest stays, however large it is.
        while self.weight > bytes
            && self.ring.len() > 1
            && let Some(oldest) = self.ring.pop_front()
        {
            self.weight -= oldest.weight;
            self.base = oldest.revision;
        }
        wakers
    }

    /// What was after `from` cannot be had up to `to`: everybody must look.
    pub(super) fn skip(&mut self, from: u64, to: u64) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if self.newest != from {
            return wakers;
        }
        self.begin(to);
        for ear in self.ears.values_mut() {
            ear.tell(from.saturating_add(1), &mut wakers);
        }
        wakers
    }

    /// See [`super::Watch::take`].
    pub(super) fn take(
        &mut self,
        id: u64,
        position: &mut u64,
        wants: impl Fn(&[u8]) -> bool,
        bytes: usize,
        waker: &Waker,
    ) -> Taken {
        if self.ended {
            return Taken::Ended;
        }
        let Some(ear) = self.ears.get_mut(&id) else { return Taken::Ended };
        match &mut ear.waker {
            Some(known) => known.clone_from(waker),
            None => ear.waker = Some(waker.clone()),
        }
        if ear.first == 0 {
            *position = self.newest.max(*position);
            return Taken::Nothing;
        }
        *position = (ear.first - 1).max(*position);
        if *position < self.base {
            return Taken::Behind;
        }
        let start = self.ring.partition_point(|revision| revision.revision <= *position);
        let end = self.ring.len().min(start + LOOKS);
        let (mut taken, mut weight) = (Vec::new(), 0);
        for revision in self.ring.range(start..end) {
            *position = revision.revision;
            let wanted = revision.changes.iter().filter(|shown| wants(&shown.change.key));
            let (count, more) =
                wanted.fold((0, 0), |(count, sum), shown| (count + 1, sum + shown.change.weight()));
            if count > 0 {
                taken.push(Arc::clone(revision));
                weight += more;
            }
            if weight >= bytes {
                break;
            }
        }
        let left = self.ring.back().is_some_and(|newest| newest.revision > *position);
        if left {
            ear.first = *position + 1;
            return Taken::Some(taken);
        }
        ear.first = 0;
        *position = self.newest.max(*position);
        if taken.is_empty() { Taken::Nothing } else { Taken::Some(taken) }
    }
}

/// Who wants to hear of which keys, found by the key.
#[derive(Debug, Default)]
struct Interests {
    keys: HashMap<Bytes, Vec<u64>>,
    prefixes: HashMap<Bytes, Vec<u64>>,
    /// How many prefixes there are of each length, so that only those are looked for.
    lengths: BTreeMap<usize, usize>,
}

impl Interests {
    fn add(&mut self, selector: &Selector, id: u64) {
        match selector {
            Selector::Key(key) => self.keys.entry(key.clone()).or_default().push(id),
            Selector::Prefix(prefix) => {
                let ids = self.prefixes.entry(prefix.clone()).or_default();
                if ids.is_empty() {
                    *self.lengths.entry(prefix.len()).or_default() += 1;
                }
                ids.push(id);
            }
        }
    }

    fn remove(&mut self, selector: &Selector, id: u64) {
        let (map, bytes) = match selector {
            Selector::Key(key) => (&mut self.keys, key),
            Selector::Prefix(prefix) => (&mut self.prefixes, prefix),
        };
        let Some(ids) = map.get_mut(bytes) else { return };
        ids.retain(|other| *other != id);
        if !ids.is_empty() {
            return;
        }
        map.remove(bytes);
        if let Selector::Prefix(prefix) = selector
            && let Some(count) = self.lengths.get_mut(&prefix.len())
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }

    /// Tells the ids of all who want this key, some of them more than once.
    fn in_key(&self, key: &[u8], mut tell: impl FnMut(u64)) {
        let exactly = self.keys.get(key);
        let fitting = self.lengths.range(..=key.len()).filter_map(|(length, _)| {
            let prefix = key.get(..*length)?;
            self.prefixes.get(prefix)
        });
        for id in exactly.into_iter().chain(fitting).flatten() {
            tell(*id);
        }
    }
}

#[cfg(test)]
mod tests;

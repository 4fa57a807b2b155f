//! Random requests against the model, after each batch everything that can be read.

use std::collections::BTreeSet;

use super::model::{Keys, Model, stored};
use super::*;
use crate::store::simdisk::Rng;

/// What requests are about; few, so that they meet.
struct Names {
    keys: Vec<Bytes>,
    locks: Vec<Bytes>,
    once: Vec<Bytes>,
}

impl Names {
    fn new() -> Self {
        let long = |len| vec![b'k'; len];
        let keys = ["a", "ab", "ab\0", "abc", "b", "b/1", "b/2"].map(|key| key.into());
        let bytes = [vec![0xff], vec![0xff, 0xff], long(KEY_MAX), long(KEY_MAX - 1)];
        let keys = keys.into_iter().chain(bytes.map(Bytes::from)).collect();
        let locks = [b"l".to_vec(), b"l\0\0".to_vec(), vec![b'n'; LOCK_NAME_MAX]];
        let once = [b"1".to_vec(), b"12".to_vec(), vec![b'o'; ONCE_MAX]];
        Self { keys, locks: locks.map(Bytes::from).into(), once: once.map(Bytes::from).into() }
    }
}

/// Draws requests that fit a state.
struct Draw<'a> {
    rng: &'a mut Rng,
    names: &'a Names,
    model: &'a Model,
    /// The index that the request gets.
    index: u64,
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> Option<&'a T> {
    let at = rng.below(from.len().max(1) as u64);
    from.get(usize::try_from(at).unwrap())
}

impl Draw<'_> {
    fn below(&mut self, end: u64) -> u64 {
        self.rng.below(end)
    }

    /// True once in so many times.
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn key(&mut self) -> Bytes {
        pick(self.rng, &self.names.keys).unwrap().clone()
    }

    fn value(&mut self) -> Bytes {
        let len = [0, 1, 3, 100, 3000][usize::try_from(self.below(5)).unwrap()];
        Bytes::from(vec![self.below(256).to_le_bytes()[0]; len])
    }

    fn ttl_ms(&mut self) -> u64 {
        1 + self.below(40)
    }

    fn lease(&mut self) -> u64 {
        let ids: Vec<u64> = self.model.leases.keys().copied().collect();
        match pick(self.rng, &ids) {
            Some(id) if !self.one_in(8) => *id,
            Some(_) | None => self.index.saturating_sub(2) + self.below(4),
        }
    }

    fn life(&mut self) -> Life {
        match self.below(5) {
            0 | 1 => Life::Endless,
            2 => Life::Ttl(self.ttl_ms()),
            _ => Life::Lease(self.lease()),
        }
    }

    fn content(&mut self) -> Content {
        let content_type = ["", "text/plain", "a"][usize::try_from(self.below(3)).unwrap()];
        let (value, life) = (self.value(), self.life());
        Content { value, content_type: content_type.to_owned(), life }
    }

    fn tags(&mut self, key: &Bytes) -> Option<Tags> {
        let current = self.model.keys.get(key).map_or(3, |record| record.mod_revision);
        match self.below(12) {
            0 => Some(Tags::Any),
            1 => Some(Tags::Revisions(vec![1, current])),
            2 => Some(Tags::Revisions(vec![current.saturating_sub(1)])),
            _ => None,
        }
    }

    fn conditions(&mut self, key: &Bytes) -> Conditions {
        Conditions { if_match: self.tags(key), if_none_match: self.tags(key) }
    }

    fn span(&mut self) -> Span {
        let (one, other) = (self.key(), self.key());
        match self.below(6) {
            0..3 => Span::key(&one),
            3 => Span::prefix(&one[..1]),
            4 => Span { start: one, end: Some(other) },
            _ => Span { start: one, end: None },
        }
    }

    fn subject(&mut self, key: &Bytes) -> Subject {
        let relation =
            [Relation::Eq, Relation::Ne, Relation::Lt, Relation::Gt].map(|it| it.to_owned());
        let relation = *pick(self.rng, &relation).unwrap();
        let record = self.model.keys.get(key);
        let near = |number: u64, rng: &mut Rng| (number + rng.below(3)).saturating_sub(1);
        let number = |of: fn(&OwnedRecord) -> u64| record.map_or(0, of);
        match self.below(5) {
            0 => Subject::Exists(self.one_in(2)),
            1 => Subject::Value(relation, record.map_or(Bytes::new(), |it| it.value.clone())),
            2 => Subject::Version(relation, near(number(|it| it.version), self.rng)),
            3 => Subject::CreateRevision(relation, near(number(|it| it.create_revision), self.rng)),
            _ => Subject::ModRevision(relation, near(number(|it| it.mod_revision), self.rng)),
        }
    }

    fn ops(&mut self) -> Vec<Op> {
        let mut granted = false;
        let count = self.below(5);
        let op = |_| match self.below(7) {
            0..3 => {
                let mut content = self.content();
                if granted && self.one_in(2) {
                    content.life = Life::NewLease;
                }
                Op::Put { key: self.key(), content, prev: self.one_in(2) }
            }
            3 => Op::Delete { span: self.span(), prev: self.one_in(2) },
            4 if !granted => {
                granted = true;
                Op::Grant { ttl_ms: self.ttl_ms() }
            }
            _ => Op::Get { span: self.span(), limit: self.below(6) },
        };
        (0..count).map(op).collect()
    }

    fn txn(&mut self) -> Txn {
        loop {
            let mut compares = Vec::new();
            for _ in 0..self.below(3) {
                let key = self.key();
                compares.push(Compare { what: self.subject(&key), key });
            }
            let txn = Txn { compares, then: self.ops(), otherwise: self.ops() };
            if txn.check().is_ok() {
                return txn;
            }
        }
    }

    fn batch(&mut self) -> Vec<Write> {
        let keys: BTreeSet<Bytes> = (0..self.below(4)).map(|_| self.key()).collect();
        let write = |key: Bytes| {
            let put = if self.one_in(3) { None } else { Some(self.content()) };
            Write { conditions: self.conditions(&key), put, key }
        };
        keys.into_iter().map(write).collect()
    }

    /// A lock, and a ticket or token of somebody in it.
    fn claim(&mut self) -> (Bytes, u64) {
        let name = pick(self.rng, &self.names.locks).unwrap().clone();
        let queue = self.model.locks.get(&name).map(Vec::as_slice).unwrap_or_default();
        let ticket = match pick(self.rng, queue) {
            Some(claim) if self.rng.below(3) == 0 => claim.token,
            Some(claim) => claim.ticket,
            None => self.below(self.index),
        };
        (name, ticket)
    }

    fn tidy(&mut self) -> Tidy {
        let mut limit = |small: u64| if self.one_in(3) { self.below(small) } else { u64::MAX };
        Tidy {
            history_events: limit(60),
            history_bytes: limit(20_000),
            once_ms: limit(100),
            once_count: limit(4),
            once_bytes: limit(2000),
            expire: !self.one_in(4),
        }
    }

    fn command(&mut self) -> Command {
        match self.below(26) {
            0..7 => {
                let (key, Content { value, content_type, life }) = (self.key(), self.content());
                let conditions = self.conditions(&key);
                Command::Put { key, value, content_type, life, conditions, prev: self.one_in(2) }
            }
            7..9 => {
                let key = self.key();
                Command::Delete { conditions: self.conditions(&key), key, prev: self.one_in(2) }
            }
            9 => Command::DeleteRange { span: self.span() },
            10..12 => {
                let key = self.key();
                let ttl_ms = if self.one_in(2) { None } else { Some(self.ttl_ms()) };
                Command::Touch { conditions: self.conditions(&key), key, ttl_ms }
            }
            12..14 => {
                // Also ids that a later entry has.
                let id = if self.one_in(2) { 0 } else { self.index + self.below(6) };
                Command::Grant { id, ttl_ms: self.ttl_ms() }
            }
            14 => {
                let ids = (0..self.below(4)).map(|_| self.lease()).collect();
                Command::KeepAlive { ids }
            }
            15 => Command::Revoke { id: self.lease() },
            16..19 => {
                let lease = if self.one_in(2) { 0 } else { self.lease() };
                Command::Lock {
                    name: self.claim().0,
                    lease,
                    ttl_ms: self.ttl_ms(),
                    owner: "someone".to_owned(),
                    queue: !self.one_in(4),
                }
            }
            19 | 20 => {
                let (name, ticket) = self.claim();
                Command::Unlock { name, ticket }
            }
            21 | 22 => Command::Txn(self.txn()),
            23 => Command::Batch(self.batch()),
            _ => Command::Tidy(self.tidy()),
        }
    }

    fn request(&mut self) -> Request {
        let command = self.command();
        let once = self.one_in(4).then(|| Once {
            key: pick(self.rng, &self.names.once).unwrap().clone(),
            fingerprint: u128::from(self.rng.below(2)),
        });
        let fence = self.one_in(12).then(|| {
            let (name, token) = self.claim();
            Fence { name, token }
        });
        Request { once, fence, command }
    }
}

fn sorted(mut items: Vec<(Bytes, OwnedRecord)>, reverse: bool) -> Vec<(Bytes, OwnedRecord)> {
    if reverse {
        items.reverse();
    }
    items
}

fn bound(draw: &mut Draw<'_>) -> Bound<Vec<u8>> {
    let key = draw.key().to_vec();
    match draw.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

fn is_within(key: &[u8], range: &Range) -> bool {
    let after = match &range.start {
        Bound::Unbounded => true,
        Bound::Included(start) => key >= &start[..],
        Bound::Excluded(start) => key > &start[..],
    };
    let before = match &range.end {
        Bound::Unbounded => true,
        Bound::Included(end) => key <= &end[..],
        Bound::Excluded(end) => key < &end[..],
    };
    after && before
}

/// Reads a range as of a revision, or as it is.
fn check_range(draw: &mut Draw<'_>, view: &View, at: Option<u64>, keys: &Keys) {
    let range = Range { start: bound(draw), end: bound(draw), reverse: draw.one_in(2) };
    let most = usize::try_from(1 + draw.below(15)).unwrap();
    let mut found = Vec::new();
    let visit = |item: Item<'_>| {
        found.push((Bytes::copy_from_slice(item.key), item.record.to_owned()));
        found.len() < most
    };
    match at {
        Some(revision) => view.scan_at(&range, revision, visit).unwrap(),
        None => view.scan(&range, visit).unwrap(),
    }
    let all = keys.iter().filter(|(key, _)| is_within(key, &range));
    let all = all.map(|(key, record)| (key.clone(), record.clone())).collect();
    let mut wanted = sorted(all, range.reverse);
    wanted.truncate(most);
    assert!(found == wanted, "range {range:?} at {at:?}:\n{found:?}\nand should be\n{wanted:?}");
}

/// The past, from any revision that is kept.
fn check_past(draw: &mut Draw<'_>, view: &View) {
    let model = draw.model;
    let compact = model.compact;
    assert_eq!(view.compact_revision(), compact);
    assert_eq!(view.kept(compact), Ok(()));
    if let Some(gone) = compact.checked_sub(1) {
        assert_eq!(view.kept(gone), Err(Gone { oldest: compact }));
    }
    for _ in 0..3 {
        let revision = compact + draw.below(model.revision + 2 - compact);
        let state = model.at(revision);
        for key in &draw.names.keys {
            let record = view.get_at(key, revision).unwrap().map(|record| record.to_owned());
            assert_eq!(record.as_ref(), state.get(key), "{key:?} at {revision}");
        }
        check_range(draw, view, Some(revision), &state);
        let (events, bytes) = match draw.below(3) {
            0 => (usize::MAX, usize::MAX),
            1 => (usize::try_from(draw.below(6)).unwrap(), usize::MAX),
            _ => (usize::MAX, usize::try_from(draw.below(3000)).unwrap()),
        };
        let mut wanted: Vec<Change> = Vec::new();
        for change in model.changes() {
            let is_new = wanted.last().is_some_and(|last| last.revision != change.revision);
            let weight = wanted.iter().map(Change::weight).sum::<usize>();
            if is_new && (wanted.len() >= events || weight >= bytes) {
                break;
            }
            if change.revision > revision {
                wanted.push(change);
            }
        }
        assert_eq!(view.changes(revision, events, bytes).unwrap(), wanted);
    }
    let key = draw.key();
    let before = compact + draw.below(model.revision + 3 - compact);
    let most = usize::try_from(draw.below(5)).unwrap();
    let mut wanted = model.changes();
    wanted.retain(|change| change.key == key && change.revision < before);
    wanted.reverse();
    let more = wanted.len() > most;
    wanted.truncate(most);
    assert_eq!(view.history(&key, before, most, usize::MAX).unwrap(), (wanted, more));
}

fn check_leases_and_locks(draw: &mut Draw<'_>, view: &View) {
    let model = draw.model;
    let told = |(id, lease): (&u64, &Lease)| {
        let keys = model.keys_of(*id).len() as u64;
        LeaseView { id: *id, lease: *lease, keys }
    };
    let leases: Vec<LeaseView> = model.leases.iter().map(told).collect();
    let after = leases.get(1).map_or(0, |lease| lease.id);
    assert_eq!(view.leases(0, usize::MAX).unwrap(), leases);
    assert_eq!(
        view.leases(after, 2).unwrap(),
        leases.iter().filter(|it| it.id > after).take(2).copied().collect::<Vec<_>>()
    );
    for lease in &leases {
        assert_eq!(view.lease(lease.id).unwrap(), Some(*lease));
        let mut keys = Vec::new();
        view.lease_keys(lease.id, |key| {
            keys.push(Bytes::copy_from_slice(key));
            true
        })
        .unwrap();
        assert_eq!(keys, model.keys_of(lease.id));
    }
    let unknown = draw.index + 100;
    assert_eq!(view.lease(unknown).unwrap(), None);
    let holders: Vec<(Bytes, Claim)> =
        model.locks.iter().map(|(name, queue)| (name.clone(), queue[0].clone())).collect();
    assert_eq!(view.locks(b"", usize::MAX).unwrap(), holders);
    for name in &draw.names.locks {
        let queue = model.locks.get(name).map(Vec::as_slice);
        let wanted = queue.and_then(<[_]>::split_first);
        let wanted = wanted.map(|(holder, waiting)| LockView {
            holder: holder.clone(),
            waiting: waiting.to_vec(),
        });
        assert_eq!(view.lock(name, usize::MAX).unwrap(), wanted);
    }
}

/// All that is stored, and the numbers that are said to be its sums.
fn check_trees(machine: &Machine, model: &Model) {
    let snapshot = machine.snapshot();
    let (mut sum, mut indexes) = (0_u128, Indexes::new(&snapshot));
    for tree in TREES {
        let (found, wanted) = (machine.tree(tree), model.tree(tree));
        assert!(found == wanted, "{tree:?} has\n{found:?}\nand should have\n{wanted:?}");
        for (key, value) in &found {
            indexes.pair(tree, key, value);
            sum = sum.wrapping_add(digest(tree, key, value));
        }
    }
    assert_eq!(machine.digest(), sum, "the digest is that of all trees");
    let state = machine.db.state();
    assert_eq!(indexes.wrong(), [""; 0]);
    assert_eq!(state.history_bytes, model.history_bytes());
    assert_eq!(state.session_bytes, model.session_bytes());
    assert_eq!((state.revision, state.time_ms), (model.revision, model.now_ms));
    assert_eq!(machine.view().past_bytes(), model.history_bytes() + model.session_bytes());
}

fn check(machine: &Machine, rng: &mut Rng, names: &Names, model: &Model) {
    check_trees(machine, model);
    let view = machine.view();
    let mut draw = Draw { rng, names, model, index: machine.next() };
    for key in &names.keys {
        let record = view.get(key).unwrap().map(|record| record.to_owned());
        assert_eq!(record.as_ref(), model.keys.get(key));
        assert!(record.is_none_or(|record| !stored(&record).is_empty()));
    }
    check_range(&mut draw, &view, None, &model.keys);
    check_past(&mut draw, &view);
    check_leases_and_locks(&mut draw, &view);
}

/// How often each kind of outcome came about, by its name.
type Kinds = std::collections::BTreeMap<String, u64>;

fn note(kinds: &mut Kinds, outcome: &Applied) {
    let text = format!("{outcome:?}");
    let name = text.split([' ', '(', '{']).next().unwrap();
    *kinds.entry(name.to_owned()).or_default() += 1;
}

fn run(seed: u64, batches: u64, kinds: &mut Kinds) {
    let (mut rng, names) = (Rng::new(seed), Names::new());
    let (mut machine, mut alone, mut model) = (Machine::new(), Machine::new(), Model::default());
    let mut time_ms = 1000;
    for _ in 0..batches {
        let mut entries = Vec::new();
        let mut wanted = Vec::new();
        for index in (machine.next()..).take(usize::try_from(1 + rng.below(6)).unwrap()) {
            // Clocks of leaders differ.
            time_ms = (time_ms + rng.below(8)).saturating_sub(2);
            let request = Draw { rng: &mut rng, names: &names, model: &model, index }.request();
            wanted.push(model.apply(index, time_ms, &request));
            entries.push((time_ms, request));
        }
        let outcomes = machine.apply_all(&entries);
        for (((_, request), outcome), wanted) in entries.iter().zip(&outcomes).zip(&wanted) {
            assert_eq!(outcome, wanted, "{request:?}");
            note(kinds, outcome);
        }
        for (entry, wanted) in entries.iter().zip(&wanted) {
            assert_eq!(alone.apply_all(std::slice::from_ref(entry)), std::slice::from_ref(wanted));
        }
        assert_eq!(machine.digest(), alone.digest(), "batches make no difference");
        if rng.below(30) == 0 {
            machine.reopen();
        }
        check(&machine, &mut rng, &names, &model);
    }
    empty(&mut machine);
}

/// Once all is deleted, expired, trimmed and forgotten, nothing is left.
fn empty(machine: &mut Machine) {
    machine.run(Command::DeleteRange { span: Span::prefix(b"") });
    machine.time_ms += 1 << 40;
    let all = Command::Tidy(Tidy { expire: true, ..Tidy::default() });
    for _ in 0..1000 {
        if machine.run(all.clone()) == (Applied::Tidied { more: false }) {
            break;
        }
    }
    machine.time_ms += 1;
    machine.run(all);
    for tree in TREES {
        assert_eq!(machine.tree(tree), [], "{tree:?} is empty");
    }
    let state = machine.db.state();
    assert_eq!((state.digest, state.history_bytes, state.session_bytes), (0, 0, 0));
}

#[test]
fn whatever_happens_the_state_is_that_of_the_model() {
    let mut kinds = Kinds::new();
    for seed in 0..24 {
        run(seed, 150, &mut kinds);
    }
    let all = [
        "Put",
        "Deleted",
        "Touched",
        "Granted",
        "KeptAlive",
        "Revoked",
        "Locked",
        "Held",
        "Unlocked",
        "Txn",
        "Batch",
        "Tidied",
        "ConditionFailed",
        "NoKey",
        "NoLease",
        "LeaseExists",
        "NoLock",
        "Fenced",
        "OtherRequest",
        "Replayed",
    ];
    for kind in all {
        assert!(kinds.get(kind).is_some_and(|count| *count > 20), "few are {kind}: {kinds:?}");
    }
}

/// Entries about so few keys that these change thousands of times.
fn hot_request(rng: &mut Rng, keys: &[Bytes]) -> Request {
    let mut key = || pick(rng, keys).unwrap().clone();
    let (one, other) = (key(), key());
    let value = |rng: &mut Rng| content(&rng.below(1000).to_le_bytes(), Life::Endless);
    let command = match rng.below(40) {
        0..4 => delete(&one),
        4 => Command::DeleteRange { span: Span::prefix(b"") },
        // Some keys change several times in one revision.
        5 => {
            let write = |(nth, key): (usize, &Bytes)| Write {
                key: key.clone(),
                put: (nth % 3 != 1).then(|| content(&nth.to_le_bytes(), Life::Endless)),
                conditions: Conditions::default(),
            };
            let keys = [&one, &other, &one, &one, &other];
            Command::Batch(keys.into_iter().enumerate().map(write).collect())
        }
        6 => {
            let (history_events, history_bytes) = match rng.below(12) {
                0 => (0, u64::MAX),
                1..4 => (rng.below(300), u64::MAX),
                4..7 => (u64::MAX, 50_000),
                _ => (2500, u64::MAX),
            };
            Command::Tidy(Tidy { history_events, history_bytes, ..keep_all() })
        }
        _ => {
            let Content { value, content_type, life } = value(rng);
            let conditions = Conditions::default();
            Command::Put { key: one, value, content_type, life, conditions, prev: false }
        }
    };
    command.into()
}

fn run_hot(seed: u64) -> usize {
    let keys = ["a", "ab", "b"].map(Bytes::from);
    let (mut rng, mut machine, mut model) = (Rng::new(seed), Machine::new(), Model::default());
    let mut most = 0;
    for batch in 0..900 {
        let mut entries = Vec::new();
        for index in (machine.next()..).take(usize::try_from(1 + rng.below(8)).unwrap()) {
            let request = hot_request(&mut rng, &keys);
            model.apply(index, 1000, &request);
            entries.push((1000, request));
        }
        machine.apply_all(&entries);
        most = most.max(model.events.len());
        if batch % 90 == 0 || batch == 899 {
            check_trees(&machine, &model);
            check_every_revision(&machine.view(), &model, &keys);
        }
    }
    most
}

/// All that is told of the past, from each revision that is kept.
fn check_every_revision(view: &View, model: &Model, keys: &[Bytes]) {
    let changes = model.changes();
    let told = view.changes(model.compact, usize::MAX, usize::MAX).unwrap();
    for (told, wanted) in told.iter().zip(&changes) {
        assert_eq!(told, wanted);
    }
    assert_eq!(told.len(), changes.len());
    for revision in model.compact..=model.revision {
        let state = model.states.range(..=revision).next_back().map(|(_, state)| state);
        for key in keys {
            let record = view.get_at(key, revision).unwrap().map(|record| record.to_owned());
            let wanted = state.and_then(|state| state.get(key));
            assert_eq!(record.as_ref(), wanted, "{key:?} at {revision}");
        }
    }
    for key in keys {
        let mut of: Vec<Change> = changes.iter().filter(|it| it.key == *key).cloned().collect();
        of.reverse();
        let all = view.history(key, u64::MAX, usize::MAX, usize::MAX).unwrap();
        assert!(all == (of.clone(), false), "all of {key:?}");
        for before in (model.compact..=model.revision + 1).step_by(7) {
            let newer = of.iter().filter(|it| it.revision >= before).count();
            let (found, more) = view.history(key, before, 3, usize::MAX).unwrap();
            assert_eq!(found, of[newer..].iter().take(3).cloned().collect::<Vec<_>>());
            assert_eq!(more, of.len() > newer + 3);
        }
    }
}

#[test]
fn hot_keys_lead_to_each_of_their_changes() {
    let most = (0..6).map(run_hot).max();
    assert!(most > Some(2000), "{most:?} events were there at most");
}

//! Rules that chance may miss, one test each.

use super::*;

fn lock(name: &'static [u8], lease: u64, queue: bool) -> Command {
    let (name, owner) = (Bytes::from_static(name), String::new());
    Command::Lock { name, lease, ttl_ms: 50, owner, queue }
}

fn unlock(name: &'static [u8], ticket: u64) -> Command {
    Command::Unlock { name: Bytes::from_static(name), ticket }
}

/// What `command` answers; it must change nothing but the clock.
fn refused(machine: &mut Machine, command: Command) -> Applied {
    let before = machine.db.state().clone();
    let outcome = machine.run(command);
    let after = machine.db.state();
    assert_eq!((after.digest, after.revision), (before.digest, before.revision), "{outcome:?}");
    outcome
}

#[test]
fn a_lock_takes_no_chosen_lease_for_one_of_its_own() {
    let mut machine = Machine::new();
    let id = machine.next() + 1;
    machine.run(Command::Grant { id, ttl_ms: 50 });
    // The revision that its own lease would be named after, and then that lease itself.
    assert_eq!(refused(&mut machine, lock(b"l", 0, true)), Applied::LeaseExists { id });
    let id = machine.next() + 1;
    machine.run(Command::Grant { id, ttl_ms: 50 });
    assert_eq!(refused(&mut machine, lock(b"l", id, true)), Applied::LeaseExists { id });
    let again = machine.run(lock(b"l", id, true));
    let Applied::Locked { ticket, token: Some(token), lease } = again else { panic!("{again:?}") };
    assert_eq!((ticket, lease), (token, id));
    machine.run(unlock(b"l", ticket));
    assert!(machine.view().lease(id).unwrap().is_some(), "it was not made for the lock");
}

#[test]
fn a_large_lease_ends_over_several_entries_and_nobody_revives_it() {
    let mut machine = Machine::new();
    machine.run(Command::Grant { id: 7, ttl_ms: 50 });
    machine.run(lock(b"l", 7, false));
    let keys = 2 * tidy::EXPIRE_MAX;
    for key in 0..keys {
        machine.run(put(format!("k{key}").as_bytes(), b"v", Life::Lease(7)));
    }
    machine.time_ms += 50;
    assert_eq!(machine.run(expire()), Applied::Tidied { more: true });
    assert_eq!(machine.view().keys(), tidy::EXPIRE_MAX as u64, "a part at a time");
    // Some of its keys are gone: it is over for everybody.
    let kept = refused(&mut machine, Command::KeepAlive { ids: vec![7] });
    assert_eq!(kept, Applied::KeptAlive { ttls_ms: vec![None] });
    let put = put(b"k", b"v", Life::Lease(7));
    assert_eq!(refused(&mut machine, put), Applied::NoLease { id: 7 });
    assert_eq!(refused(&mut machine, lock(b"m", 7, true)), Applied::NoLease { id: 7 });
    let grant = Command::Grant { id: 7, ttl_ms: 9 };
    assert_eq!(refused(&mut machine, grant), Applied::LeaseExists { id: 7 });
    let mut entries = 1;
    while machine.run(expire()) != (Applied::Tidied { more: false }) {
        entries += 1;
    }
    assert_eq!(entries, 2, "all its keys, and then itself with its locks");
    assert_eq!(machine.tree(Tree::Meta), []);
    assert_eq!(machine.tree(Tree::Ttl), []);
    let reasons = machine.view().changes(0, usize::MAX, usize::MAX).unwrap();
    let gone = reasons.iter().filter(|change| change.kind == Kind::Delete);
    assert_eq!(gone.filter(|change| change.reason == Reason::Lease).count(), keys);
}

#[test]
fn one_entry_expires_so_many_keys_whatever_leases_they_have() {
    let mut machine = Machine::new();
    for lease in 1..=3 {
        machine.run(Command::Grant { id: lease, ttl_ms: 50 });
        for key in 0..tidy::EXPIRE_MAX - 1 {
            machine.run(put(format!("{lease}/{key}").as_bytes(), b"v", Life::Lease(lease)));
        }
    }
    machine.time_ms += 50;
    let mut left = machine.view().keys();
    while machine.run(expire()) == (Applied::Tidied { more: true }) {
        let now = machine.view().keys();
        assert!(left - now <= tidy::EXPIRE_MAX as u64);
        left = now;
    }
    assert_eq!(machine.view().keys(), 0);
}

/// As long as a value may ever be: see `limits.value`.
const VALUE_LONGEST: usize = (16 << 20) - (64 << 10);

fn op_put(key: &[u8], value: &[u8], prev: bool) -> Op {
    let content = content(value, Life::Endless);
    Op::Put { key: Bytes::copy_from_slice(key), content, prev }
}

fn get(span: Span) -> Op {
    Op::Get { span, limit: u64::MAX }
}

fn transact(then: Vec<Op>) -> Command {
    Command::Txn(Txn { then, ..Txn::default() })
}

fn results(outcome: Applied) -> Vec<OpResult> {
    let Applied::Txn { results, .. } = outcome else { panic!("no transaction: {outcome:?}") };
    results
}

fn named(command: Command, name: &'static [u8], fingerprint: u128) -> Request {
    let once = Some(Once { key: Bytes::from_static(name), fingerprint });
    Request { once, fence: None, command }
}

#[test]
fn a_transaction_answers_with_so_many_bytes() {
    let mut machine = Machine::new();
    let third = vec![0; ANSWER_MAX / 3];
    let many = 10_000;
    for key in ["a", "b", "c", "d"] {
        machine.run(put(key.as_bytes(), &third, Life::Endless));
    }
    let txn = Txn { then: vec![get(Span::prefix(b"")), get(Span::key(b"a"))], ..Txn::default() };
    let read = read(&machine.view(), &txn).unwrap();
    let found = results(read.clone());
    let seen = |result: &OpResult| {
        let OpResult::Got { items, more } = result else { panic!("no read: {result:?}") };
        (items.len(), *more)
    };
    assert_eq!(found.iter().map(seen).collect::<Vec<_>>(), [(2, true), (0, true)]);
    assert_eq!(machine.run(Command::Txn(txn)), read, "the same as an entry");
    // What was replaced and deleted is told as long as there is room.
    let steps = vec![
        op_put(b"a", b"", true),
        op_put(b"b", b"", true),
        op_put(b"c", b"", true),
        Op::Delete { span: Span::key(b"d"), prev: true },
    ];
    let told = results(machine.run(transact(steps)));
    let prev = |result: &OpResult| match result {
        OpResult::Put(written) => written.prev.is_some(),
        OpResult::Deleted { prev, .. } => !prev.is_empty(),
        OpResult::Got { .. } | OpResult::Granted(_) => panic!("no write: {result:?}"),
    };
    assert_eq!(told.iter().map(prev).collect::<Vec<_>>(), [true, true, false, false]);
    // Content types count: without values they are most of it.
    for key in 0..4 * many {
        let content_type = "t".repeat(CONTENT_TYPE_MAX);
        let content = Content { content_type, ..content(b"", Life::Endless) };
        let key = Bytes::from(format!("t/{key}"));
        let write = Write { key, put: Some(content), conditions: Conditions::default() };
        machine.run(Command::Batch(vec![write]));
    }
    let outcome = machine.run(transact(vec![get(Span::prefix(b"t/"))]));
    assert!(outcome.encode().len() < ANSWER_MAX + 1024);
    assert!(matches!(&results(outcome)[..], [OpResult::Got { more: true, .. }]));
}

#[test]
fn the_longest_answer_can_be_remembered() {
    let mut machine = Machine::new();
    machine.run(put(b"long", &vec![0; VALUE_LONGEST], Life::Endless));
    let mut steps = vec![get(Span::key(b"long")), op_put(b"long", b"", true)];
    steps.extend((0..2000_u32).map(|key| op_put(&key.to_le_bytes(), b"", false)));
    let request = named(transact(steps), b"n", 1);
    let first = machine.ask(request.clone());
    assert!(first.encode().len() > 16 << 20, "longer than a tree can hold");
    let Applied::Replayed(again) = machine.ask(request) else { panic!("it happened before") };
    assert_eq!(results(*again.clone())[2..], results(first)[2..]);
    assert_eq!(results(*again)[0], OpResult::Got { items: Vec::new(), more: true });
}

#[test]
fn a_command_has_so_many_steps() {
    let mut machine = Machine::new();
    let many = usize::try_from(DELETE_MAX).unwrap() + 1;
    let write = |key: usize| Write {
        key: Bytes::from(key.to_string()),
        put: None,
        conditions: Conditions::default(),
    };
    let actual = DELETE_MAX + 1;
    for command in [
        Command::Batch((0..many).map(write).collect()),
        Command::KeepAlive { ids: vec![1; many] },
        transact(vec![get(Span::key(b"a")); many]),
    ] {
        assert_eq!(refused(&mut machine, command), Applied::TooMany { actual });
    }
}

#[test]
fn only_a_step_before_makes_the_new_lease() {
    let mut machine = Machine::new();
    let id = machine.next();
    assert_eq!(refused(&mut machine, put(b"k", b"v", Life::NewLease)), Applied::NoLease { id });
    let grant = Op::Grant { ttl_ms: 5 };
    let put = Op::Put {
        key: Bytes::from_static(b"k"),
        content: content(b"v", Life::NewLease),
        prev: false,
    };
    let id = machine.next();
    let outcome = refused(&mut machine, transact(vec![put.clone(), grant.clone()]));
    assert_eq!(outcome, Applied::NoLease { id });
    let id = machine.next();
    let outcome = refused(&mut machine, transact(vec![grant.clone(), grant.clone()]));
    assert_eq!(outcome, Applied::LeaseExists { id });
    let id = machine.next();
    machine.run(transact(vec![grant, put]));
    assert_eq!(machine.get(b"k").unwrap().lease, id);
}

#[test]
fn whatever_is_missing_from_an_index_is_found() {
    let mut machine = Machine::new();
    machine.run(Command::Grant { id: 7, ttl_ms: 50 });
    machine.run(put(b"lease", b"v", Life::Lease(7)));
    machine.run(put(b"ttl", b"v", Life::Ttl(9)));
    machine.ask(named(lock(b"l", 7, false), b"n", 1));
    machine.run(lock(b"l", 0, true));
    machine.run(delete(b"none"));
    let of =
        |tree: &Tree| machine.tree(*tree).into_iter().map(|it| (*tree, it)).collect::<Vec<_>>();
    let pairs: Vec<_> = TREES.iter().flat_map(of).collect();
    let snapshot = machine.snapshot();
    let wrong = |leave: usize, also: Option<(Tree, &[u8], &[u8])>| {
        let mut indexes = Indexes::new(&snapshot);
        for (at, (tree, (key, value))) in pairs.iter().enumerate() {
            if at != leave {
                indexes.pair(*tree, key, value);
            }
        }
        if let Some((tree, key, value)) = also {
            indexes.pair(tree, key, value);
        }
        indexes.wrong()
    };
    let none = pairs.len();
    assert_eq!(wrong(none, None), [""; 0]);
    for (at, (tree, (key, value))) in pairs.iter().enumerate() {
        let place = key.escape_ascii();
        assert!(!wrong(at, None).is_empty(), "{tree:?} {place} is missing");
        assert!(!wrong(none, Some((*tree, key, value))).is_empty(), "{tree:?} {place} is twice");
    }
    let told = |tree, key: &[u8]| wrong(none, Some((tree, key, b""))).join(", ");
    let end = [&9_u64.to_be_bytes()[..], b"\0k"].concat();
    let disagrees = |what| format!("the index of {what} disagrees with what it is made from");
    assert_eq!(told(Tree::Ttl, &end), disagrees("when keys expire"));
    let strange = "is nothing that the state machine writes";
    for tree in TREES {
        assert_eq!(told(tree, b"\x09"), format!("{tree:?} \"\\t\" {strange}"));
    }
    let hung = [b"K", &3_u64.to_be_bytes()[..], b"k"].concat();
    let wanted =
        [&disagrees("which keys hang on a lease"), "keys hang on lease 3, and there is none"];
    assert_eq!(told(Tree::Meta, &hung), wanted.join(", "));
}

#[test]
fn whatever_is_wrong_with_an_event_is_found() {
    let write = |key, machine: &mut Machine| machine.run(put(key, b"v", Life::Endless));
    let mut machine = Machine::new();
    for round in 0..12 {
        write(b"a", &mut machine);
        write(b"b", &mut machine);
        if round % 5 == 3 {
            machine.run(delete(b"a"));
        }
    }
    machine.run(delete(b"b"));
    machine.run(Command::Tidy(Tidy { history_events: 20, ..keep_all() }));
    let pairs: Vec<_> = [Tree::Kv, Tree::History, Tree::Deleted]
        .iter()
        .flat_map(|tree| machine.tree(*tree).into_iter().map(|(key, value)| (*tree, key, value)))
        .collect();
    let compact = machine.view().compact_revision();
    let wrong = |machine: &Machine| {
        let snapshot = machine.snapshot();
        let mut indexes = Indexes::new(&snapshot);
        for tree in TREES {
            for (key, value) in machine.tree(tree) {
                indexes.pair(tree, &key, &value);
            }
        }
        indexes.wrong()
    };
    assert_eq!(wrong(&machine), [""; 0]);
    let store = |machine: &mut Machine, tree, key: &[u8], value: &[u8]| {
        let mut txn = machine.db.begin();
        txn.put(tree, key, value).unwrap();
        txn.commit().unwrap();
    };
    let key_and_head = 20 + 1;
    for (tree, key, value) in pairs {
        let wanted: Vec<usize> = match tree {
            Tree::Kv => (4..8).chain(16..24).collect(),
            // Why it happened and what else the record before says is told by the digest alone,
            // as is how it leads to what is forgotten.
            Tree::History => {
                let event = history::Event::decode(&value).unwrap();
                let is_linked = event.back().unwrap() > history::end_of(compact);
                let link = if event.link.jump.0 > compact { 4..20 } else { 4..8 };
                let back = match event.before {
                    history::Before::Nothing => 0..0,
                    history::Before::Deleted(_) => key_and_head..value.len(),
                    history::Before::Stored(_) => key_and_head + 16..key_and_head + 24,
                };
                let linked = link.chain(back).filter(|_| is_linked);
                [0, 2, 3, 20].into_iter().chain(linked).collect()
            }
            Tree::Deleted | Tree::Ttl | Tree::Session | Tree::Meta => (0..value.len()).collect(),
        };
        for at in wanted {
            for bit in [1, 2, 0x80] {
                let mut other = value.clone();
                other[at] ^= bit;
                store(&mut machine, tree, &key, &other);
                let place = key.escape_ascii();
                assert!(!wrong(&machine).is_empty(), "{tree:?} {place}: byte {at} is another");
            }
        }
        store(&mut machine, tree, &key, &value);
    }
    assert_eq!(wrong(&machine), [""; 0]);
}

#[test]
fn a_key_of_many_changes_is_searched_and_not_walked() {
    const CHANGES: u64 = 10_000;
    let mut machine = Machine::new();
    let write = |round: u64| {
        let command = match round % 50 {
            49 => delete(b"k"),
            _ => put(b"k", &round.to_le_bytes(), Life::Endless),
        };
        (1000, command.into())
    };
    machine.apply_all(&(0..CHANGES).map(write).collect::<Vec<_>>());
    machine.run(put(b"k", b"", Life::Endless));
    let snapshot = machine.snapshot();
    let newest = machine.get(b"k").unwrap().as_record().written_at();
    let (mut most, mut sum) = (0, 0);
    for revision in 0..=CHANGES {
        let mut looked = 0;
        let found = history::first_after(b"k", newest, (revision, u32::MAX), |at| {
            looked += 1;
            history::History(&snapshot).event(at)
        });
        let found = found.unwrap().expect("there is one more");
        assert_eq!(found.back().unwrap(), (revision, 0));
        (most, sum) = (most.max(looked), sum + looked);
    }
    // log2 of 10 000 is 13.3.
    assert!(most <= 40, "{most} events were looked at");
    assert!(sum <= 27 * CHANGES, "{sum} events were looked at");
}

fn fenced(command: Command, token: u64) -> Request {
    let fence = Some(Fence { name: Bytes::from_static(b"l"), token });
    Request { once: None, fence, command }
}

/// Takes a lock and says with which token, if at once.
fn taken(machine: &mut Machine, command: Command) -> (u64, Option<u64>) {
    let outcome = machine.run(command);
    let Applied::Locked { ticket, token, .. } = outcome else { panic!("no lock: {outcome:?}") };
    (ticket, token)
}

#[test]
fn a_fence_lets_only_the_holder_write() {
    let mut machine = Machine::new();
    let write = || put(b"k", b"v", Life::Endless);
    assert_eq!(machine.ask(fenced(write(), 1)), Applied::Fenced { current: None });
    let (first, token) = taken(&mut machine, lock(b"l", 0, true));
    assert_eq!(token, Some(first), "held at once");
    assert!(matches!(machine.ask(fenced(write(), first)), Applied::Put(_)));
    let (second, token) = taken(&mut machine, lock(b"l", 0, true));
    assert_eq!(token, None, "waiting");
    assert_eq!(machine.ask(fenced(delete(b"k"), second)), Applied::Fenced { current: Some(first) });
    let now = machine.next();
    assert_eq!(machine.run(unlock(b"l", first)), Applied::Unlocked { revision: now });
    assert_eq!(machine.ask(fenced(delete(b"k"), first)), Applied::Fenced { current: Some(now) });
    assert!(machine.get(b"k").is_some(), "who lost the lock changes nothing");
    assert!(matches!(machine.ask(fenced(delete(b"k"), now)), Applied::Deleted { deleted: 1, .. }));
    assert_eq!(refused(&mut machine, unlock(b"l", first)), Applied::NoLock);
    assert!(matches!(machine.run(unlock(b"l", second)), Applied::Unlocked { .. }));
}

#[test]
fn a_named_request_happens_once_until_it_is_forgotten() {
    let mut machine = Machine::new();
    let create = || Command::Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        content_type: String::new(),
        life: Life::Endless,
        conditions: Conditions { if_match: None, if_none_match: Some(Tags::Any) },
        prev: false,
    };
    let first = machine.ask(named(create(), b"n", 1));
    assert!(matches!(first, Applied::Put(_)));
    let replayed = Applied::Replayed(Box::new(first));
    assert_eq!(machine.ask(named(create(), b"n", 1)), replayed);
    machine.reopen();
    machine.run(delete(b"k"));
    assert_eq!(machine.ask(named(create(), b"n", 1)), replayed, "whatever happened since");
    assert_eq!(machine.ask(named(delete(b"k"), b"n", 2)), Applied::OtherRequest);
    assert_eq!(machine.get(b"k"), None);
    // A refusal is an outcome as well.
    machine.run(create());
    let failed = machine.ask(named(create(), b"m", 1));
    assert!(matches!(failed, Applied::ConditionFailed { .. }));
    machine.run(delete(b"k"));
    assert_eq!(machine.ask(named(create(), b"m", 1)), Applied::Replayed(Box::new(failed)));
    // So is one that a fence stopped.
    let mut request = fenced(create(), 5);
    request.once = named(create(), b"f", 1).once;
    let stopped = machine.ask(request.clone());
    assert_eq!(machine.ask(request), Applied::Replayed(Box::new(stopped)));
    machine.time_ms += 100;
    machine.run(Command::Tidy(Tidy { once_ms: 100, ..keep_all() }));
    assert_eq!(machine.ask(named(create(), b"n", 1)), replayed, "not older than that");
    machine.time_ms += 1;
    machine.run(Command::Tidy(Tidy { once_ms: 100, ..keep_all() }));
    assert!(matches!(machine.ask(named(create(), b"n", 1)), Applied::Put(_)), "forgotten");
}

#[test]
fn a_lock_asked_for_again_under_its_lease_answers_the_same() {
    let mut machine = Machine::new();
    machine.run(Command::Grant { id: 7, ttl_ms: 50 });
    machine.run(Command::Grant { id: 8, ttl_ms: 50 });
    let held = machine.run(lock(b"l", 7, false));
    assert_eq!(refused(&mut machine, lock(b"l", 7, false)), held);
    let token = machine.next() - 2;
    assert_eq!(refused(&mut machine, lock(b"l", 8, false)), Applied::Held { token });
    let waiting = machine.run(lock(b"l", 8, true));
    assert!(matches!(waiting, Applied::Locked { token: None, .. }));
    assert_eq!(refused(&mut machine, lock(b"l", 8, true)), waiting);
    // It is had by the one who waited, under the ticket it knows.
    machine.time_ms += 49;
    machine.run(Command::KeepAlive { ids: vec![8] });
    machine.time_ms += 1;
    let now = machine.next();
    machine.run(expire());
    let Applied::Locked { ticket, .. } = waiting else { panic!("it was told above") };
    let wanted = Applied::Locked { ticket, token: Some(now), lease: 8 };
    assert_eq!(refused(&mut machine, lock(b"l", 8, true)), wanted);
}

#[test]
fn giving_a_lock_back_ends_the_lease_that_was_made_for_it() {
    let mut machine = Machine::new();
    let (ticket, _) = taken(&mut machine, lock(b"l", 0, true));
    machine.run(put(b"k", b"v", Life::Lease(ticket)));
    machine.run(lock(b"m", ticket, true));
    machine.run(unlock(b"l", ticket));
    assert_eq!(machine.get(b"k"), None);
    assert_eq!(machine.view().lock(b"m", 1).unwrap(), None);
    assert_eq!(machine.tree(Tree::Meta), []);
}

fn touch(key: &[u8], ttl_ms: Option<u64>) -> Command {
    let key = Bytes::copy_from_slice(key);
    Command::Touch { key, ttl_ms, conditions: Conditions::default() }
}

#[test]
fn a_key_has_a_time_or_a_lease_and_the_last_word_counts() {
    let mut machine = Machine::new();
    machine.run(Command::Grant { id: 7, ttl_ms: 50 });
    let life = |machine: &Machine| {
        let record = machine.get(b"k").unwrap();
        (record.lease, record.expiry_ms.saturating_sub(machine.time_ms))
    };
    machine.run(put(b"k", b"v", Life::Lease(7)));
    let revision = machine.view().revision();
    machine.run(touch(b"k", None));
    assert_eq!(life(&machine), (7, 0), "no time is taken from a lease");
    machine.run(touch(b"k", Some(5)));
    assert_eq!(life(&machine), (0, 5), "a time takes the place of a lease");
    machine.run(touch(b"k", None));
    assert_eq!(life(&machine), (0, 0));
    assert_eq!(machine.view().revision(), revision, "no new version");
    assert_eq!(machine.view().changes(revision, 9, 999).unwrap(), []);
    machine.run(put(b"k", b"v", Life::Ttl(5)));
    assert_eq!(life(&machine), (0, 5));
    machine.run(put(b"k", b"v", Life::Lease(7)));
    assert_eq!(life(&machine), (7, 0));
    machine.run(put(b"k", b"v", Life::Endless));
    assert_eq!(life(&machine), (0, 0));
    assert_eq!(refused(&mut machine, touch(b"none", Some(5))), Applied::NoKey);
    // A key is there until its very time.
    machine.run(put(b"k", b"v", Life::Ttl(5)));
    machine.time_ms += 4;
    machine.run(expire());
    assert_eq!(life(&machine), (0, 1));
    machine.time_ms += 1;
    machine.run(expire());
    assert_eq!(machine.get(b"k"), None);
    let last = machine.view().history(b"k", u64::MAX, 1, usize::MAX).unwrap().0;
    assert_eq!(last[0].reason, Reason::Ttl);
}

#[test]
fn one_command_deletes_so_many_keys() {
    let mut machine = Machine::new();
    let most = u32::try_from(DELETE_MAX).unwrap();
    let write = |key: u32| Write {
        key: Bytes::copy_from_slice(&key.to_be_bytes()),
        put: Some(content(b"", Life::Endless)),
        conditions: Conditions::default(),
    };
    machine.run(Command::Batch((0..most).map(write).collect()));
    machine.run(Command::Batch(vec![write(most)]));
    let all = || Span::prefix(b"");
    let actual = DELETE_MAX + 1;
    let range = Command::DeleteRange { span: all() };
    assert_eq!(refused(&mut machine, range), Applied::TooMany { actual });
    let half = Bytes::copy_from_slice(&(most / 2).to_be_bytes());
    let halves = [
        Span { start: Bytes::new(), end: Some(half.clone()) },
        Span { start: half.clone(), end: None },
    ];
    let mut steps = vec![op_put(b"k", b"", false)];
    steps.extend(halves.map(|span| Op::Delete { span, prev: false }));
    assert_eq!(refused(&mut machine, transact(steps)), Applied::TooMany { actual });
    let revision = machine.next();
    machine.run(Command::Delete { key: half, conditions: Conditions::default(), prev: false });
    let outcome = machine.run(Command::DeleteRange { span: all() });
    let wanted = Applied::Deleted { deleted: DELETE_MAX, revision: revision + 1, prev: None };
    assert_eq!(outcome, wanted, "as many as may be");
}

#[test]
fn a_transaction_happens_as_a_whole_or_not_at_all() {
    let mut machine = Machine::new();
    machine.run(put(b"a", b"0", Life::Endless));
    let lost = Op::Put {
        key: Bytes::from_static(b"z"),
        content: content(b"v", Life::Lease(9)),
        prev: false,
    };
    let steps = vec![op_put(b"a", b"1", false), lost];
    assert_eq!(refused(&mut machine, transact(steps)), Applied::NoLease { id: 9 });
    let id = machine.next() + 1;
    machine.run(Command::Grant { id, ttl_ms: 5 });
    let steps = vec![op_put(b"a", b"1", false), Op::Grant { ttl_ms: 5 }];
    assert_eq!(refused(&mut machine, transact(steps)), Applied::LeaseExists { id });
    // Steps see what those before them did.
    let revision = machine.next();
    let steps = vec![
        op_put(b"b", b"1", false),
        get(Span::prefix(b"")),
        Op::Delete { span: Span::key(b"a"), prev: true },
        get(Span::prefix(b"")),
    ];
    let found = results(machine.run(transact(steps)));
    let keys = |result: &OpResult| match result {
        OpResult::Got { items, .. } => items.iter().map(|(key, _)| key.clone()).collect(),
        OpResult::Deleted { prev, .. } => prev.iter().map(|(key, _)| key.clone()).collect(),
        OpResult::Put(written) => vec![Bytes::from(written.revision.to_string())],
        OpResult::Granted(_) => Vec::new(),
    };
    let wanted = [
        vec![revision.to_string()],
        vec!["a".into(), "b".into()],
        vec!["a".into()],
        vec!["b".into()],
    ];
    assert_eq!(found.iter().map(keys).collect::<Vec<_>>(), wanted);
    let changes = machine.view().changes(revision - 1, 1, 1).unwrap();
    assert_eq!(changes.len(), 2, "one revision is told as a whole");
}

#[test]
fn removing_what_is_not_there_leaves_no_trace() {
    let mut machine = Machine::new();
    machine.run(put(b"k", b"v", Life::Endless));
    let revision = machine.view().revision();
    let wanted = Applied::Deleted { deleted: 0, revision, prev: None };
    assert_eq!(refused(&mut machine, delete(b"none")), wanted);
    let range = Command::DeleteRange { span: Span::prefix(b"none") };
    assert_eq!(refused(&mut machine, range), wanted);
    assert_eq!(machine.view().changes(revision, 9, 999).unwrap(), []);
}

#[test]
fn writes_of_a_batch_have_their_own_outcomes() {
    let mut machine = Machine::new();
    machine.run(put(b"b", b"v", Life::Endless));
    let revision = machine.next();
    let write = |key: &'static [u8], put: Option<Content>| {
        let conditions = Conditions::default();
        Write { key: Bytes::from_static(key), put, conditions }
    };
    let create = Conditions { if_match: None, if_none_match: Some(Tags::Any) };
    let writes = vec![
        write(b"a", Some(content(b"1", Life::Endless))),
        Write { conditions: create, ..write(b"b", Some(content(b"1", Life::Endless))) },
        write(b"c", Some(content(b"1", Life::Lease(9)))),
        write(b"d", None),
    ];
    let written = Written {
        revision,
        create_revision: revision,
        version: 1,
        lease: 0,
        ttl_ms: 0,
        prev: None,
    };
    let outcomes = vec![
        Applied::Put(written),
        Applied::ConditionFailed { current: Some(revision - 1) },
        Applied::NoLease { id: 9 },
        Applied::Deleted { deleted: 0, revision, prev: None },
    ];
    assert_eq!(machine.run(Command::Batch(writes)), Applied::Batch { outcomes });
    assert_eq!(machine.view().keys(), 2);
}

#[test]
fn what_is_no_request_changes_nothing() {
    let mut machine = Machine::new();
    let id = LogId { term: Term(1), index: Index(1) };
    let payload = Bytes::from_static(b"\xff");
    let entry = Entry { id, kind: EntryKind::Command, time_ms: 9, chain: 0, payload };
    let mut txn = machine.db.begin();
    assert_eq!(apply(&mut txn, &entry).unwrap(), Applied::Unknown);
    txn.commit().unwrap();
    assert_eq!((machine.digest(), machine.view().time_ms()), (0, 9), "only the time goes on");
}

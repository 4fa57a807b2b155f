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
    match outcome {
        Applied::Txn { results, .. } => results,
        other => panic!("no transaction: {other:?}"),
    }
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
    let seen = |result: &OpResult| match result {
        OpResult::Got { items, more } => (items.len(), *more),
        other => panic!("no read: {other:?}"),
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
        other => panic!("no write: {other:?}"),
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
    let pairs: Vec<(Tree, (Vec<u8>, Vec<u8>))> = TREES
        .iter()
        .flat_map(|tree| machine.tree(*tree).into_iter().map(|it| (*tree, it)))
        .collect();
    let wrong = |leave: usize, also: Option<(Tree, &[u8], &[u8])>| {
        let mut indexes = Indexes::default();
        for (at, (tree, (key, value))) in pairs.iter().enumerate() {
            if at != leave {
                indexes.pair(*tree, key, value);
            }
        }
        if let Some((tree, key, value)) = also {
            indexes.pair(tree, key, value);
        }
        indexes.wrong(machine.db.state())
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

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

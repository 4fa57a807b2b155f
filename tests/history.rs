//! The judge is judged: histories whose verdict is known, by hand and by brute force.
#![allow(clippy::too_many_lines, reason = "a table of cases is one thing")]

use mmapd::linear::{Action, Expect, History, Outcome, Recorder};

fn put(value: &str) -> Action {
    Action::put(value)
}

fn put_if(value: &str, expect: &str) -> Action {
    Action::put_if(value, Expect::Value(expect.into()))
}

fn saw(value: &str) -> Outcome {
    Outcome::read(Some(value.as_bytes()))
}

fn done_at(revision: u64) -> Outcome {
    Outcome::Done { revision: Some(revision), existed: None }
}

fn nothing() -> Outcome {
    Outcome::read(None)
}

type Row = (u64, u64, Action, Outcome);

fn history(rows: Vec<Row>) -> History {
    let mut history = History::default();
    for (called, returned, action, outcome) in rows {
        history.push((called, returned), "k", action, outcome);
    }
    history
}

#[test]
fn known_histories_get_their_verdict() {
    use Action::Get;
    use Outcome::{Failed, Mismatch, Unknown};
    let done = Outcome::done;
    let new = || Outcome::Done { revision: None, existed: Some(false) };
    let replaced = || Outcome::Done { revision: None, existed: Some(true) };
    let never = 1_000;
    let cases: Vec<(&str, bool, Vec<Row>)> = vec![
        ("nothing happened", true, vec![]),
        ("a fresh key is empty", true, vec![(1, 2, Get, nothing())]),
        ("a value from nowhere", false, vec![(1, 2, Get, saw("a"))]),
        ("reads its write", true, vec![(1, 2, put("a"), done()), (3, 4, Get, saw("a"))]),
        ("a lost write", false, vec![(1, 2, put("a"), done()), (3, 4, Get, nothing())]),
        (
            "a stale read",
            false,
            vec![(1, 2, put("a"), done()), (3, 4, put("b"), done()), (5, 6, Get, saw("a"))],
        ),
        (
            "an overlapping read may see either",
            true,
            vec![
                (1, 2, put("a"), done()),
                (3, 9, put("b"), done()),
                (4, 5, Get, saw("a")),
                (6, 7, Get, saw("b")),
            ],
        ),
        (
            "but not first the new and then the old",
            false,
            vec![
                (1, 2, put("a"), done()),
                (3, 9, put("b"), done()),
                (4, 5, Get, saw("b")),
                (6, 7, Get, saw("a")),
            ],
        ),
        (
            "equal times count as concurrent",
            true,
            vec![(1, 5, put("a"), done()), (5, 6, Get, nothing())],
        ),
        (
            "a failed write is not seen",
            false,
            vec![(1, 2, put("a"), Failed), (3, 4, Get, saw("a"))],
        ),
        (
            "an unknown write may never happen",
            true,
            vec![(1, 2, put("a"), Unknown), (3, 4, Get, nothing())],
        ),
        (
            "an unknown write may be seen much later",
            true,
            vec![
                (1, 2, put("a"), Unknown),
                (3, 4, put("b"), done()),
                (5, 6, Get, saw("b")),
                (7, 8, Get, saw("a")),
            ],
        ),
        (
            "an unknown write happens once",
            false,
            vec![
                (1, 2, put("a"), Unknown),
                (3, 4, Get, saw("a")),
                (5, 6, put("b"), done()),
                (7, 8, Get, saw("a")),
            ],
        ),
        (
            "an acknowledged write happens once",
            false,
            vec![
                (1, 2, put("a"), done()),
                (3, 4, put("b"), done()),
                (5, 6, Get, saw("b")),
                (7, 8, Get, saw("a")),
            ],
        ),
        (
            "an unknown write is not seen before it is asked for",
            false,
            vec![(1, 2, Get, saw("a")), (3, 4, put("a"), Unknown)],
        ),
        (
            "an unknown delete may happen later",
            true,
            vec![
                (1, 2, put("a"), done()),
                (3, 4, Action::delete(), Unknown),
                (5, 6, Get, saw("a")),
                (7, 8, Get, nothing()),
            ],
        ),
        (
            "and once",
            false,
            vec![
                (1, 2, put("a"), done()),
                (3, 4, Action::delete(), Unknown),
                (5, 6, Get, nothing()),
                (7, 8, put("b"), done()),
                (9, 10, Get, nothing()),
            ],
        ),
        (
            "two unknown writes of one value may both happen",
            true,
            vec![
                (1, 2, put("a"), Unknown),
                (1, 2, put("a"), Unknown),
                (3, 4, Get, saw("a")),
                (5, 6, put("b"), done()),
                (7, 8, Get, saw("a")),
            ],
        ),
        (
            "a deleted key is gone",
            false,
            vec![(1, 2, put("a"), done()), (3, 4, Action::delete(), done()), (5, 6, Get, saw("a"))],
        ),
        (
            "201 for a new key, then 200",
            true,
            vec![(1, 2, put("a"), new()), (3, 4, put("b"), replaced())],
        ),
        (
            "201 for a key that is there",
            false,
            vec![(1, 2, put("a"), new()), (3, 4, put("b"), new())],
        ),
        (
            "200 because of an unknown write nobody saw",
            true,
            vec![(1, 2, put("a"), Unknown), (3, 4, put("b"), replaced())],
        ),
        (
            "nothing to delete where a write was acknowledged",
            false,
            vec![(1, 2, put("a"), done()), (3, 4, Action::delete(), new())],
        ),
        (
            "only one of two creates wins",
            false,
            vec![
                (1, 9, Action::put_if("a", Expect::Absent), done()),
                (2, 8, Action::put_if("b", Expect::Absent), done()),
            ],
        ),
        (
            "the other is refused",
            true,
            vec![
                (1, 9, Action::put_if("a", Expect::Absent), done()),
                (2, 8, Action::put_if("b", Expect::Absent), Mismatch),
                (10, 11, Get, saw("a")),
            ],
        ),
        (
            "refused although nobody was there",
            false,
            vec![(1, 2, Action::put_if("a", Expect::Absent), Mismatch)],
        ),
        (
            "compare and set, twice from one value",
            false,
            vec![
                (1, 2, put("a"), done()),
                (3, 9, put_if("b", "a"), done()),
                (4, 8, put_if("c", "a"), done()),
            ],
        ),
        (
            "compare and set through an unknown step",
            true,
            vec![
                (1, 2, put("a"), done()),
                (3, 9, put_if("b", "a"), Unknown),
                (10, 12, put_if("c", "b"), done()),
                (13, 14, Get, saw("c")),
            ],
        ),
        (
            "an unknown compare and set cannot come after its value went",
            false,
            vec![
                (1, 2, put("a"), done()),
                (3, 4, put_if("b", "a"), Unknown),
                (5, 6, put("c"), done()),
                (7, 8, Get, saw("c")),
                (9, 10, Get, saw("b")),
            ],
        ),
        (
            "refused while its value was there throughout",
            false,
            vec![(1, 2, put("a"), done()), (3, 4, put_if("b", "a"), Mismatch)],
        ),
        ("an unanswered read proves nothing", true, vec![(1, never, Get, Unknown)]),
        (
            "revisions order concurrent writes",
            true,
            vec![
                (1, 9, put("a"), done_at(7)),
                (1, 9, put("b"), done_at(6)),
                (10, 11, Get, saw("a")),
            ],
        ),
        (
            "and are believed",
            false,
            vec![
                (1, 9, put("a"), done_at(7)),
                (1, 9, put("b"), done_at(6)),
                (10, 11, Get, saw("b")),
            ],
        ),
        (
            "a revision that goes back",
            false,
            vec![(1, 2, put("a"), done_at(7)), (3, 4, put("b"), done_at(6))],
        ),
    ];
    for (why, linearizable, rows) in cases {
        let verdict = history(rows).check();
        assert!(verdict.undecided.is_empty(), "{why}: {verdict}");
        assert_eq!(verdict.is_ok(), linearizable, "{why}: {verdict}");
    }
}

#[test]
fn a_write_applied_twice_shows_in_its_revision() {
    let read = Outcome::Read { value: Some(b"a".to_vec()), revision: Some(9) };
    let verdict = history(vec![(1, 2, put("a"), done_at(5)), (3, 4, Action::Get, read)]).check();
    assert!(verdict.to_string().contains("revision 5 here and 9 there"), "{verdict}");
}

#[test]
fn the_report_names_the_key_and_little_else() {
    let mut history = History::default();
    let mut now = 0;
    let mut push = |key: &str, action, outcome| {
        now += 2;
        history.push((now, now + 1), key, action, outcome);
    };
    for n in 0..500 {
        for key in ["good", "bad"] {
            push(key, put(&format!("v{n}")), Outcome::done());
            push(key, Action::Get, saw(&format!("v{n}")));
        }
    }
    push("bad", Action::Get, saw("v498"));
    let verdict = history.check();
    assert_eq!((verdict.keys, verdict.violations.len()), (2, 1), "{verdict}");
    let violation = &verdict.violations[0];
    assert_eq!(violation.key, b"bad");
    assert!(violation.window.len() <= 4, "{verdict}");
    assert!(verdict.to_string().contains("\"v498\""), "{verdict}");
}

#[test]
fn conditions_and_deletes_do_not_swell_the_report() {
    let mut history = simulated(&mut Chance(5), 3_000, 6, 1, true);
    let end = 1_000_000;
    let odd = Outcome::Read { value: Some(b"never written".to_vec()), revision: Some(3) };
    history.push((end, end + 1), "k0", Action::Get, odd);
    let verdict = history.check();
    assert_eq!(verdict.violations.len(), 1, "{verdict}");
    assert_eq!(verdict.violations[0].window.len(), 1, "{verdict}");
}

#[test]
fn a_stale_answer_is_reported_with_what_it_missed() {
    let mut history = simulated(&mut Chance(9), 3_000, 6, 1, true);
    let end = 1_000_000;
    history.push((end, end + 1), "k0", put("last"), done_at(end));
    history.push((end + 2, end + 3), "k0", Action::Get, nothing());
    let verdict = history.check();
    // Deletes of unknown outcome could explain it; this register has none.
    assert_eq!(verdict.violations.len(), 1, "{verdict}");
    assert!(verdict.violations[0].window.len() <= 4, "{verdict}");
}

#[test]
fn running_out_of_steps_is_not_ok() {
    let mut rows: Vec<Row> =
        (0..24).map(|n| (1, 100, put(&format!("v{n}")), Outcome::done())).collect();
    rows.extend((0..24).map(|n| (1, 100, Action::Get, saw(&format!("v{n}")))));
    rows.push((101, 102, Action::Get, nothing()));
    let verdict = history(rows).check_within(10_000);
    assert!(!verdict.is_ok() && verdict.violations.is_empty(), "{verdict}");
    assert_eq!(verdict.undecided.len(), 1);
}

/// A small generator, so that a failure repeats.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Clients of a true register: each takes effect at one instant inside its interval.
fn simulated(chance: &mut Chance, ops: u64, clients: u64, keys: u64, revisions: bool) -> History {
    let mut history = History::default();
    let mut state: Vec<Option<(String, u64)>> = vec![None; usize::try_from(keys).expect("few")];
    let mut free = vec![0u64; usize::try_from(clients).expect("few")];
    let mut late: Vec<(u64, usize, Option<String>)> = Vec::new();
    for n in 0..ops {
        let now = (n + 1) * 10;
        late.retain(|(at, key, value)| {
            let due = *at <= now;
            if due {
                state[*key] = value.clone().map(|value| (value, now - 1));
            }
            !due
        });
        let client = usize::try_from(chance.below(clients)).expect("few");
        let called = free[client].max(now.saturating_sub(chance.below(40))).min(now);
        let returned = now + chance.below(40);
        free[client] = returned + 1;
        let key = usize::try_from(chance.below(keys)).expect("few");
        let name = format!("k{key}");
        let value = format!("v{n}");
        let existed = Some(state[key].is_some());
        let revision = revisions.then_some(now);
        match chance.below(10) {
            0 => {
                history.push((called, returned), &name, put(&value), Outcome::Unknown);
                match chance.below(3) {
                    0 => state[key] = Some((value, now)),
                    1 => late.push((now + chance.below(500), key, Some(value))),
                    _ => {}
                }
            }
            1..4 => {
                history.push(
                    (called, returned),
                    &name,
                    put(&value),
                    Outcome::Done { revision, existed },
                );
                state[key] = Some((value, now));
            }
            4 => {
                let outcome = Outcome::Done { revision, existed };
                history.push((called, returned), &name, Action::delete(), outcome);
                state[key] = None;
            }
            5 => {
                let action = Action::put_if(value.as_bytes(), Expect::Absent);
                let outcome = if existed == Some(true) {
                    Outcome::Mismatch
                } else {
                    state[key] = Some((value, now));
                    Outcome::Done { revision, existed }
                };
                history.push((called, returned), &name, action, outcome);
            }
            _ => {
                let (value, at) = state[key].clone().unzip();
                let outcome = Outcome::Read {
                    value: value.map(String::into_bytes),
                    revision: at.filter(|_| revisions),
                };
                history.push((called, returned), &name, Action::Get, outcome);
            }
        }
    }
    history
}

#[test]
fn a_true_register_is_never_accused() {
    for seed in 1..200 {
        let chance = &mut Chance(seed);
        let (clients, keys) = (1 + chance.below(7), 1 + chance.below(3));
        let history = simulated(chance, 300, clients, keys, seed % 2 == 0);
        let verdict = history.check();
        assert!(verdict.is_ok(), "seed {seed}: {verdict}");
    }
}

#[test]
fn a_hundred_thousand_operations_are_judged_at_once() {
    let history = simulated(&mut Chance(7), 120_000, 16, 12, true);
    history.check().expect_linearizable();
    assert!(history.unknown() > 10_000);
}

#[test]
fn crowds_without_revisions_are_decided() {
    for (clients, keys, ops) in [(12, 1, 20_000), (24, 2, 20_000), (24, 1, 20_000)] {
        let verdict = simulated(&mut Chance(clients), ops, clients, keys, false).check();
        assert!(verdict.is_ok(), "{clients} clients on {keys} keys: {verdict}");
    }
}

/// Tries every order: the definition itself, for histories of a few operations.
fn brute_force(rows: &[Row]) -> bool {
    fn go(rows: &[Row], done: u32, state: Option<&str>) -> bool {
        let open = |i: usize| done >> i & 1 == 0;
        let must = |i: usize| open(i) && rows[i].3 != Outcome::Unknown;
        if !(0..rows.len()).any(must) {
            return true;
        }
        (0..rows.len()).filter(|&i| open(i)).any(|i| {
            let (called, _, action, outcome) = &rows[i];
            // Nothing that must come before may still be open.
            if (0..rows.len()).any(|j| j != i && must(j) && rows[j].1 < *called) {
                return false;
            }
            let next = match action {
                Action::Get => {
                    let Outcome::Read { value, .. } = outcome else { return false };
                    if value.as_deref() != state.map(str::as_bytes) {
                        return false;
                    }
                    state
                }
                Action::Put { value, expect } => {
                    let holds = match expect {
                        None => true,
                        Some(Expect::Absent) => state.is_none(),
                        Some(Expect::Present) => state.is_some(),
                        Some(Expect::Value(want)) => {
                            Some(want.as_slice()) == state.map(str::as_bytes)
                        }
                    };
                    match (outcome, holds) {
                        (Outcome::Mismatch, false) => state,
                        (Outcome::Mismatch, true) => return false,
                        (Outcome::Unknown, false) => state,
                        (_, true) => Some(std::str::from_utf8(value).expect("text")),
                        (_, false) => return false,
                    }
                }
                Action::Delete { .. } => None,
            };
            go(rows, done | 1 << i, next)
        })
    }
    go(rows, 0, None)
}

#[test]
fn it_agrees_with_trying_every_order() {
    let (mut yes, mut no) = (0, 0);
    for seed in 1..6_000 {
        let chance = &mut Chance(seed * 7919);
        let count = 2 + chance.below(6);
        let value = |chance: &mut Chance| format!("v{}", chance.below(4));
        let rows: Vec<Row> = (0..count)
            .map(|n| {
                let called = 1 + chance.below(12);
                let returned = called + chance.below(8);
                let (action, outcome) = match chance.below(9) {
                    0 => (put(&format!("v{n}")), Outcome::Unknown),
                    1 => (put(&value(chance)), Outcome::Unknown),
                    2 | 3 => (put(&format!("v{n}")), Outcome::done()),
                    4 => (Action::delete(), Outcome::done()),
                    5 => (Action::put_if(value(chance), Expect::Absent), Outcome::Mismatch),
                    6 => (put_if(&format!("v{n}"), &value(chance)), Outcome::done()),
                    7 => (Action::Get, nothing()),
                    _ => (Action::Get, saw(&value(chance))),
                };
                (called, returned, action, outcome)
            })
            .collect();
        let expected = brute_force(&rows);
        let verdict = history(rows).check();
        assert_eq!(verdict.is_ok(), expected, "seed {seed}: {verdict}");
        if expected { yes += 1 } else { no += 1 }
    }
    assert!(yes > 500 && no > 500, "the generator makes both kinds: {yes} and {no}");
}

#[test]
fn a_recorder_orders_what_threads_saw() {
    let recorder = Recorder::default();
    let cell = std::sync::Mutex::new(None::<String>);
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (recorder, cell) = (&recorder, &cell);
            scope.spawn(move || {
                for n in 0..200 {
                    let value = format!("{client}-{n}");
                    let id = recorder.begin(client, "k", put(&value));
                    *cell.lock().expect("unpoisoned") = Some(value);
                    recorder.end(id, Outcome::done());
                    let id = recorder.begin(client, "k", Action::Get);
                    let value = cell.lock().expect("unpoisoned").clone();
                    recorder.end(id, Outcome::read(value.as_deref().map(str::as_bytes)));
                }
            });
        }
    });
    let history = recorder.history();
    assert_eq!(history.len(), 1_600);
    history.check().expect_linearizable();
}

use std::sync::Mutex;
use std::task::Wake;

use super::*;
use crate::machine::{Change, Kind, Reason};

const NOTHING: [u64; 0] = [];

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(Mutex<u32>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() += 1;
    }
}

struct Listener {
    id: u64,
    selectors: Vec<Selector>,
    position: u64,
    woken: Arc<Woken>,
}

impl Listener {
    fn join(board: &mut Board, selectors: &[Selector], position: u64) -> Self {
        let id = board.join(selectors, position);
        Self { id, selectors: selectors.to_vec(), position, woken: Arc::default() }
    }

    fn take(&mut self, board: &mut Board, bytes: usize) -> Taken {
        let selectors = &self.selectors;
        let wants = |key: &[u8]| selectors.iter().any(|selector| selector.selects(key));
        board.take(self.id, &mut self.position, wants, bytes, &Waker::from(self.woken.clone()))
    }

    /// Everything that is in the ring for it.
    fn all(&mut self, board: &mut Board) -> Vec<u64> {
        let mut seen = Vec::new();
        loop {
            match self.take(board, 1) {
                Taken::Some(revisions) => {
                    seen.extend(revisions.iter().map(|revision| revision.revision));
                }
                Taken::Nothing => return seen,
                taken @ (Taken::Behind | Taken::Ended) => {
                    panic!("{taken:?} at {}", self.position)
                }
            }
        }
    }

    fn woken(&self) -> u32 {
        std::mem::take(&mut *self.woken.0.lock().unwrap())
    }
}

fn prefix(text: &'static str) -> Selector {
    Selector::Prefix(Bytes::from_static(text.as_bytes()))
}

fn key(text: &'static str) -> Selector {
    Selector::Key(Bytes::from_static(text.as_bytes()))
}

fn revision(revision: u64, keys: &[&str]) -> Arc<Revision> {
    let change = |key: &&str| Change {
        revision,
        kind: Kind::Delete,
        reason: Reason::Request,
        key: Bytes::copy_from_slice(key.as_bytes()),
        record: None,
        prev: None,
    };
    let mut one = crate::node::changes::by_revision(keys.iter().map(change).collect());
    one.pop().unwrap()
}

fn add(board: &mut Board, revisions: &[(u64, &[&str])], reached: u64) {
    add_within(board, revisions, reached, usize::MAX);
}

fn add_within(board: &mut Board, revisions: &[(u64, &[&str])], reached: u64, bytes: usize) {
    let from = board.newest();
    let made = revisions.iter().map(|&(number, keys)| revision(number, keys)).collect();
    board.add(from, made, reached, bytes).into_iter().for_each(Waker::wake);
}

#[test]
fn only_those_are_woken_who_want_it_and_only_once() {
    let mut board = Board::default();
    board.begin(10);
    let mut a = Listener::join(&mut board, &[prefix("a/"), key("b")], 10);
    let mut b = Listener::join(&mut board, &[key("b")], 10);
    let mut all = Listener::join(&mut board, &[prefix("")], 10);
    for one in [&mut a, &mut b, &mut all] {
        assert_eq!(one.all(&mut board), NOTHING);
    }
    add(&mut board, &[(12, &["a/1"]), (13, &["a/2", "c"])], 14);
    add(&mut board, &[(15, &["a"])], 15);
    assert_eq!((a.woken(), b.woken(), all.woken()), (1, 0, 1));
    assert_eq!(a.all(&mut board), [12, 13]);
    assert_eq!(b.all(&mut board), NOTHING);
    assert_eq!(all.all(&mut board), [12, 13, 15]);
    // Also who was not woken is as far as all.
    assert_eq!((a.position, b.position, all.position), (15, 15, 15));
    add(&mut board, &[(20, &["b"])], 20);
    assert_eq!((a.woken(), b.woken(), all.woken()), (1, 1, 1));
    assert_eq!((a.all(&mut board), b.all(&mut board)), (vec![20], vec![20]));
    board.leave(b.id, &b.selectors);
    add(&mut board, &[(21, &["b"])], 21);
    assert_eq!((a.woken(), b.woken()), (1, 0));
}

#[test]
fn revisions_come_whole_and_in_portions() {
    let mut board = Board::default();
    board.begin(0);
    let mut one = Listener::join(&mut board, &[prefix("")], 0);
    add(&mut board, &[(1, &["a", "b", "c"]), (2, &["a"]), (3, &["a"])], 3);
    let weight = revision(2, &["a"]).changes[0].change.weight();
    let Taken::Some(first) = one.take(&mut board, 1) else { panic!("there is something") };
    assert_eq!((first.len(), first[0].changes.len(), one.position), (1, 3, 1));
    let Taken::Some(rest) = one.take(&mut board, 2 * weight) else { panic!("there is more") };
    assert_eq!((rest.len(), one.position), (2, 3));
    assert!(matches!(one.take(&mut board, 1), Taken::Nothing));
}

#[test]
fn who_is_behind_the_ring_is_told_and_who_wants_nothing_is_not_behind() {
    let mut board = Board::default();
    board.begin(5);
    let mut busy = Listener::join(&mut board, &[prefix("a")], 5);
    let mut idle = Listener::join(&mut board, &[prefix("z")], 5);
    let mut past = Listener::join(&mut board, &[prefix("a")], 3);
    assert_eq!((busy.all(&mut board), idle.all(&mut board)), (vec![], vec![]));
    assert!(matches!(past.take(&mut board, 1), Taken::Behind));
    let weight = revision(6, &["a"]).weight;
    for number in 6..20 {
        add_within(&mut board, &[(number, &["a"])], number, 3 * weight);
    }
    assert_eq!(board.ring.len(), 3);
    assert!(matches!(busy.take(&mut board, 1), Taken::Behind));
    assert_eq!(busy.position, 5, "it has had nothing since");
    assert_eq!((idle.all(&mut board), idle.position), (vec![], 19));
    // It has read the history up to there.
    busy.position = 16;
    assert_eq!(busy.all(&mut board), [17, 18, 19]);
    // One that is too large for the ring is in it alone.
    add_within(&mut board, &[(30, &["a"; 9])], 30, 3 * weight);
    assert_eq!((board.ring.len(), busy.all(&mut board)), (1, vec![30]));
}

#[test]
fn a_watch_of_the_future_waits_for_it() {
    let mut board = Board::default();
    board.begin(5);
    let mut one = Listener::join(&mut board, &[prefix("")], 8);
    assert_eq!(one.all(&mut board), NOTHING);
    add(&mut board, &[(6, &["a"]), (8, &["a"])], 8);
    assert_eq!((one.all(&mut board), one.position), (vec![], 8));
    add(&mut board, &[(9, &["a"])], 9);
    assert_eq!((one.all(&mut board), one.position), (vec![9], 9));
}

#[test]
fn what_was_read_before_everybody_left_is_not_taken_in() {
    let mut board = Board::default();
    board.begin(5);
    let gone = Listener::join(&mut board, &[prefix("")], 5);
    board.leave(gone.id, &gone.selectors);
    board.begin(9);
    let mut one = Listener::join(&mut board, &[prefix("")], 9);
    assert!(board.add(5, vec![revision(7, &["a"])], 7, usize::MAX).is_empty());
    assert_eq!((one.all(&mut board), board.newest()), (vec![], 9));
}

#[test]
fn a_gap_sends_everybody_to_the_history() {
    let mut board = Board::default();
    board.begin(5);
    let mut one = Listener::join(&mut board, &[prefix("z")], 5);
    assert_eq!(one.all(&mut board), NOTHING);
    board.skip(5, 40).into_iter().for_each(Waker::wake);
    assert_eq!(one.woken(), 1);
    assert!(matches!(one.take(&mut board, 1), Taken::Behind));
    assert_eq!(one.position, 5);
}

#[test]
fn the_end_is_told_to_all() {
    let mut board = Board::default();
    let mut one = Listener::join(&mut board, &[key("a")], 0);
    assert_eq!(one.all(&mut board), NOTHING);
    board.end().into_iter().for_each(Waker::wake);
    assert_eq!(one.woken(), 1);
    assert!(matches!(one.take(&mut board, 1), Taken::Ended));
    let mut late = Listener::join(&mut board, &[key("a")], 0);
    assert!(matches!(late.take(&mut board, 1), Taken::Ended));
}

#[test]
fn nothing_is_left_of_those_who_leave() {
    let mut board = Board::default();
    let selectors = [prefix("a"), prefix("a"), prefix("ab"), key("a"), key("a")];
    let one = Listener::join(&mut board, &selectors, 0);
    let two = Listener::join(&mut board, &[prefix("ab")], 0);
    let told = |board: &Board, key: &str| {
        let mut ids = Vec::new();
        board.interests.in_key(key.as_bytes(), |id| ids.push(id));
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(told(&board, "a"), [one.id]);
    assert_eq!(told(&board, "abc"), [one.id, two.id]);
    board.leave(one.id, &one.selectors);
    assert_eq!((told(&board, "a"), told(&board, "abc")), (vec![], vec![two.id]));
    board.leave(two.id, &two.selectors);
    let Interests { keys, prefixes, lengths } = &board.interests;
    assert!(keys.is_empty() && prefixes.is_empty() && lengths.is_empty());
}

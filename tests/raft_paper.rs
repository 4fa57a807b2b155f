//! One test per claim of the Raft paper (raft 5.1 to 5.4, 7, 8) and of the parts
//! of Ongaro's thesis that we follow, named after the section.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/cores.rs"]
mod cores;
#[path = "support/script.rs"]
mod script;

use std::collections::{BTreeMap, BTreeSet};

use cores::{Disk, Entry, Host, Packet, payloads};
use mmapd::raft::RoleKind;
use mmapd::raft::config::{Config, Restored};
use mmapd::raft::message::{
    Effects, EntryRun, Envelope, Fitness, Input, Message, ReadOutcome, SnapshotMeta,
};
use mmapd::raft::types::{HardState, Index, LogId, Membership, NodeId, Term};
use script::Cluster;

/// A node, n1, whose messages the test reads and whose peers the test plays.
struct One {
    host: Host,
    sent: Vec<Packet>,
}

impl One {
    /// n1 of `size` voters, in `term`, with a log of these terms.
    fn new(size: u64, term: u64, log: &[u64]) -> Self {
        Self::seeded(size, term, log, 1)
    }

    fn seeded(size: u64, term: u64, log: &[u64], seed: u64) -> Self {
        let addresses = (1..=size).map(|id| (NodeId(id), String::new())).collect();
        let entries = (1..).zip(log).map(|(index, &term)| entry(term, index)).collect();
        let hard_state = HardState { term: Term(term), vote: None };
        let base_membership = Membership::of(addresses);
        let disk = Disk { hard_state, base_membership, entries, ..Disk::default() };
        Self { host: Host::start(Config::new(NodeId(1), seed), disk), sent: Vec::new() }
    }

    fn step(&mut self, input: Input, entries: &[Entry]) -> Vec<Envelope> {
        let _ = self.host.step(input, entries, &mut self.sent);
        while let Some(io) = self.host.newest_write() {
            let _ = self.host.sync(io, &mut self.sent);
        }
        self.said()
    }

    fn said(&mut self) -> Vec<Envelope> {
        let message = |packet| match packet {
            Packet::Message(envelope, _) => Some(envelope),
            Packet::Snapshot { .. } | Packet::SnapshotSent { .. } => None,
        };
        self.sent.drain(..).filter_map(message).collect()
    }

    /// n1 hears this and answers.
    fn hear(&mut self, from: u64, term: u64, message: Message) -> Vec<Envelope> {
        let mut payloads = Vec::new();
        if let Message::Append { prev, entries, .. } = &message {
            for at in prev.index.0 + 1..=entries.last.0 {
                let run = entries.terms.iter().rev().find(|run| run.index.0 <= at).unwrap();
                payloads.push(entry(run.term.0, at));
            }
        }
        let (from, to, term) = (NodeId(from), NodeId(1), Term(term));
        self.step(Input::Receive(Envelope { from, to, term, message }), &payloads)
    }

    fn tick(&mut self, times: u32) -> Vec<Envelope> {
        (0..times).flat_map(|_| self.step(Input::Tick, &[])).collect()
    }

    /// n1 campaigns and everyone else is for it.
    fn elect(&mut self, size: u64) -> Vec<Envelope> {
        let term = self.host.raft.term().0 + 1;
        self.step(Input::Campaign, &[]);
        for from in 2..=size {
            self.hear(from, term, Message::PreVoteReply { granted: true });
        }
        let said: Vec<_> = (2..=size).flat_map(|from| self.hear(from, term, VoteReply)).collect();
        assert_eq!(self.host.raft.role(), RoleKind::Leader);
        said
    }

    fn propose(&mut self, count: usize) -> Vec<Envelope> {
        self.step(Input::Propose { sizes: vec![8; count] }, &payloads(&vec![7; count]))
    }

    fn log(&self) -> Vec<u64> {
        self.host.log.entries.iter().map(|entry| entry.id.term.0).collect()
    }
}

#[expect(non_upper_case_globals, reason = "it stands for the message of that name")]
const VoteReply: Message = Message::VoteReply { granted: true };

fn entry(term: u64, index: u64) -> Entry {
    Entry { id: at(term, index), payload: term * 1000 + index, config: None }
}

fn at(term: u64, index: u64) -> LogId {
    LogId { term: Term(term), index: Index(index) }
}

/// An append after `prev` with entries of these terms.
fn append(prev: LogId, terms: &[u64], commit: u64) -> Message {
    let mut run = EntryRun { last: Index(prev.index.0 + terms.len() as u64), ..Default::default() };
    for (index, &term) in (prev.index.0 + 1..).zip(terms) {
        if run.terms.last().is_none_or(|newest| newest.term.0 < term) {
            run.terms.push(at(term, index));
        }
    }
    Message::Append { prev, entries: run, commit: Index(commit), read_seq: 0 }
}

fn accepted(matched: u64) -> Message {
    Message::Accepted { matched: Index(matched), read_seq: 0 }
}

fn heartbeat(commit: u64) -> Message {
    Message::Heartbeat { commit: Index(commit), read_seq: 0 }
}

#[test]
fn raft_5_1_a_newer_term_makes_anyone_a_follower() {
    let mut one = One::new(3, 1, &[]);
    one.hear(2, 4, heartbeat(0));
    assert_eq!((one.host.raft.term(), one.host.raft.role()), (Term(4), RoleKind::Follower));

    let mut one = One::new(3, 1, &[]);
    one.step(Input::Campaign, &[]);
    one.hear(2, 4, Message::VoteReply { granted: false });
    assert_eq!((one.host.raft.term(), one.host.raft.role()), (Term(4), RoleKind::Follower));

    let mut one = One::new(3, 1, &[]);
    one.elect(3);
    one.hear(2, 4, heartbeat(0));
    assert_eq!((one.host.raft.term(), one.host.raft.role()), (Term(4), RoleKind::Follower));
    assert_eq!(one.host.raft.leader(), Some(NodeId(2)));
}

#[test]
fn raft_5_1_a_stale_term_is_refused() {
    let mut one = One::new(3, 3, &[]);
    let said = one.hear(2, 2, append(at(0, 0), &[1], 1));
    assert!(one.log().is_empty(), "nothing of an old leader is taken");
    assert!(said.iter().all(|envelope| envelope.term == Term(3)), "it learns the term");
    let said = one.hear(2, 2, Message::Vote { last: at(2, 9), transfer: false });
    assert_eq!(said[0].message, Message::VoteReply { granted: false });
}

#[test]
fn raft_5_2_nodes_start_as_followers() {
    let one = One::new(3, 7, &[1]);
    assert_eq!(one.host.raft.role(), RoleKind::Follower);
    assert_eq!(one.host.raft.leader(), None);
}

#[test]
fn raft_5_2_a_leader_beats_at_its_interval() {
    let mut one = One::new(3, 0, &[]);
    one.elect(3);
    for _ in 0..3 {
        let said = one.tick(4);
        let beats: BTreeSet<NodeId> = said.iter().map(|envelope| envelope.to).collect();
        assert_eq!(beats, BTreeSet::from([NodeId(2), NodeId(3)]));
        assert!(said.iter().all(|envelope| envelope.message == heartbeat(0)), "{said:?}");
        assert_eq!(said.len(), 2, "one each");
    }
}

#[test]
fn raft_5_2_time_outs_are_random_between_one_and_two_election_times() {
    let mut seen = BTreeMap::new();
    for seed in 1..=400 {
        let mut one = One::seeded(3, 0, &[], seed);
        let ticks = (1..).find(|_| !one.tick(1).is_empty()).unwrap();
        *seen.entry(ticks).or_insert(0) += 1;
    }
    assert!(seen.keys().all(|ticks| (20..40).contains(ticks)), "{seen:?}");
    assert_eq!(seen.len(), 20, "each of them happens: {seen:?}");
}

#[test]
fn raft_5_2_a_candidate_that_wins_nothing_tries_again() {
    let mut one = One::new(3, 0, &[]);
    one.step(Input::Campaign, &[]);
    one.hear(2, 1, Message::PreVoteReply { granted: true });
    assert_eq!((one.host.raft.role(), one.host.raft.term()), (RoleKind::Candidate, Term(1)));
    one.tick(40);
    one.hear(2, 2, Message::PreVoteReply { granted: true });
    assert_eq!((one.host.raft.role(), one.host.raft.term()), (RoleKind::Candidate, Term(2)));
}

#[test]
fn raft_5_2_a_majority_of_votes_wins_and_a_majority_of_refusals_loses() {
    for (size, granted, refused, want) in [
        (1, 0, 0, RoleKind::Leader),
        (2, 0, 0, RoleKind::Candidate),
        (2, 1, 0, RoleKind::Leader),
        (3, 0, 1, RoleKind::Candidate),
        (3, 1, 0, RoleKind::Leader),
        (3, 0, 2, RoleKind::Follower),
        (4, 1, 1, RoleKind::Candidate),
        (4, 2, 0, RoleKind::Leader),
        (5, 1, 2, RoleKind::Candidate),
        (5, 2, 0, RoleKind::Leader),
        (5, 1, 3, RoleKind::Follower),
        (7, 3, 3, RoleKind::Leader),
    ] {
        let mut one = One::new(size, 0, &[]);
        one.step(Input::Campaign, &[]);
        for from in 2..=size {
            one.hear(from, 1, Message::PreVoteReply { granted: true });
        }
        for from in 2..2 + granted {
            one.hear(from, 1, VoteReply);
        }
        for from in 2 + granted..2 + granted + refused {
            one.hear(from, 1, Message::VoteReply { granted: false });
        }
        let case = format!("{granted} for and {refused} against of {size}");
        assert_eq!(one.host.raft.role(), want, "{case}");
    }
}

#[test]
fn raft_5_2_one_vote_per_term_first_come_first_served() {
    for (first, then, want) in [(2, 2, true), (2, 3, false), (3, 2, false)] {
        let mut one = One::new(3, 1, &[]);
        let vote = Message::Vote { last: at(0, 0), transfer: false };
        assert_eq!(one.hear(first, 2, vote.clone())[0].message, VoteReply);
        let said = one.hear(then, 2, vote);
        assert_eq!(said[0].message, Message::VoteReply { granted: want }, "{first} then {then}");
    }
}

#[test]
fn raft_5_2_a_candidate_follows_a_leader_of_its_term() {
    let mut one = One::new(3, 0, &[]);
    one.step(Input::Campaign, &[]);
    one.hear(2, 1, Message::PreVoteReply { granted: true });
    one.hear(3, 1, append(at(0, 0), &[1], 0));
    assert_eq!(one.host.raft.role(), RoleKind::Follower);
    assert_eq!(one.host.raft.leader(), Some(NodeId(3)));
    assert_eq!(one.host.raft.voted_for(), Some(NodeId(1)), "its own vote stands");
}

#[test]
fn raft_5_3_a_proposal_is_sent_to_all_with_what_precedes_it() {
    let mut one = One::new(3, 0, &[]);
    one.elect(3);
    for from in 2..=3 {
        one.hear(from, 1, accepted(1));
    }
    let said = one.propose(2);
    assert_eq!(said.len(), 2);
    for (envelope, to) in said.iter().zip([2, 3]) {
        assert_eq!(envelope.to, NodeId(to));
        assert_eq!(envelope.message, append(at(1, 1), &[1, 1], 1));
    }
}

#[test]
fn raft_5_3_an_entry_commits_once_a_majority_has_it() {
    for (size, acks, want) in
        [(1, 0, 1), (3, 0, 0), (3, 1, 1), (4, 1, 0), (4, 2, 1), (5, 1, 0), (5, 2, 1), (5, 4, 1)]
    {
        let mut one = One::new(size, 0, &[]);
        one.elect(size);
        for from in 2..2 + acks {
            one.hear(from, 1, accepted(1));
        }
        assert_eq!(one.host.raft.commit(), Index(want), "{acks} answers of {size}");
    }
}

#[test]
fn raft_5_3_a_commit_covers_all_before_it() {
    for log in [&[][..], &[2], &[1, 2], &[1]] {
        let mut one = One::new(3, 2, log);
        one.elect(3);
        let own = log.len() as u64 + 1;
        one.hear(2, 3, accepted(own));
        assert_eq!(one.host.raft.commit(), Index(own), "with a log of {log:?}");
        assert_eq!(one.host.applied.len() as u64, own);
    }
}

#[test]
fn raft_5_3_a_follower_commits_what_the_leader_has_up_to_the_last_new_entry() {
    for (terms, commit, want) in
        [(&[1, 1][..], 1, 1), (&[1, 1], 2, 2), (&[1, 1], 9, 2), (&[], 9, 0)]
    {
        let mut one = One::new(3, 1, &[]);
        one.hear(2, 1, append(at(0, 0), terms, commit));
        assert_eq!(one.host.raft.commit(), Index(want), "{terms:?} up to {commit}");
    }
    // Entries of its own that the append does not cover stay as they are.
    let mut one = One::new(3, 1, &[1, 1, 1]);
    one.hear(2, 2, append(at(1, 1), &[], 3));
    assert_eq!(one.host.raft.commit(), Index(1));
}

#[test]
fn raft_5_3_an_append_must_fit_to_the_log() {
    for (prev, want) in [
        (at(0, 0), None),
        (at(1, 1), None),
        (at(2, 2), None),
        // It has 1.1, not 3.1: what is left to agree on is the empty place.
        (at(1, 2), Some((2, at(1, 1)))),
        (at(3, 3), Some((3, at(2, 2)))),
    ] {
        let mut one = One::new(3, 3, &[1, 2]);
        let said = one.hear(2, 3, append(prev, &[], 0));
        let rejected = want.map(|(prev, hint)| Message::Rejected {
            prev: Index(prev),
            hint,
            last: Index(2),
            read_seq: 0,
        });
        let fits = accepted(prev.index.0);
        assert_eq!(said[0].message, rejected.unwrap_or(fits), "after {prev}");
    }
}

#[test]
fn raft_5_3_only_a_conflict_removes_entries() {
    for (prev, terms, want) in [
        (at(2, 2), &[3][..], &[1, 2, 3][..]),
        (at(1, 1), &[3, 4], &[1, 3, 4]),
        (at(0, 0), &[1], &[1, 2]),
        (at(0, 0), &[3], &[3]),
        (at(1, 1), &[2], &[1, 2]),
        (at(1, 1), &[], &[1, 2]),
    ] {
        let mut one = One::new(3, 4, &[1, 2]);
        one.hear(2, 4, append(prev, terms, 0));
        assert_eq!(one.log(), want, "{terms:?} after {prev}");
        assert_eq!(one.host.disk.entries, one.host.log.entries);
    }
}

#[test]
fn raft_5_3_figure_7_a_leader_brings_every_follower_in_line() {
    let leader = "1 1 1 4 4 5 5 6 6 6";
    for (follower, term) in [
        ("1 1 1 4 4 5 5 6 6", 6),
        ("1 1 1 4", 4),
        ("1 1 1 4 4 5 5 6 6 6 6", 6),
        ("1 1 1 4 4 5 5 6 6 6 7 7", 7),
        ("1 1 1 4 4 4 4", 4),
        ("1 1 1 2 2 2 3 3 3 3 3", 3),
    ] {
        // n3 votes for the leader; the follower cannot vote against it alone.
        let text = Cluster::new(None).run(&format!(
            "cluster 3\nnode n1 term 8 log {leader}\nnode n2 term {term} log {follower}\n\
             elect n1\nwait 5\nlog n1\nlog n2"
        ));
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("after")).collect();
        assert_eq!(lines[0][2..], lines[1][2..], "{text}");
        assert!(lines[0].ends_with("6.10 9.11"), "{text}");
    }
}

#[test]
fn raft_5_3_a_leader_only_appends() {
    let mut one = One::new(3, 2, &[1, 2, 2]);
    one.elect(3);
    one.hear(
        2,
        3,
        Message::Rejected { prev: Index(3), hint: at(0, 0), last: Index(0), read_seq: 0 },
    );
    one.propose(1);
    assert_eq!(one.log(), [1, 2, 2, 3, 3]);
}

#[test]
fn raft_5_4_1_a_vote_request_says_how_far_the_log_is() {
    for log in [&[1][..], &[1, 2], &[1, 2, 2]] {
        let mut one = One::new(3, 2, log);
        let said = one.step(Input::Campaign, &[]);
        let last = at(*log.last().unwrap(), log.len() as u64);
        assert!(said.iter().all(|envelope| envelope.message == Message::PreVote { last }));
        let said = one.hear(2, 3, Message::PreVoteReply { granted: true });
        let vote = Message::Vote { last, transfer: false };
        assert!(said.len() == 2 && said.iter().all(|envelope| envelope.message == vote));
    }
}

#[test]
fn raft_5_4_1_a_voter_denies_logs_that_are_behind_its_own() {
    for (log, last, want) in [
        (&[1][..], at(1, 1), true),
        (&[1], at(1, 2), true),
        (&[1, 1], at(1, 1), false),
        (&[1], at(2, 1), true),
        (&[1, 1], at(2, 1), true),
        (&[1, 2], at(1, 9), false),
        (&[2], at(1, 1), false),
    ] {
        let mut one = One::new(3, 2, log);
        let said = one.hear(2, 3, Message::Vote { last, transfer: false });
        assert_eq!(said[0].message, Message::VoteReply { granted: want }, "{last} for {log:?}");
        let mut one = One::new(3, 2, log);
        let said = one.hear(2, 3, Message::PreVote { last });
        assert_eq!(said[0].message, Message::PreVoteReply { granted: want }, "{last} {log:?}");
    }
}

#[test]
fn raft_5_4_2_only_entries_of_the_own_term_are_counted() {
    for (acked, want) in [(1, 0), (2, 0), (3, 3)] {
        let mut one = One::new(3, 2, &[1, 2]);
        one.elect(3);
        one.hear(2, 3, accepted(acked));
        assert_eq!(one.host.raft.commit(), Index(want), "two of three have {acked}");
    }
}

#[test]
fn raft_7_a_snapshot_replaces_a_log_that_lacks_it() {
    for (log, kept) in [(&[1][..], &[][..]), (&[1, 1, 1], &[]), (&[1, 1, 2, 2], &[2])] {
        let mut one = One::new(3, 2, log);
        let membership = one.host.raft.membership().clone();
        let meta = SnapshotMeta { last: at(2, 3), membership };
        let (from, term) = (NodeId(2), Term(2));
        one.step(Input::SnapshotReceived { from, term, meta }, &[]);
        assert_eq!(one.log(), kept, "of {log:?}");
        let raft = &one.host.raft;
        assert_eq!((raft.commit(), raft.applied()), (Index(3), Index(3)));
        assert_eq!(raft.durable(), Index(3 + kept.len() as u64));
    }
}

#[test]
fn raft_8_a_leader_begins_with_an_empty_entry() {
    let mut one = One::new(3, 1, &[1]);
    let said = one.elect(3);
    assert_eq!(said[0].message, append(at(1, 1), &[2], 0));
    assert_eq!(one.host.log.entries[1].payload, 0);
}

#[test]
fn thesis_3_10_a_transfer_catches_up_first_and_ends_after_a_time_out() {
    let mut one = One::new(3, 0, &[]);
    one.elect(3);
    one.hear(2, 1, accepted(1));
    one.hear(3, 1, accepted(1));
    one.propose(1);
    let said = one.step(Input::Transfer { to: NodeId(2) }, &[]);
    assert!(said.is_empty(), "n2 lacks entry 2: {said:?}");
    let said = one.hear(2, 1, accepted(2));
    assert!(said.iter().any(|envelope| envelope.message == Message::TimeoutNow));
    for _ in 0..20 {
        assert_eq!(one.host.raft.transferring_to(), Some(NodeId(2)));
        one.hear(3, 1, Message::HeartbeatReply { read_seq: 0 });
        one.tick(1);
    }
    assert_eq!(one.host.raft.transferring_to(), None);
}

#[test]
fn thesis_4_2_3_whoever_hears_a_leader_does_not_vote() {
    let vote = |transfer| Message::Vote { last: at(9, 9), transfer };
    let mut one = One::new(3, 1, &[]);
    one.hear(2, 1, heartbeat(0));
    one.tick(19);
    assert_eq!(one.hear(3, 2, vote(false)), [], "not before the shortest time-out");
    assert_eq!(one.host.raft.term(), Term(1), "and its term is not disturbed");
    assert_eq!(one.hear(3, 2, vote(true))[0].message, VoteReply, "unless the leader asks for it");
}

#[test]
fn thesis_6_2_a_leader_without_a_majority_steps_down() {
    let mut one = One::new(5, 0, &[]);
    one.elect(5);
    one.tick(15);
    one.hear(2, 1, Message::HeartbeatReply { read_seq: 0 });
    one.tick(4);
    assert_eq!(one.host.raft.role(), RoleKind::Leader);
    one.tick(1);
    assert_eq!(one.host.raft.role(), RoleKind::Follower);
    assert_eq!(one.host.raft.voted_for(), Some(NodeId(1)), "its vote stands");
}

#[test]
fn thesis_6_4_a_read_waits_for_a_round_that_began_after_it() {
    let mut one = One::new(3, 0, &[]);
    one.elect(3);
    one.hear(2, 1, accepted(1));
    let echo = |read_seq| Message::HeartbeatReply { read_seq };
    one.step(Input::Read { token: 1 }, &[]);
    assert_eq!(one.said(), []);
    let hear = |one: &mut One, message| {
        let envelope = Envelope { from: NodeId(2), to: NodeId(1), term: Term(1), message };
        one.host.step(Input::Receive(envelope), &[], &mut Vec::new()).reads
    };
    assert_eq!(hear(&mut one, echo(0)), [], "an echo of before");
    assert_eq!(hear(&mut one, echo(1)).len(), 1);
    one.step(Input::Read { token: 2 }, &[]);
    assert_eq!(hear(&mut one, echo(1)), [], "the first round again");
    assert_eq!(hear(&mut one, echo(2)).len(), 1);
}

#[test]
fn thesis_9_6_a_pre_vote_changes_nothing() {
    let mut one = One::new(3, 1, &[]);
    let said = one.hear(2, 5, Message::PreVote { last: at(1, 1) });
    assert_eq!(said[0].message, Message::PreVoteReply { granted: true });
    assert_eq!((one.host.raft.term(), one.host.raft.voted_for()), (Term(1), None));
    let said = one.hear(3, 5, Message::PreVote { last: at(1, 1) });
    assert_eq!(said[0].message, Message::PreVoteReply { granted: true }, "a promise is no vote");
}

#[test]
fn thesis_10_2_1_a_leader_counts_itself_when_its_disk_has_it() {
    let mut one = One::new(3, 0, &[]);
    one.elect(3);
    one.hear(2, 1, accepted(1));
    let mut sent = Vec::new();
    let input = Input::Propose { sizes: vec![8] };
    let _ = one.host.step(input, &payloads(&[7]), &mut sent);
    assert!(!sent.is_empty(), "sent before it is durable");
    let receive = |message| {
        Input::Receive(Envelope { from: NodeId(2), to: NodeId(1), term: Term(1), message })
    };
    let _ = one.host.step(receive(accepted(2)), &[], &mut sent);
    assert_eq!(one.host.raft.commit(), Index(1), "one other disk and not our own");
    let io = one.host.newest_write().unwrap();
    let _ = one.host.sync(io, &mut sent);
    assert_eq!(one.host.raft.commit(), Index(2));
}

/// Scenario 30.
#[test]
#[should_panic(expected = "committed entries are never cut off")]
fn committed_entries_are_never_cut_off() {
    let mut one = One::new(3, 1, &[]);
    one.hear(2, 1, append(at(0, 0), &[1, 1], 2));
    one.hear(3, 2, append(at(1, 1), &[2], 0));
}

/// Scenario 71.
#[test]
#[should_panic(expected = "a snapshot contradicts a committed entry")]
fn a_snapshot_does_not_replace_a_committed_entry() {
    let mut one = One::new(3, 1, &[]);
    one.hear(2, 1, append(at(0, 0), &[1, 1], 2));
    let meta = SnapshotMeta { last: at(2, 2), membership: Membership::default() };
    one.step(Input::SnapshotReceived { from: NodeId(3), term: Term(2), meta }, &[]);
}

/// Scenario 76.
#[test]
fn a_snapshot_of_a_deposed_leader_is_refused() {
    let mut one = One::new(3, 3, &[]);
    let meta = SnapshotMeta { last: at(2, 9), membership: Membership::default() };
    one.step(Input::SnapshotReceived { from: NodeId(2), term: Term(2), meta }, &[]);
    assert_eq!(one.host.raft.last(), at(0, 0));
}

/// Scenarios 25 and 74: while a snapshot is being installed nothing else moves.
#[test]
fn the_log_rests_while_a_snapshot_is_installed() {
    let mut one = One::new(3, 1, &[1]);
    let membership = one.host.raft.membership().clone();
    let meta = SnapshotMeta { last: at(1, 5), membership };
    let (from, term) = (NodeId(2), Term(1));
    let received = Input::SnapshotReceived { from, term, meta: meta.clone() };
    let raft = &mut one.host.raft;
    let mut step = |input| {
        let mut out = Effects::default();
        raft.step(input, &mut out);
        out
    };
    assert_eq!(step(received.clone()).install, Some(Some(meta.clone())));
    assert_eq!(step(received).install, Some(None), "one at a time");
    let hear = |message| Input::Receive(Envelope { from, to: NodeId(1), term, message });
    let out = step(hear(append(at(1, 1), &[1], 2)));
    assert!(out.appends.is_empty() && out.commit.is_none() && out.messages.is_empty());
    let out = step(hear(heartbeat(0)));
    assert_eq!(out.messages.len(), 1, "the leader hears that it is alive");
    for _ in 0..100 {
        let out = step(Input::Tick);
        assert!(out.messages.is_empty(), "no campaign: {out:?}");
    }
    let out = step(hear(heartbeat(5)));
    assert!(out.commit.is_none(), "nothing to apply yet");
    let out = step(Input::SnapshotInstalled { meta });
    assert_eq!(out.messages[0].message, accepted(5));
    assert_eq!(one.host.raft.last(), at(1, 5));
}

#[test]
#[should_panic(expected = "two leaders in term 1")]
fn two_leaders_of_one_term_are_a_bug() {
    let mut one = One::new(3, 1, &[]);
    one.hear(2, 1, heartbeat(0));
    one.hear(3, 1, heartbeat(0));
}

/// Scenario 117: the state machine survived what the log lost.
#[test]
#[should_panic(expected = "the state machine is ahead of the log")]
fn a_log_that_lost_its_tail_does_not_start() {
    let restored = Restored { applied: Index(5), ..Restored::default() };
    let _ = mmapd::raft::Raft::new(Config::new(NodeId(1), 1), restored);
}

/// Scenarios 116 and 57: what is applied is committed, and a configuration at the
/// end of the log rules at once.
#[test]
fn a_restart_goes_on_from_what_the_disk_knows() {
    let of = |voters: &[u64]| Membership {
        voters: voters.iter().copied().map(NodeId).collect(),
        ..Membership::default()
    };
    let restored = Restored {
        hard_state: HardState { term: Term(3), vote: Some(NodeId(2)) },
        base: at(1, 4),
        base_membership: of(&[1, 2, 3]),
        runs: vec![at(1, 5), at(3, 6)],
        last: at(3, 8),
        configs: vec![(Index(7), of(&[1, 2, 3, 4, 5]))],
        applied: Index(6),
        amnesia: None,
    };
    let raft = mmapd::raft::Raft::new(Config::new(NodeId(1), 1), restored);
    assert_eq!((raft.commit(), raft.applied(), raft.durable()), (Index(6), Index(6), Index(8)));
    assert_eq!(raft.voted_for(), Some(NodeId(2)));
    assert_eq!(raft.membership(), &of(&[1, 2, 3, 4, 5]));
    assert_eq!(raft.membership_at(Index(6)), &of(&[1, 2, 3]));
}

/// Scenario 46: in a joint change the new majority alone commits nothing.
#[test]
fn thesis_4_3_a_joint_change_needs_both_majorities() {
    let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    let base_membership =
        Membership { voters: ids(&[1, 2, 3]), outgoing: ids(&[1, 4, 5]), ..Membership::default() };
    let disk = Disk { base_membership, ..Disk::default() };
    let host = Host::start(Config::new(NodeId(1), 1), disk);
    let mut one = One { host, sent: Vec::new() };
    one.elect(5);
    one.hear(2, 1, accepted(1));
    one.hear(3, 1, accepted(1));
    assert_eq!(one.host.raft.commit(), Index(0), "all of the new, one of the old");
    one.hear(4, 1, accepted(1));
    assert_eq!(one.host.raft.commit(), Index(1));
}

/// Scenario 89: a read that is under way in a joint change needs both majorities, and so does
/// a lease.
#[test]
fn thesis_4_3_a_read_in_a_joint_change_needs_both_majorities() {
    let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    let base_membership =
        Membership { voters: ids(&[1, 2, 3]), outgoing: ids(&[1, 4, 5]), ..Membership::default() };
    let disk = Disk { base_membership, ..Disk::default() };
    let config = Config { lease: Some(1000), ..Config::new(NodeId(1), 1) };
    let ticks = config.election_ticks;
    let mut one = One { host: Host::start(config, disk), sent: Vec::new() };
    one.tick(ticks - 1);
    one.step(Input::Tick, &[]);
    one.elect(5);
    for from in [2, 4] {
        one.hear(from, 1, accepted(1));
    }
    one.tick(4);
    let hear = |one: &mut One, from, read_seq| {
        let message = Message::HeartbeatReply { read_seq };
        let envelope = Envelope { from: NodeId(from), to: NodeId(1), term: Term(1), message };
        one.host.step(Input::Receive(envelope), &[], &mut Vec::new()).reads
    };
    hear(&mut one, 2, 1);
    hear(&mut one, 3, 1);
    assert!(!one.host.raft.holds_lease(), "all of the new, one of the old");
    hear(&mut one, 5, 1);
    assert!(one.host.raft.holds_lease());

    one.step(Input::Read { token: 1 }, &[]);
    assert_eq!(hear(&mut one, 2, 2), []);
    assert_eq!(hear(&mut one, 3, 2), [], "all of the new, one of the old");
    assert_eq!(hear(&mut one, 4, 2), [(1, ReadOutcome::At(Index(1)))]);
}

/// A follower is told by each broken connection that its leader is gone; it does not wait
/// longer for it. A heartbeat ends the haste.
#[test]
fn a_leader_that_is_gone_is_missed_soon_and_only_once() {
    for seed in 1..=50 {
        let mut one = One::seeded(3, 1, &[], seed);
        let ticks = Config::new(NodeId(1), 1).election_ticks;
        let gone = || Input::LeaderGone { peer: NodeId(2) };
        one.hear(2, 1, heartbeat(0));
        one.step(gone(), &[]);
        one.hear(2, 1, heartbeat(0));
        assert_eq!(one.tick(ticks - 1), [], "seed {seed}: it was heard again");
        one.hear(2, 1, heartbeat(0));
        for _ in 0..ticks / 4 {
            one.step(gone(), &[]);
            one.step(Input::Tick, &[]);
        }
        assert_eq!(one.host.raft.role(), RoleKind::PreCandidate, "seed {seed}");
    }
}

/// Scenario 103: an entry that is held by name only is not acknowledged, nor applied, and its
/// holder does not lead; it still votes by the names it holds.
#[test]
fn a_node_promises_nothing_that_it_holds_by_name_only() {
    let mut one = One::new(3, 2, &[1, 1, 2, 2]);
    let damaged = Fitness { damaged: Some(Index(3)), unfit_to_lead: true };
    one.step(Input::Fitness(damaged), &[]);
    assert_eq!(one.tick(100), [], "it does not campaign");
    let last = at(2, 3);
    let refused = one.hear(3, 3, Message::Vote { last, transfer: false });
    assert_eq!(refused[0].message, Message::VoteReply { granted: false }, "2.3 is behind 2.4");
    let last = at(2, 4);
    let granted = one.hear(2, 3, Message::Vote { last, transfer: false });
    assert_eq!(granted[0].message, VoteReply);
    let said = one.hear(2, 3, append(at(2, 4), &[3, 3], 6));
    assert_eq!(said[0].message, Message::Accepted { matched: Index(2), read_seq: 0 });
    assert_eq!((one.host.raft.durable(), one.host.raft.commit()), (Index(2), Index(6)));
    assert_eq!(one.host.raft.last(), at(3, 6), "what follows is kept");
    assert!(one.host.applied.iter().all(|entry| entry.id.index < Index(3)));

    one.step(Input::Fitness(Fitness::default()), &[]);
    assert_eq!(one.host.applied.last().map(|entry| entry.id), Some(at(3, 6)), "it is whole again");
    let said = one.hear(2, 3, append(at(3, 6), &[], 6));
    assert_eq!(said[0].message, Message::Accepted { matched: Index(6), read_seq: 0 });
}

/// A leader that finds its disk damaged makes room for another one.
#[test]
fn an_unfit_leader_steps_down() {
    let mut one = One::new(3, 1, &[1]);
    one.elect(3);
    one.step(Input::Fitness(Fitness { damaged: None, unfit_to_lead: true }), &[]);
    assert_eq!(one.host.raft.role(), RoleKind::Follower);
    assert_eq!(one.tick(100), []);
}

/// A node that lost entries of term 4 and does not know which is in term 5. It votes for
/// nobody who might miss them, until its own log ends in a term after 4.
#[test]
fn a_node_without_memory_does_not_vote_for_who_may_miss_what_it_forgot() {
    let one = One::new(3, 5, &[1]);
    let disk = Disk { amnesia: Some(Term(4)), ..one.host.crash(0) };
    let mut one = One { host: Host::start(Config::new(NodeId(1), 1), disk), sent: Vec::new() };
    assert!(one.host.raft.is_amnesiac());
    assert_eq!(one.tick(100), [], "it does not campaign");
    let ask = |last, term| (term, Message::Vote { last, transfer: false });
    for (last, term) in [(at(1, 1), 6), (at(4, 90), 7)] {
        let (term, message) = ask(last, term);
        let said = one.hear(2, term, message);
        assert_eq!(said[0].message, Message::VoteReply { granted: false }, "{last} may miss some");
    }
    let said = one.hear(2, 7, append(at(1, 1), &[4, 4], 3));
    assert_eq!(said[0].message, Message::Accepted { matched: Index(3), read_seq: 0 });
    assert!(one.host.raft.is_amnesiac(), "more entries of term 4 may have been lost");
    one.hear(2, 7, append(at(4, 3), &[7], 4));
    assert!(!one.host.raft.is_amnesiac(), "whatever was lost is older than this");
    let (term, message) = ask(at(7, 4), 8);
    one.tick(40);
    let said = one.hear(3, term, message);
    assert_eq!(said[0].message, VoteReply);
}

//! A node of the crate `raft`, driven as its documentation asks for: entries are readable
//! before the node goes on, messages of a leader leave at once, and all others when what they
//! came with is on disk.

use std::collections::VecDeque;

use mmapd::raft::types::{HardState, Index, NodeId, Term};
use raft::eraftpb::{self, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

use crate::disk::{Disk, Entry, Log};
use crate::packet::{Packet, bytes_of, entry_to_ours, entry_to_theirs, number_of};
use crate::replica::{Life, Out, Replica};

/// A node of `raft` with its disk.
pub struct Theirs {
    node: RawNode<MemStorage>,
    disk: Disk,
    /// Messages that wait for a write.
    held: VecDeque<(u64, Vec<eraftpb::Message>)>,
}

impl std::fmt::Debug for Theirs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Theirs").field("id", &self.node.raft.id).finish_non_exhaustive()
    }
}

impl Theirs {
    /// Starts it on what its disk holds.
    #[must_use]
    pub fn start(life: &Life, log: Log) -> Self {
        let settings = &life.settings;
        let timeout = usize::try_from(life.timeout).expect("a small number");
        let config = Config {
            id: life.id.0,
            election_tick: usize::try_from(settings.election_ticks).expect("a small number"),
            heartbeat_tick: usize::try_from(settings.heartbeat_ticks).expect("a small number"),
            // Drawn from one number: the draw itself is not from a seed.
            min_election_tick: timeout,
            max_election_tick: timeout + 1,
            max_inflight_msgs: settings.inflight,
            max_size_per_msg: if settings.one_by_one { 0 } else { u64::MAX },
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let voters: Vec<u64> = life.voters.iter().map(|id| id.0).collect();
        let store = MemStorage::new_with_conf_state((voters, Vec::new()));
        let entries: Vec<eraftpb::Entry> = log.entries.iter().map(entry_to_theirs).collect();
        store.wl().append(&entries).expect("a log without gaps");
        store.wl().set_hardstate(eraftpb::HardState {
            term: log.hard.term.0,
            vote: log.hard.vote.map_or(0, |id| id.0),
            commit: log.commit.0,
        });
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, store, &logger).expect("a valid configuration");
        Self { node, disk: Disk::new(log), held: VecDeque::new() }
    }

    fn pump(&mut self, out: &mut Out) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            send(ready.take_messages(), out);
            for state in ready.take_read_states() {
                out.reads.push((number_of(&state.request_ctx), Some(Index(state.index))));
            }
            let committed = ready.take_committed_entries();
            let new = ready.take_entries();
            self.node.store().wl().append(&new).expect("a log without gaps");
            let entries: Vec<Entry> = new.iter().map(entry_to_ours).collect();
            out.written.extend_from_slice(&entries);
            let saved = ready.hs().cloned();
            if let Some(saved) = &saved {
                self.node.store().wl().set_hardstate(saved.clone());
            }
            let hard = saved.as_ref().map(|state| HardState {
                term: Term(state.term),
                vote: (state.vote != 0).then_some(NodeId(state.vote)),
            });
            let commit = saved.map(|state| Index(state.commit));
            let (number, must_sync) = (ready.number(), ready.must_sync());
            self.held.push_back((number, ready.take_persisted_messages()));
            self.disk.submit(number, hard, commit, entries);
            self.node.advance_append_async(ready);
            if let Some(last) = committed.last() {
                out.applied.extend(committed.iter().map(entry_to_ours));
                self.node.advance_apply_to(last.index);
            }
            // A commit index alone need not be on disk before something is said.
            if !must_sync && self.disk.writes_under_way() == 1 {
                self.persisted(number, out);
            }
        }
    }

    fn persisted(&mut self, number: u64, out: &mut Out) {
        self.disk.sync(number);
        self.node.on_persist_ready(number);
        while self.held.front().is_some_and(|(waits_for, _)| *waits_for <= number) {
            let (_, messages) = self.held.pop_front().expect("it was seen");
            send(messages, out);
        }
    }
}

fn send(messages: Vec<eraftpb::Message>, out: &mut Out) {
    out.packets.extend(messages.into_iter().map(|message| Packet::Theirs(Box::new(message))));
}

impl Replica for Theirs {
    fn tick(&mut self, out: &mut Out) {
        self.node.tick();
        self.pump(out);
    }

    fn receive(&mut self, packet: Packet, out: &mut Out) {
        self.node.step(packet.into_theirs()).expect("messages between members are taken");
        self.pump(out);
    }

    fn propose(&mut self, payloads: &[u64], out: &mut Out) -> bool {
        let id = self.node.raft.id;
        let entries = payloads.iter().map(|&payload| eraftpb::Entry {
            data: bytes_of(payload),
            ..eraftpb::Entry::default()
        });
        let mut proposal = eraftpb::Message { from: id, to: id, ..Default::default() };
        proposal.entries = entries.collect();
        proposal.set_msg_type(MessageType::MsgPropose);
        let is_taken = self.leads() && self.node.step(proposal).is_ok();
        self.pump(out);
        is_taken
    }

    fn read(&mut self, token: u64, out: &mut Out) {
        if self.leads() {
            self.node.read_index(bytes_of(token));
        }
        self.pump(out);
    }

    fn transfer(&mut self, to: NodeId, out: &mut Out) {
        if self.leads() {
            self.node.transfer_leader(to.0);
        }
        self.pump(out);
    }

    fn campaign(&mut self, out: &mut Out) {
        self.node.campaign().expect("a local message is taken");
        self.pump(out);
    }

    fn sync(&mut self, token: u64, out: &mut Out) {
        self.persisted(token, out);
        self.pump(out);
    }

    fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn commit(&self) -> Index {
        Index(self.node.raft.raft_log.committed)
    }

    fn disk(&self) -> &Disk {
        &self.disk
    }

    fn into_disk(self: Box<Self>) -> Disk {
        self.disk
    }
}

//! A node of our core: what a driver owes it, without files and threads.

use std::collections::BTreeMap;

use mmapd::raft::Raft;
use mmapd::raft::config::{Config, Restored};
use mmapd::raft::message::{
    AppendSource, Effects, Envelope, Input, IoToken, Message, ReadOutcome, Replicate,
};
use mmapd::raft::types::{Index, LogId, Membership, NodeId, Term};

use crate::disk::{Disk, Entry, Log};
use crate::packet::{Packet, run_of};
use crate::replica::{Life, Out, Replica};

/// A node of our core with its disk.
#[derive(Debug)]
pub struct Ours {
    raft: Raft,
    disk: Disk,
}

impl Ours {
    /// Starts it on what its disk holds.
    #[must_use]
    pub fn start(life: &Life, log: Log) -> Self {
        let settings = &life.settings;
        let config = Config {
            election_ticks: settings.election_ticks,
            heartbeat_ticks: settings.heartbeat_ticks,
            max_inflight: settings.inflight,
            max_batch_entries: if settings.one_by_one { 1 } else { u64::from(u32::MAX) },
            planted: settings.planted.into(),
            ..Config::new(life.id, life.seed)
        };
        let addresses: BTreeMap<_, _> =
            life.voters.iter().map(|&id| (id, format!("host{}", id.0))).collect();
        let restored = Restored {
            hard_state: log.hard,
            base_membership: Membership::of(addresses),
            runs: run_of(&log.entries, log.last().index).terms,
            last: log.last(),
            ..Restored::default()
        };
        Self { raft: Raft::new(config, restored), disk: Disk::new(log) }
    }

    fn step(&mut self, input: Input, payloads: &[Entry], out: &mut Out) -> Effects {
        let mut effects = Effects::default();
        self.raft.step(input, &mut effects);
        if let Some(IoToken(token)) = effects.io {
            let mut entries = Vec::new();
            for append in &effects.appends {
                for at in append.first.0..=append.last.0 {
                    let offset = usize::try_from(at - append.first.0).expect("a small number");
                    entries.push(match append.source {
                        AppendSource::Noop => own(append.term, at, 0),
                        AppendSource::Proposed => own(append.term, at, payloads[offset].payload),
                        AppendSource::Received => {
                            *payloads.iter().find(|e| e.id.index.0 == at).expect("it was received")
                        }
                        AppendSource::Config => unreachable!("nobody asks for a change"),
                    });
                }
            }
            out.written.extend_from_slice(&entries);
            self.disk.submit(token, effects.hard_state, None, entries);
        }
        for order in &effects.replicate {
            out.packets.push(self.append(order));
        }
        for envelope in effects.messages.drain(..) {
            out.packets.push(Packet::Ours(envelope, Vec::new()));
        }
        assert!(effects.snapshots.is_empty(), "nothing is compacted");
        for (token, outcome) in effects.reads.drain(..) {
            let index = match outcome {
                ReadOutcome::At(index) => Some(index),
                ReadOutcome::Refused(_) => None,
            };
            out.reads.push((token, index));
        }
        if let Some(index) = effects.commit {
            out.applied.extend(self.disk.log().range(self.raft.applied(), index));
            let _ = self.step(Input::Applied { index }, &[], out);
        }
        effects
    }

    fn append(&self, order: &Replicate) -> Packet {
        let Replicate { to, prev, upto, commit, read_seq, term } = *order;
        let entries = self.disk.log().range(prev.index, upto);
        let run = run_of(&entries, upto);
        let message = Message::Append { prev, entries: run, commit, read_seq };
        Packet::Ours(Envelope { from: self.raft.id(), to, term, message }, entries)
    }
}

fn own(term: Term, at: u64, payload: u64) -> Entry {
    Entry { id: LogId { term, index: Index(at) }, payload }
}

impl Replica for Ours {
    fn tick(&mut self, out: &mut Out) {
        let _ = self.step(Input::Tick, &[], out);
    }

    fn receive(&mut self, packet: Packet, out: &mut Out) {
        let (envelope, entries) = packet.into_ours();
        let _ = self.step(Input::Receive(envelope), &entries, out);
    }

    fn propose(&mut self, payloads: &[u64], out: &mut Out) -> bool {
        let entries: Vec<Entry> =
            payloads.iter().map(|&payload| own(Term(0), 0, payload)).collect();
        let sizes = vec![8; payloads.len()];
        let effects = self.step(Input::Propose { sizes }, &entries, out);
        matches!(effects.proposed, Some(Ok(_)))
    }

    fn read(&mut self, token: u64, out: &mut Out) {
        let _ = self.step(Input::Read { token }, &[], out);
    }

    fn transfer(&mut self, to: NodeId, out: &mut Out) {
        let _ = self.step(Input::Transfer { to }, &[], out);
    }

    fn campaign(&mut self, out: &mut Out) {
        let _ = self.step(Input::Campaign, &[], out);
    }

    fn sync(&mut self, token: u64, out: &mut Out) {
        self.disk.sync(token);
        let _ = self.step(Input::Durable { io: IoToken(token) }, &[], out);
    }

    fn term(&self) -> Term {
        self.raft.term()
    }

    fn leads(&self) -> bool {
        self.raft.is_leader()
    }

    fn commit(&self) -> Index {
        self.raft.commit()
    }

    fn disk(&self) -> &Disk {
        &self.disk
    }

    fn into_disk(self: Box<Self>) -> Disk {
        self.disk
    }
}

//! What is on disk, and what may be said because of it.
//!
//! Writes are given to the disk in order, each under a token. Two questions are
//! answered here:
//!
//! 1. *Up to which index is the log durable?* An answer of the disk speaks for the
//!    log as it was when the write was given out. If a later write replaced entries
//!    below that, the answer must not vouch for them: index 7 may have been given
//!    away, back, and away again while a sync ran.
//! 2. *Which messages may leave?* A vote or an acknowledgement promises that its
//!    sender will still know after a crash. It waits here for its token.

use super::message::{Envelope, IoToken, Message};
use super::planted::{Flaw, Planted};
use super::types::Index;

/// One write that the disk has not confirmed.
#[derive(Clone, Copy, Debug)]
struct Write {
    token: IoToken,
    /// Lowest index that it replaces or adds; `None`: term and vote only.
    first: Option<Index>,
    /// Last index of the log with this write.
    last: Index,
    /// When it was given out, in ticks of [`Ledger::tick`].
    since: u64,
}

/// The writes under way and the messages that wait for them.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    issued: IoToken,
    confirmed: IoToken,
    /// The newest write that held a term and vote.
    hard_state: IoToken,
    pending: Vec<Write>,
    durable: Index,
    /// The first entry that is held by name only.
    damaged: Option<Index>,
    ticks: u64,
    waiting: Vec<(IoToken, Envelope)>,
    flaw: Flaw,
}

impl Ledger {
    /// A log that is durable up to `durable`.
    pub(super) fn new(durable: Index, flaw: Flaw) -> Self {
        Self {
            issued: IoToken::default(),
            confirmed: IoToken::default(),
            hard_state: IoToken::default(),
            pending: Vec::new(),
            durable,
            damaged: None,
            ticks: 0,
            waiting: Vec::new(),
            flaw,
        }
    }

    /// The log is on disk, and whole, up to here.
    pub(super) fn durable(&self) -> Index {
        self.damaged.map_or(self.durable, |first| self.durable.min(first.prev()))
    }

    /// From this entry on the log is not whole; `None`: it is.
    pub(super) fn set_damaged(&mut self, first: Option<Index>) {
        self.damaged = first;
    }

    /// One unit of time went by.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
    }

    /// For how many ticks has the oldest write waited for the disk? 0 when none waits.
    pub(super) fn oldest_age(&self) -> u32 {
        let age = self.pending.first().map_or(0, |oldest| self.ticks - oldest.since);
        u32::try_from(age).unwrap_or(u32::MAX)
    }

    /// The last entry that the log had with the oldest write; `None`: none waits.
    pub(super) fn oldest_last(&self) -> Option<Index> {
        self.pending.first().map(|oldest| oldest.last)
    }

    /// Is the newest term, with the vote in it, on disk?
    pub(super) fn is_hard_state_durable(&self) -> bool {
        self.hard_state <= self.confirmed
    }

    /// A write is given out: `first` and `last` as in [`Write`].
    pub(super) fn submit(
        &mut self,
        hard_state: bool,
        first: Option<Index>,
        last: Index,
    ) -> IoToken {
        self.issued = IoToken(self.issued.0 + 1);
        if hard_state {
            self.hard_state = self.issued;
        }
        if let Some(first) = first {
            self.durable = self.durable.min(first.prev());
        }
        self.pending.push(Write { token: self.issued, first, last, since: self.ticks });
        self.issued
    }

    /// The disk holds every write up to `token`. Messages that may leave now are
    /// added to `out`, in the order in which they were held.
    pub(super) fn confirm(&mut self, token: IoToken, out: &mut Vec<Envelope>) {
        assert!(token <= self.issued, "the disk confirms what it was given");
        let done = self.pending.partition_point(|write| write.token <= token);
        if let Some(newest) = self.pending[..done].last().copied() {
            let replaced = self.pending[done..].iter().filter_map(|write| write.first).min();
            let safe = match replaced {
                Some(first) if !self.flaw.is(Planted::OldSyncCounts) => {
                    newest.last.min(first.prev())
                }
                Some(_) | None => newest.last,
            };
            self.durable = self.durable.max(safe);
        }
        self.pending.drain(..done);
        self.confirmed = self.confirmed.max(token);
        let confirmed = self.confirmed;
        for (_, envelope) in self.waiting.extract_if(.., |(needs, _)| *needs <= confirmed) {
            release(envelope, out);
        }
    }

    /// Sends `envelope` once the disk has what it promises: always the newest
    /// term and vote, for an acknowledgement also the entries.
    pub(super) fn hold(&mut self, mut envelope: Envelope, out: &mut Vec<Envelope>) {
        // What is damaged is not promised; the leader asks again with its next heartbeat.
        if let Message::Accepted { matched, .. } = &mut envelope.message
            && let Some(first) = self.damaged
        {
            *matched = (*matched).min(first.prev());
        }
        let entries = match envelope.message {
            Message::Accepted { matched, .. } => matched > self.durable(),
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::Vote { .. }
            | Message::VoteReply { .. }
            | Message::Append { .. }
            | Message::Rejected { .. }
            | Message::Heartbeat { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow => false,
        };
        let needs = if entries { self.issued } else { self.hard_state };
        if needs <= self.confirmed {
            release(envelope, out);
        } else {
            self.waiting.push((needs, envelope));
        }
    }

    /// A snapshot up to `last` is on disk and the log was dropped if `dropped`.
    pub(super) fn install(&mut self, last: Index, dropped: bool) {
        if dropped {
            // What the writes under way hold is no part of the log any more.
            for write in &mut self.pending {
                write.first = None;
                write.last = write.last.min(last);
            }
            self.durable = last;
        }
        self.durable = self.durable.max(last);
        // What the snapshot covers is not missed; what is damaged behind it is told next.
        self.damaged = self.damaged.filter(|first| *first > last);
    }
}

/// Of several acknowledgements to one leader that leave together the last says
/// all: it covers the earlier ones.
fn release(envelope: Envelope, out: &mut Vec<Envelope>) {
    if let Message::Accepted { matched, .. } = envelope.message
        && let Some(last) = out.last_mut()
        && let Message::Accepted { matched: earlier, .. } = last.message
        && (last.to, last.term) == (envelope.to, envelope.term)
        && earlier <= matched
    {
        *last = envelope;
    } else {
        out.push(envelope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario 119: index 5 is written, replaced and replaced again while the
    /// first sync still runs.
    #[test]
    fn an_old_answer_does_not_vouch_for_replaced_entries() {
        let mut ledger = Ledger::new(Index(4), Flaw::default());
        let mut out = Vec::new();
        let first = ledger.submit(false, Some(Index(5)), Index(7));
        let second = ledger.submit(false, Some(Index(6)), Index(6));
        let third = ledger.submit(false, Some(Index(7)), Index(8));
        ledger.confirm(first, &mut out);
        assert_eq!(ledger.durable(), Index(5), "6 and 7 are being replaced");
        ledger.confirm(second, &mut out);
        assert_eq!(ledger.durable(), Index(6), "7 is being added");
        ledger.confirm(third, &mut out);
        assert_eq!(ledger.durable(), Index(8));
        ledger.submit(false, Some(Index(3)), Index(3));
        assert_eq!(ledger.durable(), Index(2), "what is replaced is not durable at once");
    }
}

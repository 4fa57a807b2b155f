//! What must hold after every event and at the end.

use super::*;

impl Sim {
    pub(super) fn check(&mut self, node: usize) -> Result<(), Violation> {
        let it = &mut self.nodes[node];
        let Some(core) = &it.core else { return Ok(()) };
        let (raft, id) = (core.raft(), it.id);
        let term = raft.term().0;
        self.report.trace = fold(self.report.trace, &[self.now, id.0, term, core.applied().0]);
        if raft.is_leader() {
            let us = (id, it.incarnation);
            let leader = *self.leaders.entry(term).or_insert(us);
            if leader != us {
                let why = format!("{leader:?} and {us:?} both lead term {term}");
                return Err(Violation(why));
            }
        }
        let state = core.db().state();
        let (applied, chain) = (state.applied.index.0, state.chain);
        let digest = (state.digest, state.time_ms);
        it.durable = raft.durable().0;
        if let Some(other) = self.chains.insert(applied, chain)
            && other != chain
        {
            return Err(Violation(format!("{id} applied another entry {applied}")));
        }
        if self.diverged != Some(node)
            && let Some(other) = self.digests.insert(applied, digest)
            && other != digest
        {
            return Err(Violation(format!("{id} has another state at entry {applied}")));
        }
        let known = (it.term, it.commit);
        let commit = raft.commit().0;
        if term < known.0 || commit < known.1 {
            let why = format!("{id} went from term and commit {known:?} to {term} and {commit}");
            return Err(Violation(why));
        }
        it.commit = commit;
        for index in it.applied + 1..applied {
            let Some(chain) = core.log().chain_at(Index(index)) else { continue };
            if *self.chains.entry(index).or_insert(chain) != chain {
                return Err(Violation(format!("{id} applied another entry {index}")));
            }
        }
        it.applied = applied;
        if let Some((index, chain)) = it.acked
            && core.log().chain_at(Index(index)).is_some_and(|now| now != chain)
        {
            it.acked = None; // a newer leader replaced it, which it may
        }
        if it.acked.is_some_and(|(index, _)| index > core.log().written().index.0) {
            it.acked = None;
        }
        let newly_leads = raft.is_leader() && it.term != term;
        it.term = term;
        self.check_committed(node)?;
        if newly_leads {
            self.check_complete(node)?;
        }
        Ok(())
    }

    /// Looks at what a node says before it is sent: true after a vote.
    pub(super) fn watch(&mut self, node: usize, packet: &Outgoing) -> bool {
        if packet.way == mmapd::peers::Way::Bulk {
            return false;
        }
        let us = Address { cluster: 7, node: packet.to, incarnation: 0 };
        let mut bytes = BytesMut::from(&packet.head[..]);
        let Ok(Some(packet)) = wire::decode(us, &mut bytes) else { return false };
        let wire::Content::Protocol(envelope) = packet.content else { return false };
        let Envelope { from, to, term, message } = envelope;
        let vote = match message {
            Message::VoteReply { granted: true } => to,
            Message::Vote { .. } => from,
            Message::Accepted { matched, .. } => {
                let it = &mut self.nodes[node];
                let core = it.core.as_ref().expect("it speaks");
                // It was true when it was made; since then, in the same turn, another leader
                // may have cut the log.
                if term < core.raft().term() {
                    return false;
                }
                let chain = core.log().chain_at(matched);
                // What the protocol saw applied is committed, and hangs on no acknowledgement
                // any more: a node that makes its state anew may find damage there.
                let damaged = core.log().damaged_from(core.raft().applied().next());
                if damaged.is_some_and(|(first, _)| first <= matched) {
                    self.wrong = Some(format!("{from} acknowledges {matched}, {damaged:?} is bad"));
                }
                if chain.is_none() && matched.0 >= core.log().first().0 {
                    self.wrong = Some(format!("{from} acknowledges {matched} without having it"));
                }
                if let Some(chain) = chain
                    && it.acked.is_none_or(|(index, _)| index < matched.0)
                {
                    it.acked = Some((matched.0, chain));
                }
                return false;
            }
            _ => return false,
        };
        let first = *self.votes.entry((from, self.nodes[node].incarnation, term.0)).or_insert(vote);
        if first != vote {
            self.wrong = Some(format!("{from} voted for {first} and {vote} in term {}", term.0));
        }
        true
    }

    /// A write that a healed cluster must acknowledge.
    pub(super) fn write_afresh(&mut self) -> Result<(), Violation> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let key = Bytes::from_static(b"afresh");
        let command = Command::Put {
            key,
            value: Bytes::from_static(b"1"),
            content_type: String::new(),
            life: Life::Endless,
            conditions: Conditions::default(),
            prev: false,
        };
        self.event(leader, Event::Propose(vec![(Wait::Fresh, command.encode())]))
    }

    /// A new leader holds every entry that any node has applied (Raft 5.4).
    pub(super) fn check_complete(&self, node: usize) -> Result<(), Violation> {
        let core = self.nodes[node].core.as_ref().expect("it leads");
        let Some((index, chain)) = self.chains.iter().next_back() else { return Ok(()) };
        let first = core.log().first().0;
        let found = core.log().chain_at(Index(*index));
        if *index >= first && found != Some(*chain) {
            let id = self.nodes[node].id;
            return Err(Violation(format!("{id} leads without committed entry {index}")));
        }
        Ok(())
    }

    /// Who is where, and what they rule by.
    fn picture(&self) -> String {
        let mut picture = format!("{:?}, wiped {:?}", self.ruling(), self.wiped);
        for it in &self.nodes {
            let Some(core) = &it.core else { continue };
            let raft = core.raft();
            picture += &format!(
                "\n {} of {:x}: {:?} of {} at {} {:?}, {:?} by {:?} peers {:?}",
                it.id,
                it.incarnation,
                raft.role(),
                raft.term(),
                raft.last(),
                core.applied(),
                core.alarms(),
                raft.membership(),
                raft.progress().collect::<Vec<_>>(),
            );
        }
        picture
    }

    pub(super) fn check_settled(&mut self, term: Option<u64>) -> Result<(), Violation> {
        let Some(leader) = self.leader() else {
            return Err(Violation(format!("a healed cluster has no leader: {}", self.picture())));
        };
        if !self.fresh {
            return Err(Violation("a healed cluster does not acknowledge a write".into()));
        }
        if term != self.leader_term() {
            let now = self.leader_term();
            return Err(Violation(format!("term {term:?} of a healed cluster ends, now {now:?}")));
        }
        let ruling = self.ruling();
        // A life that the cluster does not know counts for nothing, and gets nothing.
        let counts = |node: &&SimNode| {
            ruling.members().contains(&node.id)
                && ruling.knows(node.id, node.incarnation)
                && (node.has_files || ruling.is_voter(node.id))
        };
        let wanted = self.nodes.iter().filter(counts).count();
        let cores = || self.nodes.iter().filter(counts).filter_map(|node| node.core.as_ref());
        let all = || self.nodes.iter().filter_map(|node| node.core.as_ref());
        let leaders = all().filter(|core| core.raft().is_leader()).count();
        let want = self.nodes[leader].core.as_ref().map(|core| core.db().state());
        let same = |core: &Core<Wait>| {
            let (have, want) = (core.db().state(), want.expect("it leads"));
            (have.applied, have.chain, have.digest) == (want.applied, want.chain, want.digest)
        };
        if leaders != 1 || cores().count() != wanted || !cores().all(same) {
            let applied: Vec<_> = cores().map(|core| core.applied().0).collect();
            let why = format!("a healed cluster is apart: {leaders} leaders, applied {applied:?}");
            let why = format!("{why}: {}", self.picture());
            return Err(Violation(why));
        }
        if self.plan.seed.is_multiple_of(2) {
            for core in cores() {
                core.db().check().map_err(|error| Violation(format!("a database: {error}")))?;
            }
        }
        Ok(())
    }
}

//! What goes wrong, and the end of it.

use super::*;

impl Sim {
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if !self.chaos {
            return Ok(());
        }
        let every = self.plan.faults.every_us;
        let next = every / 2 + self.rng.below(every);
        self.later(next, Happening::Fault);
        let node = pick(&mut self.rng, self.plan.nodes);
        match self.rng.below(13) {
            10 if self.plan.failing_syncs => {
                self.report.failed_syncs += 1;
                let syncs = self.nodes[node].disk.sync_count() + self.rng.below(4);
                self.nodes[node].disk.fail_at(syncs);
            }
            10 | 11 => self.rivals(node),
            12 => self.kill_alive(node)?,
            0..=2 => {
                if self.nodes[node].core.is_some() {
                    self.crash(node)?;
                }
            }
            3 => {
                // Somewhere inside the next few writes.
                let ops = self.nodes[node].disk.op_count() + 1 + self.rng.below(30);
                self.nodes[node].disk.stop_after(ops);
            }
            4 => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].core.is_some() {
                        self.crash(node)?;
                    }
                }
            }
            5 => {
                self.nodes[node].paused = true;
                let length = 50_000 + self.rng.below(1_500_000);
                self.later(length, Happening::Resume { node });
            }
            6 | 7 => self.partition(node),
            8 => {
                // The leader with one peer, both cut off from the rest.
                let leader = self.leader().unwrap_or(node);
                let friend = pick(&mut self.rng, self.plan.nodes);
                self.partition(leader);
                self.partition(friend);
                self.cut[leader][friend] = false;
                self.cut[friend][leader] = false;
            }
            _ => {
                // One way only.
                let to = pick(&mut self.rng, self.plan.nodes);
                if node != to {
                    self.cut[node][to] = true;
                    self.heal_later();
                }
            }
        }
        Ok(())
    }

    pub(super) fn kill_alive(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].core.is_some() { self.kill(node) } else { Ok(()) }
    }

    /// All but one are told to campaign at once: rivals in one term.
    pub(super) fn rivals(&mut self, spared: usize) {
        let Some(leader) = self.leader() else { return };
        let (from, term) = {
            let raft = self.nodes[leader].core.as_ref().expect("it leads").raft();
            (raft.id(), raft.term())
        };
        let us = Address { cluster: 7, node: from, incarnation: 1 };
        for node in (0..self.nodes.len()).filter(|node| *node != spared && *node != leader) {
            let to = self.nodes[node].id;
            let envelope = Envelope { from, to, term, message: Message::TimeoutNow };
            let bytes = wire::encode(us, &envelope, 0);
            let delay = 100 + self.rng.below(2_000);
            self.later(delay, Happening::Deliver { node, bytes });
        }
        self.partition(leader);
    }

    pub(super) fn partition(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.cut[node][other] = true;
                self.cut[other][node] = true;
            }
        }
        self.heal_later();
    }

    pub(super) fn heal_later(&mut self) {
        self.cuts += 1;
        let length = 200_000 + self.rng.below(3_000_000);
        let cut = self.cuts;
        self.later(length, Happening::Heal { cut });
    }

    pub(super) fn uncut(&mut self) {
        for row in &mut self.cut {
            row.fill(false);
        }
    }

    pub(super) fn heal_all(&mut self) -> Result<(), Violation> {
        self.chaos = false;
        self.uncut();
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.stop_after(u64::MAX);
            self.nodes[node].disk.fail_at(u64::MAX);
            if self.nodes[node].paused {
                self.resume(node)?;
            }
            if self.nodes[node].core.is_none() {
                self.start(node)?;
            }
        }
        Ok(())
    }

    pub(super) fn leader(&self) -> Option<usize> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(place, node)| Some((place, node.core.as_ref()?)))
            .filter(|(_, core)| core.raft().is_leader())
            .max_by_key(|(_, core)| core.raft().term())
            .map(|(place, _)| place)
    }
}

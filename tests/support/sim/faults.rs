//! What goes wrong, and the end of it.

use super::nodes::db_path;
use super::*;

/// Is nothing of its files damaged, be it noticed or not?
fn is_whole(core: &Core<Wait>) -> bool {
    core.db().check().is_ok() && core.alarms().is_empty()
}

impl Sim {
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if !self.chaos {
            return Ok(());
        }
        let every = self.plan.faults.every_us;
        let next = every / 2 + self.rng.below(every);
        self.later(next, Happening::Fault);
        let node = pick(&mut self.rng, self.nodes.len() as u64);
        if self.plan.skewed && self.rng.below(6) == 0 {
            self.nodes[node].skew_ms = self.rng.below(600_000_000).cast_signed() - 300_000_000;
        }
        match self.rng.below(15) {
            13 | 14 => self.rot(node)?,
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
                let friend = pick(&mut self.rng, self.nodes.len() as u64);
                self.partition(leader);
                self.partition(friend);
                self.cut[leader][friend] = false;
                self.cut[friend][leader] = false;
            }
            _ => {
                // One way only.
                let to = pick(&mut self.rng, self.nodes.len() as u64);
                if node != to {
                    self.cut[node][to] = true;
                    self.heal_later();
                }
            }
        }
        Ok(())
    }

    /// A disk changes what was durable while its node is down: at most one node at a time, as
    /// nothing survives the loss of a majority. Damage that nobody has touched yet counts.
    fn rot(&mut self, node: usize) -> Result<(), Violation> {
        if let Some(before) = self.rotten
            && self.nodes[before].core.as_ref().is_some_and(is_whole)
        {
            self.rotten = None;
        }
        if !self.plan.rot || self.rotten.is_some() || !self.is_sound() {
            return Ok(());
        }
        if self.nodes[node].core.is_some() {
            self.crash(node)?;
        }
        let disk = self.nodes[node].disk.clone();
        let failed = |error| Violation(format!("a simulated disk: {error}"));
        let mut files: Vec<PathBuf> = Vec::new();
        for name in disk.list("/log".as_ref()).map_err(failed)? {
            if name.ends_with(".seg") || name == "hard.state" {
                files.push(PathBuf::from("/log").join(name));
            }
        }
        if disk.list("/".as_ref()).map_err(failed)?.contains(&"db.mmapd".to_owned()) {
            files.push(db_path());
        }
        if files.is_empty() {
            return Ok(());
        }
        self.rotten = Some(node);
        self.report.rotten += 1;
        for _ in 0..=self.rng.below(2) {
            let file = &files[pick(&mut self.rng, files.len() as u64)];
            let region = disk.open(file, FileKind::Log, 0).map_err(failed)?;
            let Some(region) = region else { continue };
            let mut bytes = vec![0; usize::try_from(region.len()).expect("small")];
            region.read_at(0, &mut bytes).map_err(failed)?;
            // Where something is written, mostly; and never all copies of term and vote.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last as u64 + 1);
            let used = if file.ends_with("hard.state") { 8192 } else { used };
            let len = [1, 1, 1, 40, 512][pick(&mut self.rng, 5)].min(used);
            let at = self.rng.below(used - len + 1);
            let old = &bytes[usize::try_from(at).expect("small")..];
            let new: Vec<u8> = if len == 1 {
                vec![old[0] ^ 1 << self.rng.below(8)]
            } else {
                (0..len).map(|_| 1 + u8::try_from(self.rng.below(255)).expect("a byte")).collect()
            };
            disk.damage(file, at, &new);
        }
        Ok(())
    }

    /// Somebody changes the database of a node that is down, without a trace in its checksums.
    pub(super) fn diverge(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].core.is_some() {
            self.crash(node)?;
        }
        let it = &self.nodes[node];
        let options = nodes::db_options();
        let identity = Identity { cluster: 7, node: it.id, incarnation: 1 };
        let changed = Db::open(Arc::new(it.disk.clone()), options, identity).and_then(|mut db| {
            let mut txn = db.begin();
            txn.put(Tree::Meta, b"rogue", b"1")?;
            txn.state_mut().digest ^= 1;
            txn.commit()?;
            db.begin_checkpoint()?.expect("something changed").run()
        });
        changed.map_err(|error| Violation(format!("a database was not changed: {error}")))?;
        self.diverged = Some(node);
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
        let us = Address { cluster: 7, node: from, incarnation: self.nodes[leader].incarnation };
        // A leader with a lease would know that it told them: words cannot be put in its mouth.
        let told = if self.plan.lease { 0 } else { self.nodes.len() };
        for node in (0..told).filter(|node| *node != spared && *node != leader) {
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
            let it = &self.nodes[node];
            let is_member = self.ruling().members().contains(&it.id);
            if is_member && !it.present {
                // Whoever asked for it may not have heard that it is one, and asks again.
                if !it.has_files && it.joined.is_none() {
                    let told = members::told_by(self.ruling(), it.id);
                    self.nodes[node].joined = Some(told);
                }
                self.nodes[node].present = true;
            }
            if self.nodes[node].core.is_none() && self.nodes[node].present {
                self.start(node)?;
            }
            // What no reader has touched is found by looking at everything.
            if let Some(core) = &self.nodes[node].core {
                drop(core.db().check());
            }
        }
        Ok(())
    }

    /// Somebody is told to hand over.
    pub(super) fn step_down(&mut self) -> Result<(), Violation> {
        if !self.chaos {
            return Ok(());
        }
        let next = 200_000 + self.rng.below(3_000_000);
        self.later(next, Happening::StepDown);
        let Some(leader) = self.leader().filter(|leader| !self.nodes[*leader].paused) else {
            return Ok(());
        };
        self.event(leader, Event::StepDown)?;
        let core = self.nodes[leader].core.as_ref();
        let begun = core.is_some_and(|core| core.raft().transferring_to().is_some());
        self.report.transfers += u64::from(begun);
        Ok(())
    }

    pub(super) fn leader_term(&self) -> Option<u64> {
        let core = self.nodes[self.leader()?].core.as_ref()?;
        Some(core.raft().term().0)
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

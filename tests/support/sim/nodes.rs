//! Starts and stops nodes, and carries out what they ask for.

use super::*;

/// How much of a turn is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    First,
    Second,
    Both,
}

impl Sim {
    pub(super) fn start(&mut self, node: usize) -> Result<(), Violation> {
        let founding = self.founding().addresses;
        let it = &mut self.nodes[node];
        it.life += 1;
        let seed = self.plan.seed ^ it.life << 20 ^ it.id.0;
        let mut raft = raft::config::Config::new(it.id, seed);
        raft.max_inflight = self.plan.inflight;
        raft.planted = self.plan.planted.into();
        // As `raft.lease` makes it of the default times: two ticks less, and 5 % less.
        raft.lease = self.plan.lease.then_some(427_500);
        let options = OpenOptions {
            fresh: Identity { cluster: 7, node: it.id, incarnation: it.incarnation },
            members: if it.joined.is_some() { BTreeMap::new() } else { founding },
            joined: it.joined.clone(),
            log: LogOptions {
                dir: "/log".into(),
                segment_bytes: self.plan.segment_bytes,
                repairable: true,
            },
            db: db_options(),
            raft,
        };
        it.has_files = true;
        let disk: Arc<dyn Disk> = Arc::new(it.disk.clone());
        let parts = match open(disk, options) {
            Ok((parts, recovered)) => {
                self.report.cut_tails += u64::from(recovered.cut.is_some());
                self.report.rebuilt += u64::from(parts.lost.is_some());
                // A disk that keeps its promises damages nothing.
                let damage = (&parts.lost, &recovered.damaged, recovered.amnesia);
                if !self.plan.rot && !matches!(damage, (None, damaged, None) if damaged.is_empty())
                {
                    return Err(Violation(format!("{} finds damage: {damage:?}", it.id)));
                }
                if parts.log.amnesia().is_some() {
                    self.report.amnesias += 1;
                    it.acked = None; // it may have to be told anew
                }
                parts
            }
            // A crash point inside recovery: the next start has to cope.
            Err(StoreError::Io { .. }) => return self.crash(node),
            Err(error) => {
                return Err(Violation(format!("{} does not start again: {error}", it.id)));
            }
        };
        let options = CoreOptions {
            batch_bytes: self.plan.batch_bytes,
            inflight_bytes: 2 * self.plan.batch_bytes,
            checkpoint_log_bytes: self.plan.checkpoint_log_bytes,
            checkpoint_dirty_bytes: 1 << 20,
            checkpoint_ticks: 80,
            active_ticks: if self.plan.long_downs { 20 } else { 80 },
            mark_ticks: 2,
            log_retain_bytes: self.plan.retain_bytes,
            digest_entries: 64,
            tidy: Tidy {
                expire: true,
                history_events: 64,
                history_bytes: 64 << 10,
                // A name must be known until its client has given up, however the clocks jump.
                once_ms: u64::MAX,
                once_count: 4_096,
                once_bytes: 4 << 20,
            },
        };
        if let Some((index, chain)) = it.acked
            && index >= parts.log.first().0
            && parts.log.chain_at(Index(index)) != Some(chain)
        {
            return Err(Violation(format!("{} lost entry {index}, which it acknowledged", it.id)));
        }
        self.report.restarts += u64::from(it.life > 1);
        it.applied = parts.db.state().applied.index.0;
        (it.term, it.commit) = (0, 0);
        it.durable = parts.raft.durable().0;
        it.urls = parts.raft.membership().addresses.clone();
        it.config = None;
        it.core = Some(Core::new(parts, options));
        it.paused = false;
        let life = it.life;
        let jitter = self.rng.below(TICK_US);
        self.later(jitter, Happening::Tick { node, life });
        self.event(node, Event::Tick)
    }

    /// Power loss: whatever was not synced may be gone or torn.
    pub(super) fn crash(&mut self, node: usize) -> Result<(), Violation> {
        let disk = self.nodes[node].disk.crash(&mut self.rng);
        self.nodes[node].disk = disk;
        self.kill(node)
    }

    /// The end of a process, for good or until it starts again.
    pub(super) fn kill(&mut self, node: usize) -> Result<(), Violation> {
        self.report.crashes += 1;
        self.stop(node);
        let life = self.nodes[node].life;
        let down = match self.rng.below(4) {
            _ if !self.chaos => 1_000,
            0 => 1_000,
            1 | 2 if self.plan.long_downs => 3_000_000 + self.rng.below(4_000_000),
            _ => 100_000 + self.rng.below(1_500_000),
        };
        self.later(down, Happening::Restart { node, life });
        Ok(())
    }

    /// The end of a process: the page cache stays, with whatever is not on the disk.
    pub(super) fn stop(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if let Some(core) = &it.core {
            it.lasting = Some(members::lasting(core));
        }
        it.disk.stop_after(u64::MAX);
        it.disk.fail_at(u64::MAX);
        it.core = None;
        let (peer, held) = (it.id, std::mem::take(&mut it.held));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.later(500, Happening::Gone { node: other, peer });
        }
        // Its connections break, which the senders of snapshots notice.
        for what in held {
            if let Happening::Snapshot { from, from_life: life, shipment, .. } = what {
                let to = shipment.to;
                let sent = Happening::SnapshotSent { node: from, life, to, installed: None };
                self.later(10_000, sent);
            }
        }
        for (from, life) in std::mem::take(&mut self.nodes[node].receiving) {
            let to = self.nodes[node].id;
            let sent = Happening::SnapshotSent { node: from, life, to, installed: None };
            self.later(10_000, sent);
        }
        let it = &mut self.nodes[node];
        it.paused = false;
        for client in 0..self.clients.len() {
            if self.clients[client].node == node && self.clients[client].op.is_some() {
                self.end(client, None);
            }
        }
    }

    /// The store of a node gave up. Only a planned stop of its disk may cause that.
    pub(super) fn failed(&mut self, node: usize, error: &StoreError) -> Result<(), Violation> {
        match error {
            // After a failed sync the process must end; sometimes the machine goes on.
            StoreError::Io { .. } if self.rng.below(2) == 0 => self.kill(node),
            StoreError::Io { .. } => self.crash(node),
            _ => Err(Violation(format!("{} stopped: {error}", self.nodes[node].id))),
        }
    }

    /// Lets an event happen, and takes a turn: often as a whole; else its work is carried out
    /// between its halves, or the second half waits for the next event.
    pub(super) fn event(&mut self, node: usize, event: Event<Wait>) -> Result<(), Violation> {
        let parts: &[Half] = match self.rng.below(4) {
            0 => &[Half::First],
            1 => &[Half::First, Half::Second],
            _ => &[Half::Both],
        };
        let mut event = Some(event);
        for part in parts {
            self.take_turn(node, event.take(), *part)?;
        }
        Ok(())
    }

    fn take_turn(
        &mut self,
        node: usize,
        event: Option<Event<Wait>>,
        half: Half,
    ) -> Result<(), Violation> {
        let mut work = Work::default();
        let wall_ms =
            (1_700_000_000_000 + self.now / 1000).strict_add_signed(self.nodes[node].skew_ms);
        let now = Now { wall_ms, mono_us: self.now };
        let Some(core) = self.nodes[node].core.as_mut() else { return Ok(()) };
        core.set_now(now);
        let is_quiet = matches!(event, Some(Event::Tick)) && core.quiet_ticks() > 0;
        let before = (core.raft().role(), core.raft().term());
        let mut result = event.map_or(Ok(()), |event| core.handle(event, &mut work));
        let after = (core.raft().role(), core.raft().term());
        if is_quiet && !(work.packets.is_empty() && before == after) {
            let id = self.nodes[node].id;
            return Err(Violation(format!(
                "{id} called a tick quiet, and {before:?} did something"
            )));
        }
        result = result.and_then(|()| match half {
            Half::First => core.begin_turn(&mut work),
            Half::Second => core.end_turn(&mut work),
            Half::Both => core.turn(&mut work),
        });
        while half != Half::First && result.is_ok() && work.again {
            result = core.turn(&mut work);
        }
        if let Err(error) = result {
            return self.failed(node, &error);
        }
        self.report.installed += u64::from(work.measured.installed);
        self.report.repaired += work.measured.repaired;
        self.report.rebuilt += work.measured.lost_databases.len() as u64;
        if !self.plan.rot && !self.plan.diverge && !work.measured.lost_databases.is_empty() {
            let lost = &work.measured.lost_databases;
            return Err(Violation(format!("{} gives up: {lost:?}", self.nodes[node].id)));
        }
        if self.diverged == Some(node) && !work.measured.lost_databases.is_empty() {
            self.diverged = None;
        }
        if work.measured.digest_mismatches > 0 && !self.plan.diverge {
            return Err(Violation(format!("{} found another state", self.nodes[node].id)));
        }
        // Before anything of it is sent: what is sent is compared with what was seen.
        self.check(node)?;
        if let Some(core) = &self.nodes[node].core
            && self.nodes[node].config.as_ref() != Some(core.raft().membership())
        {
            let config = core.raft().membership().clone();
            let leads = core.raft().is_leader();
            self.follow(node, config);
            if leads {
                self.check_under_way(node)?;
            }
        }
        self.carry_out(node, work);
        self.wrong.take().map_or(Ok(()), |why| Err(Violation(why)))
    }

    pub(super) fn carry_out(&mut self, node: usize, work: Work<Wait>) {
        let life = self.nodes[node].life;
        let mut voted = false;
        for packet in work.packets {
            voted |= self.watch(node, &packet);
            self.send(node, packet);
        }
        if let Some(job) = work.sync {
            let slow = if self.rng.below(50) == 0 { 50_000 } else { 800 };
            let took = 100 + self.rng.below(slow);
            if self.chaos && self.rng.below(12_000) < self.plan.faults.biased {
                let soon = self.rng.below(took);
                self.later(soon, Happening::Crash { node, life });
            }
            self.later(took, Happening::Sync { node, life, job });
        }
        if let Some(job) = work.checkpoint {
            let took = 1_000 + self.rng.below(30_000);
            self.later(took, Happening::Checkpoint { node, life, job });
        }
        if let Some(job) = work.compaction {
            let took = 1_000 + self.rng.below(400_000);
            self.later(took, Happening::Compaction { node, life, job });
        }
        if let Some(job) = work.spare {
            let took = 500 + self.rng.below(20_000);
            self.later(took, Happening::Spare { node, life, job });
        }
        for shipment in work.snapshots {
            let Some(to) = self.reached(node, shipment.to) else {
                let to = shipment.to;
                let what = Happening::SnapshotSent { node, life, to, installed: None };
                self.later(1_000, what);
                continue;
            };
            let what = Happening::Snapshot { node: to, from: node, from_life: life, shipment };
            self.later(20_000, what);
        }
        for (wait, answer) in work.answers {
            self.answered(node, wait, answer);
        }
        // Faults like the moments just after a promise (consensus paper, 4.9).
        if voted && self.chaos && self.rng.below(1000) < self.plan.faults.biased {
            let soon = 1 + self.rng.below(3_000);
            self.later(soon, Happening::Crash { node, life });
        }
    }

    /// The next sync of this disk is a lie, and the power fails soon after.
    pub(super) fn lie(&mut self, node: usize) {
        let it = &self.nodes[node];
        it.disk.lie_at(it.disk.sync_count());
        let life = it.life;
        let soon = 1_000 + self.rng.below(60_000);
        self.later(soon, Happening::Crash { node, life });
    }

    pub(super) fn send(&mut self, from: usize, packet: Outgoing) {
        let Some(to) = self.reached(from, packet.to) else { return };
        let faults = self.plan.faults.clone();
        if self.cut[from][to] || (self.chaos && self.rng.below(1000) < faults.loss) {
            return;
        }
        let mut bytes = packet.head;
        for part in &packet.frames {
            bytes.extend_from_slice(part);
        }
        let copies = if self.chaos && self.rng.below(1000) < faults.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            let extra = if self.chaos { faults.delay_us } else { 500 };
            // Rival candidates in one term need requests that take their time.
            let vote = packet.way == mmapd::peers::Way::Vote && self.chaos;
            let extra = if vote { extra.max(15_000) } else { extra };
            let delay = 100 + self.rng.below(extra);
            self.later(delay, Happening::Deliver { node: to, bytes: bytes.clone() });
        }
    }

    /// Connections follow the membership, as in the shell; those to former members stay.
    fn follow(&mut self, node: usize, config: Membership) {
        let it = &mut self.nodes[node];
        it.urls.extend(config.addresses.clone());
        it.config = Some(config);
    }

    /// Who listens where this node believes `to` to be.
    fn reached(&self, node: usize, to: NodeId) -> Option<usize> {
        self.nodes[node].urls.get(&to).map(|url| members::place_of(url))
    }

    pub(super) fn deliver(&mut self, node: usize, bytes: &[u8]) -> Result<(), Violation> {
        let us = Address { cluster: 7, node: self.nodes[node].id, incarnation: 0 };
        let mut buffer = BytesMut::from(bytes);
        let packet = wire::decode(us, &mut buffer)
            .map_err(|error| Violation(format!("a packet of ours is not one: {error}")))?
            .ok_or_else(|| Violation("a packet of ours is cut short".into()))?;
        // Who was reached can reach back, although its configuration may be too old for that.
        let from = packet.from;
        self.nodes[node].urls.entry(from).or_insert_with(|| members::url(from, 0));
        self.event(node, Event::Packet(packet))
    }

    pub(super) fn receive_snapshot(
        &mut self,
        node: usize,
        from: usize,
        from_life: u64,
        shipment: Shipment,
    ) -> Result<(), Violation> {
        self.report.snapshots += 1;
        let Shipment { to, term, meta, pinned } = shipment;
        let failed = Happening::SnapshotSent { node: from, life: from_life, to, installed: None };
        if self.nodes[node].core.is_none() || self.cut[from][node] {
            self.later(10_000, failed);
            return Ok(());
        }
        if self.chaos && self.rng.below(1000) < 2 * self.plan.faults.biased {
            // Somewhere between receiving and the end of the installation.
            let ops = self.nodes[node].disk.op_count() + self.rng.below(40);
            self.nodes[node].disk.stop_after(ops);
        }
        let disk: Arc<dyn Disk> = Arc::new(self.nodes[node].disk.clone());
        let path = mmapd::store::db::unfinished(&db_path());
        drop(disk.remove(&path));
        let identity = Identity { cluster: 7, node: to, incarnation: 1 };
        let received = (|| {
            let mut receiver = Receiver::create(disk, &path, identity, 32 << 20)?;
            let mut place = 0;
            while let Some(chunk) = pinned.chunk(place)? {
                receiver.push(&chunk)?;
                place += 1;
            }
            receiver.finish()
        })();
        match received {
            Ok(state) => {
                let waiter = Wait::Sender { node: from, life: from_life, to };
                self.nodes[node].receiving.push((from, from_life));
                let from = self.nodes[from].id;
                let chain = state.chain;
                self.event(
                    node,
                    Event::SnapshotArrived(Arrived { waiter, from, term, meta, chain, path }),
                )
            }
            // It came like that: the sender hears of it, and looks at its own disk.
            Err(StoreError::Corrupt { .. }) if self.plan.rot => {
                self.later(10_000, failed);
                if self.nodes[from].life == from_life { self.scrub(from) } else { Ok(()) }
            }
            Err(error) => {
                self.later(10_000, failed);
                self.failed(node, &error)
            }
        }
    }

    /// A whole pass of the scrubber, at once.
    fn scrub(&mut self, node: usize) -> Result<(), Violation> {
        let Some(core) = self.nodes[node].core.as_mut() else { return Ok(()) };
        let mut work = Work::default();
        let mut findings = Vec::new();
        let result = core.handle(Event::ScrubWanted, &mut work).and_then(|()| {
            let mut scrub = work.scrub.take().expect("it was asked for");
            loop {
                let progress = scrub.step(u64::MAX)?;
                findings.extend(progress.findings);
                if progress.done {
                    return Ok(());
                }
            }
        });
        if let Err(error) = result {
            return self.failed(node, &error);
        }
        let clean = findings.is_empty();
        for finding in findings {
            self.event(node, Event::Damaged(finding))?;
        }
        self.event(node, Event::Scrubbed { clean })
    }

    pub(super) fn resume(&mut self, node: usize) -> Result<(), Violation> {
        if !self.nodes[node].paused {
            return Ok(());
        }
        self.nodes[node].paused = false;
        // Messages first, then one tick for all that were missed.
        let held = std::mem::take(&mut self.nodes[node].held);
        let (ticks, others): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|what| matches!(what, Happening::Tick { .. }));
        for what in others.into_iter().chain(ticks.into_iter().take(1)) {
            self.happen(what)?;
        }
        Ok(())
    }
}

pub(super) fn db_options() -> DbOptions {
    DbOptions {
        path: db_path(),
        map_max: 32 << 20,
        quota: u64::MAX,
        grow_step: 256 << 10,
        shrink: Shrink { least: 512 << 10, part: 4 },
    }
}

pub(super) fn db_path() -> PathBuf {
    "/db.mmapd".into()
}

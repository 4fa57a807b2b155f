//! A cluster in one thread: time, network, crashes, clients. The same plan gives the same
//! trace.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use mmapd::raft::types::{NodeId, Term};

use crate::checks::Seen;
use crate::disk::{Entry, Log};
use crate::packet::Packet;
use crate::replica::{Kind, Life, Out, Replica, Settings, start};
use crate::rng::Rng;
use crate::schedule::{Fault, TICK, Weather, Who, faults};

/// How long a healed cluster may take until all agree, in ticks.
const PATIENCE: u64 = 1_000;
/// And longer for each entry that may be missing somewhere: some seeds send one at a time,
/// and wait for a slow disk each time.
const PATIENCE_PER_ENTRY: u64 = 8;

/// What clients do.
#[derive(Clone, Debug)]
pub enum Load {
    /// Now and then a few writes, or a read.
    Mixed,
    /// So many writes at once, every so many units of time.
    Steady {
        /// Writes at once.
        batch: u64,
        /// Units of time between them.
        every: u64,
    },
}

/// Everything that decides what happens.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all randomness comes from.
    pub seed: u64,
    /// Node 1, node 2, and so on.
    pub kinds: Vec<Kind>,
    /// The settings of all of them.
    pub settings: Settings,
    /// What the network and the disks are like.
    pub weather: Weather,
    /// What goes wrong, by time.
    pub faults: Vec<(u64, Fault)>,
    /// What clients do.
    pub load: Load,
    /// How long faults rage, in ticks.
    pub chaos: u64,
}

impl Plan {
    /// Bad weather for these nodes.
    #[must_use]
    pub fn stormy(seed: u64, kinds: Vec<Kind>) -> Self {
        let mut rng = Rng::new(seed, 3);
        let chaos = 1_500;
        let settings = Settings {
            inflight: rng.of(&[1, 2, 256]),
            one_by_one: rng.percent(30),
            ..Settings::default()
        };
        let faults = faults(seed, kinds.len() as u64, chaos * TICK);
        let weather = Weather::of_seed(seed);
        Self { seed, kinds, settings, weather, faults, load: Load::Mixed, chaos }
    }

    /// A cluster of three or five in bad weather, with at least one node of each kind.
    #[must_use]
    pub fn mixed(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 4);
        let mut kinds: Vec<Kind> =
            (0..rng.of(&[3, 3, 5])).map(|_| rng.of(&[Kind::Ours, Kind::Theirs])).collect();
        (kinds[0], kinds[1]) = (Kind::Ours, Kind::Theirs);
        Self::stormy(seed, kinds)
    }

    /// Nothing goes wrong for so many ticks.
    #[must_use]
    pub fn calm(kinds: Vec<Kind>, load: Load, chaos: u64) -> Self {
        let (settings, weather) = (Settings::default(), Weather::CALM);
        Self { seed: 1, kinds, settings, weather, faults: Vec::new(), load, chaos }
    }
}

/// What a run showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Whatever happened, in order.
    pub trace: u64,
    /// Inputs of all nodes.
    pub steps: u64,
    /// Messages sent.
    pub messages: u64,
    /// Entries committed.
    pub committed: u64,
    /// Writes that clients were told to be committed.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Terms led by our nodes.
    pub led_by_ours: u64,
    /// Terms led by nodes of `raft`.
    pub led_by_theirs: u64,
    /// The newest term: so many elections were begun.
    pub terms: u64,
    /// Crashes.
    pub crashes: u64,
}

impl Numbers {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.trace = mix(self.trace, other.trace);
        self.steps += other.steps;
        self.messages += other.messages;
        self.committed += other.committed;
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.led_by_ours += other.led_by_ours;
        self.led_by_theirs += other.led_by_theirs;
        self.terms += other.terms;
        self.crashes += other.crashes;
    }
}

#[derive(Debug)]
enum Event {
    Tick(NodeId),
    Deliver(Packet),
    Sync { id: NodeId, life: u64, token: u64 },
    Start(NodeId),
    Campaign(NodeId),
    Fault(Fault),
    Client,
}

/// Ordered by time, then by birth.
#[derive(Debug)]
struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// A node that runs.
#[derive(Debug)]
struct Host {
    replica: Box<dyn Replica>,
    life: u64,
    timeout: u32,
    paused_until: u64,
    /// How far its state machine is.
    applied: u64,
    /// The newest write whose end is on the calendar.
    syncing: Option<u64>,
    /// Writes that clients wait for here.
    waiting: BTreeSet<u64>,
}

/// The cluster and everything around it.
#[derive(Debug)]
pub struct World {
    plan: Plan,
    /// Chances of the weather; clients have others, so that both kinds get the same ones.
    rng: Rng,
    clients: Rng,
    now: u64,
    births: u64,
    calendar: BinaryHeap<Due>,
    hosts: BTreeMap<NodeId, Host>,
    down: BTreeMap<NodeId, Log>,
    /// Who does not reach whom.
    cut: BTreeSet<(NodeId, NodeId)>,
    seen: Seen,
    numbers: Numbers,
    lives: u64,
    next_payload: u64,
    next_read: u64,
    is_healed: bool,
}

/// What a run showed, or what it violated.
///
/// # Errors
/// With what was asserted, here or in one of the two cores.
pub fn run(plan: &Plan) -> Result<Numbers, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(plan.clone()).run())).map_err(|why| text_of(&*why))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
}

impl World {
    /// A cluster with empty logs.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self::new_at(plan, 1)
    }

    /// The same, with clients that begin at this time: it decides how far from ticks they write.
    #[must_use]
    pub fn new_at(plan: Plan, clients_begin: u64) -> Self {
        let (rng, clients) = (Rng::new(plan.seed, 5), Rng::new(plan.seed, 6));
        let count = plan.kinds.len() as u64;
        let mut world = Self {
            rng,
            clients,
            now: 0,
            births: 0,
            calendar: BinaryHeap::new(),
            hosts: BTreeMap::new(),
            down: (1..=count).map(|id| (NodeId(id), Log::default())).collect(),
            cut: BTreeSet::new(),
            seen: Seen::default(),
            numbers: Numbers::default(),
            lives: 0,
            next_payload: 1,
            next_read: 1,
            is_healed: false,
            plan,
        };
        for id in (1..=count).map(NodeId) {
            world.start(id);
            // Clocks do not tick together.
            world.schedule(id.0 % TICK, Event::Tick(id));
        }
        for (time, fault) in std::mem::take(&mut world.plan.faults) {
            world.schedule(time, Event::Fault(fault));
        }
        world.schedule(clients_begin, Event::Client);
        world
    }

    /// Lets the faults rage, heals, and waits until all agree.
    #[must_use]
    pub fn run(mut self) -> Numbers {
        self.run_for(self.plan.chaos);
        self.heal();
        self.converge();
        self.numbers()
    }

    /// Lets so many ticks pass.
    pub fn run_for(&mut self, ticks: u64) {
        let end = self.now + ticks * TICK;
        while self.calendar.peek().is_some_and(|due| due.0 < end) {
            if let Some(Due(time, _, event)) = self.calendar.pop() {
                self.now = time;
                self.happens(event);
            }
        }
        self.now = end;
    }

    /// What happened so far.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        let kind = |id: &NodeId| self.kind(*id);
        let leaders = self.seen.leaders();
        let led = |who| leaders.values().filter(|id| kind(id) == who).count() as u64;
        let newest = self.hosts.values().map(|host| host.replica.term().0).max();
        Numbers {
            committed: self.seen.committed().len() as u64,
            acknowledged: self.seen.acknowledged().len() as u64,
            led_by_ours: led(Kind::Ours),
            led_by_theirs: led(Kind::Theirs),
            terms: newest.unwrap_or(0),
            ..self.numbers.clone()
        }
    }

    fn kind(&self, id: NodeId) -> Kind {
        self.plan.kinds[usize::try_from(id.0).expect("a small number") - 1]
    }

    fn ids(&self) -> Vec<NodeId> {
        (1..=self.plan.kinds.len() as u64).map(NodeId).collect()
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.births += 1;
        self.calendar.push(Due(self.now + delay, self.births, event));
    }

    fn start(&mut self, id: NodeId) {
        let Some(log) = self.down.remove(&id) else { return };
        self.lives += 1;
        let settings = self.plan.settings.clone();
        // Two nodes of `raft` with one time-out would split the votes for ever.
        let timeout = loop {
            let extra = self.rng.below(u64::from(settings.election_ticks));
            let timeout = settings.election_ticks + u32::try_from(extra).expect("less than a u32");
            if self.hosts.values().all(|host| host.timeout != timeout) {
                break timeout;
            }
        };
        let seed = self.plan.seed << 20 | self.lives;
        let life = Life { id, voters: self.ids(), settings, timeout, seed };
        let host = Host {
            replica: start(self.kind(id), &life, log),
            life: self.lives,
            timeout,
            paused_until: 0,
            applied: 0,
            syncing: None,
            waiting: BTreeSet::new(),
        };
        self.hosts.insert(id, host);
    }

    fn crash(&mut self, id: NodeId, kept: u64, down: u64) {
        let Some(host) = self.hosts.remove(&id) else { return };
        self.numbers.crashes += 1;
        let disk = host.replica.into_disk();
        let writes = disk.writes_under_way() as u64;
        let kept = usize::try_from(writes * kept / 100).expect("a small number");
        self.down.insert(id, disk.crash(kept));
        self.schedule(down, Event::Start(id));
    }

    fn leader(&self) -> Option<NodeId> {
        let leaders = self.hosts.iter().filter(|(_, host)| host.replica.leads());
        leaders.max_by_key(|(_, host)| host.replica.term()).map(|(id, _)| *id)
    }

    fn paused_for(&self, id: NodeId) -> u64 {
        self.hosts.get(&id).map_or(0, |host| host.paused_until.saturating_sub(self.now))
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Tick(id) => {
                self.schedule(TICK, Event::Tick(id));
                if self.paused_for(id) == 0 {
                    self.act(id, 1, |replica, out| replica.tick(out));
                }
            }
            Event::Deliver(packet) => {
                let to = packet.to();
                match self.paused_for(to) {
                    0 => self.act(to, 2, |replica, out| replica.receive(packet, out)),
                    rest => self.schedule(rest, Event::Deliver(packet)),
                }
            }
            Event::Sync { id, life, token } => {
                if self.hosts.get(&id).is_some_and(|host| host.life == life) {
                    match self.paused_for(id) {
                        0 => self.act(id, 3, |replica, out| replica.sync(token, out)),
                        rest => self.schedule(rest, Event::Sync { id, life, token }),
                    }
                }
            }
            Event::Start(id) => self.start(id),
            Event::Campaign(id) => self.act(id, 4, |replica, out| replica.campaign(out)),
            Event::Fault(fault) if !self.is_healed => self.fault(fault),
            Event::Fault(_) => {}
            Event::Client => self.client(),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let ids = self.ids();
        let hit = |world: &Self, who| match who {
            Who::Node(id) => Some(id),
            Who::Leader => world.leader(),
        };
        match fault {
            Fault::Crash { who, kept, down } => {
                if let Some(id) = hit(self, who) {
                    self.crash(id, kept, down);
                }
            }
            Fault::Pause { who, time } => {
                let until = self.now + time;
                if let Some(host) = hit(self, who).and_then(|id| self.hosts.get_mut(&id)) {
                    host.paused_until = until;
                }
            }
            Fault::Cut { side, both } => self.isolate(&side, &ids, both),
            Fault::CutLeader { both } => {
                if let Some(leader) = self.leader() {
                    self.isolate(&[leader], &ids, both);
                }
            }
            Fault::Heal => self.cut.clear(),
            Fault::Transfer(to) => {
                if let Some(leader) = self.leader()
                    && leader != to
                {
                    self.act(leader, 5, |replica, out| replica.transfer(to, out));
                }
            }
            Fault::Campaign(id) => self.schedule(0, Event::Campaign(id)),
        }
    }

    /// From now on `side` is not heard by the others in `all`.
    fn isolate(&mut self, side: &[NodeId], all: &[NodeId], both: bool) {
        self.cut.clear();
        for &from in side {
            for &to in all.iter().filter(|id| !side.contains(id)) {
                self.cut.insert((from, to));
                if both {
                    self.cut.insert((to, from));
                }
            }
        }
    }

    fn client(&mut self) {
        if self.is_healed {
            return; // what is under way comes to an end
        }
        let Load::Steady { batch, every } = self.plan.load else {
            let (delay, is_read) = (1 + self.clients.below(40), self.clients.percent(30));
            let count = self.clients.of(&[1, 1, 2, 7]);
            self.schedule(delay, Event::Client);
            // Whoever believes to lead: a deposed leader, too.
            let number = self.clients.below(7);
            let leaders: Vec<NodeId> =
                self.hosts.iter().filter(|(_, h)| h.replica.leads()).map(|(id, _)| *id).collect();
            if let Some(&id) = leaders.get(usize::from(number == 0 && leaders.len() > 1))
                && self.paused_for(id) == 0
            {
                if is_read { self.read(id) } else { self.propose(id, count) }
            }
            return;
        };
        self.schedule(every, Event::Client);
        if let Some(id) = self.leader() {
            self.propose(id, batch);
        }
    }

    fn propose(&mut self, id: NodeId, count: u64) {
        let payloads: Vec<u64> = (self.next_payload..self.next_payload + count).collect();
        self.next_payload += count;
        // Before it is told: a cluster may commit within the step.
        if let Some(host) = self.hosts.get_mut(&id) {
            host.waiting.extend(&payloads);
        }
        self.act(id, 6, |replica, out| {
            let _ = replica.propose(&payloads, out);
        });
    }

    fn read(&mut self, id: NodeId) {
        let token = self.next_read;
        self.next_read += 1;
        self.seen.asks(token);
        self.act(id, 7, |replica, out| replica.read(token, out));
    }

    /// One node does something: whatever it says and does is looked at and carried on.
    fn act(&mut self, id: NodeId, what: u64, input: impl FnOnce(&mut dyn Replica, &mut Out)) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let mut out = Out::default();
        input(&mut *host.replica, &mut out);
        let (term, leads) = (host.replica.term(), host.replica.leads());
        let last = host.replica.disk().log().last();
        self.numbers.steps += 1;
        self.numbers.messages += out.packets.len() as u64;
        for value in [self.now, id.0 << 8 | what, term.0, last.term.0, last.index.0] {
            self.numbers.trace = mix(self.numbers.trace, value);
        }
        let told = out.packets.len() as u64 | (out.applied.len() as u64) << 32;
        self.numbers.trace = mix(self.numbers.trace, told ^ host.replica.commit().0 << 16);
        self.check(id, term, leads, &out);
        self.calendar_sync(id);
        let voted = out.packets.iter().any(Packet::is_vote);
        for packet in out.packets {
            self.send(packet);
        }
        if !self.is_healed {
            self.spite(id, voted, leads && !out.written.is_empty());
        }
    }

    fn check(&mut self, id: NodeId, term: Term, leads: bool, out: &Out) {
        let Some(host) = self.hosts.get(&id) else { return };
        let log = host.replica.disk().log();
        self.seen.written(&out.written, log);
        for packet in out.packets.iter().filter(|packet| packet.is_vote()) {
            self.seen.vote(packet.term(), id, packet.to());
        }
        if leads {
            self.seen.leads(term, id, log);
        }
        for entry in &out.applied {
            self.applied(id, term, *entry);
        }
        for (token, index) in &out.reads {
            self.numbers.reads += u64::from(index.is_some());
            self.seen.answers(*token, *index);
        }
    }

    fn applied(&mut self, id: NodeId, term: Term, entry: Entry) {
        let running = self.hosts.values().map(|host| host.replica.disk().durable());
        let disks: Vec<&Log> = running.chain(self.down.values()).collect();
        self.seen.applied(entry, term, disks.into_iter());
        let host = self.hosts.get_mut(&id).expect("it acted");
        assert_eq!(host.applied + 1, entry.id.index.0, "{id} applies in order");
        host.applied += 1;
        if host.waiting.remove(&entry.payload) {
            self.seen.acknowledge(entry);
        }
    }

    fn calendar_sync(&mut self, id: NodeId) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let newest = host.replica.disk().newest_write();
        if let Some(token) = newest
            && host.syncing < newest
        {
            host.syncing = newest;
            let life = host.life;
            let time = 1 + self.rng.below(self.plan.weather.disk);
            self.schedule(time, Event::Sync { id, life, token });
        }
    }

    fn send(&mut self, packet: Packet) {
        let Weather { loss, duplicate, latency, jitter, .. } = self.plan.weather;
        if self.cut.contains(&(packet.from(), packet.to())) || self.rng.percent(loss) {
            return;
        }
        if self.rng.percent(duplicate) {
            let delay = latency + self.rng.below(10 * jitter + 1);
            self.schedule(delay, Event::Deliver(packet.clone()));
        }
        let delay = latency + self.rng.below(jitter + 1);
        self.schedule(delay, Event::Deliver(packet));
    }

    /// Faults at the moments that hurt.
    fn spite(&mut self, id: NodeId, voted: bool, wrote: bool) {
        let Weather { crash_after_vote, rival, isolate_writer, .. } = self.plan.weather;
        if voted && self.rng.percent(rival) {
            let other = NodeId(1 + self.rng.below(self.plan.kinds.len() as u64));
            let delay = self.rng.below(6);
            self.schedule(delay, Event::Campaign(other));
        }
        if voted && self.rng.percent(crash_after_vote) {
            let (kept, down) = (self.rng.below(101), 1 + self.rng.below(10));
            self.crash(id, kept, down);
        }
        if wrote && self.rng.below(1000) < isolate_writer {
            let all = self.ids();
            let friend = NodeId(1 + self.rng.below(all.len() as u64));
            let far: Vec<NodeId> = all.into_iter().filter(|&to| to != friend).collect();
            self.isolate(&[id], &far, true);
        }
    }

    /// No more faults, and everybody runs.
    fn heal(&mut self) {
        self.is_healed = true;
        self.cut.clear();
        let Weather { latency, disk, .. } = self.plan.weather;
        self.plan.weather = Weather { latency, disk, ..Weather::CALM };
        for id in self.ids() {
            self.start(id);
        }
        for host in self.hosts.values_mut() {
            host.paused_until = self.now;
        }
    }

    /// All must agree, and take a new write, within a bounded time.
    fn converge(&mut self) {
        let known = self.next_payload;
        let end = self.now + (PATIENCE + PATIENCE_PER_ENTRY * self.longest()) * TICK;
        while self.now < end {
            if let Some(leader) = self.leader() {
                self.propose(leader, 1);
            }
            for _ in 0..40 {
                self.run_for(1);
                if self.agree(known) {
                    return;
                }
            }
        }
        panic!("healed, and no agreement in time: {}", self.summary());
    }

    /// Where everybody is, in one line.
    fn summary(&self) -> String {
        let line = |(id, host): (&NodeId, &Host)| {
            let (term, last) = (host.replica.term(), host.replica.disk().log().last());
            let (commit, leads) = (host.replica.commit(), host.replica.leads());
            let (kind, applied) = (self.kind(*id), host.applied);
            format!(
                "{id} {kind:?} term {term} last {last} commit {commit} applied {applied} leads {leads}"
            )
        };
        self.hosts.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    fn longest(&self) -> u64 {
        let logs = self.hosts.values().map(|host| host.replica.disk().log());
        logs.map(|log| log.last().index.0).max().unwrap_or(0)
    }

    /// Do all hold, and have all applied, one log, with a write in it that was acknowledged
    /// after `known`? Then nothing that was acknowledged may be missing.
    fn agree(&self, known: u64) -> bool {
        let mut logs = self.hosts.values().map(|host| &host.replica.disk().durable().entries);
        let Some(first) = logs.next() else { return false };
        let committed = self.seen.committed();
        let acknowledged = self.seen.acknowledged();
        let is_fresh = acknowledged.last().is_some_and(|entry| entry.payload >= known);
        let applied = self.hosts.values().map(|host| host.applied);
        let is_same = first == committed && logs.all(|log| log == first);
        if !is_fresh || !is_same || applied.min() != Some(committed.len() as u64) {
            return false;
        }
        for entry in acknowledged {
            let place = usize::try_from(entry.id.index.0).expect("a small log") - 1;
            assert_eq!(committed.get(place), Some(entry), "an acknowledged entry is lost");
        }
        true
    }
}

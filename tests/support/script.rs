//! Runs scripts: commands to a cluster of cores, and what came of them.
//!
//! | command | does |
//! |---|---|
//! | `limit inflight/batch/bytes/half N` | a setting, before `cluster` |
//! | `cluster N [learners M]` | N empty voters, M empty learners |
//! | `cluster =CONFIG` | empty members of a configuration: `2+3/1+2+3` is voters, slash, outgoing voters |
//! | `node nI term T [vote nJ] [amnesia T] log T1 T2=CONFIG ..` | replaces a node: a log with these terms |
//! | `tick nI/all [N]` | ticks, nothing delivered |
//! | `wait N` | N times: everyone ticks, everything is delivered; only changes are shown |
//! | `elect nI` | campaigns, everything is delivered, ticks once; only changes are shown |
//! | `campaign nI`, `transfer nI nJ`, `unreachable nI nJ`, `read nI`, `propose nI V..` | inputs |
//! | `limit lease N` | leases of N, before `cluster`; `clock nI N` tells the time |
//! | `lease nI` | a read that a lease may answer |
//! | `gone nI nJ` | nI hears that the process of nJ ended |
//! | `broken nI nJ` | nI hears that its snapshot to nJ did not arrive |
//! | `deliver [nJ [nI]]` | all until quiet; what is on its way to nJ (from nI) |
//! | `drop [nJ [nI]]`, `keep ..`, `replay`, `twice`, `reverse` | loses, withholds, repeats, reorders messages |
//! | `cut nI [nJ]`, `cut nI > nJ`, `heal` | links |
//! | `hold nI`, `sync nI [N]`, `release nI` | the disk of nI: stops, does all (N) writes, works |
//! | `slow nI`, `install nI` | a snapshot that nI takes is not installed, is installed |
//! | `damaged nI [INDEX]` | nI has no bytes from here on; without an index: is whole |
//! | `crash nI [kept N]`, `start nI`, `compact nI` | |
//! | `reconfigure nI voters=1,2 [learners=4] [promote=4] [lives=1:7]` | asks nI for a change; what is not named is empty |
//! | `join nI voters=1,2 learners=4 [lives=..]` | adds an empty node that starts with this configuration |
//! | `life nI L` | nI, which is down, starts next as this life of its folder |
//! | `inject nI nJ TERM Message field=value ..` | a message from nowhere |
//! | `state [nI]`, `log nI`, `progress nI`, `members nI` | looks |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use mmapd::raft::RoleKind;
use mmapd::raft::config::Config;
use mmapd::raft::message::{Effects, EntryRun, Envelope, Fitness, Input, Message, ReadOutcome};
use mmapd::raft::planted::Planted;
use mmapd::raft::progress::Flow;
use mmapd::raft::types::{HardState, Index, LogId, Membership, NodeId, Term};

use crate::cores::{Disk, Entry, Host, Packet, payloads};

/// Ends a script that never becomes quiet.
const DELIVERIES_MAX: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Cluster {
    config: Config,
    hosts: BTreeMap<NodeId, Host>,
    down: BTreeMap<NodeId, Disk>,
    net: Vec<Packet>,
    kept: Vec<Packet>,
    cut: BTreeSet<(NodeId, NodeId)>,
    held: BTreeSet<NodeId>,
    lives: u64,
    folders: BTreeMap<NodeId, u64>,
    reads: u64,
    shown: BTreeMap<NodeId, (String, Index)>,
    text: String,
}

impl Cluster {
    pub(crate) fn new(planted: Option<Planted>) -> Self {
        let config = Config { planted: planted.into(), ..Config::new(NodeId(1), 1) };
        Self {
            config,
            hosts: BTreeMap::new(),
            down: BTreeMap::new(),
            net: Vec::new(),
            kept: Vec::new(),
            cut: BTreeSet::new(),
            held: BTreeSet::new(),
            lives: 0,
            folders: BTreeMap::new(),
            reads: 0,
            shown: BTreeMap::new(),
            text: String::new(),
        }
    }

    /// Runs the commands of one block and tells what came of them.
    pub(crate) fn run(&mut self, commands: &str) -> String {
        self.text.clear();
        for line in commands.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            self.command(words[0], &words[1..]);
            self.show_changes();
        }
        if self.text.is_empty() { "ok\n".into() } else { self.text.clone() }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.text, "{line}").unwrap();
    }

    fn command(&mut self, name: &str, words: &[&str]) {
        match name {
            "limit" | "cluster" | "node" => self.set_up(name, words),
            "tick" => self.tick(words),
            "wait" => {
                for _ in 0..number(words[0]) {
                    self.tick(&["all"]);
                    self.quietly(Self::deliver_all);
                    self.show_changes();
                }
            }
            "elect" => {
                self.step(id(words[0]), Input::Campaign, &[]);
                self.quietly(Self::deliver_all);
                self.quietly(|cluster| cluster.tick(&[words[0]]));
                self.quietly(Self::deliver_all);
            }
            "campaign" => self.step(id(words[0]), Input::Campaign, &[]),
            "transfer" => self.step(id(words[0]), Input::Transfer { to: id(words[1]) }, &[]),
            "unreachable" => {
                self.step(id(words[0]), Input::Unreachable { peer: id(words[1]) }, &[]);
            }
            "broken" => {
                let input = Input::SnapshotSent { to: id(words[1]), installed: None };
                self.step(id(words[0]), input, &[]);
            }
            "read" => {
                self.reads += 1;
                self.step(id(words[0]), Input::Read { token: self.reads }, &[]);
            }
            "propose" => {
                let numbers: Vec<u64> = words[1..].iter().map(|word| number(word)).collect();
                let sizes = vec![8; numbers.len()];
                self.step(id(words[0]), Input::Propose { sizes }, &payloads(&numbers));
            }
            "deliver" if words.is_empty() => self.deliver_all(),
            "deliver" => {
                for packet in self.take(words) {
                    self.deliver(packet);
                }
            }
            "drop" => {
                for packet in self.take(words) {
                    let line = format!("lost: {}", packet_text(&packet));
                    self.say(&line);
                }
            }
            "keep" => {
                let packets = self.take(words);
                self.kept.extend(packets);
            }
            "replay" => {
                let kept = std::mem::take(&mut self.kept);
                self.net.extend(kept);
            }
            "twice" => self.net.extend(self.net.clone()),
            "reverse" => self.net.reverse(),
            "inject" => {
                let message = parse_message(words[3], &words[4..]);
                let mut payloads = Vec::new();
                if let Message::Append { entries, prev, .. } = &message {
                    payloads = entries_of(*prev, entries);
                }
                let (from, to, term) = (id(words[0]), id(words[1]), Term(number(words[2])));
                let packet = Packet::Message(Envelope { from, to, term, message }, payloads);
                self.deliver(packet);
            }
            _ => self.fault_or_look(name, words),
        }
    }

    /// Does `act` and keeps silent about the messages.
    fn quietly(&mut self, act: impl FnOnce(&mut Self)) {
        let before = self.text.len();
        act(self);
        self.text.truncate(before);
    }

    fn fault_or_look(&mut self, name: &str, words: &[&str]) {
        match name {
            "cut" => self.cut(words),
            "heal" => self.cut.clear(),
            "hold" => {
                self.held.insert(id(words[0]));
            }
            "release" => {
                self.held.remove(&id(words[0]));
                self.sync(id(words[0]));
            }
            "sync" => match words.get(1) {
                Some(count) => {
                    let (node, count) = (id(words[0]), usize::try_from(number(count)).unwrap());
                    let io = self.hosts[&node].first_writes(count).expect("so many wait");
                    self.with(node, |host, sent| host.sync(io, sent));
                }
                None => self.sync(id(words[0])),
            },
            "slow" => self.hosts.get_mut(&id(words[0])).unwrap().installs_later = true,
            "install" => self.with(id(words[0]), Host::install),
            "damaged" => {
                let damaged = words.get(1).map(|word| Index(number(word)));
                let fitness = Fitness { damaged, ..Fitness::default() };
                self.step(id(words[0]), Input::Fitness(fitness), &[]);
            }
            "crash" => {
                let kept = words.get(2).map_or(0, |word| number(word));
                let host = self.hosts.remove(&id(words[0])).expect("it runs");
                let kept = usize::try_from(kept).unwrap();
                assert!(kept <= host.writes_under_way(), "nothing more to keep");
                self.down.insert(id(words[0]), host.crash(kept));
                self.shown.remove(&id(words[0]));
            }
            "start" => self.start(id(words[0])),
            _ => self.input_or_look(name, words),
        }
    }

    fn input_or_look(&mut self, name: &str, words: &[&str]) {
        match name {
            "lease" => {
                self.reads += 1;
                self.step(id(words[0]), Input::LeaseRead { token: self.reads }, &[]);
            }
            "clock" => self.step(id(words[0]), Input::Clock { now: number(words[1]) }, &[]),
            "gone" => self.step(id(words[0]), Input::LeaderGone { peer: id(words[1]) }, &[]),
            "life" => {
                self.folders.insert(id(words[0]), number(words[1]));
            }
            "reconfigure" => {
                let target = parse_members(&words[1..]);
                self.step(id(words[0]), Input::Reconfigure { target }, &[]);
            }
            "join" => {
                let base_membership = parse_members(&words[1..]);
                self.down.insert(id(words[0]), Disk { base_membership, ..Disk::default() });
                self.start(id(words[0]));
            }
            "compact" => {
                let mut sent = Vec::new();
                self.hosts.get_mut(&id(words[0])).unwrap().compact(&mut sent);
            }
            "state" => {
                let ids: Vec<NodeId> = match words.first() {
                    Some(word) => vec![id(word)],
                    None => self.hosts.keys().copied().collect(),
                };
                for id in ids {
                    let line = state_text(&self.hosts[&id]);
                    self.say(&line);
                }
            }
            "log" => {
                let log = &self.hosts[&id(words[0])].log;
                let mut line = format!("{}: after {}:", words[0], log.base);
                for entry in &log.entries {
                    write!(line, " {}", entry.id).unwrap();
                }
                self.say(&line);
            }
            "members" => {
                let line = members_text(&self.hosts[&id(words[0])]);
                self.say(&line);
            }
            "progress" => {
                let lines: Vec<String> =
                    self.hosts[&id(words[0])].raft.progress().map(progress_text).collect();
                for line in lines {
                    self.say(&line);
                }
            }
            _ => panic!("no such command: {name}"),
        }
    }

    fn set_up(&mut self, name: &str, words: &[&str]) {
        match (name, words) {
            ("limit", ["inflight", n]) => {
                self.config.max_inflight = usize::try_from(number(n)).unwrap();
            }
            ("limit", ["batch", n]) => self.config.max_batch_entries = number(n),
            ("limit", ["lease", n]) => self.config.lease = Some(number(n)),
            ("limit", ["bytes", n]) => self.config.max_uncommitted_bytes = number(n),
            ("cluster", [config]) if config.starts_with('=') => {
                self.start_all(&membership(&config[1..]));
            }
            ("cluster", [voters, rest @ ..]) => {
                let voters: Vec<NodeId> = (1..=number(voters)).map(NodeId).collect();
                let learners = rest.get(1).map_or(0, |word| number(word));
                let first = voters.len() as u64 + 1;
                let learners: Vec<NodeId> = (first..first + learners).map(NodeId).collect();
                self.start_all(&Membership { voters, learners, ..Membership::default() });
            }
            ("node", [node, rest @ ..]) => {
                let at = |name: &str| rest.iter().position(|word| *word == name);
                let field = |name: &str| at(name).map(|at| rest[at + 1]);
                let old = self.hosts.remove(&id(node)).expect("it runs");
                let terms = at("log").map_or(&[][..], |at| &rest[at + 1..]);
                let hard_state = HardState {
                    term: Term(number(field("term").expect("a term"))),
                    vote: field("vote").map(id),
                };
                let entries = (1..)
                    .zip(terms)
                    .map(|(index, entry)| {
                        let (term, config) = with_config(entry);
                        let id = LogId { term: Term(number(term)), index: Index(index) };
                        Entry { id, payload: id.term.0 * 1000 + index, config }
                    })
                    .collect();
                let amnesia = field("amnesia").map(|term| Term(number(term)));
                let disk = Disk { hard_state, entries, amnesia, ..old.disk };
                self.down.insert(id(node), disk);
                self.start(id(node));
            }
            _ => panic!("cannot set up {name} {words:?}"),
        }
    }

    fn start_all(&mut self, membership: &Membership) {
        for id in membership.members() {
            let base_membership = membership.clone();
            self.down.insert(id, Disk { base_membership, ..Disk::default() });
            self.start(id);
        }
    }

    fn start(&mut self, node: NodeId) {
        self.lives += 1;
        let incarnation = self.folders.get(&node).copied();
        let config = Config { id: node, seed: self.lives, incarnation, ..self.config.clone() };
        let disk = self.down.remove(&node).expect("it is down");
        let host = Host::start(config, disk);
        self.shown.insert(node, (role_text(&host), host.raft.applied()));
        self.hosts.insert(node, host);
    }

    fn tick(&mut self, words: &[&str]) {
        for _ in 0..words.get(1).map_or(1, |word| number(word)) {
            match words[0] {
                "all" => {
                    for id in self.hosts.keys().copied().collect::<Vec<_>>() {
                        self.step(id, Input::Tick, &[]);
                    }
                }
                node => self.step(id(node), Input::Tick, &[]),
            }
        }
    }

    fn step(&mut self, node: NodeId, input: Input, entries: &[Entry]) {
        self.with(node, |host, sent| host.step(input, entries, sent));
    }

    /// Lets one node act; its disk follows at once unless it is held.
    fn with(&mut self, node: NodeId, act: impl FnOnce(&mut Host, &mut Vec<Packet>) -> Effects) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let mut sent = Vec::new();
        let out = act(host, &mut sent);
        match out.proposed {
            Some(Ok(first)) => self.say(&format!("{node}: proposed from {first}")),
            Some(Err(why)) => self.say(&format!("{node}: refused, {why:?}")),
            None => {}
        }
        match out.reconfigured {
            Some(Ok(at)) => self.say(&format!("{node}: changes at {at}")),
            Some(Err(why)) => self.say(&format!("{node}: no change, {why:?}")),
            None => {}
        }
        for (token, outcome) in out.reads {
            self.say(&match outcome {
                ReadOutcome::At(index) => format!("{node}: read {token} at {index}"),
                ReadOutcome::Refused(leader) => {
                    format!("{node}: read {token} refused, leader {}", node_text(leader))
                }
            });
        }
        let uncut = |packet: &Packet| !self.cut.contains(&(packet.from(), packet.to()));
        self.net.extend(sent.into_iter().filter(uncut));
        if !self.held.contains(&node) {
            self.sync(node);
        }
    }

    fn sync(&mut self, node: NodeId) {
        if let Some(io) = self.hosts.get(&node).and_then(Host::newest_write) {
            self.with(node, |host, sent| host.sync(io, sent));
        }
    }

    fn deliver_all(&mut self) {
        for _ in 0..DELIVERIES_MAX {
            if self.net.is_empty() {
                return;
            }
            let packet = self.net.remove(0);
            self.deliver(packet);
        }
        panic!("the messages never end");
    }

    fn deliver(&mut self, packet: Packet) {
        if self.cut.contains(&(packet.from(), packet.to())) {
            return;
        }
        let line = packet_text(&packet);
        self.say(&line);
        self.with(packet.to(), |host, sent| host.receive(packet, sent));
    }

    /// What is on its way to `words[0]`, from `words[1]`.
    fn take(&mut self, words: &[&str]) -> Vec<Packet> {
        let (to, from) = (words.first().map(|w| id(w)), words.get(1).map(|w| id(w)));
        let all = std::mem::take(&mut self.net);
        let (taken, rest) = all.into_iter().partition(|packet| {
            to.is_none_or(|to| packet.to() == to) && from.is_none_or(|from| packet.from() == from)
        });
        self.net = rest;
        taken
    }

    fn cut(&mut self, words: &[&str]) {
        match words {
            [node] => {
                for &other in self.hosts.keys() {
                    self.cut.extend([(id(node), other), (other, id(node))]);
                }
            }
            [a, ">", b] => {
                self.cut.insert((id(a), id(b)));
            }
            [a, b] => self.cut.extend([(id(a), id(b)), (id(b), id(a))]),
            _ => panic!("cut what? {words:?}"),
        }
        self.net.retain(|packet| !self.cut.contains(&(packet.from(), packet.to())));
    }

    /// Tells who changed its role and who applied something.
    fn show_changes(&mut self) {
        let mut lines = Vec::new();
        for (&id, host) in &self.hosts {
            let (role, applied) = self.shown.get_mut(&id).unwrap();
            let now = role_text(host);
            if *role != now {
                lines.push(format!("{id}: {now}"));
                *role = now;
            }
            if *applied != host.raft.applied() {
                *applied = host.raft.applied();
                lines.push(format!("{id}: applied {applied}"));
            }
        }
        for line in lines {
            self.say(&line);
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("no number: {word}"))
}

fn id(word: &str) -> NodeId {
    NodeId(number(word.strip_prefix('n').unwrap_or_else(|| panic!("no node: {word}"))))
}

fn log_id(word: &str) -> LogId {
    let (term, index) = word.split_once('.').unwrap_or_else(|| panic!("no log id: {word}"));
    LogId { term: Term(number(term)), index: Index(number(index)) }
}

/// An entry of a log, `2` or `2=1+2+3`: the configuration behind it, if it has one.
fn with_config(word: &str) -> (&str, Option<Membership>) {
    let (entry, config) = word.split_once('=').map_or((word, None), |(a, b)| (a, Some(b)));
    (entry, config.map(membership))
}

/// `1+2+3`, or `2+3/1+2+3` during a joint change.
fn membership(word: &str) -> Membership {
    let (voters, outgoing) = word.split_once('/').unwrap_or((word, ""));
    let ids = |ids: &str| {
        let ids = ids.split('+').filter(|id| !id.is_empty());
        ids.map(|id| NodeId(number(id))).collect()
    };
    Membership { voters: ids(voters), outgoing: ids(outgoing), ..Membership::default() }
}

fn node_text(node: Option<NodeId>) -> String {
    node.map_or("nobody".into(), |node| node.to_string())
}

fn role_text(host: &Host) -> String {
    let raft = &host.raft;
    let term = raft.term();
    match raft.role() {
        RoleKind::Follower => match raft.leader() {
            Some(leader) => format!("follows {leader} in term {term}"),
            None => format!("follows nobody in term {term}"),
        },
        RoleKind::PreCandidate => format!("pre-candidate in term {term}"),
        RoleKind::Candidate => format!("candidate in term {term}"),
        RoleKind::Leader => format!("leads term {term}"),
    }
}

fn state_text(host: &Host) -> String {
    let raft = &host.raft;
    format!(
        "{}: {}, vote {}, last {}, durable {}, commit {}, applied {}",
        raft.id(),
        role_text(host),
        node_text(raft.voted_for()),
        raft.last(),
        raft.durable(),
        raft.commit(),
        raft.applied()
    )
}

fn members_text(host: &Host) -> String {
    let Membership { voters, outgoing, learners, learners_next, promote, .. } =
        host.raft.membership();
    let mut line = format!("{}:", host.raft.id());
    for (name, ids) in [
        ("voters", voters),
        ("outgoing", outgoing),
        ("learners", learners),
        ("learners next", learners_next),
        ("to be promoted", promote),
    ] {
        if !ids.is_empty() {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            write!(line, " {name} {}", ids.join(" ")).unwrap();
        }
    }
    line
}

fn progress_text((id, progress): (NodeId, &mmapd::raft::progress::Progress)) -> String {
    let flow = match &progress.flow {
        Flow::Probe { sent: true } => "probe, waits".into(),
        Flow::Probe { sent: false } => "probe".into(),
        Flow::Replicate { inflight } => format!("replicate, {} under way", inflight.len()),
        Flow::Snapshot { pending } => format!("snapshot up to {pending}"),
    };
    format!("{id}: match {}, next {}, {flow}", progress.matched, progress.next)
}

fn packet_text(packet: &Packet) -> String {
    match packet {
        Packet::Message(envelope, _) => {
            let Envelope { from, to, term, message } = envelope;
            format!("{from} -> {to} {} (term {term})", message_text(message))
        }
        Packet::Snapshot { from, to, term, meta } => {
            format!("{from} -> {to} Snapshot last={} (term {term})", meta.last)
        }
        Packet::SnapshotSent { from, to, installed } => match installed {
            Some(last) => format!("{from} -> {to} snapshot {last} installed"),
            None => format!("{from} -> {to} snapshot refused"),
        },
    }
}

/// `voters=1,2 learners=4 promote=4 lives=4:9`, as `reconfigure` and `join` take it.
fn parse_members(fields: &[&str]) -> Membership {
    let field = |name: &str| {
        let found = fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        found.into_iter().flat_map(|list| list.split(',')).filter(|item| !item.is_empty())
    };
    let ids = |name: &str| field(name).map(|item| NodeId(number(item))).collect();
    let lives = field("lives").map(|item| {
        let (id, life) = item.split_once(':').expect("node:life");
        (NodeId(number(id)), number(life))
    });
    Membership {
        voters: ids("voters"),
        learners: ids("learners"),
        promote: ids("promote"),
        incarnations: lives.collect(),
        ..Membership::default()
    }
}

fn message_text(message: &Message) -> String {
    match message {
        Message::PreVote { last } => format!("PreVote last={last}"),
        Message::PreVoteReply { granted } => format!("PreVoteReply granted={}", yes(*granted)),
        Message::Vote { last, transfer } => {
            format!("Vote last={last}{}", if *transfer { " transfer" } else { "" })
        }
        Message::VoteReply { granted } => format!("VoteReply granted={}", yes(*granted)),
        Message::Append { prev, entries, commit, .. } => {
            let ids: Vec<String> =
                entries_of(*prev, entries).iter().map(|entry| entry.id.to_string()).collect();
            format!("Append prev={prev} entries=[{}] commit={commit}", ids.join(" "))
        }
        Message::Accepted { matched, .. } => format!("Accepted matched={matched}"),
        Message::Rejected { prev, hint, last, .. } => {
            format!("Rejected prev={prev} hint={hint} last={last}")
        }
        Message::Heartbeat { commit, read_seq } => {
            format!("Heartbeat commit={commit} read_seq={read_seq}")
        }
        Message::HeartbeatReply { read_seq } => format!("HeartbeatReply read_seq={read_seq}"),
        Message::ReadIndex { .. } => "ReadIndex".into(),
        Message::ReadIndexReply { index, .. } => match index {
            Some(index) => format!("ReadIndexReply index={index}"),
            None => "ReadIndexReply refused".into(),
        },
        Message::TimeoutNow => "TimeoutNow".into(),
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// The entries that a run describes, with payloads made up.
fn entries_of(prev: LogId, run: &EntryRun) -> Vec<Entry> {
    (prev.index.0 + 1..=run.last.0)
        .map(|at| {
            let term = run.terms.iter().rev().find(|run| run.index.0 <= at).unwrap().term;
            let id = LogId { term, index: Index(at) };
            let config = run.configs.iter().find(|(index, _)| index.0 == at);
            let config = config.map(|(_, config)| config.clone());
            Entry { id, payload: id.term.0 * 1000 + at, config }
        })
        .collect()
}

/// `Append prev=1.2 entries=2.3,2.4 commit=2`, `Vote last=1.2` and so on.
fn parse_message(name: &str, fields: &[&str]) -> Message {
    let field =
        |name: &str| fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let at = |name: &str| number(field(name).unwrap_or("0"));
    let place = |name: &str| log_id(field(name).unwrap_or("0.0"));
    let granted = field("granted") == Some("yes");
    let read_seq = at("read_seq");
    match name {
        "PreVote" => Message::PreVote { last: place("last") },
        "PreVoteReply" => Message::PreVoteReply { granted },
        "Vote" => Message::Vote { last: place("last"), transfer: fields.contains(&"transfer") },
        "VoteReply" => Message::VoteReply { granted },
        "Append" => {
            let prev = place("prev");
            let mut entries = EntryRun { last: prev.index, ..EntryRun::default() };
            for entry in field("entries").into_iter().flat_map(|entries| entries.split(',')) {
                let (entry, config) = with_config(entry);
                let id = log_id(entry);
                if entries.terms.last().is_none_or(|run| run.term < id.term) {
                    entries.terms.push(id);
                }
                entries.configs.extend(config.map(|config| (id.index, config)));
                entries.last = id.index;
            }
            Message::Append { prev, entries, commit: Index(at("commit")), read_seq }
        }
        "Accepted" => Message::Accepted { matched: Index(at("matched")), read_seq },
        "Rejected" => Message::Rejected {
            prev: Index(at("prev")),
            hint: place("hint"),
            last: Index(at("last")),
            read_seq,
        },
        "Heartbeat" => Message::Heartbeat { commit: Index(at("commit")), read_seq },
        "HeartbeatReply" => Message::HeartbeatReply { read_seq },
        "TimeoutNow" => Message::TimeoutNow,
        _ => panic!("cannot inject {name}"),
    }
}

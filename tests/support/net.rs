//! Every node in a network namespace of its own, all on one bridge, so that what one node sends
//! another can be lost, in one direction only if wanted.
//!
//! A cut loses packets silently where they arrive, of open connections too: the sender learns
//! nothing, as with a real network. Clients are in a namespace that is never cut off. Needs root
//! and the `ip` of iproute2; nothing outside of the namespaces is touched, and all are removed
//! when [`Net`] is dropped.
//!
//! Left out: delays and reordering; not every kernel has `netem`.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// On the bridge; nodes count from 1.
const CLIENTS: u8 = 254;
/// Nobody else is in those namespaces.
const PORT: u16 = 3001;

/// Some nodes, the clients, and what is between them.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    size: u8,
    /// From, to.
    cuts: BTreeSet<(usize, usize)>,
}

impl Net {
    /// Namespaces for `size` nodes and their clients, or why they cannot be had.
    pub(crate) fn new(size: u8) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mmapd-{}-{count}", std::process::id());
        // From here on dropping it removes what was made.
        let net = Self { name, size, cuts: BTreeSet::new() };
        let hub = net.space("hub");
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for host in (1..=size).chain([CLIENTS]) {
            net.attach(&hub, host)?;
        }
        Ok(net)
    }

    fn attach(&self, hub: &str, host: u8) -> Result<(), String> {
        let (space, port) = (self.space(&host.to_string()), format!("p{host}"));
        ip(&["netns", "add", &space])?;
        let pair = ["type", "veth", "peer", "name", "eth0", "netns", &space];
        ip(&[&["-n", hub, "link", "add", &port], &pair[..]].concat())?;
        ip(&["-n", hub, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &space, "addr", "add", &format!("{}/24", address(host)), "dev", "eth0"])?;
        ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        ip(&["-n", &space, "link", "set", "lo", "up"])?;
        // A cut has to come before the rule that packets for this host are for this host, and
        // open connections must not take the short way around all rules.
        ip(&["-n", &space, "rule", "add", "pref", "100", "lookup", "local"])?;
        ip(&["-n", &space, "rule", "del", "pref", "0"])?;
        let demux = "echo 0 >/proc/sys/net/ipv4/tcp_early_demux";
        ip(&["netns", "exec", &space, "sh", "-c", demux])
    }

    fn space(&self, of: &str) -> String {
        format!("{}-{of}", self.name)
    }

    /// Takes the calling thread, and every thread it starts from now on, to where the clients are.
    pub(crate) fn enter(&self) {
        let path = format!("/run/netns/{}", self.space(&CLIENTS.to_string()));
        let space = File::open(path).expect("made by `ip netns add`");
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("we are root");
    }

    /// The namespace of every node, and where it listens.
    pub(crate) fn places(&self) -> Vec<(String, SocketAddr)> {
        let place = |host: u8| (self.space(&host.to_string()), (address(host), PORT).into());
        (1..=self.size).map(place).collect()
    }

    /// From now on what node `from` sends node `to` is lost; counted from 0.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        if self.cuts.insert((from, to)) {
            self.rule("add", (from, to)).expect("a rule");
        }
    }

    /// From now on nothing is lost.
    pub(crate) fn heal(&mut self) {
        for cut in std::mem::take(&mut self.cuts) {
            self.rule("del", cut).expect("the rule was added");
        }
    }

    fn rule(&self, verb: &str, (from, to): (usize, usize)) -> Result<(), String> {
        let host = |at: usize| u8::try_from(at + 1).expect("few nodes");
        let (space, source) = (self.space(&host(to).to_string()), address(host(from)).to_string());
        ip(&["-n", &space, "rule", verb, "pref", "10", "from", &source, "blackhole"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let hosts = (1..=self.size).chain([CLIENTS]).map(|host| host.to_string());
        for of in hosts.chain(["hub".to_owned()]) {
            // Those that were never made cannot be removed.
            let _ = ip(&["netns", "del", &self.space(&of)]);
        }
    }
}

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

fn ip(args: &[&str]) -> Result<(), String> {
    let done = Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
    let why = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("ip {}: {why}", args.join(" "))) }
}

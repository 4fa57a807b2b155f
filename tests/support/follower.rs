//! A cluster of three processes for one transcript, asked through a node that does not lead.
//!
//! What is answered has to be the same, byte for byte, as from a node alone, so the cluster
//! begins as one does: the first election succeeds, in term 1, and its leader's own entry is
//! the only one in the log. Elections that are split are no fault; then another cluster is made.
//! Node 1 follows, but where leases forbid to give nodes different patience: there whichever.

use std::net::SocketAddr;

use mmapd::config::Config;
use mmapd::node::join::Joined;
use mmapd::raft::types::{Membership, NodeId};

use super::process::{Cluster, wait};

/// A split vote is rare; so many in a row are none.
const TRIES: usize = 10;

/// Three nodes, one of which leads for as long as the transcript lasts.
#[derive(Debug)]
pub(crate) struct Follower {
    cluster: Cluster,
    leader: usize,
    follower: usize,
}

impl Follower {
    /// Starts a cluster with these settings.
    pub(crate) fn start(settings: &str) -> Self {
        for _ in 0..TRIES {
            let mut cluster = Cluster::new(3, settings);
            settle_lives(&cluster);
            for (at, node) in cluster.nodes.iter().enumerate() {
                node.tune(&patience(at, settings));
            }
            cluster.start_all();
            let (leader, term) = cluster.leader_after(0);
            let follower = usize::from(leader == 0);
            if (term, cluster.settle()) == (1, 1) {
                return Self { cluster, leader, follower };
            }
        }
        panic!("the first election failed {TRIES} times");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.cluster.nodes[self.follower].addr
    }

    /// Where the leader says that it is reached.
    pub(crate) fn leader_url(&self) -> String {
        format!("http://{}", self.cluster.nodes[self.leader].addr)
    }

    /// The id of the node that is asked.
    pub(crate) fn id(&self) -> u64 {
        self.cluster.nodes[self.follower].id
    }

    /// The process that is asked.
    pub(crate) fn pid(&self) -> u32 {
        self.cluster.nodes[self.follower].pid()
    }

    /// Waits until the follower has applied all that the leader has, which only a read that
    /// asks for whatever there is can tell.
    pub(crate) fn catch_up(&self) {
        let applied = |at: usize| self.cluster.nodes[at].number("applied_index");
        wait("the follower catches up", || {
            let goal = applied(self.leader)?;
            (applied(self.follower)? >= goal).then_some(())
        });
    }

    /// Who led at the beginning has to lead still, or the transcript shows something else.
    pub(crate) fn end(&self) {
        assert_eq!(self.cluster.leader_after(0), (self.leader, 1), "leadership moved");
    }
}

/// Nodes that were never told of each other's lives write them down first, which is an entry
/// that a node alone does not have. These know them, as nodes do that joined a cluster.
fn settle_lives(cluster: &Cluster) {
    let ids = || cluster.nodes.iter().map(|node| NodeId(node.id));
    let urls = cluster.nodes.iter().map(|node| format!("http://{}", node.addr));
    let mut membership = Membership::of(ids().zip(urls).collect());
    membership.incarnations = ids().map(|id| (id, id.0)).collect();
    for node in &cluster.nodes {
        let mut config = Config::default();
        config.storage.db = node.dir.join("db.mmapd");
        let joined = Joined { cluster: 1, incarnation: node.id, membership: membership.clone() };
        joined.save(&config).expect("a note");
    }
}

/// The second node campaigns soon, and the others as good as never: nobody disturbs it, however
/// slow the machine is.
fn patience(at: usize, settings: &str) -> String {
    // Within its own time-out a voter promises a lease, also from its start on.
    let timeout = if settings.contains("raft.lease") {
        "1s"
    } else if at == 1 {
        "750ms"
    } else {
        "1m"
    };
    format!("\n[raft]\nelection_timeout = \"{timeout}\"\n")
}

//! The weather and the faults of a seed. They are drawn before anything runs, so that two
//! clusters can live through the same ones.

use mmapd::raft::types::NodeId;

use crate::rng::Rng;

/// Units of time per tick.
pub const TICK: u64 = 10;

/// What the network and the disks are like.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Of 100 messages so many are lost.
    pub loss: u64,
    /// Of 100 messages so many arrive twice.
    pub duplicate: u64,
    /// Units of time that a message travels at least.
    pub latency: u64,
    /// And up to so many more, each message for itself: so they overtake each other.
    pub jitter: u64,
    /// Units of time that a sync takes at most.
    pub disk: u64,
    /// Of 100 voters so many crash right after they gave their vote.
    pub crash_after_vote: u64,
    /// In so many of 100 elections a rival campaigns at the same time.
    pub rival: u64,
    /// Of 1000 appends so many cut their leader off from all but one.
    pub isolate_writer: u64,
}

impl Weather {
    /// Nothing is lost, everything takes its time.
    pub const CALM: Self = Self {
        loss: 0,
        duplicate: 0,
        latency: 1,
        jitter: 0,
        disk: 1,
        crash_after_vote: 0,
        rival: 0,
        isolate_writer: 0,
    };

    /// The weather of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        Self {
            loss: rng.of(&[0, 1, 5, 10]),
            duplicate: rng.of(&[0, 2, 10]),
            latency: rng.of(&[1, 3]),
            jitter: rng.of(&[1, 8, 60]),
            disk: rng.of(&[1, 6, 40]),
            crash_after_vote: rng.of(&[0, 30]),
            rival: rng.of(&[0, 25]),
            isolate_writer: rng.of(&[0, 10, 30]),
        }
    }
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// This node.
    Node(NodeId),
    /// Whoever leads then.
    Leader,
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It stops, keeps so many of 100 of its writes under way, and starts again later.
    Crash {
        /// Whom it hits.
        who: Who,
        /// Of the writes under way.
        kept: u64,
        /// Until it starts again, in units of time.
        down: u64,
    },
    /// It does nothing for a while, and then hears everything that was said.
    Pause {
        /// Whom it hits.
        who: Who,
        /// In units of time.
        time: u64,
    },
    /// What these send does not arrive at the others, and the reverse if `both`.
    Cut {
        /// One side.
        side: Vec<NodeId>,
        /// In both directions.
        both: bool,
    },
    /// The leader is not heard any more, and hears nobody if `both`.
    CutLeader {
        /// In both directions.
        both: bool,
    },
    /// The network is whole again.
    Heal,
    /// Somebody wishes that this node leads.
    Transfer(NodeId),
    /// It takes its leader for gone.
    Campaign(NodeId),
}

/// The faults of a seed for nodes 1 to `nodes`, up to `end`, by time.
#[must_use]
pub fn faults(seed: u64, nodes: u64, end: u64) -> Vec<(u64, Fault)> {
    let mut rng = Rng::new(seed, 2);
    let longest = rng.of(&[160, 400, 1600]);
    let mut all = Vec::new();
    let mut now = 60 * TICK;
    loop {
        now += 10 + rng.below(longest);
        if now >= end {
            return all;
        }
        let node = NodeId(1 + rng.below(nodes));
        let who = if rng.percent(50) { Who::Leader } else { Who::Node(node) };
        let both = rng.percent(60);
        all.push((
            now,
            match rng.below(12) {
                0..=2 => {
                    Fault::Crash { who, kept: rng.below(101), down: 1 + rng.below(longest * 2) }
                }
                3 => Fault::Pause { who, time: rng.below(60 * TICK) },
                4 | 5 => {
                    let side = (1..=nodes).map(NodeId).filter(|_| rng.percent(40)).collect();
                    Fault::Cut { side, both }
                }
                6 => Fault::CutLeader { both },
                7..=9 => Fault::Heal,
                10 => Fault::Transfer(node),
                _ => Fault::Campaign(node),
            },
        ));
    }
}

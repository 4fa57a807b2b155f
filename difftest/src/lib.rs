//! Our Raft core and the crate `raft`, in one cluster or under one schedule of faults.
//!
//! | module | is |
//! |---|---|
//! | [`disk`] | a log whose newest writes a crash may lose, for both |
//! | [`packet`] | what travels, and the translation between the two languages |
//! | [`replica`] | what the world asks of a node; [`ours`] and [`theirs`] answer |
//! | [`schedule`] | the faults of a seed |
//! | [`checks`] | what all nodes together may never show |
//! | [`world`] | time, network, crashes, clients |
//!
//! Left out: snapshots, compaction and changes of the membership, where the two differ by
//! design, and reads through followers, which have no common form.

pub mod checks;
pub mod disk;
pub mod ours;
pub mod packet;
pub mod replica;
pub mod rng;
pub mod schedule;
pub mod theirs;
pub mod world;

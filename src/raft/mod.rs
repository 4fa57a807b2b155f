//! The Raft core.

pub mod message;
pub mod types;

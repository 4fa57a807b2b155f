//! Not a second program: the module of `../../src` that decides, and nothing else.

#[path = "../../src/raft/mod.rs"]
pub mod raft;

//! mmapd: a distributed, strongly consistent key-value store served over plain HTTP.
//!
//! The crate is the house; this file is its map. Imports point downwards only:
//!
//! | module | what it does | what it never does |
//! |---|---|---|
//! | [`raft`] | the consensus protocol as a pure state machine | IO, clocks, threads |
//! | [`store`] | mapped files: the log and the database | know what a key means |
//! | [`machine`] | commands and how they change the database | read time or chance |
//! | [`wire`] | messages between nodes as bytes | trust a length |
//! | [`peers`] | carries those bytes over HTTP | decide anything |
//! | [`node`] | turns decisions of `raft` into effects, in one fixed order | parse HTTP |
//! | [`http`] | the REST service | know roles or peers |
//! | [`client`] | a client of the REST service, for programs in Rust | know a node from inside |
//! | [`linear`] | judges whether what clients saw is linearizable | ask anybody |
//! | [`config`], [`metrics`], [`cli`] | settings, numbers, the command line | |
//!
//! `ARCHITECTURE.md` tells the same at more length and follows a write through it.

pub mod cli;
pub mod client;
pub mod config;
pub mod http;
pub mod linear;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod raft;
pub mod store;
pub mod wire;

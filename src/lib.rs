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
//! | [`auth`], [`tls`] | who somebody is, what they may do, how that is kept from others | read settings |
//! | [`config`], [`metrics`], [`logs`], [`cli`] | settings, numbers, log lines, the command line | |
//!
//! `ARCHITECTURE.md` tells the same at more length and follows a write through it.

pub mod auth;
pub mod cli;
pub mod client;
pub mod config;
pub mod ctl;
pub mod http;
pub mod linear;
pub mod logs;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod raft;
pub mod store;
pub mod tls;
pub mod wire;

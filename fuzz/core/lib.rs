//! Not a second program: the modules of `../../src` that need no network.

#[path = "../../src/machine/mod.rs"]
pub mod machine;
#[path = "../../src/raft/mod.rs"]
pub mod raft;
#[path = "../../src/store/mod.rs"]
pub mod store;
#[path = "../../src/wire.rs"]
pub mod wire;

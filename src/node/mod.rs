//! The driver.

mod handle;

pub use handle::{
    Consistency, Handle, MemberStatus, PeerError, ReadError, RoleName, Status, WriteError,
};

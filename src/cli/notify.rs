//! Tells systemd what this service is doing (`sd_notify(3)`, `Type=notify`).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, for instance `READY=1`, when a supervisor listens. A supervisor that
/// cannot be reached is not worth failing for.
pub(super) fn notify(state: &str) {
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(path.as_encoded_bytes(), state)
    {
        tracing::warn!(%error, "the supervisor was not told {state}");
    }
}

fn send(path: &[u8], state: &str) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_supervisor_hears_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_encoded_bytes(), "READY=1").unwrap();
        let mut heard = [0; 16];
        let len = supervisor.recv(&mut heard).unwrap();
        assert_eq!(&heard[..len], b"READY=1");
    }
}

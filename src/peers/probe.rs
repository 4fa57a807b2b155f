//! Is anybody there at all? Asked when a peer's connections ended, to tell a process that is
//! gone from a connection that merely broke.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;

/// A kernel that has nobody to give a connection to says so at once.
const PATIENCE: Duration = Duration::from_millis(200);

/// Does the machine at `url` say that nobody listens there? Silence is no answer: a process
/// that hangs, or a network that does, may come back.
pub(super) async fn is_refused(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, authority)| authority);
    match tokio::time::timeout(PATIENCE, TcpStream::connect(authority)).await {
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_closed_port_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        assert!(!is_refused(&url).await, "somebody listens, even if he never accepts");
        drop(listener);
        assert!(is_refused(&url).await);
        assert!(!is_refused("http://name.invalid:1").await, "an unknown name refuses nothing");
    }
}

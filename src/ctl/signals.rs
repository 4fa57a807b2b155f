//! Signals that ask a command to end, for those that have something to end first.

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::oneshot;

use super::Failure;

/// From now on none of them ends the process by itself: whoever makes this must heed them to the
/// end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    quit: unix::Signal,
}

impl Signals {
    /// # Errors
    /// The system has none to give.
    pub(super) fn new() -> Result<Self, Failure> {
        let deaf = |error| Failure::other(format!("no signals: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(deaf)?,
            terminate: signal(SignalKind::terminate()).map_err(deaf)?,
            hangup: signal(SignalKind::hangup()).map_err(deaf)?,
            quit: signal(SignalKind::quit()).map_err(deaf)?,
        })
    }

    /// The next one that arrives. None is lost when this is dropped before it is done.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.quit.recv() => Signal::QUIT,
        }
    }
}

/// What `work` answers, from a thread of its own, so that a signal is heard meanwhile: where
/// nobody waits for it any more it ends with the process.
///
/// # Errors
/// It panicked.
pub(super) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (send, answer) = oneshot::channel();
    std::thread::spawn(move || send.send(work()));
    answer.await.map_err(|_| Failure::other("it ended without an answer"))
}

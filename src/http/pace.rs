//! The deadlines of one connection, by what it is doing: a head must be whole soon after
//! its first byte, a connection may be idle for longer, and a request that is being worked
//! on has the deadlines of its own.
//!
//! hyper has one deadline for both, from the moment it waits for a head. So reads are timed
//! here, and [`InProgress`] tells them when a request is being worked on.
//!
//! Who takes nothing of an answer loses the connection as well, however much of the answer is
//! left to be made: what counts is what the system takes from us, TLS included.
//!
//! A head that begins in the same packet as the end of the request before it is taken for
//! idleness until its next byte.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::framing::Framing;
use super::places::Places;
use super::poll::Place;
use super::stream::Stream;

/// How long a client that was refused may go on sending what nobody reads.
const LINGER: Duration = Duration::from_secs(2);

/// How long a client may take nothing of an answer, while there is something for it.
#[derive(Clone)]
pub(super) struct Patience {
    pub(super) limit: Duration,
    /// Counts those that were cut off.
    pub(super) cut_off: ::metrics::Counter,
}

impl std::fmt::Debug for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patience").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// What the requests of a connection tell its reads and writes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    started: AtomicU64,
    finished: AtomicU64,
    /// A request was refused whose body may still be on its way.
    unread: AtomicBool,
    /// What is asked of the client of the present answer; looked at when it takes nothing.
    patience: Mutex<Option<Patience>>,
    /// A request waits, and wants to know if its client goes away.
    listens: AtomicBool,
    gone: Notify,
}

impl Progress {
    fn patience(&self) -> MutexGuard<'_, Option<Patience>> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client of a request, for those that wait long.
#[derive(Clone, Debug)]
pub(super) struct Caller(Arc<Progress>);

impl Caller {
    /// Comes back when the client has closed its side of the connection; never, when it has
    /// sent another request already. hyper does not look while a request is worked on, since
    /// who only says that it sends no more still wants the answer. Who waits in a queue loses
    /// more by waiting for nobody.
    pub(super) async fn gone(&self) {
        self.0.listens.store(true, Ordering::Relaxed);
        self.0.gone.notified().await;
    }
}

/// Held as long as a request is worked on, its response included.
#[derive(Debug)]
pub(super) struct InProgress(Arc<Progress>);

impl InProgress {
    pub(super) fn begin(progress: &Arc<Progress>) -> Self {
        progress.started.fetch_add(1, Ordering::Relaxed);
        Self(progress.clone())
    }

    /// The client has to take the answer.
    pub(super) fn must_be_taken(&self, patience: Patience) {
        *self.0.patience() = Some(patience);
    }

    pub(super) fn caller(&self) -> Caller {
        Caller(self.0.clone())
    }

    /// The request is refused and its body may still be on its way.
    pub(super) fn leaves_body(&self) {
        self.0.unread.store(true, Ordering::Relaxed);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        *self.0.patience() = None;
        self.0.listens.store(false, Ordering::Relaxed);
        self.0.finished.fetch_add(1, Ordering::Relaxed);
    }
}

/// The body of a response; its request is in progress until it was handed over, and keeps its
/// place among those in flight if it has one still.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    _request: InProgress,
    _place: Option<Place>,
}

impl Answer {
    pub(super) fn new(body: Body, request: InProgress, place: Option<Place>) -> Self {
        Self { body, _request: request, _place: place }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection with deadlines. It holds its place among the connections until it is closed.
pub(super) struct Paced {
    stream: Stream,
    progress: Arc<Progress>,
    header_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    /// Requests that were finished when the present wait began.
    seen: u64,
    /// Some of the next head has arrived.
    in_head: bool,
    /// When the present wait ends. The timer may be earlier; then it is set again.
    until: Instant,
    timer: Pin<Box<Sleep>>,
    lingers: bool,
    /// What the client had taken when it was last looked at.
    taken: u64,
    /// Since when it has taken nothing more, and the end of its time, while something waits.
    stalled: Option<(Instant, Pin<Box<Sleep>>)>,
    framing: Framing,
    _places: Places,
}

impl Paced {
    pub(super) fn new(
        stream: Stream,
        progress: Arc<Progress>,
        http: &crate::config::Http,
        places: Places,
    ) -> Self {
        // Who connects has something to say, so the first wait is not one for idlers.
        let until = Instant::now() + http.header_timeout;
        Self {
            stream,
            progress,
            header_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            write_timeout: http.write_timeout,
            seen: 0,
            in_head: false,
            until,
            timer: Box::pin(sleep_until(until)),
            lingers: false,
            taken: 0,
            stalled: None,
            framing: Framing::new(),
            _places: places,
        }
    }

    /// Ready when the deadline has passed.
    fn expired(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if Instant::now() >= self.until {
                return Poll::Ready(());
            }
            if self.timer.deadline() != self.until {
                self.timer.as_mut().reset(self.until);
            }
            ready!(self.timer.as_mut().poll(context));
        }
    }

    /// Brings the deadline up to date after a read; `false`: there is none now.
    fn after_read(&mut self, got_some: bool) -> bool {
        let finished = self.progress.finished.load(Ordering::Relaxed);
        if self.progress.started.load(Ordering::Relaxed) != finished {
            return false;
        }
        if self.seen != finished {
            self.seen = finished;
            self.in_head = false;
            self.until = Instant::now() + self.idle_timeout;
        }
        if got_some && !self.in_head {
            self.in_head = true;
            self.until = Instant::now() + self.header_timeout;
        }
        true
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        if self.framing.is_lost() {
            // Nothing that comes now belongs to a request.
            let words = self.framing.last_words();
            into.put_slice(&words[..words.len().min(into.remaining())]);
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        let passed = self.framing.look(&mut into.filled_mut()[before..]);
        if self.framing.is_lost() {
            into.set_filled(before + passed);
        }
        let timed = self.after_read(into.filled().len() > before);
        if read.is_pending() && timed {
            ready!(self.expired(context));
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after_write(&written);
        self.stalls(written, context)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.listen(context);
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.stalled = None;
        }
        self.stalls(flushed, context)
    }

    /// Closing while the client still sends would make the kernel reset the connection, and
    /// the client might never see why it was refused. So what it sends is thrown away first.
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.lingers {
            let shut = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.stalls(shut, context))?;
            // A head that hyper refused has had no chance to say so.
            let refused = self.framing.has_more_than(self.progress.started.load(Ordering::Relaxed));
            if !refused && !self.progress.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            self.lingers = true;
            self.until = Instant::now() + LINGER;
        }
        let mut scrap = [0; 4096];
        loop {
            let mut into = ReadBuf::new(&mut scrap);
            match Pin::new(&mut self.stream).poll_read(context, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {
                    if Instant::now() >= self.until {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.expired(context).map(Ok),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.after_write(&written);
        self.stalls(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Paced {
    /// Tells a request that waits when its client has gone. Here, because hyper flushes each
    /// time after it polled the request, and this task is woken when there is news.
    fn listen(&mut self, context: &mut Context<'_>) {
        if !self.progress.listens.load(Ordering::Relaxed) {
            return;
        }
        match self.stream.poll_peek(context) {
            Poll::Ready(Ok(0) | Err(_)) => {
                self.progress.listens.store(false, Ordering::Relaxed);
                self.progress.gone.notify_one();
            }
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
    }

    /// Who still takes an answer is not idle.
    fn after_write(&mut self, written: &Poll<std::io::Result<usize>>) {
        if written.is_ready() && !self.in_head {
            self.until = self.until.max(Instant::now() + self.idle_timeout);
        }
    }

    /// Who takes nothing while there is something to take is cut off: after the patience of the
    /// present answer if it has its own, and when that is made and still not taken.
    fn stalls<T>(
        &mut self,
        done: Poll<std::io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<T>> {
        let taken = self.stream.written();
        if std::mem::replace(&mut self.taken, taken) != taken {
            self.stalled = None;
        }
        if done.is_ready() {
            return done;
        }
        let own = self.progress.patience().clone();
        let limit = own.as_ref().map_or(self.write_timeout, |own| own.limit);
        let now = Instant::now();
        let (since, timer) =
            self.stalled.get_or_insert_with(|| (now, Box::pin(sleep_until(now + limit))));
        let end = *since + limit;
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        ready!(timer.as_mut().poll(context));
        if let Some(own) = own {
            own.cut_off.increment(1);
        }
        Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()))
    }
}

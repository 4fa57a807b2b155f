//! What changes on this node, for everybody who watches.
//!
//! One task follows what is applied and reads each change once from the history, which is
//! part of the database. The newest revisions stay in a ring of limited size that all watches
//! share. A watch says once which keys it wants to hear of; for each revision those who want
//! it are found by the keys in it, and nobody else is woken: a thousand watches of other keys
//! cost nothing. Nothing waits in a queue for a watch: it comes and takes from the ring what
//! it has not had, and who is behind the ring reads the history.
//!
//! So the place of a watch is one number, the revision up to which it has had everything, and
//! it may go on from there on any node.
//!
//! While nobody watches, nothing is read and the ring is empty.

mod board;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use crate::machine::{Change, Gone, Span, View};
use crate::metrics::WatchMetrics;
use crate::store::{Published, StoreError};
use board::Board;

/// Events that are looked at, and bytes of changes that are read, in one go.
const EVENTS: usize = 4096;
const BYTES: usize = 256 << 10;
/// Watches that read the history at the same time; the others wait for them.
const READERS: usize = 2;
/// How often to look again at a database that is being made anew, or is damaged: nobody tells
/// when it is whole.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Which keys somebody wants to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// This one.
    Key(Bytes),
    /// All that begin so.
    Prefix(Bytes),
}

impl Selector {
    /// Is this key one of them?
    #[must_use]
    pub fn selects(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(one) => key == &one[..],
            Self::Prefix(prefix) => key.starts_with(prefix),
        }
    }

    /// The keys in their order.
    #[must_use]
    pub fn span(&self) -> Span {
        match self {
            Self::Key(key) => Span::key(key),
            Self::Prefix(prefix) => Span::prefix(prefix),
        }
    }
}

/// One change, and what it looks like to clients.
#[derive(Debug)]
pub struct Shown {
    /// The change.
    pub change: Change,
    texts: [OnceLock<Bytes>; 2],
}

impl Shown {
    /// Its text, made once for all; there are two kinds, with and without what was before.
    pub fn text(&self, prev: bool, render: impl FnOnce(&Change) -> Bytes) -> &Bytes {
        self.texts[usize::from(prev)].get_or_init(|| render(&self.change))
    }
}

/// All changes of one entry, or those of them that somebody wants.
#[derive(Debug)]
pub struct Revision {
    /// Its number.
    pub revision: u64,
    /// In their order; at least one.
    pub changes: Vec<Shown>,
    /// Roughly how much memory it takes, with the texts of its changes.
    weight: usize,
}

/// Changes in their order, by revisions.
fn by_revision(changes: Vec<Change>) -> Vec<Arc<Revision>> {
    let mut revisions: Vec<Revision> = Vec::new();
    for change in changes {
        let (revision, weight) = (change.revision, 3 * change.weight());
        let shown = Shown { change, texts: [const { OnceLock::new() }; 2] };
        match revisions.last_mut() {
            Some(last) if last.revision == revision => {
                last.changes.push(shown);
                last.weight += weight;
            }
            Some(_) | None => revisions.push(Revision { revision, changes: vec![shown], weight }),
        }
    }
    revisions.into_iter().map(Arc::new).collect()
}

/// What the task must know of those who watch.
#[derive(Clone, Copy, Debug, Default)]
struct Listening {
    watches: usize,
    ended: bool,
}

/// What happens here, and who wants to hear of it.
#[derive(Debug)]
pub(super) struct Changes {
    published: Published,
    applied: watch::Receiver<u64>,
    metrics: &'static WatchMetrics,
    recent_bytes: usize,
    board: Mutex<Board>,
    listening: watch::Sender<Listening>,
    /// Places that are taken, by watches and those that are about to begin.
    places: AtomicUsize,
    readers: Semaphore,
}

/// What the task does next.
enum Next {
    /// There is more to read.
    Read,
    /// Wait until something is applied.
    Wait,
    /// Look again a little later.
    LookAgain,
}

impl Changes {
    pub(super) fn new(
        published: Published,
        applied: watch::Receiver<u64>,
        metrics: &'static WatchMetrics,
        recent_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            published,
            applied,
            metrics,
            recent_bytes: usize::try_from(recent_bytes).unwrap_or(usize::MAX),
            board: Mutex::default(),
            listening: watch::Sender::default(),
            places: AtomicUsize::new(0),
            readers: Semaphore::new(READERS),
        })
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more watch, if there are less than `limit`.
    pub(super) fn place(self: &Arc<Self>, limit: u32) -> Option<Place> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = |taken: usize| (taken < limit).then_some(taken + 1);
        self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.metrics.streams.increment(1.0);
        Some(Place(Arc::clone(self)))
    }

    /// Ends all watches, and those that may still come.
    pub(super) fn end(&self) {
        let wakers = self.board().end();
        self.listening.send_modify(|listening| listening.ended = true);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Follows what is applied for as long as somebody watches.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut listening = self.listening.subscribe();
        let mut applied = self.applied.clone();
        let mut told = None;
        loop {
            let Ok(now) = listening.wait_for(|it| it.ended || it.watches > 0).await.map(|it| *it)
            else {
                return;
            };
            if now.ended {
                return;
            }
            applied.mark_unchanged();
            // Pages may have to come from the disk, so they are read off the reactor.
            let changes = Arc::clone(&self);
            let next = match tokio::task::spawn_blocking(move || changes.step()).await {
                Ok(Ok(next)) => next,
                Ok(Err(error)) => {
                    if told != Some(error.to_string()) {
                        tracing::error!(%error, "changes cannot be read for those who watch");
                        told = Some(error.to_string());
                    }
                    Next::LookAgain
                }
                Err(_) => return,
            };
            match next {
                Next::Read => {}
                Next::LookAgain => tokio::time::sleep(LOOK_AGAIN).await,
                Next::Wait => tokio::select! {
                    changed = applied.changed() => if changed.is_err() { return },
                    _ = listening.wait_for(|it| it.ended || it.watches == 0) => {}
                },
            }
        }
    }

    /// Reads some of what is new.
    fn step(&self) -> Result<Next, StoreError> {
        let from = self.board().newest();
        let view = View::new(self.published.snapshot());
        if self.published.is_withheld() {
            return Ok(Next::LookAgain);
        }
        let (revisions, reached) = match view.kept(from) {
            Ok(()) => {
                let (changes, reached) = view.changes_of(from, |_| true, EVENTS, BYTES)?;
                (by_revision(changes), reached)
            }
            // More was trimmed than was read: each watch finds out what it has missed.
            Err(Gone { oldest }) => {
                let wakers = self.board().skip(from, oldest);
                wakers.into_iter().for_each(Waker::wake);
                return Ok(Next::Read);
            }
        };
        if reached == from {
            return Ok(Next::Wait);
        }
        let wakers = self.board().add(from, revisions, reached, self.recent_bytes);
        wakers.into_iter().for_each(Waker::wake);
        Ok(Next::Read)
    }
}

/// Room for one watch.
#[derive(Debug)]
pub struct Place(Arc<Changes>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.streams.decrement(1.0);
    }
}

impl Place {
    /// Begins to watch what changes after `position`.
    #[must_use]
    pub fn watch(self, selectors: Vec<Selector>, position: u64) -> Watch {
        let selectors: Arc<[Selector]> = selectors.into();
        let id = {
            let mut board = self.0.board();
            if board.is_empty() {
                board.begin(View::new(self.0.published.snapshot()).revision());
            }
            board.join(&selectors, position)
        };
        self.0.listening.send_modify(|listening| listening.watches += 1);
        Watch { place: self, id, selectors, position }
    }
}

/// Somebody who watches some keys, and has had everything up to some revision.
#[derive(Debug)]
pub struct Watch {
    place: Place,
    id: u64,
    selectors: Arc<[Selector]>,
    position: u64,
}

/// What a watch finds.
#[derive(Debug)]
pub enum Taken {
    /// Revisions with something for it; none: ask again at once.
    Some(Vec<Arc<Revision>>),
    /// Nothing. It is woken when there is something.
    Nothing,
    /// What it wants next is in the history, see [`Watch::past`].
    Behind,
    /// The node stops.
    Ended,
}

impl Watch {
    /// The revision up to which it has had everything.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Does it want to hear of this key?
    #[must_use]
    pub fn wants(&self, key: &[u8]) -> bool {
        self.selectors.iter().any(|selector| selector.selects(key))
    }

    /// Takes what comes next, about `bytes` of it at most, but one revision at least. Whoever
    /// is behind `waker` is woken when there is more, or when the node stops.
    pub fn take(&mut self, bytes: usize, waker: &Waker) -> Taken {
        let selectors = &self.selectors;
        let wants = |key: &[u8]| selectors.iter().any(|selector| selector.selects(key));
        self.place.0.board().take(self.id, &mut self.position, wants, bytes, waker)
    }

    /// Reads what comes next from the history.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn past(&self) -> impl Future<Output = Result<Past, PastError>> + Send + 'static {
        let (changes, selectors) = (Arc::clone(&self.place.0), Arc::clone(&self.selectors));
        changes.past(selectors, self.position)
    }

    /// All up to and with `revision` was had.
    pub fn reached(&mut self, revision: u64) {
        self.position = self.position.max(revision);
    }

    /// So many events went to the client.
    pub fn sent(&self, events: u64) {
        self.place.0.metrics.events.increment(events);
    }

    /// It has to end because it is too slow.
    pub fn lagged(&self) {
        self.place.0.metrics.lagged.increment(1);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.place.0.board().leave(self.id, &self.selectors);
        self.place.0.listening.send_modify(|listening| listening.watches -= 1);
    }
}

/// A piece of the history.
#[derive(Debug)]
pub struct Past {
    /// Only with the changes that were asked for.
    pub revisions: Vec<Arc<Revision>>,
    /// These are all up to and with this revision.
    pub reached: u64,
}

/// Why the history could not be read.
#[derive(Debug)]
pub enum PastError {
    /// It does not go back so far.
    Gone(Gone),
    /// A page is damaged.
    Store(StoreError),
    /// The node stops.
    Stopping,
}

impl Changes {
    async fn past(
        self: Arc<Self>,
        selectors: Arc<[Selector]>,
        position: u64,
    ) -> Result<Past, PastError> {
        let mut applied = self.applied.clone();
        loop {
            applied.mark_unchanged();
            let read = {
                let _permit = self.readers.acquire().await.map_err(|_| PastError::Stopping)?;
                let (changes, selectors) = (Arc::clone(&self), Arc::clone(&selectors));
                tokio::task::spawn_blocking(move || changes.read_past(&selectors, position)).await
            };
            match read.map_err(|_| PastError::Stopping)?? {
                Some(past) if past.reached > position => return Ok(past),
                Some(_) => applied.changed().await.map_err(|_| PastError::Stopping)?,
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// `None`: the database is being made anew.
    fn read_past(&self, selectors: &[Selector], position: u64) -> Result<Option<Past>, PastError> {
        let view = View::new(self.published.snapshot());
        if self.published.is_withheld() {
            return Ok(None);
        }
        view.kept(position).map_err(PastError::Gone)?;
        let wanted = |key: &[u8]| selectors.iter().any(|selector| selector.selects(key));
        let read = view.changes_of(position, wanted, EVENTS, BYTES);
        let (changes, reached) = read.map_err(PastError::Store)?;
        Ok(Some(Past { revisions: by_revision(changes), reached }))
    }
}

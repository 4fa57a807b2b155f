//! Where mail for the core arrives, and who takes its turns.
//!
//! The core lies on a desk, and one thread at a time may sit there. Whoever brings mail looks
//! whether the desk is free and, if it is, takes a turn: a command is in the log, and on its way
//! to the followers, without waking another thread, and a read of a node alone is answered on
//! the spot. If somebody sits there, the mail is left, and whoever gets up looks for it. Guests
//! take one short turn; what takes longer, or is left, is for the node's own thread.
//!
//! A turn of a guest may bring the time forward when the owner has to take one: of an idle node
//! that was not to be woken for each tick. Such a turn leaves work, so the owner wakes.
//!
//! No mail is overlooked: who brings it says so before looking at the desk, and who gets up
//! looks for that after the desk is free. One of them sees the other.
//!
//! While a leader's disk is busy, commands need no turn, since the batch after this one is made
//! by the turn that hears of the sync; the same holds of reads while a round is under way. So
//! these gather without waking anybody: group commit.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::sync::mpsc;

use super::handle::Mail;
use super::run::{Ended, Turns};

/// Commands need no turn of their own now.
pub(super) const COMMANDS: u8 = 1;
/// Reads need no turn of their own now.
pub(super) const READS: u8 = 2;

/// Turns that a guest takes in a row, when mail came during the first.
const VISITS: u32 = 2;

/// Who takes a turn, and so how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// The node's own thread: all of it.
    Owner,
    /// A thread that brought mail and has other things to do.
    Guest,
    /// The thread that syncs the log: the first half, so that its next sync begins soon.
    Syncer,
}

/// What a turn leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// Mail came meanwhile.
    Mail,
    /// What takes longer, or was not a guest's to do.
    Work,
}

/// What lies on a desk: a node, or in tests what behaves like one.
pub(super) trait TakesTurns {
    /// When the owner has to take a turn, whatever else happens.
    fn due(&self) -> Instant;
    /// Takes a turn.
    fn take(&mut self, seat: Seat) -> Left;
    /// What may gather without a turn: [`COMMANDS`], [`READS`].
    fn gathers(&self) -> u8;
    /// Is there mail in the inbox?
    fn has_mail(&self) -> bool;
    /// How it ended, if it has: no turn is taken any more.
    fn ended(&mut self) -> Option<Ended>;
}

#[derive(Debug)]
struct Desk<T> {
    /// `None`: the node has not begun, or has ended.
    turns: Mutex<Option<T>>,
    /// Something was left to do by whoever could not sit down, or got up.
    left: AtomicBool,
    /// What gathers, as of the end of the last turn: [`COMMANDS`], [`READS`].
    gathers: AtomicU8,
    /// The node's own thread.
    owner: OnceLock<Thread>,
}

/// The way to the desk: cheap to clone.
#[derive(Debug)]
pub(super) struct Inbox<T = Turns> {
    sender: mpsc::Sender<Mail>,
    desk: Arc<Desk<T>>,
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), desk: self.desk.clone() }
    }
}

/// Why mail was not put into the inbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// There is no room.
    Full,
    /// The node ended.
    NobodyReads,
}

/// The node ended: nobody will read this.
#[derive(Debug)]
pub(super) struct NobodyReads;

impl<T: TakesTurns> Inbox<T> {
    /// A desk without a node, and the other end of its inbox, which holds so much mail.
    pub(super) fn new(most: usize) -> (Self, mpsc::Receiver<Mail>) {
        let (sender, receiver) = mpsc::channel(most);
        let desk = Desk {
            turns: Mutex::new(None),
            left: AtomicBool::new(false),
            gathers: AtomicU8::new(0),
            owner: OnceLock::new(),
        };
        (Self { sender, desk: Arc::new(desk) }, receiver)
    }

    /// Waits while the inbox is full.
    pub(super) async fn send(&self, mail: Mail) -> Result<(), NobodyReads> {
        let gathers = gathering(&mail);
        self.sender.send(mail).await.map_err(|_| NobodyReads)?;
        self.brought(gathers);
        Ok(())
    }

    /// For mail that is refused when the inbox is full.
    pub(super) fn try_send(&self, mail: Mail) -> Result<(), NotTaken> {
        let gathers = gathering(&mail);
        self.put(mail)?;
        self.brought(gathers);
        Ok(())
    }

    fn put(&self, mail: Mail) -> Result<(), NotTaken> {
        self.sender.try_send(mail).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(_) => NotTaken::NobodyReads,
        })
    }

    /// As [`Inbox::try_send`], for what many tasks do at once: whoever else is ready to run
    /// brings theirs first, and one turn takes all of it. That costs some thousand instructions,
    /// little beside a sync, and a sixth of a whole read: commands are brought so, reads are not.
    ///
    /// Who is dropped meanwhile takes no turn. Nobody waits for that mail then, and it is found
    /// by the next turn, after a tick at the latest.
    pub(super) async fn bring(&self, mail: Mail) -> Result<(), NotTaken> {
        let gathers = gathering(&mail);
        self.put(mail)?;
        if self.may_lie(gathers) {
            return Ok(());
        }
        tokio::task::yield_now().await;
        // Who takes mail out takes a turn.
        if self.sender.capacity() < self.sender.max_capacity() {
            self.brought(gathers);
        }
        Ok(())
    }

    /// For threads outside the runtime.
    pub(super) fn blocking_send(&self, mail: Mail) -> Result<(), NobodyReads> {
        self.sender.blocking_send(mail).map_err(|_| NobodyReads)?;
        self.desk.visit(Seat::Guest);
        Ok(())
    }

    /// As [`Inbox::blocking_send`], from the thread that syncs the log.
    pub(super) fn synced(&self, mail: Mail) -> Result<(), NobodyReads> {
        self.sender.blocking_send(mail).map_err(|_| NobodyReads)?;
        self.desk.visit(Seat::Syncer);
        Ok(())
    }

    /// Mail was put into the inbox.
    fn brought(&self, gathers: u8) {
        if !self.may_lie(gathers) {
            self.desk.visit(Seat::Guest);
        }
    }

    /// May mail that was put into the inbox wait for a turn that others take?
    fn may_lie(&self, gathers: u8) -> bool {
        // After the mail, before the look: see `stand_up`.
        fence(Ordering::SeqCst);
        let may_lie = self.desk.gathers.load(Ordering::SeqCst) & gathers != 0;
        // What gathers must not keep everybody else out.
        may_lie && self.sender.capacity() >= self.sender.max_capacity() / 2
    }

    /// Puts a node on the desk and takes its turns until it ends, whenever one is due at least:
    /// the body of its own thread.
    pub(super) fn own(&self, turns: T) -> Ended {
        self.desk.own(turns)
    }
}

/// Which mail may lie while such mail gathers.
fn gathering(mail: &Mail) -> u8 {
    match mail {
        Mail::Propose(..) => COMMANDS,
        Mail::Read(_) => READS,
        Mail::LeaseRead(_) | Mail::Event(_) | Mail::Backup(..) | Mail::Stop => 0,
    }
}

impl<T> Desk<T> {
    fn wake_owner(&self) {
        if let Some(owner) = self.owner.get() {
            owner.unpark();
        }
    }
}

impl<T: TakesTurns> Desk<T> {
    /// Takes a turn if nobody does.
    fn visit(&self, seat: Seat) {
        let _on_panic = WakesOwner(self);
        self.left.store(true, Ordering::SeqCst);
        for _ in 0..VISITS {
            fence(Ordering::SeqCst);
            let Some(mut turns) = self.sit_down() else { return };
            let Some(at_work) = turns.as_mut() else { return };
            self.left.store(false, Ordering::SeqCst);
            let left = at_work.take(seat);
            match self.stand_up(turns, left) {
                Left::Nothing => return,
                Left::Mail => {}
                Left::Work => break,
            }
        }
        self.wake_owner();
    }

    /// The desk, if it is free. A turn that panicked has told why the process is about to end;
    /// nobody takes another.
    fn sit_down(&self) -> Option<MutexGuard<'_, Option<T>>> {
        self.turns.try_lock().ok()
    }

    /// Leaves the desk. What is left to do?
    fn stand_up(&self, turns: MutexGuard<'_, Option<T>>, left: Left) -> Left {
        let mut missed = false;
        if let Some(at_work) = turns.as_ref() {
            let gathers = at_work.gathers();
            let before = self.gathers.swap(gathers, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Who brought such mail before that could be seen has taken no turn.
            missed = before & !gathers != 0 && at_work.has_mail();
        }
        drop(turns);
        fence(Ordering::SeqCst);
        match left {
            Left::Nothing if missed || self.left.load(Ordering::SeqCst) => Left::Mail,
            Left::Nothing | Left::Mail | Left::Work => left,
        }
    }

    fn own(&self, node: T) -> Ended {
        // Set before the node is there, so that whoever finds it can wake us.
        drop(self.owner.set(thread::current()));
        match self.turns.lock() {
            Ok(mut turns) => *turns = Some(node),
            Err(_) => return Ended::Panicked,
        }
        loop {
            let Ok(mut turns) = self.turns.lock() else { return Ended::Panicked };
            self.left.store(false, Ordering::SeqCst);
            let Some(at_work) = turns.as_mut() else { return Ended::Panicked };
            let left = at_work.take(Seat::Owner);
            let due = at_work.due();
            if let Some(ended) = at_work.ended() {
                // Drops the node with its end of the inbox: senders hear of it.
                *turns = None;
                return ended;
            }
            if self.stand_up(turns, left) == Left::Nothing {
                // A thread of its own keeps time: no other needs to wake for it.
                thread::park_timeout(due.saturating_duration_since(Instant::now()));
            }
        }
    }
}

/// The node's own thread finds a desk at which somebody panicked, and ends.
struct WakesOwner<'a, T>(&'a Desk<T>);

impl<T> Drop for WakesOwner<'_, T> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.wake_owner();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;
    use crate::node::handle::Waiter;
    use crate::node::work::{Answer, Event};

    /// No time goes by, so mail that is overlooked lies there for ever.
    const NEVER: Duration = Duration::from_secs(3600);

    /// Answers reads at once, and commands when a "disk" has said so.
    struct Toy {
        inbox: mpsc::Receiver<Mail>,
        disk: std_mpsc::Sender<()>,
        syncing: Vec<Waiter>,
        gathered: Vec<Waiter>,
        stopped: bool,
        turns: [u64; 3],
    }

    impl TakesTurns for Toy {
        fn due(&self) -> Instant {
            Instant::now() + NEVER
        }

        fn take(&mut self, seat: Seat) -> Left {
            self.turns[seat as usize] += 1;
            while let Ok(mail) = self.inbox.try_recv() {
                match mail {
                    Mail::Propose(waiter, _) => self.gathered.push(waiter),
                    Mail::Read(waiter) | Mail::LeaseRead(waiter) => {
                        drop(waiter.send(Answer::Readable));
                    }
                    Mail::Event(Event::StepDown) => {
                        for waiter in self.syncing.drain(..) {
                            drop(waiter.send(Answer::Overloaded));
                        }
                    }
                    Mail::Stop => self.stopped = true,
                    Mail::Event(_) | Mail::Backup(..) => unreachable!("nobody sends these"),
                }
            }
            if self.syncing.is_empty() && !self.gathered.is_empty() {
                self.syncing.append(&mut self.gathered);
                self.disk.send(()).expect("the disk is there");
            }
            // Now and then something is left for the owner, which finds nothing to do.
            let leaves = seat != Seat::Owner && (self.stopped || self.turns[0] % 64 == 63);
            if leaves { Left::Work } else { Left::Nothing }
        }

        fn gathers(&self) -> u8 {
            if self.syncing.is_empty() { 0 } else { COMMANDS }
        }

        fn has_mail(&self) -> bool {
            !self.inbox.is_empty()
        }

        fn ended(&mut self) -> Option<Ended> {
            self.stopped.then_some(Ended::Stopped)
        }
    }

    #[test]
    fn no_mail_is_overlooked() {
        let (inbox, receiver) = Inbox::<Toy>::new(64);
        let (disk, jobs) = std_mpsc::channel();
        let toy = Toy {
            inbox: receiver,
            disk,
            syncing: Vec::new(),
            gathered: Vec::new(),
            stopped: false,
            turns: [0; 3],
        };
        let owner = {
            let inbox = inbox.clone();
            thread::spawn(move || inbox.own(toy))
        };
        let syncer = {
            let inbox = inbox.clone();
            thread::spawn(move || {
                for () in jobs {
                    inbox.synced(Mail::Event(Event::StepDown)).expect("the node is there");
                }
            })
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(3)
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let clients = (0..8_u32).map(|client| {
                let inbox = inbox.clone();
                tokio::spawn(async move {
                    for request in 0..20_000 {
                        let (waiter, answer) = oneshot::channel();
                        let mail = if (request + client) % 3 == 0 {
                            Mail::Read(waiter)
                        } else {
                            Mail::Propose(waiter, Bytes::new())
                        };
                        if request % 2 == 0 {
                            inbox.bring(mail).await.expect("there is room");
                        } else {
                            inbox.send(mail).await.expect("the node is there");
                        }
                        let answered = tokio::time::timeout(Duration::from_secs(60), answer).await;
                        answered.expect("its mail was overlooked").expect("it was dropped");
                    }
                })
            });
            for client in clients.collect::<Vec<_>>() {
                client.await.expect("all its requests were answered");
            }
            inbox.send(Mail::Stop).await.expect("the node is there");
        });
        assert!(matches!(owner.join().expect("it did not panic"), Ended::Stopped));
        syncer.join().expect("it did not panic");
        assert_eq!(inbox.try_send(Mail::Stop), Err(NotTaken::NobodyReads), "who is late hears it");
    }

    /// Panics when somebody else than the owner takes a turn.
    struct Fragile(
        #[expect(dead_code, reason = "held, so that mail can be sent")] mpsc::Receiver<Mail>,
    );

    impl TakesTurns for Fragile {
        fn due(&self) -> Instant {
            Instant::now() + NEVER
        }

        fn take(&mut self, seat: Seat) -> Left {
            assert!(seat == Seat::Owner, "meant");
            Left::Nothing
        }

        fn gathers(&self) -> u8 {
            0
        }

        fn has_mail(&self) -> bool {
            false
        }

        fn ended(&mut self) -> Option<Ended> {
            None
        }
    }

    #[test]
    fn a_panic_of_a_guest_ends_the_node() {
        let (inbox, receiver) = Inbox::<Fragile>::new(64);
        let owner = {
            let inbox = inbox.clone();
            thread::spawn(move || inbox.own(Fragile(receiver)))
        };
        let guest = {
            let inbox = inbox.clone();
            // Until the node is there, nothing happens.
            thread::spawn(move || {
                loop {
                    inbox.desk.visit(Seat::Guest);
                }
            })
        };
        assert!(guest.join().is_err(), "it panics");
        assert!(matches!(owner.join().expect("it did not panic"), Ended::Panicked));
    }
}

//! When a turn hears of ticks, the units of logical time.
//!
//! While something goes on, each is told on its time, by the node's own thread. While a node is
//! idle, those that would lead to nothing ([`super::core::Core::quiet_ticks`]) are told together
//! with the one after them, or with the mail of a guest: a thread that wakes for each of them
//! costs more than all else that an idle node does.
//!
//! After a pause of the process - it was stopped, the machine was busy - only those that were
//! awaited are told, however much time went by: the others may have spoken meanwhile, and are
//! heard before time-outs pass.

use std::time::{Duration, Instant};

use super::desk::Seat;
use super::handle::Mail;
use super::work::Event;
use crate::raft::message::Message;
use crate::wire::{Content, Packet};

/// A node is idle when nothing but heartbeats came for so many ticks.
const CALM_TICKS: u32 = 8;
/// After so many the picture of an idle node is made anew: how long it has not heard of others,
/// and what else only time brings. No more are told together.
const PICTURE_TICKS: u32 = 8;

/// Which ticks were told, and when the next one is.
#[derive(Debug)]
pub(super) struct Ticks {
    /// Length of a tick.
    unit: Duration,
    /// When the last one that was told was due.
    last: Instant,
    /// So many after it may wait for the one after them.
    quiet: u32,
    /// When the owner believes that it has to take a turn.
    promised: Instant,
    /// Ticks since something else than a heartbeat came.
    calm: u32,
    /// Ticks since the last picture.
    since_picture: u32,
    /// Something happened since.
    is_old: bool,
}

impl Ticks {
    pub(super) fn new(unit: Duration, now: Instant) -> Self {
        Self { unit, last: now, quiet: 0, promised: now, calm: 0, since_picture: 0, is_old: true }
    }

    /// How many a turn has to tell that begins now. All but the last come before its mail: they
    /// were awaited to lead to nothing, so nobody is heard too late.
    pub(super) fn passed(&mut self, now: Instant, seat: Seat) -> u32 {
        let elapsed = now.saturating_duration_since(self.last).as_nanos() / self.unit.as_nanos();
        if elapsed == 0 || (seat != Seat::Owner && self.quiet == 0) {
            return 0;
        }
        let awaited = self.quiet + 1;
        let passed = u32::try_from(elapsed).map_or(awaited, |elapsed| elapsed.min(awaited));
        let is_late = elapsed > u128::from(awaited);
        self.last = if is_late { now } else { self.last + self.unit * passed };
        self.calm = self.calm.saturating_add(passed);
        self.since_picture += passed;
        passed
    }

    /// Mail came. Heartbeats, which is all that an idle cluster says, tell nothing new.
    pub(super) fn heard(&mut self, mail: &Mail) {
        let is_heartbeat = |packet: &Packet| match &packet.content {
            Content::Protocol(envelope) => {
                let message = &envelope.message;
                matches!(message, Message::Heartbeat { .. } | Message::HeartbeatReply { .. })
            }
            Content::Aside(_) => false,
        };
        if !matches!(mail, Mail::Event(Event::Packet(packet)) if is_heartbeat(packet)) {
            self.news();
        }
    }

    /// Something happened.
    pub(super) fn news(&mut self) {
        self.calm = 0;
        self.is_old = true;
    }

    /// Is a new picture of the node due, when a turn told so many?
    pub(super) fn picture(&mut self, passed: u32) -> bool {
        let is_due = passed > 0 && (self.is_old || self.since_picture >= PICTURE_TICKS);
        if is_due {
            (self.since_picture, self.is_old) = (0, false);
        }
        is_due
    }

    /// At the end of a turn: `quiet` of the next ticks would lead to nothing. Has the owner to be
    /// woken, because it has to take a turn sooner than it believes?
    pub(super) fn plan(&mut self, seat: Seat, quiet: impl FnOnce() -> u32) -> bool {
        let is_idle = self.calm >= CALM_TICKS;
        self.quiet = if is_idle { quiet().min(PICTURE_TICKS - 1) } else { 0 };
        if seat == Seat::Owner {
            self.promised = self.due();
        }
        self.due() < self.promised
    }

    /// When the owner has to take a turn.
    pub(super) fn due(&self) -> Instant {
        self.last + self.unit * (self.quiet + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Duration = Duration::from_millis(10);

    /// Idle since `start`: the owner has told of the ticks of that time.
    fn idle(start: Instant) -> (Ticks, Instant) {
        let mut ticks = Ticks::new(UNIT, start);
        let mut now = start;
        for _ in 0..CALM_TICKS {
            now += UNIT;
            assert_eq!(ticks.passed(now, Seat::Owner), 1);
            assert!(!ticks.plan(Seat::Owner, || 0));
        }
        (ticks, now)
    }

    #[test]
    fn a_busy_node_hears_of_each_tick_from_its_owner() {
        let start = Instant::now();
        let mut ticks = Ticks::new(UNIT, start);
        assert!(!ticks.plan(Seat::Owner, || 100), "it may be quiet, but is not idle yet");
        assert_eq!(ticks.due(), start + UNIT);
        assert_eq!(ticks.passed(start + UNIT / 2, Seat::Owner), 0, "woken for something else");
        assert_eq!(ticks.passed(start + UNIT, Seat::Guest), 0, "guests have other things to do");
        assert_eq!(ticks.passed(start + UNIT, Seat::Owner), 1);
        assert_eq!(ticks.passed(start + UNIT * 50, Seat::Owner), 1, "once, after a pause");
        assert_eq!(ticks.due(), start + UNIT * 51);
    }

    #[test]
    fn an_idle_node_hears_of_quiet_ticks_together() {
        let (mut ticks, now) = idle(Instant::now());
        assert!(!ticks.plan(Seat::Owner, || 3));
        assert_eq!(ticks.due(), now + UNIT * 4);
        assert_eq!(ticks.passed(now + UNIT * 4, Seat::Owner), 4);
        assert!(!ticks.plan(Seat::Owner, || 100));
        assert_eq!(ticks.due(), now + UNIT * 4 + UNIT * PICTURE_TICKS, "a picture is due");
        assert_eq!(ticks.passed(now + UNIT * 500, Seat::Owner), PICTURE_TICKS, "what was awaited");
        assert_eq!(ticks.due(), now + UNIT * 500 + UNIT * PICTURE_TICKS);
    }

    #[test]
    fn a_guest_tells_what_went_by_and_wakes_the_owner_when_something_happened() {
        let (mut ticks, now) = idle(Instant::now());
        assert!(!ticks.plan(Seat::Owner, || 7));
        assert_eq!(ticks.passed(now + UNIT * 3 + UNIT / 2, Seat::Guest), 3);
        assert!(!ticks.plan(Seat::Guest, || 7), "only a heartbeat: the owner sleeps on");
        assert_eq!(ticks.due(), now + UNIT * 11);
        ticks.news();
        assert!(ticks.plan(Seat::Guest, || 7), "each tick counts again");
        assert_eq!(ticks.due(), now + UNIT * 4);
        assert_eq!(ticks.passed(now + UNIT * 4, Seat::Owner), 1);
        assert!(!ticks.plan(Seat::Owner, || 7));
        ticks.news();
        assert!(!ticks.plan(Seat::Guest, || 7), "it knows");
    }

    #[test]
    fn a_picture_is_due_with_a_tick_after_news_or_after_a_while() {
        let (mut ticks, now) = idle(Instant::now());
        assert!(ticks.picture(1), "the first");
        assert!(!ticks.picture(1), "nothing happened");
        ticks.news();
        assert!(!ticks.picture(0) && ticks.picture(1));
        for tick in 1..=PICTURE_TICKS {
            assert_eq!(ticks.passed(now + UNIT * tick, Seat::Owner), 1);
            assert_eq!(ticks.picture(1), tick == PICTURE_TICKS);
        }
    }
}

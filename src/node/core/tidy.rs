//! The leader proposes to remove what is over. What that is, is decided when it is applied.

use bytes::Bytes;

use super::Core;
use crate::machine::{self, Command, Tidy};
use crate::node::work::Work;
use crate::raft::message::Input;
use crate::raft::types::Index;
use crate::store::StoreError;

/// Ticks that a new leader gives clients to find it, before anything expires: nobody could
/// keep a lease alive while there was no leader.
const GRACE_TICKS: u64 = 80;

/// What this leader proposed of it.
#[derive(Debug, Default)]
pub(super) struct Tidying {
    /// Since which tick it leads.
    led_since: Option<u64>,
    /// The newest entry of that kind.
    proposed: Index,
    /// It left something.
    pub(super) more: bool,
}

impl<W> Core<W> {
    /// Proposes to tidy up, if there is something, one entry at a time.
    pub(super) fn tidy_when_due(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if !self.raft.is_leader() {
            self.tidying = Tidying::default();
            return Ok(());
        }
        let since = *self.tidying.led_since.get_or_insert(self.ticks);
        // What is committed and not applied may have removed it.
        if self.applied < self.tidying.proposed || self.can_apply() || self.is_rebuilding() {
            return Ok(());
        }
        self.tidying.more = false;
        let tidy = Tidy { expire: self.ticks - since >= GRACE_TICKS, ..self.options.tidy };
        let now_ms = self.time_ms.max(self.now.wall_ms);
        match machine::is_due(&self.db.published().snapshot(), now_ms, &tidy) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error @ StoreError::Corrupt { .. }) => return self.lose_database(error, work),
            Err(error) => return Err(error),
        }
        let payload = Command::Tidy(tidy).encode();
        let sizes = vec![u32::try_from(payload.len()).expect("it is a few numbers")];
        self.effects.proposed = None;
        self.step_with(Input::Propose { sizes }, &Bytes::new(), &[payload], work)?;
        // Refused now, it is tried again at the next tick.
        if let Some(Ok(first)) = self.effects.proposed.take() {
            self.tidying.proposed = first.index;
        }
        Ok(())
    }
}

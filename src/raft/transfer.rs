//! Handing over leadership (thesis 3.10).
//!
//! The leader stops to accept proposals, brings the chosen voter up to date and
//! tells it to campaign at once. If no new leader appears within an election
//! time-out, it takes proposals again.

use super::message::{Effects, Message};
use super::planted::Planted;
use super::types::NodeId;
use super::{Raft, Role};

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) to: NodeId,
    elapsed: u32,
    /// It was told to campaign.
    told: bool,
}

impl Raft {
    pub(super) fn transfer(&mut self, to: NodeId, out: &mut Effects) {
        let is_voter = self.members.current().voters.contains(&to);
        let Role::Leader(leader) = &mut self.role else { return };
        let is_same = leader.transfer.as_ref().is_some_and(|transfer| transfer.to == to);
        if to == self.config.id || !is_voter || is_same {
            return;
        }
        leader.transfer = Some(Transfer { to, elapsed: 0, told: false });
        self.replicate(to, out);
        self.continue_transfer(to);
    }

    /// Tells the chosen voter to campaign, once it has everything.
    pub(super) fn continue_transfer(&mut self, heard: NodeId) {
        let last = self.last().index;
        let is_early = self.planted(Planted::TransferBeforeCaughtUp);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let matched = leader.progress.get(&heard).map(|progress| progress.matched);
        let is_ready = matched == Some(last) || is_early;
        if transfer.to == heard && !transfer.told && is_ready {
            transfer.told = true;
            leader.lease.give_away();
            self.send(heard, Message::TimeoutNow);
        }
    }

    pub(super) fn tick_transfer(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        transfer.elapsed += 1;
        if transfer.elapsed >= self.config.election_ticks {
            leader.transfer = None;
        }
    }
}

//! Operators who change the cluster, and what is true of every change.

use mmapd::node::{MemberChange, NotChanged};
use mmapd::raft::types::{EntryKind, Membership};

use super::*;

/// Data folders there can be; the founders have the first ones.
pub(super) const SLOTS: usize = 7;
/// Members of the largest cluster.
const MOST: usize = 6;

pub(super) fn url(id: NodeId, alias: u64) -> String {
    format!("http://sim-{}/{alias}", id.0)
}

/// The node that listens there.
pub(super) fn place_of(url: &str) -> usize {
    let name = url.strip_prefix("http://sim-").and_then(|rest| rest.split('/').next());
    let id: usize = name.and_then(|id| id.parse().ok()).expect("a URL of ours");
    id - 1
}

impl Sim {
    pub(super) fn founding(&self) -> Membership {
        let founders = self.plan.nodes;
        Membership::of((1..=founders).map(|id| (NodeId(id), url(NodeId(id), 0))).collect())
    }

    /// The newest configuration that is known to be committed.
    pub(super) fn ruling(&self) -> &Membership {
        &self.configs.last().expect("the founding one").1
    }

    /// The configuration that a node will know for good, whatever happens but a wipe.
    fn lasting(&self, node: usize) -> Option<Membership> {
        let it = &self.nodes[node];
        match &it.core {
            Some(core) => Some(lasting(core)),
            None => it.lasting.clone(),
        }
    }

    /// May this disk be lost? Only if whoever counts its votes knows which life they are of,
    /// or does not count them; of any two lost votes a majority could be made.
    fn may_wipe(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        (0..self.nodes.len()).filter(|other| *other != node).all(|other| {
            let Some(config) = self.lasting(other) else { return true };
            !config.addresses.contains_key(&it.id)
                || config.incarnations.get(&it.id) == Some(&it.incarnation)
        })
    }

    /// Can the cluster do without one more voter?
    pub(super) fn is_sound(&self) -> bool {
        let ruling = self.ruling();
        self.wiped.is_none() && !ruling.is_joint() && ruling.voters.len() >= 3
    }

    pub(super) fn members_nemesis(&mut self) -> Result<(), Violation> {
        if !self.chaos {
            return Ok(());
        }
        let every = self.plan.change_every_us;
        let next = every / 2 + self.rng.below(every);
        self.later(next, Happening::Members);
        self.forget_wiped();
        if self.rng.below(6) == 0 {
            self.retire_one();
        }
        if self.plan.wipes && self.rng.below(6) == 0 {
            let node = pick(&mut self.rng, SLOTS as u64);
            self.wipe_a_member(node)?;
        }
        let asked = match self.leader() {
            Some(leader) if self.rng.below(10) < 7 => leader,
            _ => pick(&mut self.rng, SLOTS as u64),
        };
        let it = &self.nodes[asked];
        let Some(core) = &it.core else { return Ok(()) };
        if it.paused {
            return Ok(());
        }
        let current = core.raft().membership().clone();
        let Some((change, joins)) = self.draw_change(&current)? else { return Ok(()) };
        self.report.changes_asked += 1;
        self.event(asked, Event::ChangeMembers(Wait::Change { joins }, change))
    }

    /// A change that makes sense to somebody who sees this configuration, mostly.
    fn draw_change(
        &mut self,
        current: &Membership,
    ) -> Result<Option<(MemberChange, Option<usize>)>, Violation> {
        let members = current.members();
        let least = if self.plan.wipes || self.plan.rot { 3 } else { 1 };
        // Whoever lost its disk goes first.
        if let Some(wiped) = self.wiped
            && members.contains(&self.nodes[wiped].id)
            && self.rng.below(2) == 0
        {
            return Ok(Some((MemberChange::Remove { id: self.nodes[wiped].id }, None)));
        }
        let may_shrink = current.voters.len() > least;
        let of = |rng: &mut Rng, ids: &[NodeId]| {
            (!ids.is_empty()).then(|| ids[pick(rng, ids.len() as u64)])
        };
        let voters = current.voters.clone();
        let change = match self.rng.below(12) {
            0..=3 if members.len() < MOST => return self.draw_addition(&members),
            4 => {
                let Some(id) = of(&mut self.rng, &current.learners) else { return Ok(None) };
                MemberChange::Set { id, voter: Some(true), url: None }
            }
            5 if may_shrink => {
                let Some(id) = of(&mut self.rng, &voters) else { return Ok(None) };
                MemberChange::Set { id, voter: Some(false), url: None }
            }
            6 | 7 if may_shrink => {
                let leader = self.leader().map(|leader| self.nodes[leader].id);
                let id = match leader.filter(|id| voters.contains(id)) {
                    Some(leader) if self.rng.below(3) == 0 => Some(leader),
                    _ => of(&mut self.rng, &voters),
                };
                let Some(id) = id else { return Ok(None) };
                MemberChange::Remove { id }
            }
            8 => {
                let Some(id) = of(&mut self.rng, &current.learners) else { return Ok(None) };
                MemberChange::Remove { id }
            }
            9 => {
                let Some(id) = of(&mut self.rng, &members) else { return Ok(None) };
                let url = Some(url(id, self.rng.below(3)));
                MemberChange::Set { id, voter: None, url }
            }
            _ => {
                let mut next = Vec::new();
                let mut voting = 0;
                for id in &members {
                    if self.rng.below(10) < 8 {
                        let was = voters.contains(id);
                        let votes = was != (self.rng.below(10) < 3);
                        voting += usize::from(votes);
                        let known = current.addresses.get(id).cloned();
                        next.push((*id, known.unwrap_or_else(|| url(*id, 0)), votes));
                    }
                }
                if voting < least {
                    return Ok(None);
                }
                MemberChange::Replace { members: next }
            }
        };
        Ok(Some((change, None)))
    }

    /// A node that does not belong to the cluster wants to: with an empty disk, or as it was.
    fn draw_addition(
        &mut self,
        members: &[NodeId],
    ) -> Result<Option<(MemberChange, Option<usize>)>, Violation> {
        let free: Vec<usize> =
            (0..SLOTS).filter(|slot| !members.contains(&self.nodes[*slot].id)).collect();
        let Some(place) = self
            .wiped
            .filter(|wiped| free.contains(wiped))
            .or_else(|| (!free.is_empty()).then(|| free[pick(&mut self.rng, free.len() as u64)]))
        else {
            return Ok(None);
        };
        let is_out = !self.ruling().addresses.contains_key(&self.nodes[place].id);
        let as_it_was = self.nodes[place].has_files && self.wiped != Some(place);
        if as_it_was && is_out && self.rng.below(3) > 0 && self.may_wipe(place) {
            self.retire(place);
            self.empty_disk(place);
        } else if self.wiped == Some(place) && is_out {
            // Its old self ends before it joins.
            self.retire(place);
            self.empty_disk(place);
        }
        let it = &self.nodes[place];
        let (id, own) = (it.id, it.incarnation);
        let incarnation = (self.rng.below(4) > 0).then_some(own);
        let promote = self.rng.below(3) > 0;
        let change = MemberChange::Add { id, url: url(id, 0), incarnation, promote };
        Ok(Some((change, Some(place))))
    }

    pub(super) fn changed(
        &mut self,
        node: usize,
        joins: Option<usize>,
        answer: Result<Index, NotChanged>,
    ) {
        match answer {
            Ok(index) => {
                self.report.changes += 1;
                if self.configs.iter().all(|(at, _)| *at != index.0) {
                    let id = self.nodes[node].id;
                    self.wrong = Some(format!("{id} changed nothing with entry {index}"));
                }
                if let Some(place) = joins {
                    let told = self.nodes[node].core.as_ref().map(|core| told(core, place));
                    let it = &mut self.nodes[place];
                    if !it.has_files {
                        it.joined = told;
                    }
                    self.later(5_000, Happening::Join { node: place });
                }
            }
            Err(NotChanged::Unknown(_)) => self.report.changes_unknown += 1,
            Err(_) => self.report.changes_refused += 1,
        }
    }

    /// A node that was taken in starts.
    pub(super) fn join(&mut self, node: usize) -> Result<(), Violation> {
        let it = &mut self.nodes[node];
        if it.core.is_some() || it.present || (!it.has_files && it.joined.is_none()) {
            return Ok(());
        }
        it.present = true;
        self.start(node)
    }

    /// The process of somebody who was removed ends; its files stay.
    fn retire_one(&mut self) {
        let ruling = self.ruling().members();
        let out: Vec<usize> = (0..SLOTS)
            .filter(|slot| self.nodes[*slot].core.is_some() && !self.nodes[*slot].paused)
            .filter(|slot| !ruling.contains(&self.nodes[*slot].id))
            .collect();
        if !out.is_empty() {
            let node = out[pick(&mut self.rng, out.len() as u64)];
            self.retire(node);
        }
    }

    fn retire(&mut self, node: usize) {
        self.nodes[node].present = false;
        if self.nodes[node].core.is_some() {
            self.report.retired += 1;
            self.stop(node);
        }
    }

    /// A new and empty disk, and so another life.
    fn empty_disk(&mut self, node: usize) {
        let incarnation = self.rng.below(1 << 60) | 1;
        let seed = self.plan.seed ^ incarnation;
        let it = &mut self.nodes[node];
        it.disk = SimDisk::new(seed);
        it.before = Some((it.incarnation, it.durable));
        it.incarnation = incarnation;
        (it.joined, it.has_files, it.acked) = (None, false, None);
        (it.durable, it.lasting) = (0, None);
        if self.rotten == Some(node) {
            self.rotten = None;
        }
    }

    /// A member loses its disk, and comes back as if it were new, without asking anybody.
    fn wipe_a_member(&mut self, node: usize) -> Result<(), Violation> {
        let it = &self.nodes[node];
        let ruling = self.ruling();
        if self.rotten.is_some()
            || !self.is_sound()
            || !ruling.is_voter(it.id)
            || ruling.incarnations.get(&it.id) != Some(&it.incarnation)
            || it.core.is_none()
            || it.paused
            || !self.may_wipe(node)
        {
            return Ok(());
        }
        self.report.wipes += 1;
        let id = self.nodes[node].id;
        let place = told_by(self.ruling(), id);
        self.crash(node)?;
        let life = self.nodes[node].incarnation;
        self.empty_disk(node);
        if self.plan.lies == Some(Lie::Life) {
            self.nodes[node].incarnation = life;
        }
        if id.0 > self.plan.nodes {
            self.nodes[node].joined = Some(place);
        }
        self.wiped = Some(node);
        Ok(())
    }

    /// Is the life that lost its disk a member again?
    pub(super) fn forget_wiped(&mut self) {
        let Some(node) = self.wiped else { return };
        let (it, ruling) = (&self.nodes[node], self.ruling());
        if ruling.members().contains(&it.id)
            && ruling.incarnations.get(&it.id) == Some(&it.incarnation)
        {
            self.wiped = None;
        }
    }

    /// The first node that knows of a commit shows what was committed.
    pub(super) fn check_committed(&mut self, node: usize) -> Result<(), Violation> {
        let core = self.nodes[node].core.as_ref().expect("it is checked");
        let (commit, id) = (core.raft().commit().0, core.raft().id());
        if commit <= self.committed {
            return Ok(());
        }
        let reader = core.log().reader();
        for index in self.committed + 1..=commit {
            let Some(entry) = reader.entry(Index(index)) else { continue };
            if entry.time_ms < self.time_ms {
                let why = format!("entry {} is of {}", entry.id, entry.time_ms);
                return Err(Violation(format!("{why}, an older one of {}", self.time_ms)));
            }
            self.time_ms = entry.time_ms;
            if entry.kind == EntryKind::Config {
                let config = wire::decode_membership(&entry.payload)
                    .map_err(|error| Violation(format!("a configuration: {error}")))?;
                let before = self.ruling();
                if !follows(before, &config) {
                    let why = format!("{config:?} follows {before:?}");
                    return Err(Violation(why));
                }
                self.report.configs += 1;
                self.report.joint += u64::from(config.is_joint());
                self.configs.push((index, config));
            }
        }
        self.committed = commit;
        if !core.raft().is_leader() || self.plan.lies.is_some() {
            return Ok(());
        }
        let (Some(chain), config) = (core.log().chain_at(Index(commit)), core.raft().membership())
        else {
            return Ok(());
        };
        for set in [&config.voters, &config.outgoing] {
            let having = set.iter().filter(|voter| self.has(**voter, config, commit, chain));
            if !set.is_empty() && having.count() <= set.len() / 2 {
                let why = format!("{id} takes {commit} as committed, which {set:?} do not hold");
                return Err(Violation(why));
            }
        }
        Ok(())
    }

    /// Does the disk of this voter hold the entry, or did it when it said so?
    fn has(&self, voter: NodeId, config: &Membership, index: u64, chain: u64) -> bool {
        let Some(it) = usize::try_from(voter.0 - 1).ok().and_then(|at| self.nodes.get(at)) else {
            return false;
        };
        let lost = it.before.is_some_and(|(life, durable)| {
            config.incarnations.get(&voter) == Some(&life) && durable >= index
        });
        let same = it.core.as_ref().is_none_or(|core| {
            core.log().first().0 > index
                || core.log().chain_at(Index(index)).is_none_or(|have| have == chain)
        });
        let is_rotten = self.rotten.is_some_and(|rotten| self.nodes[rotten].id == voter);
        let now = config.knows(voter, it.incarnation) && it.durable >= index && same;
        lost || is_rotten || now
    }

    /// A leader has one configuration under way at most.
    pub(super) fn check_under_way(&self, node: usize) -> Result<(), Violation> {
        let core = self.nodes[node].core.as_ref().expect("it is checked");
        let (reader, last) = (core.log().reader(), core.log().written().index.0);
        let open = (self.committed + 1..=last)
            .filter_map(|index| reader.entry(Index(index)))
            .filter(|entry| entry.kind == EntryKind::Config);
        match open.count() {
            0 | 1 => Ok(()),
            more => {
                let id = self.nodes[node].id;
                Err(Violation(format!("{id} has {more} configurations under way")))
            }
        }
    }
}

/// Whom a node that joins learns of.
fn told(core: &Core<Wait>, place: usize) -> Membership {
    told_by(core.raft().membership(), NodeId(place as u64 + 1))
}

pub(super) fn told_by(config: &Membership, us: NodeId) -> Membership {
    Membership {
        voters: config.voters.iter().copied().filter(|id| *id != us).collect(),
        learners: vec![us],
        addresses: config.addresses.clone(),
        ..Membership::default()
    }
}

pub(super) fn lasting(core: &Core<Wait>) -> Membership {
    let raft = core.raft();
    raft.membership_at(raft.durable().min(raft.commit())).clone()
}

/// Could a majority of the one and a majority of the other be apart?
fn follows(before: &Membership, after: &Membership) -> bool {
    if before.is_joint() {
        return !after.is_joint() && after.voters == before.voters;
    }
    if after.is_joint() {
        return after.outgoing == before.voters;
    }
    let added = after.voters.iter().filter(|id| !before.voters.contains(id)).count();
    let removed = before.voters.iter().filter(|id| !after.voters.contains(id)).count();
    added + removed <= 1
}

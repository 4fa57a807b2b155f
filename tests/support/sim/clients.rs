//! Clients with one operation each.

use super::*;

impl Sim {
    pub(super) fn client(&mut self, client: usize) -> Result<(), Violation> {
        if self.quiet || self.clients[client].op.is_some() {
            return Ok(());
        }
        let key = format!("k{}", self.rng.below(KEYS)).into_bytes();
        self.clients[client].serial += 1;
        let value = format!("{client}.{}", self.clients[client].serial).into_bytes();
        let mut value = value;
        // Batches of several pages, so that a crash tears them.
        let (every, most) = if self.plan.long_downs { (2, 9_000) } else { (8, 3_000) };
        if self.rng.below(every) == 0 {
            value.resize(200 + pick(&mut self.rng, most), b'.');
        }
        let action = match self.rng.below(10) {
            0..=4 => Action::put(value),
            5 => Action::put_if(value, Expect::Absent),
            6 => match self.clients[client].seen.get(&key) {
                Some((_, seen)) => Action::put_if(value, Expect::Value(seen.clone())),
                None => Action::put(value),
            },
            7 => Action::delete(),
            _ => Action::Get,
        };
        let command = self.command(client, &key, &action);
        let op = self.history.begin(client as u64, &key, action.clone(), self.now);
        self.clients[client].op = Some((op, action, key, command));
        self.clients[client].attempt += 1;
        let attempt = self.clients[client].attempt;
        self.later(PATIENCE_US, Happening::Patience { client, attempt });
        let present: Vec<usize> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].present).collect();
        let node = present[pick(&mut self.rng, present.len() as u64)];
        self.attempt(client, node)
    }

    pub(super) fn command(&self, client: usize, key: &[u8], action: &Action) -> Command {
        let key = Bytes::copy_from_slice(key);
        match action {
            Action::Put { value, expect } => {
                let conditions = match expect {
                    None => Conditions::default(),
                    Some(Expect::Absent) => {
                        Conditions { if_none_match: Some(Tags::Any), ..Conditions::default() }
                    }
                    Some(Expect::Present) => {
                        Conditions { if_match: Some(Tags::Any), ..Conditions::default() }
                    }
                    Some(Expect::Value(_)) => {
                        let (revision, _) = self.clients[client].seen[&key[..]];
                        Conditions {
                            if_match: Some(Tags::Revisions(vec![revision])),
                            ..Conditions::default()
                        }
                    }
                };
                let value = Bytes::copy_from_slice(value);
                let (content_type, life) = (String::new(), Life::Endless);
                Command::Put { key, value, content_type, life, conditions, prev: false }
            }
            Action::Delete { .. } | Action::Get => {
                Command::Delete { key, conditions: Conditions::default(), prev: false }
            }
        }
    }

    pub(super) fn attempt(&mut self, client: usize, node: usize) -> Result<(), Violation> {
        self.clients[client].node = node;
        let wait = Wait::Client { client, attempt: self.clients[client].attempt };
        let Some((_, action, _, command)) = &self.clients[client].op else { return Ok(()) };
        if self.nodes[node].core.is_none() || self.nodes[node].paused {
            return Ok(()); // patience will end it
        }
        let event = match action {
            Action::Get if self.plan.lease => Event::LeaseRead(vec![wait]),
            Action::Get => Event::Read(vec![wait]),
            _ => Event::Propose(vec![(wait, command.encode())]),
        };
        self.event(node, event)
    }

    pub(super) fn answered(&mut self, node: usize, wait: Wait, answer: Answer) {
        match wait {
            Wait::Sender { node: sender, life, to } => {
                let Answer::Installed(installed) = answer else { return };
                self.nodes[node].receiving.retain(|other| *other != (sender, life));
                let sent = Happening::SnapshotSent { node: sender, life, to, installed };
                self.later(1_000, sent);
            }
            Wait::Operator => match answer {
                Answer::Compacted(Ok(_)) => self.report.compactions += 1,
                Answer::Compacted(Err(NotCompacted::Busy | NotCompacted::Superseded)) => {}
                Answer::Compacted(Err(NotCompacted::Damaged(_))) if self.plan.rot => {}
                other => self.wrong = Some(format!("a compaction ended in {other:?}")),
            },
            Wait::Change { joins } => match answer {
                Answer::Changed(outcome) => self.changed(node, joins, outcome),
                // Another entry took its place.
                Answer::NotLeader(_) => self.report.changes_refused += 1,
                Answer::Unknown => self.report.changes_unknown += 1,
                other => self.wrong = Some(format!("a change of members ended in {other:?}")),
            },
            Wait::Fresh => self.fresh = matches!(answer, Answer::Written(_)),
            Wait::Client { client, attempt } => {
                if self.clients[client].attempt == attempt && self.clients[client].op.is_some() {
                    self.client_answered(client, node, answer);
                }
            }
        }
    }

    pub(super) fn client_answered(&mut self, client: usize, node: usize, answer: Answer) {
        let Some((_, _, key, _)) = &self.clients[client].op else { return };
        let key = key.clone();
        let outcome = match answer {
            Answer::Written(Applied::Put(Written { revision, version, .. })) => {
                let Some((_, Action::Put { value, .. }, ..)) = &self.clients[client].op else {
                    return;
                };
                let value = value.clone();
                self.clients[client].seen.insert(key, (revision, value));
                Outcome::Done { revision: Some(revision), existed: Some(version > 1) }
            }
            Answer::Written(Applied::Deleted { deleted, .. }) => {
                Outcome::Done { revision: None, existed: Some(deleted == 1) }
            }
            Answer::Written(Applied::ConditionFailed { .. }) => Outcome::Mismatch,
            Answer::Written(_)
            | Answer::Unknown
            | Answer::Installed(_)
            | Answer::Changed(_)
            | Answer::Compacted(_)
            | Answer::HandingOver(_) => Outcome::Unknown,
            Answer::NotLeader(_) | Answer::Overloaded | Answer::NotReadable(_) => Outcome::Failed,
            Answer::Readable => {
                let core = self.nodes[node].core.as_ref().expect("it answered");
                let view = mmapd::machine::View::new(core.published().snapshot());
                let Ok(found) = view.get(&key) else {
                    return self.end(client, Some(Outcome::Failed)); // a damaged page
                };
                let read = found.map(|record| (record.mod_revision, record.value.to_vec()));
                if let Some((revision, value)) = &read {
                    self.clients[client].seen.insert(key, (*revision, value.clone()));
                }
                Outcome::Read {
                    revision: read.as_ref().map(|(revision, _)| *revision),
                    value: read.map(|(_, value)| value),
                }
            }
        };
        self.end(client, Some(outcome));
    }

    /// Ends the operation of a client; without an outcome nobody knows it.
    pub(super) fn end(&mut self, client: usize, outcome: Option<Outcome>) {
        let Some((op, action, ..)) = self.clients[client].op.take() else { return };
        self.clients[client].attempt += 1;
        let unknown = if action == Action::Get { Outcome::Failed } else { Outcome::Unknown };
        self.history.end(op, outcome.unwrap_or(unknown), self.now);
        let pause = 500 + self.rng.below(40_000);
        self.later(pause, Happening::Client { client });
    }

    pub(super) fn finish_clients(&mut self) {
        for client in 0..self.clients.len() {
            self.end(client, None);
        }
    }
}

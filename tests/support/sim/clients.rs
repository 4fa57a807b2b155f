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
        let once = self.plan.named.then(|| Once {
            key: format!("{client}/{}", self.clients[client].serial).into(),
            fingerprint: 1,
        });
        let request = Request { once, fence: None, command };
        let id = self.history.begin(client as u64, &key, action.clone(), self.now);
        let op = Pending { id, action, key, request, tries: 0, open: false };
        self.clients[client].op = Some(op);
        if self.plan.named && self.rng.below(4) == 0 {
            self.aside()?;
        }
        self.again(client)
    }

    /// Asks, for the first time or again, wherever it may be.
    pub(super) fn again(&mut self, client: usize) -> Result<(), Violation> {
        let Some(op) = &mut self.clients[client].op else { return Ok(()) };
        self.report.retries += u64::from(op.tries > 0);
        op.tries += 1;
        self.clients[client].attempt += 1;
        let attempt = self.clients[client].attempt;
        self.later(PATIENCE_US, Happening::Patience { client, attempt });
        let node = self.someone();
        self.attempt(client, node)
    }

    /// One of the nodes that shall run.
    fn someone(&mut self) -> usize {
        let present: Vec<usize> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].present).collect();
        present[pick(&mut self.rng, present.len() as u64)]
    }

    /// A write that no history judges: that all nodes agree about what it does, and when what
    /// it made is over, their digests judge.
    fn aside(&mut self) -> Result<(), Violation> {
        let key = Bytes::from(format!("x{}", self.rng.below(6)));
        let ttl_ms = [20, 500, 5_000][pick(&mut self.rng, 3)];
        let lease = self.lease;
        let life = match self.rng.below(3) {
            0 => Life::Endless,
            1 => Life::Ttl(ttl_ms),
            _ => Life::Lease(lease),
        };
        let content = Content { value: key.clone(), content_type: String::new(), life };
        let conditions = Conditions::default();
        let name = Bytes::from_static(b"lock");
        let command = match self.rng.below(10) {
            0 | 1 => {
                let Content { value, content_type, life } = content;
                Command::Put { key, value, content_type, life, conditions, prev: true }
            }
            2 => Command::Touch { key, ttl_ms: Some(ttl_ms), conditions },
            3 => Command::Grant { id: 0, ttl_ms },
            4 => Command::KeepAlive { ids: vec![lease] },
            5 => Command::Revoke { id: lease },
            6 => Command::Lock { name, lease, ttl_ms, owner: String::new(), queue: true },
            7 => Command::Unlock { name, ticket: lease },
            8 => Command::DeleteRange { span: Span::prefix(b"x") },
            _ => {
                let content = Content { life: Life::NewLease, ..content };
                let span = Span::key(b"x9");
                let then = vec![
                    Op::Grant { ttl_ms },
                    Op::Put { key, content, prev: true },
                    Op::Delete { span, prev: false },
                ];
                Command::Txn(Txn { then, ..Txn::default() })
            }
        };
        let node = self.someone();
        if self.nodes[node].core.is_none() || self.nodes[node].paused {
            return Ok(());
        }
        let request = Request::from(command);
        self.event(node, Event::Propose(vec![(Wait::Aside, request.encode())]))
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
        let Some(op) = &mut self.clients[client].op else { return Ok(()) };
        if self.nodes[node].core.is_none() || self.nodes[node].paused {
            return Ok(()); // patience will end it
        }
        let event = match op.action {
            Action::Get if self.plan.lease => Event::LeaseRead(vec![wait]),
            Action::Get => Event::Read(vec![wait]),
            Action::Put { .. } | Action::Delete { .. } => {
                Event::Propose(vec![(wait, op.request.encode())])
            }
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
            Wait::Aside => {
                if let Answer::Written(Applied::Granted(granted)) = answer {
                    self.report.leases += 1;
                    self.lease = granted.id;
                }
            }
            Wait::Fresh => self.fresh = matches!(answer, Answer::Written(_)),
            Wait::Client { client, attempt } => {
                if self.clients[client].attempt == attempt && self.clients[client].op.is_some() {
                    self.client_answered(client, node, answer);
                }
            }
        }
    }

    pub(super) fn client_answered(&mut self, client: usize, node: usize, answer: Answer) {
        let Some(Pending { key, .. }) = &self.clients[client].op else { return };
        let key = key.clone();
        let answer = match answer {
            Answer::Written(Applied::Replayed(first)) => {
                self.report.replays += 1;
                Answer::Written(*first)
            }
            Answer::Written(Applied::OtherRequest) => {
                self.wrong = Some("a name was given to two requests".into());
                return;
            }
            other => other,
        };
        let outcome = match answer {
            Answer::Written(Applied::Put(Written { revision, version, .. })) => {
                let Some(Pending { action: Action::Put { value, .. }, .. }) =
                    &self.clients[client].op
                else {
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

    /// Ends the operation of a client; without an outcome nobody knows it. A write with a name
    /// that may have happened is asked for again a few times before.
    pub(super) fn end(&mut self, client: usize, outcome: Option<Outcome>) {
        let Some(mut op) = self.clients[client].op.take() else { return };
        self.clients[client].attempt += 1;
        let is_read = op.action == Action::Get;
        let unknown = if is_read { Outcome::Failed } else { Outcome::Unknown };
        let mut outcome = outcome.unwrap_or(unknown);
        op.open |= outcome == Outcome::Unknown && !is_read;
        if op.open && outcome == Outcome::Failed {
            outcome = Outcome::Unknown;
        }
        let is_known = !matches!(outcome, Outcome::Failed | Outcome::Unknown);
        if self.plan.named && op.open && !is_known && !self.quiet && op.tries < TRIES {
            self.clients[client].op = Some(op);
            let attempt = self.clients[client].attempt;
            let pause = 500 + self.rng.below(200_000);
            return self.later(pause, Happening::Again { client, attempt });
        }
        self.history.end(op.id, outcome, self.now);
        let pause = 500 + self.rng.below(40_000);
        self.later(pause, Happening::Client { client });
    }

    pub(super) fn finish_clients(&mut self) {
        for client in 0..self.clients.len() {
            if let Some(op) = &mut self.clients[client].op {
                op.tries = TRIES;
            }
            self.end(client, None);
        }
    }
}

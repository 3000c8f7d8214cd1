//! The one thread that writes records: what waits is written in one step, so that many requests pay for one sync.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustls_pki_types::UnixTime;
use tokio::sync::oneshot;

use super::book::Of;
use super::chain::{Chain, Key, KeyRecord, Line, Mark};
use super::entry::{Entry, Event};
use super::kept::{Head, Kept, shown};
use super::refusals::{INTERVAL, Refusals, Told};
use super::{LedgerConfig, Lines};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tokens::hex;

/// Records of one step.
const AT_ONCE: usize = 256;
/// Records that nobody waits for, kept while the disk cannot be written; then they are counted as lost.
const MAX_BACKLOG: usize = 1_024;
/// Between two looks at what is old.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// How old the store's own word of how far the ledger had come may be.
const MARK_EVERY: Duration = Duration::from_secs(60);
/// Between two attempts to write what nobody waits for.
const TICK: Duration = Duration::from_secs(1);

pub(super) enum Work {
    /// Somebody waits.
    Record {
        entry: Entry,
        done: oneshot::Sender<bool>,
    },
    Note(Entry),
    Refused(Told),
    /// Answered when everything before it was written, or could not be.
    Flush(oneshot::Sender<()>),
}

pub(super) enum Place {
    Directory {
        kept: Arc<Kept>,
        store: Arc<Store>,
        record: KeyRecord,
    },
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code))] // As `Ledger::as_lines`.
    Lines(Lines),
}

pub(super) struct Writer {
    of: Of,
    chain: Chain,
    key: Key,
    head: Head,
    place: Place,
    retention: Duration,
    max_records: u64,
    count: u64,
    clock: Clock,
    metrics: Metrics,
    refusals: Refusals,
    interval_began: Instant,
    backlog: VecDeque<Entry>,
    pruned: Option<Instant>,
    marked: (Instant, u64),
    /// What went wrong last, so that it is told once.
    trouble: Option<String>,
}

impl Writer {
    pub(super) fn new(
        of: Of,
        (chain, key, head): (Chain, Key, Head),
        place: Place,
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let (count, marked) = match &place {
            Place::Directory { kept, record, .. } => {
                let marked = record.mark.as_ref().map_or(0, |mark| mark.number);
                (kept.count().unwrap_or_default(), marked)
            }
            Place::Lines(_) => (0, 0),
        };
        metrics.ledger_head(of, head.number);
        Self {
            of,
            chain,
            key,
            head,
            place,
            retention: config.retention,
            max_records: of.max_records(config),
            count,
            clock,
            metrics,
            refusals: Refusals::default(),
            interval_began: Instant::now(),
            backlog: VecDeque::new(),
            pruned: None,
            marked: (Instant::now(), marked),
            trouble: None,
        }
    }

    /// Until nobody can send any more.
    pub(super) fn run(mut self, todo: &Receiver<Work>) {
        if matches!(self.place, Place::Lines(_)) {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            self.backlog.push_back(Entry::at(self.now(), Event::Begun { version }));
        }
        self.write(Vec::new());
        self.mark();
        loop {
            self.prune();
            match todo.recv_timeout(TICK) {
                Ok(first) => self.step(first, todo),
                Err(RecvTimeoutError::Timeout) => self.write(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.interval_began.elapsed() >= INTERVAL {
                self.interval_over();
            }
            if self.marked.0.elapsed() >= MARK_EVERY {
                self.mark();
            }
        }
        self.interval_over();
        self.write(Vec::new());
        self.mark();
        if !self.backlog.is_empty() {
            self.metrics.ledger_lost(self.backlog.len());
            tracing::error!(
                reason = "ledger",
                records = self.backlog.len(),
                "refusals were not recorded"
            );
        }
        tracing::info!(chain = %self.chain, records = self.head.number, head = hex(&self.head.hash), "ledger closed");
    }

    fn now(&self) -> UnixTime {
        (self.clock)()
    }

    fn step(&mut self, first: Work, todo: &Receiver<Work>) {
        let (mut waiting, mut flushed) = (Vec::new(), Vec::new());
        for work in std::iter::once(first).chain(todo.try_iter()).take(AT_ONCE) {
            match work {
                Work::Record { entry, done } => waiting.push((entry, done)),
                Work::Note(entry) => self.later(entry),
                Work::Flush(done) => flushed.push(done),
                Work::Refused(told) => {
                    if let Some(entry) = self.refusals.note(&told, self.now()) {
                        self.later(entry);
                    }
                }
            }
        }
        self.write(waiting);
        for done in flushed {
            let _ = done.send(());
        }
    }

    /// Written with the next step.
    fn later(&mut self, entry: Entry) {
        if self.backlog.len() < MAX_BACKLOG {
            self.backlog.push_back(entry);
        } else {
            self.metrics.ledger_lost(1);
        }
    }

    fn interval_over(&mut self) {
        self.interval_began = Instant::now();
        for entry in self.refusals.counted(self.now()) {
            self.later(entry);
        }
    }

    fn write(&mut self, waiting: Vec<(Entry, oneshot::Sender<bool>)>) {
        // A caller that has gone gets no certificate: nothing to record.
        let waiting: Vec<_> = waiting.into_iter().filter(|(_, done)| !done.is_closed()).collect();
        let notes: Vec<Entry> = self.backlog.iter().take(AT_ONCE).cloned().collect();
        let entries: Vec<&Entry> = notes.iter().chain(waiting.iter().map(|(entry, _)| entry)).collect();
        if entries.is_empty() {
            return;
        }
        let written = self.append(&entries);
        if let Ok(head) = &written {
            self.count += head.number - self.head.number;
            self.head = *head;
            self.metrics.ledger_head(self.of, head.number);
            entries
                .iter()
                .for_each(|entry| self.metrics.ledger_record(entry.name()));
            self.backlog.drain(..notes.len());
        }
        self.tell(written.as_ref().err());
        for (_, done) in waiting {
            // If nobody waits any more the record says more than happened, which is the right way round.
            let _ = done.send(written.is_ok());
        }
    }

    fn append(&mut self, entries: &[&Entry]) -> Result<Head, String> {
        match &self.place {
            Place::Directory { kept, .. } => {
                if self.trouble.is_some() {
                    // What the failed step left: all of it or nothing.
                    self.head = kept.head().map_err(|error| error.to_string())?;
                }
                let end = kept.append(&self.chain, &self.key, self.head, entries);
                end.map_err(|error| error.to_string())
            }
            Place::Lines(lines) => {
                let mut head = self.head;
                for entry in entries {
                    let number = head.number + 1;
                    let sealed = self.chain.seal(&self.key, number, &head.hash, entry);
                    let sealed = sealed.map_err(|error| error.to_string())?;
                    let mut line = Line::of(&self.chain, number, &sealed).text();
                    if self.trouble.is_some() {
                        // Half a line may stand there.
                        line.insert(0, '\n');
                    }
                    (lines.0)(&line).map_err(|error| format!("cannot write a line: {error}"))?;
                    head = Head {
                        number,
                        hash: sealed.hash,
                    };
                    // The line is out: what follows follows it.
                    self.head = head;
                }
                Ok(head)
            }
        }
    }

    fn tell(&mut self, trouble: Option<&String>) {
        if trouble.is_some() {
            self.metrics.ledger_failed();
        }
        match trouble {
            Some(why) if self.trouble.as_ref() != Some(why) => {
                tracing::error!(
                    reason = "ledger",
                    "{}: {} cannot be written: {why}",
                    self.of.withheld(),
                    self.of.name()
                );
            }
            None if self.trouble.is_some() => tracing::info!("{} can be written again", self.of.name()),
            Some(_) | None => {}
        }
        self.trouble = trouble.cloned();
    }

    /// The store says how far the ledger has come, so that an older file in its place is noticed.
    fn mark(&mut self) {
        self.marked.0 = Instant::now();
        let Place::Directory { store, record, .. } = &mut self.place else {
            return;
        };
        if self.marked.1 == self.head.number {
            return;
        }
        record.mark = Some(Mark {
            number: self.head.number,
            hash: hex(&self.head.hash),
        });
        match store.write(self.of.kind(), record) {
            Ok(()) => self.marked.1 = self.head.number,
            Err(error) => {
                tracing::warn!(reason = "ledger", error = %crate::error_chain(&error), "the end of {} was not noted", self.of.name());
            }
        }
    }

    fn prune(&mut self) {
        let Place::Directory { kept, .. } = &self.place else {
            return;
        };
        let too_many = self.count > self.max_records;
        let due = self.pruned.is_none_or(|at| at.elapsed() >= PRUNE_EVERY);
        if !(due || too_many) || self.trouble.is_some() {
            return;
        }
        let now = self.now();
        let oldest = now.as_secs().saturating_sub(self.retention.as_secs());
        // A tenth more than have to go: not one at a time.
        let surplus = match too_many {
            true => self.count - self.max_records + self.max_records / 10,
            false => 0,
        };
        let mut seen = 0;
        let old = |entry: &Entry, _| {
            seen += 1;
            seen <= surplus || entry.time < oldest
        };
        let told = |through, records| Entry::at(now, Event::Pruned { through, records });
        match kept.prune(&self.chain, &self.key, self.head, old, told) {
            Ok(Some((head, gone))) => {
                self.head = head;
                self.count = (self.count + 1).saturating_sub(gone);
                self.metrics.ledger_head(self.of, head.number);
                self.metrics.ledger_record("pruned");
                // More may be left: another step next time round.
                if too_many {
                    tracing::warn!(
                        reason = "ledger",
                        records = gone,
                        "{} is full: its oldest records are gone",
                        self.of.name()
                    );
                }
            }
            Ok(None) => self.pruned = Some(Instant::now()),
            Err(error) => {
                self.pruned = Some(Instant::now());
                tracing::error!(
                    reason = "ledger",
                    "old records stay after {}: {error}",
                    shown(self.head)
                );
            }
        }
    }
}

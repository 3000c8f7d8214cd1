//! What a replica does next. No clock, no API server: what was found and when it is come in.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::Timing;
use super::contents::Contents;
use super::pair::{Authority, Pair, PairError};

/// CAs that are still published: at most one per settled rotation within the time until withdrawal.
const MAX_OLD: usize = 4;

/// What the API server has.
pub(super) struct Found {
    /// `None`: the Secret is empty, or of no use.
    pub(super) contents: Option<Contents>,
    /// The value of the annotation that asks for a rotation.
    pub(super) rotate: Option<String>,
    /// The `caBundle` of every webhook and API service, `None` where there is none.
    pub(super) bundles: Vec<Option<Vec<u8>>>,
}

/// When it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Seconds since 1970: decides what has expired, and nothing else.
    pub(super) wall: u64,
    /// Since this replica began.
    pub(super) steady: Duration,
}

/// What is new in the Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Founded,
    Restored,
    Expired,
    Prepared,
    Promoted,
    Withdrawn,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Founded => "the first one is made",
            Self::Restored => "what the Secret had lost is written back",
            Self::Expired => "it had expired; a new one takes its place at once",
            Self::Prepared => "the next one is made and its CA published",
            Self::Promoted => "the next one is served",
            Self::Withdrawn => "an old CA is withdrawn",
        })
    }
}

/// What the Secret should hold.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) contents: Contents,
    /// `None`: it does already.
    pub(super) done: Option<Done>,
}

/// What one replica remembers from round to round.
#[derive(Debug)]
pub(super) struct Replica {
    names: BTreeSet<String>,
    timing: Timing,
    held: Option<Contents>,
    /// Since when every target has been seen with the next CA.
    published: Option<(CertificateDer<'static>, Duration)>,
    /// Since when these have been seen as old.
    retired: Vec<(Authority, Duration)>,
}

impl Replica {
    pub(super) fn new(names: Vec<String>, timing: Timing) -> Self {
        Self {
            names: names.into_iter().collect(),
            timing,
            held: None,
            published: None,
            retired: Vec::new(),
        }
    }

    /// This is in the Secret, by us or by another, and is served from now on.
    pub(super) fn adopt(&mut self, contents: Contents) {
        self.held = Some(contents);
    }

    /// The one thing to do now.
    pub(super) fn step(&mut self, found: Found, now: Now) -> Result<Step, PairError> {
        let Some(contents) = found.contents else {
            // Emptied by somebody: what is served is also what is believed.
            return match self.held.clone().filter(|held| held.current.not_after > now.wall) {
                Some(contents) => Ok(Step {
                    contents,
                    done: Some(Done::Restored),
                }),
                None => {
                    let mut contents = self.founded(found.rotate, now)?;
                    contents.old = believed(&found.bundles);
                    Ok(Step {
                        contents,
                        done: Some(Done::Founded),
                    })
                }
            };
        };
        let bundle = contents.bundle();
        let everywhere = !found.bundles.is_empty() && found.bundles.iter().all(|have| have.as_ref() == Some(&bundle));
        self.retire(&contents, now);
        if contents.current.not_after <= now.wall {
            return self.expired(contents, found.rotate, now);
        }
        match &contents.next {
            Some(next) if next.not_after <= now.wall => self.prepared(contents, found.rotate, now),
            Some(next) => {
                let next = next.authority.der.clone();
                if self.settled(next, everywhere, now) {
                    return Ok(promoted(contents));
                }
                Ok(Step { contents, done: None })
            }
            None if self.due(&contents, found.rotate.as_ref(), now) => self.prepared(contents, found.rotate, now),
            None => Ok(self.withdrawn(contents, now)),
        }
    }

    fn founded(&self, rotated: Option<String>, now: Now) -> Result<Contents, PairError> {
        Ok(Contents {
            current: self.mint(now)?,
            next: None,
            old: Vec::new(),
            rotated,
        })
    }

    fn mint(&self, now: Now) -> Result<Pair, PairError> {
        Pair::mint(&self.names, self.timing.life, now.wall)
    }

    /// Nobody believes the current one any more: there is nothing to wait for.
    fn expired(&self, contents: Contents, rotated: Option<String>, now: Now) -> Result<Step, PairError> {
        if contents.next.as_ref().is_some_and(|next| next.not_after > now.wall) {
            return Ok(promoted(contents));
        }
        Ok(Step {
            contents: self.founded(rotated, now)?,
            done: Some(Done::Expired),
        })
    }

    /// Two thirds of its life are over, it has other names than we, or somebody asks.
    fn due(&self, contents: &Contents, rotate: Option<&String>, now: Now) -> bool {
        let left = contents.current.not_after.saturating_sub(now.wall);
        let asked = rotate.is_some() && rotate != contents.rotated.as_ref();
        left <= self.timing.life.as_secs() / 3 || contents.current.names != self.names || asked
    }

    fn prepared(&self, mut contents: Contents, rotate: Option<String>, now: Now) -> Result<Step, PairError> {
        contents.next = Some(self.mint(now)?);
        contents.rotated = rotate.or(contents.rotated);
        Ok(Step {
            contents,
            done: Some(Done::Prepared),
        })
    }

    /// Has every target had the next CA for long enough, as far as this replica has seen?
    fn settled(&mut self, next: CertificateDer<'static>, everywhere: bool, now: Now) -> bool {
        if !everywhere {
            self.published = None;
            return false;
        }
        match &self.published {
            Some((seen, since)) if *seen == next => now.steady.saturating_sub(*since) >= self.timing.settle,
            _ => {
                self.published = Some((next, now.steady));
                false
            }
        }
    }

    fn retire(&mut self, contents: &Contents, now: Now) {
        self.retired.retain(|(seen, _)| contents.old.contains(seen));
        for old in &contents.old {
            if !self.retired.iter().any(|(seen, _)| seen == old) {
                self.retired.push((old.clone(), now.steady));
            }
        }
    }

    fn withdrawn(&self, mut contents: Contents, now: Now) -> Step {
        let over = |old: &Authority| {
            let mut seen = self.retired.iter();
            seen.any(|(seen, since)| seen == old && now.steady.saturating_sub(*since) >= self.timing.withdraw)
        };
        let before = contents.old.len();
        contents.old.retain(|old| !over(old));
        let done = (contents.old.len() < before).then_some(Done::Withdrawn);
        Step { contents, done }
    }
}

/// CAs that the API server believes, while we know nothing: other replicas may serve what they signed. A bundle that
/// cannot be read is of no use to anybody.
fn believed(bundles: &[Option<Vec<u8>>]) -> Vec<Authority> {
    let mut found = Vec::new();
    for authority in bundles
        .iter()
        .flatten()
        .filter_map(|pem| Authority::all(pem).ok())
        .flatten()
    {
        if !found.contains(&authority) {
            found.push(authority);
        }
    }
    let surplus = found.len().saturating_sub(MAX_OLD);
    found.drain(..surplus);
    found
}

fn promoted(mut contents: Contents) -> Step {
    if let Some(next) = contents.next.take() {
        let old = std::mem::replace(&mut contents.current, next);
        contents.old.push(old.authority);
        let surplus = contents.old.len().saturating_sub(MAX_OLD);
        contents.old.drain(..surplus);
    }
    Step {
        contents,
        done: Some(Done::Promoted),
    }
}

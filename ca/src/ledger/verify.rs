//! Checks chains record by record, wherever they come from.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use super::chain::{Anchor, Chain, Hash, Key, LINE_BEGINS, Line, NOTHING};
use super::entry::Entry;
use super::kept::{Head, Kept, KeptError};
use crate::tokens::hex;

/// The longest line of ours: a refusal's message in base64, and room.
const MAX_LINE: u64 = 64 * 1024;

/// How strictly.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// A chain of lines may begin anywhere: whoever collects them may have dropped old ones.
    pub(crate) partial: bool,
}

/// A chain as far as it was found whole.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) chain: Chain,
    pub(crate) first: u64,
    pub(crate) head: Head,
    /// Its contents were read, too.
    pub(crate) opened: bool,
}

/// The first link that does not hold.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{place}: first broken link: {why}")]
    Link { place: String, why: String },
    #[error("cannot read {place}: {why}")]
    Unreadable { place: String, why: String },
}

impl Whole {
    pub(crate) fn shown(&self) -> String {
        let content = match self.opened {
            true => "order and content hold",
            false => "the order holds (contents were not opened)",
        };
        let Self { chain, first, head, .. } = self;
        format!(
            "{chain}: records {first} to {}: {content}; head {}",
            head.number,
            hex(&head.hash)
        )
    }
}

/// Looks at the records of a file of ours; `visit` gets what each says, if there is a key.
pub(crate) fn file(
    place: &Path,
    kept: &Kept,
    key: Option<&Key>,
    mut visit: impl FnMut(&Chain, u64, &Hash, Option<Entry>),
) -> Result<Whole, Broken> {
    let broken = |error: KeptError| match error {
        KeptError::Damaged(why) => Broken::Link {
            place: place.display().to_string(),
            why,
        },
        KeptError::Io(why) => Broken::Unreadable {
            place: place.display().to_string(),
            why,
        },
    };
    let chain = kept.chain().map_err(broken)?;
    if let Some(key) = key {
        of_this_key(&chain, key).map_err(|why| Broken::Unreadable {
            place: place.display().to_string(),
            why,
        })?;
    }
    let mut first = 1;
    let begin = |chain: &Chain, anchor: Option<&Anchor>| {
        let Some(anchor) = anchor else { return Ok(()) };
        first = anchor.number + 1;
        anchored(chain, key, anchor).map_err(KeptError::Damaged)
    };
    let head = kept.walk(u64::MAX, begin, |record| {
        let entry = match key {
            None => None,
            Some(key) => {
                let opened = record.chain.open(key, record.number, &record.before, record.sealed);
                Some(opened.map_err(|why| KeptError::Damaged(format!("record {}: {why}", record.number)))?)
            }
        };
        visit(record.chain, record.number, &record.sealed.hash, entry);
        Ok(())
    });
    let head = head.map_err(broken)?;
    Ok(Whole {
        chain,
        first,
        head,
        opened: key.is_some(),
    })
}

fn anchored(chain: &Chain, key: Option<&Key>, anchor: &Anchor) -> Result<(), String> {
    match key.is_none_or(|key| chain.anchor_holds(key, anchor)) {
        true => Ok(()),
        false => Err("what it says of records that were taken out was not sealed under its key".to_owned()),
    }
}

fn of_this_key(chain: &Chain, key: &Key) -> Result<(), String> {
    let given = key.id();
    if chain.key == given {
        return Ok(());
    }
    Err(format!("it is sealed under key {}, and {given} is given", chain.key))
}

/// Chains in lines, of any number of replicas, in any mixture with other lines.
pub(crate) struct Lines<'a> {
    key: Option<&'a Key>,
    how: How,
    /// By their names.
    chains: BTreeMap<String, Whole>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(key: Option<&'a Key>, how: How) -> Self {
        Self {
            key,
            how,
            chains: BTreeMap::new(),
        }
    }

    /// Every line of a reader; those that are none of ours are passed over.
    pub(crate) fn read(
        &mut self,
        place: &str,
        mut reader: impl BufRead,
        mut visit: impl FnMut(&Chain, u64, &Hash, Option<Entry>),
    ) -> Result<(), Broken> {
        let broken = |why: String| Broken::Link {
            place: place.to_owned(),
            why,
        };
        let mut torn: Option<String> = None;
        let mut number = 0_u64;
        loop {
            number += 1;
            let mut bytes = Vec::new();
            let read = std::io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut bytes);
            let read = read.map_err(|error| Broken::Unreadable {
                place: place.to_owned(),
                why: error.to_string(),
            })?;
            if read == 0 {
                break;
            }
            // A collector may have put a time before it.
            let text = String::from_utf8_lossy(&bytes);
            let Some(text) = text.find(LINE_BEGINS).and_then(|at| text.get(at..)) else {
                continue;
            };
            match Line::parse(text.trim_end()) {
                // Half a line of a disk that was full is no harm if the chain goes on after it.
                Err(why) => torn = torn.or(Some(format!("line {number}: {why}"))),
                Ok(line) => {
                    self.take(&line, &mut visit).map_err(|why| {
                        broken(match &torn {
                            Some(torn) => format!("{torn}; then {why}"),
                            None => why,
                        })
                    })?;
                    torn = None;
                }
            }
        }
        torn.map_or(Ok(()), |why| Err(broken(why)))
    }

    /// The next line of its chain.
    pub(crate) fn take(
        &mut self,
        line: &Line,
        mut visit: impl FnMut(&Chain, u64, &Hash, Option<Entry>),
    ) -> Result<(), String> {
        let chain = &line.chain;
        let name = chain.to_string();
        let found = self.chains.get(&name);
        if let Some(key) = self.key {
            of_this_key(chain, key).map_err(|why| format!("chain {name}: {why}"))?;
        }
        if let Some(anchor) = &line.anchor {
            if found.is_some() {
                return Err(format!("chain {name}: it begins anew within itself"));
            }
            anchored(chain, self.key, anchor).map_err(|why| format!("chain {name}: {why}"))?;
            let head = Head {
                number: anchor.number,
                hash: anchor.hash.0,
            };
            let whole = self.begun(chain, anchor.number + 1, head);
            self.chains.insert(name, whole);
        }
        let Some(record) = &line.record else { return Ok(()) };
        let failed = |why: String| format!("chain {}: record {}: {why}", line.chain, record.number);
        let sealed = record.sealed().map_err(failed)?;
        let name = chain.to_string();
        let before = match self.chains.get(&name).map(|whole| whole.head) {
            // The same line twice, as collectors write them that were restarted.
            Some(head) if head.number == record.number && head.hash == sealed.hash => return Ok(()),
            Some(head) if head.number + 1 == record.number => head.hash,
            Some(head) => return Err(failed(format!("it follows record {}", head.number))),
            None if record.number == 1 => NOTHING,
            None if self.how.partial => {
                // What it follows is not there; it is believed, and what follows it is checked.
                let head = Head {
                    number: record.number,
                    hash: sealed.hash,
                };
                let whole = self.begun(chain, record.number, head);
                self.chains.insert(name, whole);
                return Ok(());
            }
            None => {
                return Err(failed(
                    "it is the first that is there; what it follows is missing (--partial)".to_owned(),
                ));
            }
        };
        if chain.hash(record.number, &before, &sealed) != sealed.hash {
            return Err(failed(
                "it was changed, or does not follow the one before it".to_owned(),
            ));
        }
        let opened = self.key.map(|key| chain.open(key, record.number, &before, &sealed));
        let entry = opened.transpose().map_err(failed)?;
        visit(chain, record.number, &sealed.hash, entry);
        let head = Head {
            number: record.number,
            hash: sealed.hash,
        };
        let fresh = self.begun(chain, record.number, head);
        self.chains.entry(name).or_insert(fresh).head = head;
        Ok(())
    }

    fn begun(&self, chain: &Chain, first: u64, head: Head) -> Whole {
        Whole {
            chain: chain.clone(),
            first,
            head,
            opened: self.key.is_some(),
        }
    }

    pub(crate) fn whole(self) -> impl Iterator<Item = Whole> {
        self.chains.into_values()
    }
}

//! Somebody else's metrics beside our own, in one answer that a scraper can read.
//!
//! A scraper refuses an answer whole for one bad line, so nothing is passed on that has not been read: each line is
//! parsed and written anew. Families under our own prefix are left out: nobody else's figures look like ours.

mod line;
#[cfg(test)]
mod tests;

use std::pin::Pin;

use bytes::Bytes;

use self::line::{Comment, Sample};
use super::{Format, to_text};

/// Names that begin so are ours.
const OURS: &str = "postern_";

/// Gives what is appended to our own metrics.
pub trait Foreign: Send + Sync {
    /// In the wanted format, or in text where only that can be had; `None`: nothing this time.
    fn scrape(&self, wanted: Format) -> Pin<Box<dyn Future<Output = Option<Part>> + Send + '_>>;
}

/// Samples in a format, without [`Format::end`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// How they are written.
    pub format: Format,
    /// The lines.
    pub body: Bytes,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The lines, without [`Format::end`].
    pub text: String,
    /// Samples that were left out: their names look like ours.
    pub dropped: u64,
}

/// A line that is no line of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is no line of an exposition")]
pub struct Malformed {
    /// Counted from 1.
    pub line: usize,
}

/// Reads `body` in the format `from` and writes it as `to`: the same, or text from OpenMetrics. From text there is no way
/// to OpenMetrics (which types a counter by its name): text stays text, whatever `to` says.
pub fn adopt(body: &str, from: Format, to: Format) -> Result<Adopted, Malformed> {
    let to = if from == Format::Text { Format::Text } else { to };
    let mut text = String::with_capacity(body.len());
    let mut dropped = 0;
    let mut ended = false;
    let mut lines = 0;
    for line in body.lines() {
        lines += 1;
        let malformed = Malformed { line: lines };
        if ended {
            return Err(malformed);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if line.starts_with('#') {
            match Comment::parse(line, from) {
                Comment::End => ended = from == Format::OpenMetrics,
                Comment::Metadata { name, line } if !name.starts_with(OURS) => {
                    text.push_str(line);
                    text.push('\n');
                }
                Comment::Metadata { .. } | Comment::Other => {}
            }
            continue;
        }
        let sample = Sample::parse(line, from).ok_or(malformed)?;
        if sample.name.starts_with(OURS) {
            dropped += 1;
        } else {
            sample.write(&mut text, from, to).ok_or(malformed)?;
        }
    }
    if from == Format::OpenMetrics && !ended {
        // Cut short on its way: what is there may be half a line.
        return Err(Malformed { line: lines + 1 });
    }
    if from != to {
        text = to_text(&text);
    }
    Ok(Adopted { text, dropped })
}

//! One session with the module, in a process of its own: whoever started it writes a line of JSON on its standard input, a
//! socket, and reads one back. It ends at the first fault, and with who started it.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::pin;
use crate::token::{Fault, KeyName, MAX_PLAINTEXT, Place, Token};

/// A line: a plaintext or ciphertext, each byte of it in four characters at most, and names.
const MAX_LINE: u64 = 4 * (MAX_PLAINTEXT as u64) + 16 * 1024;

/// A seed in clear.
pub(crate) struct Secret(pub(crate) Zeroizing<Vec<u8>>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(|bytes| Self(Zeroizing::new(bytes)))
    }
}

/// The first line.
#[derive(Serialize, Deserialize)]
pub(crate) struct Opening {
    pub(crate) place: Place,
    pub(crate) wraps: KeyName,
}

/// Every other.
#[derive(Serialize, Deserialize)]
pub(crate) enum Question {
    /// Does the key that wraps do so?
    Status,
    /// Wrap this.
    Wrap(Secret),
    /// Unwrap this, which the key of this name wrapped.
    Unwrap(String, Vec<u8>),
}

/// What is said to each.
#[derive(Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The key that wraps.
    Well(String),
    /// Under which key, and what.
    Wrapped(String, Vec<u8>),
    /// The plaintext.
    Unwrapped(Secret),
}

/// One line; `None`: the other end is gone.
pub(crate) fn hear<T: for<'de> Deserialize<'de>>(from: &mut BufReader<UnixStream>) -> io::Result<Option<T>> {
    let mut line = Zeroizing::new(Vec::new());
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// One line.
pub(crate) fn say(to: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = Zeroizing::new(serde_json::to_vec(what)?);
    line.push(b'\n');
    to.write_all(&line)
}

/// The process.
pub(crate) fn run() -> io::Result<()> {
    // A module that hangs does not see that nobody waits for it any more.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let mut answers = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut questions = BufReader::new(answers.try_clone()?);
    let Some(Opening { place, wraps }) = hear(&mut questions)? else {
        return Ok(());
    };
    let opened = pin::read(&place.pin_file).map_err(Fault::Away);
    let opened = opened.and_then(|pin| Token::open(&place, &pin));
    while let Some(question) = hear::<Question>(&mut questions)? {
        let answer = match &opened {
            Ok(token) => answered(token, &wraps, question),
            Err(fault) => Err(fault.clone()),
        };
        say(&mut answers, &answer)?;
        if answer.is_err() {
            break;
        }
    }
    Ok(())
}

fn answered(token: &Token, wraps: &KeyName, question: Question) -> Result<Answer, Fault> {
    match question {
        Question::Status => Ok(Answer::Well(token.status(wraps)?.to_string())),
        Question::Wrap(plaintext) => {
            let (name, wrapped) = token.wrap(wraps, &plaintext.0)?;
            Ok(Answer::Wrapped(name.to_string(), wrapped))
        }
        Question::Unwrap(key_id, wrapped) => token
            .unwrap(&key_id, &wrapped)
            .map(|plaintext| Answer::Unwrapped(Secret(plaintext))),
    }
}

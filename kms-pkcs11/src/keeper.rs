//! Keeps a session, and starts another when it ends: one thread, so that the token is asked one thing at a time.

use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::pin;
use crate::session::{Answer, Opening, Question, hear, say};
use crate::token::{Fault, KeyName, Place};

/// For one question, a start of the module and its log-in included: an HSM in the network may take its time. Who asks waits
/// less, and asks again.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long who asks waits: the CA gives a plugin 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions that wait; the CA and its replicas ask one at a time.
const MAX_WAITING: usize = 16;

type Asked = (Question, oneshot::Sender<Result<Answer, Fault>>);

/// Asks a token.
#[derive(Clone)]
pub(crate) struct Keeper {
    asks: mpsc::SyncSender<Asked>,
}

impl Keeper {
    /// Starts nothing before the first question.
    pub(crate) fn start(place: Place, wraps: KeyName) -> io::Result<Self> {
        let (asks, asked) = mpsc::sync_channel::<Asked>(MAX_WAITING);
        let mut keeping = Keeping {
            opening: Opening { place, wraps },
            session: None,
            refused: None,
        };
        thread::Builder::new().name("token".to_owned()).spawn(move || {
            for (question, answer) in asked {
                // Nobody waits any more, and who asks again is answered.
                if !answer.is_closed() {
                    let _ = answer.send(keeping.ask(&question));
                }
            }
        })?;
        Ok(Self { asks })
    }

    pub(crate) async fn ask(&self, question: Question) -> Result<Answer, Fault> {
        let (answer, answered) = oneshot::channel();
        let busy = || {
            Fault::Away(format!(
                "the token has not answered within {PATIENCE:?}; it is asked again"
            ))
        };
        self.asks.try_send((question, answer)).map_err(|_| busy())?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }
}

struct Keeping {
    opening: Opening,
    session: Option<Session>,
    /// A PIN that the token refused, as its file was, and what was said.
    refused: Option<(pin::Version, Fault)>,
}

struct Session {
    child: Child,
    socket: UnixStream,
    answers: BufReader<UnixStream>,
    answered: bool,
}

impl Keeping {
    fn ask(&mut self, question: &Question) -> Result<Answer, Fault> {
        let went_well = self.session.as_ref().is_some_and(|session| session.answered);
        match self.ask_once(question) {
            // A session that had been good may just have ended: HSMs end idle ones.
            Err(Fault::Away(_) | Fault::Key(_)) if went_well => self.ask_once(question),
            answer => answer,
        }
    }

    fn ask_once(&mut self, question: &Question) -> Result<Answer, Fault> {
        let pin = pin::version(&self.opening.place.pin_file);
        if let Some((refused, fault)) = &self.refused
            && pin == Some(*refused)
        {
            return Err(fault.clone());
        }
        self.refused = None;
        let session = match &mut self.session {
            Some(session) => session,
            empty => {
                let started = Session::start(&self.opening);
                empty.insert(started.map_err(|error| Fault::Away(format!("cannot start a session: {error}")))?)
            }
        };
        let answer = session.ask(question).unwrap_or_else(|error| Err(session.ended(&error)));
        if let Err(fault) = &answer {
            self.session = None;
            if let (Fault::Pin(_), Some(pin)) = (fault, pin) {
                self.refused = Some((pin, fault.clone()));
            }
        }
        answer
    }
}

impl Session {
    fn start(opening: &Opening) -> io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(DEADLINE))?;
        ours.set_write_timeout(Some(DEADLINE))?;
        // (The file that runs, also once a newer one has taken its name.)
        let child = Command::new("/proc/self/exe")
            .arg("session")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // What a module prints is none of our answers.
            .stdout(Stdio::null())
            .spawn()?;
        let answers = BufReader::new(ours.try_clone()?);
        // From here on it is ended when dropped.
        let mut session = Self {
            child,
            socket: ours.try_clone()?,
            answers,
            answered: false,
        };
        say(&mut ours, opening).inspect_err(|_| session.end())?;
        Ok(session)
    }

    fn ask(&mut self, question: &Question) -> io::Result<Result<Answer, Fault>> {
        say(&mut self.socket, question)?;
        let answer = hear(&mut self.answers)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.answered = true;
        Ok(answer)
    }

    /// What became of a session that does not answer.
    fn ended(&mut self, error: &io::Error) -> Fault {
        let hung = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        self.end();
        Fault::Away(match hung {
            true => format!(
                "the PKCS#11 module did not answer within {DEADLINE:?}; its process was ended, and another is started"
            ),
            false => match self.child.wait() {
                Ok(status) => format!("the PKCS#11 module ended its process ({status}); another is started"),
                Err(error) => format!("the PKCS#11 module's process is gone ({error}); another is started"),
            },
        })
    }

    fn end(&mut self) {
        // Gone already, or of use to nobody.
        let _ = self.child.kill();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
        let _ = self.child.wait();
    }
}

//! The demo on a screen: one loop over keys, pictures and reports; after each of them a frame.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::attack::{Arsenal, Attack, AttackError, Attempt, Probe};
use super::canary::{self, Statuses};
use super::error_chain;
use super::keys::{self, Command};
use super::model::{Model, Stage, Tried};
use super::observe::{self, Pictures};
use super::screen::{self, Theme};
use super::terminal::{self, Terminal, Told};
use super::world::{Plan, World};

/// Gauges run down this smoothly.
const FRAME: Duration = Duration::from_millis(250);
/// How often the services are asked what reached them.
const ASK: Duration = Duration::from_secs(2);
/// The CA answers its operator at once, or it is stuck.
const OPERATOR: Duration = Duration::from_secs(5);
/// Reports that wait for the loop: one attack of each kind, and room.
const WAITING: usize = 16;
/// No end of its own.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a task of ours found out.
enum Report {
    /// With what the services noted afterwards: the verdict is theirs.
    Attacked(Attack, Vec<Attempt>, Statuses),
    /// The services did not say.
    NoVerdict(Attack, String),
    Statuses(Statuses),
}

/// Runs until somebody quits, `duration` is over or a signal comes.
pub(super) async fn run(
    plan: Plan,
    duration: Option<Duration>,
    mut interrupted: watch::Receiver<bool>,
) -> Result<ExitCode, String> {
    let no_terminal = |error: std::io::Error| format!("cannot take the terminal: {error}");
    let mut terminal = Terminal::take().map_err(no_terminal)?;
    let mut keys = terminal::keys().map_err(no_terminal)?;
    let mut shown = Shown {
        terminal: &mut terminal,
        theme: Theme::from_environment(),
        model: Model::new(),
    };
    let Some(world) = start(plan, &mut shown, &mut keys, &mut interrupted).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut live = Live::new(world, shown).await;
    let end = sleep_until(Instant::now() + duration.unwrap_or(FOR_EVER));
    tokio::pin!(end);
    let (mut frames, mut asks) = (interval(FRAME), interval(ASK));
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    asks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        live.draw()?;
        // All branches are cancel-safe: they take whole messages, or nothing.
        tokio::select! {
            told = keys.recv() => match told.map(command) {
                Some(Some(Command::Quit)) | None => break,
                Some(Some(command)) => live.obey(command).await?,
                Some(None) => {}
            },
            Ok(()) = live.pictures.changed() => live.look(),
            Some(report) = live.reports.recv() => live.hear(report),
            _ = frames.tick() => live.check(),
            _ = asks.tick() => live.ask(),
            _ = interrupted.wait_for(|yes| *yes) => break,
            () = &mut end => break,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the world under the eyes of the viewer; `None` if they have left meanwhile.
async fn start(
    plan: Plan,
    shown: &mut Shown<'_>,
    keys: &mut mpsc::Receiver<Told>,
    interrupted: &mut watch::Receiver<bool>,
) -> Result<Option<World>, String> {
    let (progress, mut done) = watch::channel(Vec::new());
    let mut starting = std::pin::pin!(World::start(plan, &progress));
    loop {
        shown.draw()?;
        // All branches are cancel-safe, and `starting` is polled on where it was.
        tokio::select! {
            world = &mut starting => return world.map(Some).map_err(|error| error_chain(&error)),
            Ok(()) = done.changed() => shown.model.stage = Stage::Starting(done.borrow_and_update().clone()),
            told = keys.recv() => match told.map(command) {
                Some(Some(Command::Quit)) | None => return Ok(None),
                Some(Some(Command::Help)) => shown.model.help = !shown.model.help,
                Some(_) => {}
            },
            _ = interrupted.wait_for(|yes| *yes) => return Ok(None),
        }
    }
}

fn command(told: Told) -> Option<Command> {
    match told {
        Told::Key(key) => keys::command(key),
        // The next frame has the new size.
        Told::Resized => None,
    }
}

/// The model and where it is drawn.
struct Shown<'a> {
    terminal: &'a mut Terminal,
    theme: Theme,
    model: Model,
}

impl Shown<'_> {
    fn draw(&mut self) -> Result<(), String> {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.model.now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let (model, theme) = (&self.model, self.theme);
        let drawn = self.terminal.screen().draw(|frame| screen::draw(frame, model, theme));
        drawn.map(|_| ()).map_err(|error| format!("cannot draw: {error}"))
    }
}

/// A running demo. The world is dropped before the terminal is given back: nothing outlives the screen.
struct Live<'a> {
    world: World,
    shown: Shown<'a>,
    pictures: Pictures,
    arsenal: Option<Arsenal>,
    sockets: Vec<(&'static str, PathBuf)>,
    report: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    /// The last fault of the world that was told.
    fault: String,
}

impl<'a> Live<'a> {
    async fn new(world: World, mut shown: Shown<'a>) -> Self {
        let (report, reports) = mpsc::channel(WAITING);
        shown.model.stage = Stage::Running;
        shown.model.ca_runs = true;
        shown.model.policy_file = world.policy_file().display().to_string();
        let mut live = Self {
            pictures: observe::watch(world.view_socket()),
            sockets: world.status_sockets(),
            arsenal: None,
            world,
            shown,
            report,
            reports,
            fault: String::new(),
        };
        match Arsenal::gather(&live.world.authority).await {
            Ok(arsenal) => live.arsenal = Some(arsenal),
            Err(error) => live.note(
                "error",
                format!("mallory has nothing to attack with: {}", error_chain(&error)),
            ),
        }
        live
    }

    fn draw(&mut self) -> Result<(), String> {
        let left = self.arsenal.as_ref().and_then(Arsenal::until_expired);
        self.shown.model.ageing_seconds = left.map(|left| left.as_secs() + 1);
        self.shown.model.ca_runs = self.world.authority.runs();
        self.shown.draw()
    }

    fn note(&mut self, level: &str, text: String) {
        self.shown.model.note(level, text);
    }

    fn look(&mut self) {
        let picture = self.pictures.borrow_and_update().clone();
        if let Some(picture) = picture {
            self.shown.model.take(picture);
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Attacked(attack, attempts, statuses) => {
                let judged = Tried::judged(attempts, &statuses);
                self.shown.model.attacks.insert(attack, judged);
            }
            Report::NoVerdict(attack, why) => self.not_tried(attack, why),
            Report::Statuses(statuses) => self.shown.model.heard(&statuses),
        }
    }

    fn check(&mut self) {
        if let Err(error) = self.world.authority.check() {
            self.world.authority.kill();
            self.note("error", error_chain(&error));
        }
        if let Err(error) = self.world.check() {
            let fault = error_chain(&error);
            if fault != self.fault {
                self.note("error", fault.clone());
                self.fault = fault;
            }
        }
    }

    fn ask(&self) {
        let (sockets, report) = (self.sockets.clone(), self.report.clone());
        tokio::spawn(async move {
            // A service that has ended is told of by `check`.
            if let Ok(statuses) = canary::ask(&sockets).await {
                let _ = report.send(Report::Statuses(statuses)).await;
            }
        });
    }

    async fn obey(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Attack(attack) => {
                self.shown.model.attacks.insert(attack, Tried::Trying);
                self.draw()?;
                self.attack(attack).await;
            }
            Command::KillCa if self.world.authority.runs() => {
                self.world.authority.kill();
                self.note(
                    "warning",
                    "the CA was killed; traffic goes on while certificates last".to_owned(),
                );
            }
            Command::KillCa => self.note("info", "the CA is down already".to_owned()),
            Command::StartCa if self.world.authority.runs() => self.note("info", "the CA runs".to_owned()),
            Command::StartCa => match self.world.authority.serve().await {
                Ok(()) => self.note("info", "the CA was started again".to_owned()),
                Err(error) => self.note("error", error_chain(&error)),
            },
            Command::Rotate => match timeout(OPERATOR, self.world.authority.rotate()).await {
                Ok(Ok(epoch)) => self.note(
                    "info",
                    format!("issuer {epoch} signs now; every certificate is renewed"),
                ),
                Ok(Err(error)) => self.note("error", error_chain(&error)),
                Err(_) => self.note("error", format!("the CA did not answer in {OPERATOR:?}")),
            },
            Command::Help => self.shown.model.help = !self.shown.model.help,
            Command::Quit => {}
        }
        Ok(())
    }

    async fn attack(&mut self, attack: Attack) {
        let prepared = match &mut self.arsenal {
            Some(arsenal) => timeout(OPERATOR, arsenal.prepare(attack, &self.world)).await,
            None => return self.not_tried(attack, "mallory has no certificates".to_owned()),
        };
        let probes = match prepared {
            Ok(Ok(probes)) => probes,
            Ok(Err(error @ AttackError::NotExpiredYet(_))) => {
                // The countdown stays where the verdict will be.
                self.shown.model.attacks.remove(&attack);
                return self.note("info", format!("{}: {error}; press 6 then", attack.title()));
            }
            Ok(Err(error)) => return self.not_tried(attack, error_chain(&error)),
            Err(_) => return self.not_tried(attack, format!("the CA did not answer in {OPERATOR:?}")),
        };
        let (sockets, report) = (self.sockets.clone(), self.report.clone());
        tokio::spawn(async move {
            let attempts = futures_util::future::join_all(probes.into_iter().map(Probe::send)).await;
            let judged = match canary::ask(&sockets).await {
                Ok(statuses) => Report::Attacked(attack, attempts, statuses),
                Err(error) => Report::NoVerdict(attack, error_chain(&error)),
            };
            // Nobody waits for it any more: the demo is ending.
            let _ = report.send(judged).await;
        });
    }

    fn not_tried(&mut self, attack: Attack, why: String) {
        self.note("error", format!("{}: {why}", attack.title()));
        self.shown.model.attacks.insert(attack, Tried::Prevented(why));
    }
}

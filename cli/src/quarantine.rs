//! `postern quarantine`: cut an identity, a pod or a certificate off, see who is, and let them back in.
//!
//! ```text
//! add, lift, list -> whom (names to identities and instances) -> the CA, by its admin socket; then wait until proxies enforce it
//!                                                             -> in a cluster: each replica of the CA, through the API server
//! ```

use std::process::ExitCode;

use postern_api::ca::v1 as pb;
use postern_api::quarantine_wire::subject_to_wire;
use postern_identity::quarantine::{Serial, Subject};
use postern_identity::{Instance, SpiffeId};

use crate::offline::Output;

mod shown;
mod sockets;
mod whom;

use sockets::{Ca, View};
pub(crate) use whom::Known;

#[cfg(feature = "kubernetes")]
use crate::cluster::{ContextArgs, Operator};

/// What is wrong is the caller's, or the mesh does not answer.
const FAILED: u8 = 2;

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Cut somebody off: no certificate, no connection, no request, from now on and everywhere
    Add {
        #[command(flatten)]
        whom: WhomArgs,
        /// Why, for whoever reads the list
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Also what the mesh itself stands on, and who is not known (yet)
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Who is cut off, why, by whom and since when
    List {
        /// How to show it
        #[arg(long, short, value_enum, default_value_t = Output::Text)]
        output: Output,
        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Let somebody back in
    Lift {
        #[command(flatten)]
        whom: WhomArgs,
        #[command(flatten)]
        mesh: MeshArgs,
    },
}

/// Whom: one of these (an instance may be narrowed to one identity).
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("whom").required(true).multiple(true))]
struct WhomArgs {
    /// An identity, all its instances: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT
    #[arg(long, value_name = "SPIFFE-ID", group = "whom", value_parser = id)]
    id: Option<SpiffeId>,
    /// One pod, or one workload of a mesh without Kubernetes: by its instance, which is said
    #[arg(long, value_name = "NAMESPACE/NAME", group = "whom", value_parser = pod, conflicts_with_all = ["id", "instance", "serial"])]
    pod: Option<(String, String)>,
    /// One instance: a pod's UID, or what its join token named
    #[arg(long, value_name = "UID", group = "whom", value_parser = instance, conflicts_with = "serial")]
    instance: Option<Instance>,
    /// One certificate: its serial number, hexadecimal
    #[arg(long, value_name = "HEX", group = "whom", value_parser = serial, conflicts_with = "id")]
    serial: Option<Serial>,
}

/// How to reach the mesh. Without a socket it is the one of a cluster.
#[derive(Debug, clap::Args)]
struct MeshArgs {
    /// Without Kubernetes: the operator's Unix socket of the CA
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_ADMIN_SOCKET")]
    #[cfg_attr(not(feature = "kubernetes"), arg(required = true))]
    admin_socket: Option<std::path::PathBuf>,
    /// The Unix socket of control's view: names are looked up there, and it is said how many proxies enforce what was done
    #[arg(
        long,
        value_name = "PATH",
        env = "POSTERN_CONTROL_VIEW_SOCKET",
        requires = "admin_socket"
    )]
    control: Option<std::path::PathBuf>,
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    context: ContextArgs,
}

/// Who keeps the set.
enum Mesh {
    Sockets {
        ca: Ca,
        view: Option<Box<View>>,
    },
    #[cfg(feature = "kubernetes")]
    Cluster(Box<Operator>),
}

impl Mesh {
    async fn reached(args: MeshArgs) -> Result<Self, String> {
        if let Some(socket) = &args.admin_socket {
            // Control may be what is cut off, or away: it is asked only for names, and who enforces what.
            let view = View::at(args.control.as_deref()).await.unwrap_or_else(|error| {
                eprintln!("postern: going on without control's view: {error}");
                None
            });
            return Ok(Self::Sockets {
                ca: Ca::at(socket).await?,
                view: view.map(Box::new),
            });
        }
        #[cfg(feature = "kubernetes")]
        let reached = Operator::of(&args.context)
            .await
            .map(|operator| Self::Cluster(Box::new(operator)));
        #[cfg(not(feature = "kubernetes"))]
        let reached = Err("--admin-socket says where the CA is".to_owned());
        reached
    }

    /// Who could be meant; `None`: there is nobody to ask.
    async fn known(&self, whom: &WhomArgs) -> Result<Option<Known>, String> {
        match self {
            Self::Sockets { view, .. } => {
                let _ = whom;
                Ok(view.as_ref().map(|view| view.known()))
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster(operator) => match (&whom.pod, &whom.id, &whom.instance) {
                (Some((namespace, _)), _, _) => operator.pods(Some(namespace)).await.map(Some),
                (None, _, Some(_)) => operator.pods(None).await.map(Some),
                (None, Some(id), None) => operator.accounts(id).await,
                (None, None, None) => operator.certificates().await.map(Some),
            },
        }
    }

    async fn list(&mut self) -> Result<pb::QuarantineState, String> {
        match self {
            Self::Sockets { ca, .. } => ca.list().await,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(operator) => operator.list().await,
        }
    }

    async fn add(&mut self, entry: pb::Quarantined, force: bool) -> Result<pb::QuarantineState, String> {
        let request = |by: String| pb::AddQuarantineRequest {
            entry: Some(pb::Quarantined { by, ..entry.clone() }),
            force,
        };
        match self {
            Self::Sockets { ca, .. } => ca.add(request(asking())).await,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(operator) => operator.add(request(operator.user().to_owned())).await,
        }
    }

    async fn lift(&mut self, entry: pb::Quarantined) -> Result<pb::QuarantineState, String> {
        let request = pb::LiftQuarantineRequest { entry: Some(entry) };
        match self {
            Self::Sockets { ca, .. } => ca.lift(request).await,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(operator) => operator.lift(request).await,
        }
    }

    /// How many proxies have put it in force, where that can be seen.
    async fn said_how_far(&mut self, version: u64) -> Result<(), String> {
        match self {
            Self::Sockets { view: None, .. } => Ok(()),
            Self::Sockets { view: Some(view), .. } => {
                let enforced = view.enforced(version).await?;
                println!("in force at {} of {} connected proxies", enforced.by, enforced.of);
                for missing in &enforced.missing {
                    eprintln!("postern: not yet at {missing}; whoever talks to others there is refused by them");
                }
                Ok(())
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster(_) => Ok(()),
        }
    }
}

fn id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text).map_err(|error| error.to_string())
}
fn instance(text: &str) -> Result<Instance, String> {
    Instance::parse(text).map_err(|error| error.to_string())
}
fn serial(text: &str) -> Result<Serial, String> {
    Serial::parse(text).map_err(|error| error.to_string())
}
fn pod(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        Some(_) | None => Err("a pod is named NAMESPACE/NAME".to_owned()),
    }
}

/// Does it, and says what was done.
pub(crate) fn run(args: Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|runtime| runtime.block_on(done(args.command)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("postern: {message}");
            ExitCode::from(FAILED)
        }
    }
}

async fn done(command: Command) -> Result<(), String> {
    match command {
        Command::Add {
            whom,
            reason,
            force,
            mesh,
        } => {
            let mut mesh = Mesh::reached(mesh).await?;
            let known = mesh.known(&whom).await?;
            let (subject, who) = whom.resolved(known.as_ref(), force)?;
            let entry = pb::Quarantined {
                reason,
                ..entry(&subject)
            };
            let state = mesh.add(entry, force).await?;
            let already = if state.changed { "" } else { " already" };
            println!("{who} is cut off{already} (quarantine {})", state.version);
            mesh.said_how_far(state.version).await
        }
        Command::List { output, mesh } => {
            // Whom it knows is nothing to this list, and it may be away.
            let mesh = MeshArgs { control: None, ..mesh };
            let state = Mesh::reached(mesh).await?.list().await?;
            match output {
                Output::Json => println!("{}", shown::json(&state)),
                Output::Text => print!("{}", shown::text(&state)),
            }
            Ok(())
        }
        Command::Lift { whom, mesh } => {
            let mut mesh = Mesh::reached(mesh).await?;
            let known = match whom.pod {
                Some(_) => mesh.known(&whom).await?,
                None => None,
            };
            let subject = whom.listed(known.as_ref(), &mesh.list().await?)?;
            let state = mesh.lift(entry(&subject)).await?;
            println!("{subject} is cut off no longer (quarantine {})", state.version);
            mesh.said_how_far(state.version).await
        }
    }
}

/// Who asks, for the list.
fn asking() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")) {
        Ok(name) if !name.is_empty() => format!("{name} (uid {uid})"),
        Ok(_) | Err(_) => format!("uid {uid}"),
    }
}

fn entry(subject: &Subject) -> pb::Quarantined {
    pb::Quarantined {
        subject: Some(subject_to_wire(subject)),
        ..pb::Quarantined::default()
    }
}

/// What an entry names.
fn subject_of(entry: &pb::Quarantined) -> Option<Subject> {
    postern_api::quarantine_wire::subject_from_wire(entry.subject.as_ref()).ok()
}

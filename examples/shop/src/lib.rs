//! The demo's services. They know nothing of the mesh but the address of an HTTP proxy, as any program does.
//!
//! ```text
//! web  --HTTP-->  cart  --gRPC-->  payments  --TCP (server speaks first)-->  ledger
//!  \--gRPC, unary and streaming-->    ^
//! mallory --HTTP, gRPC, TCP--> cart, payments, ledger        (nobody allows her)
//! ```
//!
//! Each service counts honestly what reached it (`canary`) and what became of its own calls (`load`): the demo's verdicts
//! on attacks come from the former, never from a proxy's word. A status of both is written to whoever connects to the
//! service's Unix socket.
//!
//! In a cluster (examples/kubernetes) they are the image `postern-shop`: the same services, which call each other by name
//! with no proxy named, and beside them [`command`] `call` and `load`, which make single calls and steady ones.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::through::Way;

pub mod canary;
mod cart;
pub mod command;
mod health;
mod ledger;
pub mod load;
mod payments;
mod target;
mod through;

/// Generated from `proto/payments.proto`; see `tests/generated.rs`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod pb {
    include!("gen/shop.v1.rs");
}

/// Generated from `proto/health.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod health_pb {
    include!("gen/grpc.health.v1.rs");
}

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// Calls cart and payments.
    Web,
    /// HTTP/1.1; calls payments.
    Cart,
    /// gRPC; calls ledger.
    Payments,
    /// A TCP line protocol; greets first.
    Ledger,
    /// Calls everybody.
    Mallory,
}

/// Arguments of `postern shop`.
#[derive(Debug, Clone, Parser)]
#[command(about = "One of the demo's services")]
pub struct Args {
    /// Which one.
    pub service: Service,
    /// Where it serves (cart, payments, ledger).
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Its proxy's explicit port; without it and `--by-name`, it makes no calls.
    #[arg(long)]
    pub proxy: Option<SocketAddr>,
    /// Call the others by their names, with no proxy named, as programs in a cluster do.
    #[arg(long, conflicts_with = "proxy")]
    pub by_name: bool,
    /// Unix socket for its status; `@name` is an abstract one, which needs no file system that can be written to.
    #[arg(long)]
    pub status: PathBuf,
    /// Calls a second for each kind of call.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// web: cart's own port, to measure what a call costs without the mesh.
    #[arg(long)]
    pub direct_cart: Option<SocketAddr>,
    /// web: call cart there, past both proxies. What a mesh must not allow; the demo shows that it is noticed.
    #[arg(long)]
    pub insecure_bypass_cart: Option<SocketAddr>,
}

/// Runs a service until it is terminated.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    on_a_runtime(async {
        match serve(args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("shop: {error}");
                ExitCode::FAILURE
            }
        }
    })
}

fn on_a_runtime(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            eprintln!("shop: cannot start a runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> std::io::Result<()> {
    let canary = canary::Canary::default();
    let load = load::Load::default();
    tokio::spawn(canary::serve_status(args.status.clone(), canary.clone(), load.clone()));
    let way = args.proxy.map(Way::Proxy).or(args.by_name.then_some(Way::Names));
    if let Some(way) = way {
        load::start(&args, way, &load);
    }
    let Some(listen) = args.listen else {
        return terminated().await;
    };
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tokio::select! {
        ended = terminated() => ended,
        ended = async {
            match args.service {
                Service::Cart => cart::serve(listener, canary).await,
                Service::Payments => payments::serve(listener, canary).await,
                Service::Ledger => ledger::serve(listener, canary).await,
                Service::Web | Service::Mallory => Err(std::io::Error::other("this service serves nothing")),
            }
        } => ended,
    }
}

async fn terminated() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    terminate.recv().await;
    Ok(())
}

//! `postern explain`: would this request be allowed, and by which rule? Over files, or over what a running control holds, by
//! its socket or through the API server of a cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_api::control::v1 as wire;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::transport;
use postern_control::Mesh;
use postern_control::explain::{Answer, Asked, Offline, Question};
use postern_policy::Verdict;
use serde_json::{Map, Value, json};
use tonic::Code;

use crate::offline::Output;

/// The request is denied.
const DENIED: u8 = 1;
/// The question or the documents are wrong, or it cannot be told.
const CANNOT_TELL: u8 = 2;
/// Control answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// A token's claims past this are a mistake.
const MAX_CLAIMS: u64 = 64 * 1024;
/// What a running control knows itself.
const OF_FILES: [&str; 3] = ["root_namespace", "trust_domain", "trust_domain_alias"];

/// Which request.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("over").required(true))]
#[cfg_attr(feature = "kubernetes", command(mut_args(of_cluster)))]
pub(crate) struct Args {
    /// YAML files, or directories of them: policies, namespaces, workloads
    #[arg(long, value_name = "PATH", num_args = 1.., group = "over")]
    policies: Vec<PathBuf>,
    /// Instead of files: what a running control holds, by the Unix socket of its view
    #[arg(long, value_name = "SOCKET", group = "over", conflicts_with_all = OF_FILES)]
    control: Option<PathBuf>,
    /// Instead of files: what control holds in a cluster, through its API server
    #[cfg(feature = "kubernetes")]
    #[arg(long, group = "over", conflicts_with_all = OF_FILES)]
    cluster: bool,
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    context: crate::cluster::ContextArgs,
    /// Who calls: a SPIFFE ID, NAMESPACE/WORKLOAD, or `plaintext`
    #[arg(long, value_name = "ID|NAMESPACE/WORKLOAD")]
    from: String,
    /// Who is called: a SPIFFE ID, or NAMESPACE/WORKLOAD
    #[arg(long, value_name = "ID|NAMESPACE/WORKLOAD")]
    to: String,
    /// A label of the workload that is called; again for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    to_label: Vec<(String, String)>,
    /// A label of the caller's workload; again for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    from_label: Vec<(String, String)>,
    /// The workload's port (not a Service's)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The HTTP method; without method and path: a stream of bytes
    #[arg(long, requires = "path")]
    method: Option<String>,
    /// The path, as a client would send it
    #[arg(long, requires = "method")]
    path: Option<String>,
    /// The Host, with its port if it has one
    #[arg(long, requires = "method")]
    host: Option<String>,
    /// A field of the request's head; again for more
    #[arg(long, value_name = "NAME:VALUE", value_parser = header, requires = "method")]
    header: Vec<(String, String)>,
    /// A JSON file with the claims of the end user's token
    #[arg(long, value_name = "FILE", requires = "method")]
    claims: Option<PathBuf>,
    /// The address that the connection comes from
    #[arg(long, value_name = "ADDRESS")]
    from_ip: Option<IpAddr>,
    /// The address that is called
    #[arg(long, value_name = "ADDRESS")]
    to_ip: Option<IpAddr>,
    /// The server name of the TLS handshake
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// As of then, not of now (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339)]
    at: Option<SystemTime>,
    #[command(flatten)]
    mesh: Mesh,
    /// How to say it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Which cluster is a question only where one is asked.
#[cfg(feature = "kubernetes")]
fn of_cluster(argument: clap::Arg) -> clap::Arg {
    match argument.get_id().as_str() {
        "kubeconfig" | "context" | "user" => argument.conflicts_with_all(["policies", "control"]),
        _ => argument,
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("is no KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("is no NAME:VALUE")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// Prints the answer. 0: allowed, 1: denied, 2: it cannot be told, or something is wrong.
pub(crate) fn run(args: Args) -> ExitCode {
    let output = args.output;
    match answer(args) {
        Ok(answer) => {
            match output {
                Output::Text => print_text(&answer),
                Output::Json => println!("{}", json!(answer)),
            }
            match answer.verdict {
                Some(Verdict::Allow) => ExitCode::SUCCESS,
                Some(Verdict::Deny) => ExitCode::from(DENIED),
                None => ExitCode::from(CANNOT_TELL),
            }
        }
        Err(why) => {
            match output {
                Output::Text => eprintln!("postern explain: {why}"),
                Output::Json => println!("{}", json!({ "verdict": null, "error": why })),
            }
            ExitCode::from(CANNOT_TELL)
        }
    }
}

fn answer(args: Args) -> Result<Answer, String> {
    if let Some(socket) = args.control.clone() {
        return ask(&socket, &question(args)?);
    }
    #[cfg(feature = "kubernetes")]
    if args.cluster {
        let context = args.context.clone();
        return crate::cluster::ask(&context, question(args)?);
    }
    let offline = Offline::read(&args.policies, &args.mesh);
    let offline = offline.map_err(|error| error.to_string())?;
    let question = question(args)?;
    offline.answer(&question).map_err(|error| error.to_string())
}

/// Asks a running control.
fn ask(socket: &Path, question: &Question) -> Result<Answer, String> {
    let away = |error: &dyn std::error::Error| format!("control at {}: {error}", socket.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| away(&error))?.block_on(async {
        let channel = transport::connect_unix(socket).await.map_err(|error| away(&error))?;
        let question = serde_json::to_string(question).map_err(|error| away(&error))?;
        let mut client = ViewClient::new(channel);
        let asked = client.explain(wire::ExplainRequest { question });
        let answer = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|status| match status.code() {
                Code::InvalidArgument => status.message().to_owned(),
                _ => away(&status),
            })?,
            Err(_) => return Err(format!("control at {} does not answer", socket.display())),
        };
        serde_json::from_str(&answer.into_inner().answer).map_err(|error| away(&error))
    })
}

fn question(args: Args) -> Result<Question, String> {
    let claims = args.claims.as_deref().map(claims).transpose()?;
    let http = args.method.zip(args.path).map(|(method, path)| Asked {
        method,
        path,
        host: args.host,
        headers: args.header,
        claims,
    });
    let labels = |pairs: Vec<(String, String)>| pairs.into_iter().collect::<BTreeMap<_, _>>();
    Ok(Question {
        from: args.from,
        from_labels: labels(args.from_label),
        to: args.to,
        to_labels: labels(args.to_label),
        port: args.port,
        http,
        source_ip: args.from_ip,
        destination_ip: args.to_ip,
        sni: args.sni,
        now: args
            .at
            .map(|at| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
    })
}

fn claims(path: &Path) -> Result<Map<String, Value>, String> {
    let wrong = |why: String| format!("--claims {}: {why}", path.display());
    let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if length > MAX_CLAIMS {
        return Err(wrong(format!(
            "{length} bytes are more than the {MAX_CLAIMS} that claims may have"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    match serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))? {
        Value::Object(claims) => Ok(claims),
        _ => Err(wrong("claims are a JSON object".to_owned())),
    }
}

fn print_text(answer: &Answer) {
    println!("{}", answer.because);
    if let Some(nearest) = &answer.nearest {
        println!("  nearest: {nearest}");
    }
    for asks in &answer.asks {
        println!("  asks {}: {}", asks.provider, asks.rule);
    }
    if let Some(audit) = &answer.audit {
        println!("  audited: {audit}");
    }
    match answer.mode {
        postern_policy::Mode::Protect => {}
        mode if answer.is_at_the_door() => println!("  also in mode {}: no rule is asked", mode.as_str()),
        mode => println!("  mode {}: what is denied is let through all the same", mode.as_str()),
    }
}

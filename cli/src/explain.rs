//! `postern explain`: would this request be allowed, and by which rule? Over files, or over what a running control holds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use postern_control::explain::{Answer, Asked, Offline, Question};
use postern_identity::TrustDomain;
use postern_policy::{Missing, NamedRule, User, Verdict};
use serde_json::{Value, json};

/// The request is denied.
const DENIED: u8 = 1;
/// The question or the documents are wrong, or it cannot be told.
const CANNOT_TELL: u8 = 2;
/// A token's claims past this are a mistake.
const MAX_CLAIMS: u64 = 64 * 1024;

/// Which request.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML files, or directories of them: policies, namespaces, workloads
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    policies: Vec<PathBuf>,
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
    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "postern-system")]
    root_namespace: String,
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// How to say it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
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
                Output::Json => println!("{}", as_json(&answer)),
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
    let offline = Offline::read(&args.policies, &args.root_namespace, &args.trust_domain);
    let offline = offline.map_err(|error| error.to_string())?;
    let question = question(args)?;
    offline.answer(&question).map_err(|error| error.to_string())
}

fn question(args: Args) -> Result<Question, String> {
    let user = args.claims.as_deref().map(claims).transpose()?;
    let http = args.method.zip(args.path).map(|(method, path)| Asked {
        method,
        path,
        host: args.host,
        headers: args.header,
        user,
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
        sni: args.sni.map(|name| name.to_ascii_lowercase()),
        now: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    })
}

fn claims(path: &Path) -> Result<User, String> {
    let wrong = |why: String| format!("--claims {}: {why}", path.display());
    let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if length > MAX_CLAIMS {
        return Err(wrong(format!(
            "{length} bytes are more than the {MAX_CLAIMS} that claims may have"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    match serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))? {
        Value::Object(claims) => User::of_verified(claims).map_err(|error| wrong(error.to_string())),
        _ => Err(wrong("claims are a JSON object".to_owned())),
    }
}

fn print_text(answer: &Answer) {
    println!("{}", answer.because);
    if let Some(explanation) = &answer.explanation {
        if let Some(nearest) = &explanation.nearest {
            println!("  nearest: {nearest}");
        }
        for (provider, rule) in &explanation.asks {
            println!("  asks {provider}: {rule}");
        }
        if let Some(audit) = &explanation.audit {
            println!("  audited: {audit}");
        }
    }
    match answer.mode {
        postern_policy::Mode::Protect => {}
        mode if answer.at_the_door => println!("  also in mode {}: no rule is asked", mode.as_str()),
        mode => println!("  mode {}: what is denied is let through all the same", mode.as_str()),
    }
}

fn as_json(answer: &Answer) -> Value {
    let explanation = answer.explanation.as_ref();
    let missing = |missing: &Missing| json!({ "rule": rule(&missing.rule), "field": missing.field });
    json!({
        "verdict": answer.verdict.map(|verdict| match verdict {
            Verdict::Allow => "allowed",
            Verdict::Deny => "denied",
        }),
        "because": answer.because,
        "mode": answer.mode.as_str(),
        "reason": match explanation {
            Some(explanation) => Some(explanation.reason.as_str()),
            None => answer.at_the_door.then_some("plaintext"),
        },
        "rule": explanation.and_then(|explanation| explanation.by.as_ref()).map(rule),
        "nearest": explanation.and_then(|explanation| explanation.nearest.as_ref()).map(missing),
        "asks": explanation.map_or_else(Vec::new, |explanation| {
            let asks = explanation.asks.iter();
            asks.map(|(provider, by)| json!({ "provider": provider, "rule": rule(by) })).collect()
        }),
        "audit": explanation.and_then(|explanation| explanation.audit.as_ref()).map(rule),
        "hangsOn": explanation.and_then(|explanation| explanation.hangs_on.as_ref()).map(missing),
    })
}

fn rule(rule: &NamedRule) -> Value {
    json!({
        "namespace": rule.namespace,
        "policy": rule.name,
        "index": rule.index,
        "place": rule.place.to_string(),
    })
}

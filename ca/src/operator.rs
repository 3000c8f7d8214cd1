//! The operator's commands: calls to the admin socket of a running CA.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::transport;
use tonic::Status;
use tonic::transport::Channel;

use crate::args::{Output, StatusArgs, TokenCommand};

pub(crate) mod issuer;
pub(crate) mod root;

/// `token create`, `list`, `revoke`.
pub(crate) async fn token(command: TokenCommand) -> Result<(), String> {
    match command {
        TokenCommand::Create {
            admin,
            id,
            instance,
            life,
        } => {
            let life_seconds = u32::try_from(life.as_secs()).unwrap_or(u32::MAX);
            if life_seconds == 0 {
                return Err("a join token lives at least a second".to_owned());
            }
            let request = pb::CreateJoinTokenRequest {
                spiffe_id: id,
                instance,
                life_seconds,
            };
            let made = dial(&admin.admin_socket)
                .await?
                .create_join_token(request)
                .await
                .map_err(said)?;
            println!("{}", made.into_inner().token);
        }
        TokenCommand::List { admin, output } => {
            let answer = dial(&admin.admin_socket)
                .await?
                .list_join_tokens(pb::ListJoinTokensRequest {})
                .await;
            let tokens = answer.map_err(said)?.into_inner().tokens;
            match output {
                Output::Json => println!("{}", serde_json::Value::from_iter(tokens.iter().map(token_json))),
                Output::Text => tokens.iter().for_each(|token| {
                    let state = if token.redeemed { "used" } else { "waiting" };
                    let until = time_of(token.expires_unix);
                    println!(
                        "{}  {state:7}  until {until}  {}  {}",
                        token.id, token.spiffe_id, token.instance
                    );
                }),
            }
        }
        TokenCommand::Revoke { admin, id } => {
            dial(&admin.admin_socket)
                .await?
                .revoke_join_token(pb::RevokeJoinTokenRequest { id })
                .await
                .map_err(said)?;
        }
    }
    Ok(())
}

/// `rotate`.
pub(crate) async fn rotate(admin_socket: PathBuf) -> Result<(), String> {
    let answer = dial(&admin_socket)
        .await?
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .map_err(said)?;
    println!("issuer {} signs", answer.into_inner().issuer_epoch);
    Ok(())
}

/// `status`.
pub(crate) async fn status(args: StatusArgs) -> Result<(), String> {
    let answer = dial(&args.admin.admin_socket)
        .await?
        .status(pb::StatusRequest {})
        .await
        .map_err(said)?;
    let status = answer.into_inner();
    match args.output {
        Output::Json => println!(
            "{}",
            serde_json::json!({
                "trust_domain": status.trust_domain,
                "bundle_sequence": status.bundle_sequence,
                "issuer_epoch": status.issuer_epoch,
                "issuer_not_after": time_of(status.issuer_not_after_unix),
                "root_not_after": time_of(status.root_not_after_unix),
                "issued": status.issued,
                "refused": status.refused,
                "svid_life_seconds": status.svid_life_seconds,
                "root_sha256": status.root_sha256,
                "root_rotation": status.root_rotation.as_ref().map(root::json),
                "brought_issuer": status.brought_issuer.as_ref().map(issuer::json),
            })
        ),
        Output::Text => {
            println!("trust domain  {}", status.trust_domain);
            println!("bundle        {}", status.bundle_sequence);
            println!(
                "issuer        {} until {}",
                status.issuer_epoch,
                time_of(status.issuer_not_after_unix)
            );
            println!(
                "root          {} until {}",
                status.root_sha256,
                time_of(status.root_not_after_unix)
            );
            if let Some(rotation) = &status.root_rotation {
                println!("root rotation {}", root::line(rotation));
            }
            if let Some(brought) = &status.brought_issuer {
                println!("issuers from  {}", issuer::line(brought));
            }
            println!("issued        {}", status.issued);
            println!("refused       {}", status.refused);
            let life = Duration::from_secs(status.svid_life_seconds.into());
            println!("SVID life     {}", humantime::format_duration(life));
        }
    }
    Ok(())
}

pub(crate) async fn dial(socket: &Path) -> Result<AdminClient<Channel>, String> {
    let channel = transport::connect_unix(socket)
        .await
        .map_err(|error| format!("{}; is `postern-ca serve` running?", crate::error_chain(&error)))?;
    Ok(AdminClient::new(channel))
}

pub(crate) fn said(status: Status) -> String {
    status.message().to_owned()
}

fn token_json(token: &pb::JoinToken) -> serde_json::Value {
    serde_json::json!({
        "id": token.id,
        "spiffe_id": token.spiffe_id,
        "instance": token.instance,
        "expires": time_of(token.expires_unix),
        "redeemed": token.redeemed,
    })
}

pub(crate) fn time_of(unix: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or_default());
    humantime::format_rfc3339_seconds(time).to_string()
}
